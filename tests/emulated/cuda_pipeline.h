// As much of asynchronous copies to shared memory as the kernels use; see cuda_runtime.h. A copy
// happens when its thread waits for it, as late as it may; until then what it writes holds 0xff.
#pragma once

#include "cuda_runtime.h"

inline void __pipeline_memcpy_async(void* to, const void* from, std::size_t bytes, EMULATED_HERE) {
  emulated::copy_later(to, from, bytes, {file, line});
}
inline void __pipeline_commit() { ++emulated::fiber->batch; }
inline void __pipeline_wait_prior(std::size_t batches) { emulated::finish_copies(batches); }
