// Work items: counting them, and finding the task of one where a launch has those of many tasks.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace reapx {

__host__ __device__ constexpr int64_t divide_up(int64_t size, int64_t part) {
  return (size + part - 1) / part;
}

// The index of the last of `count` elements that begins at or before an item; `first` is the member
// that says where an element begins.
template <class T>
__device__ int64_t find_last(const T* from, int64_t count, int64_t T::* first, int64_t item) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (from[middle].*first <= item ? low : high) = middle;
  }
  return low;
}

}  // namespace reapx
