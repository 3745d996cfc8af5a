// Scratch memory of a CUDA kernel, allocated and freed in the order of its stream.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "runtime/cuda/context_cuda.h"
#include "runtime/cuda/cuda_check.h"

namespace reapx {

// Kernels that are launched while it lives may use it, since the stream frees it after them. A buffer
// of 0 elements is null.
template <class T>
class DeviceBuffer {
 public:
  DeviceBuffer(const Context& context, int64_t count) : stream_(context.stream) {
    if (count > 0)
      cuda_check(cudaMallocAsync(reinterpret_cast<void**>(&data_), bytes(count), stream_),
                 "cudaMallocAsync");
  }

  // A copy of values on the host, such as the descriptions of all tasks. The values are in pageable
  // memory, which CUDA has read when the call returns, so they need not outlive it.
  DeviceBuffer(const Context& context, const std::vector<T>& values)
      : DeviceBuffer(context, static_cast<int64_t>(values.size())) {
    if (!values.empty())
      cuda_check(cudaMemcpyAsync(data_, values.data(), bytes(static_cast<int64_t>(values.size())),
                                 cudaMemcpyHostToDevice, stream_),
                 "cudaMemcpyAsync");
  }

  // As for a Context, the next call reports an error.
  ~DeviceBuffer() {
    if (data_) static_cast<void>(cudaFreeAsync(data_, stream_));
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  T* data() const { return data_; }

 private:
  static std::size_t bytes(int64_t count) { return static_cast<std::size_t>(count) * sizeof(T); }

  cudaStream_t stream_;
  T* data_ = nullptr;
};

// Sets every byte of `count` values.
template <class T>
void fill_bytes(const Context& context, T* from, int value, int64_t count) {
  if (count > 0)
    cuda_check(
        cudaMemsetAsync(from, value, static_cast<std::size_t>(count) * sizeof(T), context.stream),
        "cudaMemsetAsync");
}

}  // namespace reapx
