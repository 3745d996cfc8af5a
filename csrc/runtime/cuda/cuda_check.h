// Errors of the CUDA runtime as C++ exceptions.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "runtime/context.h"

namespace reapx {

// Throws BackendFailure with the name of the call. The error is cleared first, so that later calls of
// other code do not report it again.
inline void cuda_check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  const char* cure =
      error != cudaErrorMemoryAllocation
          ? ""
          : ": give smaller batches, or free what torch holds with torch.cuda.empty_cache()";
  throw BackendFailure(std::string(call) + " failed: " + cudaGetErrorString(error) + cure);
}

}  // namespace reapx
