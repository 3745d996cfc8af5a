// Blocks of fibers; see cuda_runtime.h. These functions throw std::logic_error for:
//
// - a barrier of a block, a warp or the grid that not all of its threads reach, or that they reach at
//   different lines;
// - a shuffle from a lane that takes no part, or a product of matrices by less than a warp;
// - an asynchronous copy of a size or to an address for which CUDA has no instruction;
// - a write beyond the dynamic shared memory that the launch asked for, or, with the address sanitizer,
//   a read beyond it; a write beyond a thread's stack;
// - a grid, a block or shared memory larger than a device takes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace emulated {

inline constexpr int kMostThreads = 1024;     // of a block
inline constexpr int kMostShared = 99 << 10;  // bytes of a block: the least of any device from 8.0 on
inline constexpr int kProcessors = 3;         // few, so that kernels have to loop over blocks
inline constexpr unsigned kWarpLanes = 32;
inline constexpr unsigned char kUnwritten = 0xff;  // the bytes of memory that was not written

struct Site {
  const char* file;
  int line;
  bool operator==(const Site&) const = default;
};

enum class Exchange { kNothing, kShuffle, kBallot, kLargest, kProduct };

// The parts that a lane has of matrices A, B and C, with `count` of B and C; see gram/cuda/mma.h.
struct Fragments {
  const float* a;
  const float (*b)[2];
  float (*c)[4];
  int count;
};

// What a thread brings to a meeting of its warp.
struct WarpCall {
  Site site;
  unsigned mask;
  Exchange exchange;
  std::uint64_t value;
  unsigned source;  // of a shuffle: the lane whose value it reads
  bool same_meeting(const WarpCall& other) const {
    return site == other.site && mask == other.mask && exchange == other.exchange;
  }
};

enum class State { kReady, kAtBlock, kAtWarp, kAtGrid, kDone };

// An asynchronous copy to shared memory, of the thread's batch number `batch`.
struct Copy {
  void* to;
  const void* from;
  std::size_t bytes, batch;
};

struct Fiber {
  uint3 thread;
  unsigned rank;  // within the block
  State state;
  Site site;
  WarpCall call;
  std::uint64_t result;
  void* stack_pointer;
  std::vector<Copy> copies{};         // asked for and not yet made, in their order
  std::vector<Fragments> products{};  // likewise
  std::size_t batch = 0;              // that a copy now belongs to
};

// The thread whose code runs now.
extern thread_local constinit Fiber* fiber;

// Runs `body` once for each thread of the grid, and returns when all are done.
void run_grid(const cudaLaunchConfig_t& shape, const std::function<void()>& body);

// Waits for all threads of the block, and returns how many of them gave true; waits for the lanes of
// the mask, and returns what the exchange gives to this lane; waits for all threads of the grid.
int meet_block(Site site, bool given);
std::uint64_t meet_warp(const WarpCall& call);
void meet_grid(Site site);

// Has a tensor core compute the products that the lanes of a warp have asked for, in their order. The
// second function computes them, for `count` lanes, and returns what is wrong, or null.
void multiply_warp(Site site);
const char* multiply_asked(Fiber* lanes, unsigned count);
// Threads that pass a fence later see what this thread wrote before its own.
void fence();

// Asks for a copy; and makes those of all committed batches except the last few.
void copy_later(void* to, const void* from, std::size_t bytes, Site site);
void finish_copies(std::size_t batches);

}  // namespace emulated
