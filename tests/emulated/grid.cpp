#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cuda_runtime.h"
#include "races.h"
#include "switch.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(from, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(from, bytes)
#endif

// Longer than a block may ask for, so that a write behind what it asked for is noticed.
namespace reapx {
extern thread_local unsigned char all_dynamic_shared[];
constexpr std::size_t kGuard = 256;
alignas(16) thread_local unsigned char all_dynamic_shared[emulated::kMostShared + kGuard];
}  // namespace reapx

thread_local constinit uint3 threadIdx{}, blockIdx{};
thread_local constinit dim3 blockDim{}, gridDim{};

namespace emulated {

thread_local constinit Fiber* fiber = nullptr;

namespace {

constexpr std::size_t kStack = 256 << 10, kStackGuard = 64;
constexpr std::size_t kShared = sizeof reapx::all_dynamic_shared;
constexpr unsigned char kGuardByte = 0xa5;

[[noreturn]] void fail(const std::string& what) { throw std::logic_error("emulated CUDA: " + what); }

std::string describe(Site site) { return std::string(site.file) + ":" + std::to_string(site.line); }

std::string describe(const Fiber& f) {
  return "thread " + std::to_string(f.rank) +
         (f.state == State::kDone ? " has returned" : " waits at " + describe(f.site));
}

// Where the blocks of a cooperative launch meet, each on its own thread.
class Meeting {
 public:
  explicit Meeting(unsigned blocks) : blocks_(blocks) {}

  void wait(Site site) {
    std::unique_lock<std::mutex> lock(mutex_);
    failed_ = failed_ || gone_ > 0 || (waiting_ > 0 && !(site == site_));
    site_ = site;
    const unsigned round = round_;
    if (++waiting_ == blocks_) {
      waiting_ = 0;
      ++round_;
    }
    if (failed_ || round_ != round) changed_.notify_all();
    changed_.wait(lock, [&] { return failed_ || round_ != round; });
    if (failed_) fail("not all blocks of the grid reach the barrier at " + describe(site));
  }
  void leave(bool broken) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++gone_;
    failed_ = failed_ || broken || waiting_ > 0;
    changed_.notify_all();
  }

  // For Team.
  void* place() { return &places_[round_ % 2]; }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  unsigned blocks_, waiting_ = 0, gone_ = 0, round_ = 0;
  bool failed_ = false;
  Site site_{};
  char places_[2] = {};
};

void enter_fiber();

// The stacks are kept from launch to launch, since new memory takes longer than most kernels.
struct Stacks {
  std::unique_ptr<unsigned char[]> memory;
  unsigned size = 0;  // stacks
  Team team{};

  void grow(unsigned to) {
    team.grow(to);
    if (size >= to) return;
    memory.reset(new unsigned char[to * kStack]);
    size = to;
  }
};
thread_local Stacks own_stacks;
Stacks team_stacks[kRaces ? kProcessors : 1];

// The fibers of one block after another.
class Block {
 public:
  Block(const cudaLaunchConfig_t& shape, const std::function<void()>& body, Meeting* meeting,
        Stacks& stacks)
      : shape_(shape), body_(body), meeting_(meeting), stacks_(stacks) {
    stacks_.grow(size_);
  }

  void run(uint3 index) {
    ASAN_UNPOISON_MEMORY_REGION(stacks_.memory.get(), size_ * kStack);
    unsigned char* shared = reapx::all_dynamic_shared;
    std::memset(shared, kUnwritten, shape_.dynamicSmemBytes);
    std::memset(shared + shape_.dynamicSmemBytes, kGuardByte, reapx::kGuard);
    for (unsigned rank = 0; rank < size_; ++rank) prepare(rank);
    blockIdx = index;
    ::blockDim = shape_.blockDim;
    ::gridDim = shape_.gridDim;
    done_ = 0;
    given_ = 0;
    ASAN_POISON_MEMORY_REGION(shared + shape_.dynamicSmemBytes, kShared - shape_.dynamicSmemBytes);
    Block* outer = std::exchange(current, this);
    std::exception_ptr error;
    team().begin_block(size_);
    try {
      while (done_ < size_) turn();
    } catch (...) {
      error = std::current_exception();
    }
    team().end_block(size_);
    if (error) team().forget();
    current = outer;
    fiber = nullptr;
    ASAN_UNPOISON_MEMORY_REGION(shared, kShared);
    if (error) std::rethrow_exception(error);
    check_guards();
  }

  void run_body() {
    body_();
    fiber->state = State::kDone;
    ++done_;
    leave();
  }

  int meet_block(Site site, bool given) {
    given_ += given;
    fiber->site = site;
    fiber->state = State::kAtBlock;
    leave();
    return met_;
  }

  void meet_grid(Site site) {
    fiber->site = site;
    fiber->state = State::kAtGrid;
    leave();
  }

