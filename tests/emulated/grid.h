// Blocks of fibers; see cuda_runtime.h. What these functions throw std::logic_error for:
//
// - a barrier of a block, a warp or the grid that not all of its threads reach, or from different
// lines;
// - a shuffle from a lane that does not take part, or a product of matrices by less than a warp;
// - an asynchronous copy of a size or to an address that has no instruction;
// - a write beyond the dynamic shared memory that the launch asked for (with the address sanitizer, a
// read
//   too), or beyond a thread's stack;
// - a grid, a block or shared memory larger than a device takes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace emulated {

inline constexpr int kMostThreads = 1024;     // of a block
inline constexpr int kMostShared = 99 << 10;  // bytes of a block: the least of any device from 8.0 on
inline constexpr int kProcessors = 3;         // so that few blocks are resident: kernels must loop
inline constexpr unsigned kLanes = 32;
inline constexpr unsigned char kUnwritten = 0xff;  // what memory holds that nobody has written

struct Site {
  const char* file;
  int line;
  bool operator==(const Site&) const = default;
};

enum class Exchange { kNothing, kShuffle, kBallot, kLargest, kProduct };

// A lane's parts of matrices A, B and C, as many of the latter as `count`; see ../tensor_core.h.
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
  unsigned source;  // of a shuffle: whose value it wants
  bool same_meeting(const WarpCall& other) const {
    return site == other.site && mask == other.mask && exchange == other.exchange;
  }
};

enum class State { kReady, kAtBlock, kAtWarp, kAtGrid, kDone };

// To shared memory, of the batch that the thread commits as its `batch`th.
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
  std::vector<Copy> copies{};         // not yet done, in the order in which they were asked for
  std::vector<Fragments> products{};  // likewise
  std::size_t batch = 0;              // the one that copies belong to now
};

// The thread whose code runs now.
extern thread_local constinit Fiber* fiber;

// Runs `body` once for each thread of the grid, and returns when all are done.
void run_grid(const cudaLaunchConfig_t& shape, const std::function<void()>& body);

// Wait for all threads of the block; how many of them gave true. For the lanes of the mask; what the
// exchange gives to this lane. For all threads of the grid.
int meet_block(Site site, bool given);
std::uint64_t meet_warp(const WarpCall& call);
void meet_grid(Site site);

// Has a tensor core do the products that the lanes of a warp have asked for, in their order; and does
// them, for `count` lanes that are there. What is wrong, or null.
void multiply_warp(Site site);
const char* multiply_asked(Fiber* lanes, unsigned count);
// What a thread wrote before it is seen by those that pass one later.
void fence();

// Asks for a copy, and does those of all batches but the last few, which are not the open one.
void copy_later(void* to, const void* from, std::size_t bytes, Site site);
void finish_copies(std::size_t batches);

}  // namespace emulated
