// Errors of the CUDA runtime as C++ exceptions.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "context.h"

namespace reapx {

// Throws BackendFailure with the name of the call, and takes the error away so that it does not show up
// again at somebody else's call.
inline void cuda_check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  throw BackendFailure(std::string(call) + " failed: " + cudaGetErrorString(error));
}

}  // namespace reapx