  std::uint64_t meet_warp(const WarpCall& call) {
    Fiber& self = *fiber;
    if ((call.mask >> lane() & 1) == 0)
      return stop("a lane calls with a mask without itself", call.site);
    self.call = call;
    self.site = call.site;
    self.state = State::kAtWarp;
    if (const char* wrong = exchange(self.rank / kWarpLanes * kWarpLanes, call))
      return stop(wrong, call.site);
    if (self.state == State::kAtWarp) leave();
    return self.result;
  }

  // No exception may leave a fiber, so the scheduler throws it.
  std::uint64_t stop(const char* what, Site site) {
    team().leave();  // before the switch, so that its writes count as the scheduler's
    wrong_ = std::string(what) + ", at " + describe(site);
    leave();
    return 0;
  }

  static thread_local constinit Block* current;

 private:
  void prepare(unsigned rank) {
    const dim3 b = shape_.blockDim;
    unsigned char* stack = stacks_.memory.get() + rank * kStack;
    std::memset(stack, kGuardByte, kStackGuard);
    fibers_[rank] = Fiber{{rank % b.x, rank / b.x % b.y, rank / b.x / b.y},
                          rank,
                          State::kReady,
                          {},
                          {},
                          0,
                          new_stack(stack, kStack, enter_fiber)};
  }

  // Lets each fiber that can go on do so once. If none can, they wait for each other.
  void turn() {
    bool moved = false;
    for (unsigned i = 0; i < size_; ++i) {
      Fiber& next = fibers_[backward_ ? size_ - 1 - i : i];
      if (next.state != State::kReady) continue;
      moved = true;
      fiber = &next;
      threadIdx = next.thread;
      team().enter(next.rank);
      switch_stack(&scheduler_, next.stack_pointer);
      if (!wrong_.empty()) fail(wrong_);
    }
    if (!moved) release();
  }

  // All live fibers wait: for the block, or for the grid, unless the kernel is wrong.
  void release() {
    const Fiber* first = nullptr;
    for (const Fiber& f : fibers_)
      if (f.state != State::kDone && !first) first = &f;
    for (const Fiber& f : fibers_)
      if (f.state != first->state || !(f.site == first->site))
        fail("not all threads reach the same barrier: in block " + std::to_string(blockIdx.x) + ", " +
             describe(*first) + ", " + describe(f));
    if (first->state == State::kAtWarp)
      fail("not all lanes of a mask reach it, or their masks differ: " + describe(*first));
    if (first->state == State::kAtGrid) {
      if (!meeting_)
        fail("a barrier of the grid at " + describe(first->site) + " needs LaunchShape::together");
      void* place = meeting_->place();
      team().come(size_, place);
      meeting_->wait(first->site);
      team().go(size_, place);
    } else {
      team().meet(0, size_, [](unsigned) { return true; });
    }
    met_ = std::exchange(given_, 0);
    for (Fiber& f : fibers_) f.state = State::kReady;
  }

  // Once all lanes of the mask are there, gives each its result. Returns what is wrong, or null.
  const char* exchange(unsigned first, const WarpCall& call) {
    const unsigned count = std::min(kWarpLanes, size_ - first);
    const auto takes_part = [&](unsigned l) { return l < count && (call.mask >> l & 1) != 0; };
    unsigned ballot = 0;
    std::uint64_t largest = 0;
    for (unsigned i = 0; i < count; ++i) {
      const unsigned l =
          backward_ ? i
                    : count - 1 - i;  // those that come last are looked at first: mostly one is enough
      const Fiber& f = fibers_[first + l];
      if (!takes_part(l)) continue;
      if (f.state != State::kAtWarp || !f.call.same_meeting(call)) return nullptr;
      ballot |= static_cast<unsigned>(f.call.value != 0) << l;
      largest = std::max(largest, f.call.value);
    }
    if (call.exchange == Exchange::kProduct)
      if (const char* wrong = multiply_asked(&fibers_[first], count)) return wrong;
    if (call.exchange == Exchange::kNothing)  // the other exchanges order no accesses to memory
      team().meet(first, count, takes_part);
    for (unsigned l = 0; l < count; ++l) {
      Fiber& f = fibers_[first + l];
      if (!takes_part(l)) continue;
      f.state = State::kReady;
      if (call.exchange == Exchange::kBallot) f.result = ballot;
      if (call.exchange == Exchange::kLargest) f.result = largest;
      if (call.exchange != Exchange::kShuffle) continue;
      if (!takes_part(f.call.source)) return "a lane shuffles from one that takes no part";
      f.result = fibers_[first + f.call.source].call.value;
    }
    return nullptr;
  }

  // Back to the scheduler, until it is this fiber's turn again.
  void leave() {
    team().leave();
    switch_stack(&fiber->stack_pointer, scheduler_);
  }

  Team& team() { return stacks_.team; }

