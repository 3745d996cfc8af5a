// The part of asynchronous copies to shared memory that the kernels use; see cuda_runtime.h. A copy is
// made as late as CUDA allows, when its thread waits for it; until then its destination holds 0xff.
#pragma once

#include "cuda_runtime.h"

inline void __pipeline_memcpy_async(void* to, const void* from, std::size_t bytes, EMULATED_HERE) {
  emulated::copy_later(to, from, bytes, {file, line});
}
inline void __pipeline_commit() { ++emulated::fiber->batch; }
inline void __pipeline_wait_prior(std::size_t batches) { emulated::finish_copies(batches); }
