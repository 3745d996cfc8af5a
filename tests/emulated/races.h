// Tells the thread sanitizer what CUDA puts in order. It then reports two threads of a launch that
// access the same memory, one of them writing, with no barrier in between, even where the results are
// right in forward and backward order. In other builds, everything here does nothing.
//
// Each thread of a block is a "fiber" of the sanitizer, which is ordered by nothing but the calls
// below. Blocks of a launch are not ordered either. But each fiber makes every barrier slower, so there
// are only as many teams of fibers as a cooperative launch has blocks. Each team runs on a thread of
// its own, which has its own __shared__ variables, and the blocks of a team count as ordered one after
// another. grid.cpp itself is not watched (see CMakeLists.txt); it reports the accesses of copies.
#pragma once

#include <cstddef>

#if defined(EMULATED_RACES)
#include <sanitizer/tsan_interface.h>

#include <utility>
#include <vector>

// Functions that compilers call, for which gcc has no header.
extern "C" void __tsan_atomic8_store(volatile char* place, char value, int order);
extern "C" void __tsan_read_range(const void* from, std::size_t bytes);
extern "C" void __tsan_write_range(void* to, std::size_t bytes);

namespace emulated {

inline constexpr bool kRaces = true;

class Team {
 public:
  ~Team() { forget(); }

  void grow(unsigned size) {
    while (fibers_.size() < size) fibers_.push_back(__tsan_create_fiber(0));
  }
  // After an error, when the fibers may have stopped anywhere.
  void forget() {
    for (void* fiber : fibers_) __tsan_destroy_fiber(fiber);
    fibers_.clear();
  }

  void enter(unsigned rank) {
    scheduler_ = __tsan_get_current_fiber();
    switch_to(fibers_[rank]);
  }
  void leave() { switch_to(scheduler_); }

  // A block runs after what this thread did before it, and before what this thread does after it.
  void begin_block(unsigned size) {
    __tsan_release(&block_);
    each(0, size, [&](unsigned) { __tsan_acquire(&block_); });
  }
  void end_block(unsigned size) {
    each(0, size, [&](unsigned) { __tsan_release(&block_); });
    __tsan_acquire(&block_);
  }

  // All that the threads [first, first + count) for which takes_part(i) holds did before is ordered
  // before what they do from now on. The store forgets earlier meetings, whose threads may be others.
  template <class TakesPart>
  void meet(unsigned first, unsigned count, const TakesPart& takes_part) {
    bool begun = false;
    each(first, count, [&](unsigned i) {
      if (!takes_part(i)) return;
      if (std::exchange(begun, true))
        __tsan_release(&met_);
      else
        __tsan_atomic8_store(&met_, 0, __ATOMIC_RELEASE);
    });
    each(first, count, [&](unsigned i) {
      if (takes_part(i)) __tsan_acquire(&met_);
    });
  }

  // The same for all blocks of the grid, each of which arrives and departs. Meetings alternate between
  // two variables, since a block may arrive at the next meeting before another has departed from this
  // one.
  void come(unsigned size, void* place) {
    each(0, size, [&](unsigned) { __tsan_release(place); });
  }
  void go(unsigned size, void* place) {
    each(0, size, [&](unsigned) { __tsan_acquire(place); });
  }

 private:
  static void switch_to(void* fiber) { __tsan_switch_to_fiber(fiber, __tsan_switch_to_fiber_no_sync); }
  template <class Act>
  void each(unsigned first, unsigned count, const Act& act) {
    void* back = __tsan_get_current_fiber();
    for (unsigned i = 0; i < count; ++i) {
      switch_to(fibers_[first + i]);
      act(i);
    }
    switch_to(back);
  }

  std::vector<void*> fibers_;
  void* scheduler_ = nullptr;
  char block_ = 0, met_ = 0;
};

// Reports what grid.cpp reads and writes on behalf of the thread whose fiber this is.
inline void note_read(const void* from, std::size_t bytes) { __tsan_read_range(from, bytes); }
inline void note_write(void* to, std::size_t bytes) { __tsan_write_range(to, bytes); }

// Atomics are relaxed and order nothing. A fence orders all that follows later fences after what came
// before it.
inline char fences = 0;
inline void note_fence() {
  __tsan_acquire(&fences);
  __tsan_release(&fences);
}

}  // namespace emulated

#else

namespace emulated {

inline constexpr bool kRaces = false;

struct Team {
  void grow(unsigned) {}
  void forget() {}
  void enter(unsigned) {}
  void leave() {}
  void begin_block(unsigned) {}
  void end_block(unsigned) {}
  template <class TakesPart>
  void meet(unsigned, unsigned, const TakesPart&) {}
  void come(unsigned, void*) {}
  void go(unsigned, void*) {}
};
inline void note_read(const void*, std::size_t) {}
inline void note_write(void*, std::size_t) {}
inline void note_fence() {}

}  // namespace emulated

#endif
