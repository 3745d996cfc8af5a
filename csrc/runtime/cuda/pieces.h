// Work in pieces: how many there are, and whose one of them is, where a launch does the pieces of many.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace reapx {

__host__ __device__ constexpr int64_t divide_up(int64_t size, int64_t part) {
  return (size + part - 1) / part;
}

// The last of `count` that begins at or before a piece, by the member that says where it begins.
template <class T>
__device__ int64_t find_last(const T* from, int64_t count, int64_t T::* first, int64_t piece) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (from[middle].*first <= piece ? low : high) = middle;
  }
  return low;
}

}  // namespace reapx
