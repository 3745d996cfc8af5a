// Tells the thread sanitizer what CUDA puts in order, so that it reports two threads of a launch that
// use one place, one of them writing, with no barrier between: what forward and backward order may both
// survive. In other builds all of this is nothing.
//
// Each thread of a block is one of the sanitizer's "fibers", which nothing orders but the calls below.
// Blocks of a launch are not ordered either, but every fiber costs each barrier: so there are as many
// teams of fibers as a cooperative launch has blocks, each team runs on a thread of its own, where
// __shared__ variables are its own, too, and the blocks of one team count as one after another.
// grid.cpp itself is not watched (CMakeLists.txt); it says what copies do.
#pragma once

#include <cstddef>

#if defined(EMULATED_RACES)
#include <sanitizer/tsan_interface.h>

#include <utility>
#include <vector>

// What compilers call, which gcc has no header for.
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
  // After an error, when they stopped anywhere.
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

  // What the threads [first, first + count) for which takes_part(i) did before comes before what they
  // do from now on. A store forgets who met here before, and who is not among them.
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

  // The same for all blocks of the grid, each of which comes to a place and goes from it. Meetings take
  // two places in turn: a block may come to the next one before another has gone from this one.
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

// What grid.cpp reads and writes for the thread whose fiber this is.
inline void note_read(const void* from, std::size_t bytes) { __tsan_read_range(from, bytes); }
inline void note_write(void* to, std::size_t bytes) { __tsan_write_range(to, bytes); }

// Atomics are relaxed, and order nothing; fences do, all that come later after all that came before.
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
