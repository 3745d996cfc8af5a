#include <cuda_runtime.h>

#include "context_cuda.h"
#include "cuda_check.h"

namespace reapx {

Context::Context(const Where& where)
    : device(where.first), stream(reinterpret_cast<cudaStream_t>(where.second)) {
  cuda_check(cudaGetDevice(&previous_), "cudaGetDevice");
  if (device != previous_) cuda_check(cudaSetDevice(device), "cudaSetDevice");
}

// A destructor has nobody to tell of an error; the next call on the device that was not set back does.
Context::~Context() {
  if (device != previous_) static_cast<void>(cudaSetDevice(previous_));
}

}  // namespace reapx
