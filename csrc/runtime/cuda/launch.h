// Starting CUDA kernels. This goes through functions of the runtime and not through <<<>>>, which plain
// C++ does not have: the tests compile the kernels for an emulated device.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "runtime/cuda/context_cuda.h"
#include "runtime/cuda/cuda_check.h"

namespace reapx {

struct LaunchShape {
  const char* name;  // of the kernel, for errors
  dim3 grid, block;
  std::size_t shared_bytes = 0;  // of what dynamic_shared points to
  bool together = false;         // runs all blocks at once, so that they may call grid_sync
};

inline constexpr std::size_t kSharedWithoutAsking = 48 << 10;

template <class Kernel>
void ask_for_shared(const LaunchShape& shape, Kernel* kernel) {
  if (shape.shared_bytes > kSharedWithoutAsking)
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shape.shared_bytes)),
               shape.name);
}

// Starts kernel(args...) on the context's stream. With a grid or block of size 0, nothing is launched.
template <class... Formal, class... Actual>
void launch(const Context& context, const LaunchShape& shape, void (*kernel)(Formal...),
            Actual... args) {
  const dim3 g = shape.grid, b = shape.block;
  if (g.x == 0 || g.y == 0 || g.z == 0 || b.x == 0 || b.y == 0 || b.z == 0) return;
  ask_for_shared(shape, kernel);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = g;
  config.blockDim = b;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = context.stream;
  config.attrs = &attribute;
  config.numAttrs = shape.together ? 1 : 0;
  cuda_check(cudaLaunchKernelEx(&config, kernel, static_cast<Formal>(args)...), shape.name);
}

// How many blocks of a launch the device runs at once, which is the most that may call grid_sync.
// Results must not depend on it.
template <class... Formal>
int64_t blocks_at_once(const Context& context, const LaunchShape& shape, void (*kernel)(Formal...)) {
  ask_for_shared(shape, kernel);
  int processors = 0, blocks = 0;
  cuda_check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, context.device),
             "cudaDeviceGetAttribute");
  const int threads = static_cast<int>(shape.block.x * shape.block.y * shape.block.z);
  cuda_check(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shape.shared_bytes),
      shape.name);
  if (blocks == 0) throw BackendFailure(std::string(shape.name) + ": no block fits the device");
  return static_cast<int64_t>(processors) * blocks;
}

// The grid of `count` blocks, which must be fewer than 2^31; more would work on more memory than any
// device has.
inline dim3 blocks_of(int64_t count) {
  if (count > INT32_MAX) throw BackendFailure("a launch of " + std::to_string(count) + " blocks");
  return dim3(static_cast<unsigned>(std::max<int64_t>(count, 0)));
}

// The LaunchShape's shared_bytes, aligned for any type. A kernel has one such array and divides it
// itself.
extern __shared__ __align__(16) unsigned char all_dynamic_shared[];
template <class T>
__device__ T* dynamic_shared() {
  return reinterpret_cast<T*>(all_dynamic_shared);
}

// Waits for every thread of the grid; all of them then see what any wrote before. Only in launches with
// LaunchShape::together.
__device__ inline void grid_sync() { cooperative_groups::this_grid().sync(); }

}  // namespace reapx