  void check_guards() {
    const auto whole = [](const unsigned char* from, std::size_t bytes) {
      return std::all_of(from, from + bytes, [](unsigned char byte) { return byte == kGuardByte; });
    };
    if (!whole(reapx::all_dynamic_shared + shape_.dynamicSmemBytes, reapx::kGuard))
      fail("a write behind the " + std::to_string(shape_.dynamicSmemBytes) + " bytes of shared memory");
    for (unsigned rank = 0; rank < size_; ++rank)
      if (!whole(stacks_.memory.get() + rank * kStack, kStackGuard))
        fail("thread " + std::to_string(rank) + " needs more than its stack");
  }

  const cudaLaunchConfig_t& shape_;
  const std::function<void()>& body_;
  Meeting* meeting_;
  Stacks& stacks_;
  bool backward_ = shape_.stream != nullptr;
  unsigned size_ = shape_.blockDim.x * shape_.blockDim.y * shape_.blockDim.z, done_ = 0;
  int given_ = 0, met_ = 0;  // how many gave true at the block's barrier: so far, at the last one
  std::vector<Fiber> fibers_ = std::vector<Fiber>(size_);
  void* scheduler_ = nullptr;
  std::string wrong_;
};

thread_local constinit Block* Block::current = nullptr;

void enter_fiber() { Block::current->run_body(); }

void check_shape(const cudaLaunchConfig_t& shape, std::size_t blocks, bool together) {
  const dim3 b = shape.blockDim, g = shape.gridDim;
  if (std::size_t{b.x} * b.y * b.z > kMostThreads || b.z > 64) fail("a block has too many threads");
  if (g.x > INT32_MAX || g.y > 65535 || g.z > 65535) fail("a grid has too many blocks");
  if (shape.dynamicSmemBytes > kMostShared) fail("a block asks for too much shared memory");
  if (together && blocks > kProcessors) fail("more blocks than run at once");
}

}  // namespace

void run_grid(const cudaLaunchConfig_t& shape, const std::function<void()>& body) {
  const dim3 g = shape.gridDim;
  const std::size_t blocks = std::size_t{g.x} * g.y * g.z;
  const bool together = shape.numAttrs > 0 && shape.attrs[0].val.cooperative != 0;
  check_shape(shape, blocks, together);
  const auto index = [&](std::size_t i) -> uint3 {
    if (shape.stream) i = blocks - 1 - i;
    return {static_cast<unsigned>(i % g.x), static_cast<unsigned>(i / g.x % g.y),
            static_cast<unsigned>(i / g.x / g.y)};
  };
  if (!together && !kRaces) {
    Block block(shape, body, nullptr, own_stacks);
    for (std::size_t i = 0; i < blocks; ++i) block.run(index(i));
    return;
  }
  // A thread for each block, or, where races are looked for, for each team; neighbours are of two
  // teams.
  const std::size_t teams = std::min<std::size_t>(blocks, kProcessors);
  static std::mutex one_launch;
  std::unique_lock<std::mutex> lock(one_launch, std::defer_lock);
  if (kRaces) lock.lock();
  Meeting meeting(static_cast<unsigned>(teams));
  std::vector<std::exception_ptr> errors(teams);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < teams; ++t)
    threads.emplace_back([&, t] {
      try {
        Block block(shape, body, together ? &meeting : nullptr, kRaces ? team_stacks[t] : own_stacks);
        for (std::size_t i = 0; i < blocks; ++i)
          if (const uint3 b = index(i); (b.x + b.y + b.z) % kProcessors == t) block.run(b);
      } catch (...) {
        errors[t] = std::current_exception();
      }
      meeting.leave(errors[t] != nullptr);
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
}

int meet_block(Site site, bool given) { return Block::current->meet_block(site, given); }
std::uint64_t meet_warp(const WarpCall& call) { return Block::current->meet_warp(call); }
void multiply_warp(Site site) { meet_warp({site, 0xffffffff, Exchange::kProduct, 0, 0}); }
void meet_grid(Site site) { Block::current->meet_grid(site); }

void fence() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  note_fence();
}

void copy_later(void* to, const void* from, std::size_t bytes, Site site) {
  const auto places = reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from);
  if ((bytes != 4 && bytes != 8 && bytes != 16) || places % bytes != 0) {
    Block::current->stop("an asynchronous copy is not of 4, 8 or 16 bytes, aligned to as many", site);
    return;
  }
  note_read(from, bytes);  // now or when it is waited for
  note_write(to, bytes);
  std::memset(to, kUnwritten, bytes);
  fiber->copies.push_back({to, from, bytes, fiber->batch});
}

void finish_copies(std::size_t batches) {
  std::vector<Copy>& copies = fiber->copies;
  const auto done = std::find_if(copies.begin(), copies.end(), [&](const Copy& copy) {
    return copy.batch + batches >= fiber->batch;
  });
  for (auto copy = copies.begin(); copy != done; ++copy) {
    note_read(copy->from, copy->bytes);
    note_write(copy->to, copy->bytes);
    std::memcpy(copy->to, copy->from, copy->bytes);
  }
  copies.erase(copies.begin(), done);
}

}  // namespace emulated
