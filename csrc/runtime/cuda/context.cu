#include <cuda_runtime.h>

#include <cstdint>

#include "runtime/cuda/context_cuda.h"
#include "runtime/cuda/cuda_check.h"

namespace reapx {

namespace {

// Bytes of scratch that a device may keep from call to call. Its default is none: whenever the host
// waits for the device, which happens after every batch, all scratch goes back to the system, and
// allocating a few hundred megabytes again takes longer than some of the kernels.
constexpr std::uint64_t kKept = std::uint64_t{1} << 30;

void keep_scratch(int device) {
  cudaMemPool_t pool = nullptr;
  std::uint64_t kept = 0;
  cuda_check(cudaDeviceGetMemPool(&pool, device), "cudaDeviceGetMemPool");
  cuda_check(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept),
             "cudaMemPoolGetAttribute");
  if (kept >= kKept) return;  // others use this pool too, and may have chosen more
  kept = kKept;
  cuda_check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept),
             "cudaMemPoolSetAttribute");
}

}  // namespace

Context::Context(const Where& where)
    : device(where.first), stream(reinterpret_cast<cudaStream_t>(where.second)) {
  keep_scratch(device);
  cuda_check(cudaGetDevice(&previous_), "cudaGetDevice");
  if (device != previous_) cuda_check(cudaSetDevice(device), "cudaSetDevice");
}

// A destructor cannot report an error. If the device was not set back, the next call on it fails.
Context::~Context() {
  if (device != previous_) static_cast<void>(cudaSetDevice(previous_));
}

}  // namespace reapx
