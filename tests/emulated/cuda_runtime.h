// The part of CUDA that the kernels use, on the CPU: the same .cu files compile against this header as
// plain C++, so that their logic is tested where there is no GPU. Names mean what they mean in CUDA.
// Only those that the kernels need are here, and float atomics are left out on purpose.
//
// The threads of a block are fibers that take turns: each runs until it waits for others. Blocks run
// one after another, or, in a cooperative launch, each on a thread of its own. The stream says in which
// order: on stream 0 the first block and thread begin, on stream 1 the last ones. A kernel whose result
// depends on that lacks a barrier; the thread sanitizer finds further ones, see races.h. All other work
// on a stream is done at once.
//
// A misuse that real hardware would answer with a hang or with garbage throws std::logic_error: see
// grid.h. Memory that nobody has written holds 0xff, which is NaN or -1.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ thread_local

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

typedef struct CUstream_st* cudaStream_t;
enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidValue,
  cudaErrorMemoryAllocation,
  cudaErrorInvalidDevice
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative };
union cudaLaunchAttributeValue {
  int cooperative;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

#include "grid.h"

extern thread_local constinit uint3 threadIdx, blockIdx;
extern thread_local constinit dim3 blockDim, gridDim;
#define warpSize 32

inline const char* cudaGetErrorString(cudaError_t error) {
  static constexpr const char* names[] = {"no error", "invalid argument", "out of memory",
                                          "invalid device ordinal"};
  return names[error];
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = emulated::kProcessors, cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int threads,
                                                          std::size_t) {
  return *blocks = threads <= emulated::kMostThreads ? 1 : 0, cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int bytes) {
  return bytes <= emulated::kMostShared ? cudaSuccess : cudaErrorInvalidValue;
}

typedef struct CUmemPoolHandle_st* cudaMemPool_t;
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold };
inline cudaError_t cudaDeviceGetMemPool(cudaMemPool_t* pool, int) {
  return *pool = nullptr, cudaSuccess;
}
inline cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value) {
  return std::memset(value, 0, sizeof(std::uint64_t)), cudaSuccess;
}
inline cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) {
  return cudaSuccess;
}

inline cudaError_t cudaMallocAsync(void** memory, std::size_t bytes, cudaStream_t) {
  *memory = std::malloc(bytes);
  if (!*memory) return cudaErrorMemoryAllocation;
  std::memset(*memory, emulated::kUnwritten, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaFreeAsync(void* memory, cudaStream_t) { return std::free(memory), cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
  return std::memset(to, value, bytes), cudaSuccess;
}

template <class... Formal, class... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Formal...),
                               Actual&&... args) {
  const std::tuple<Formal...> passed(std::forward<Actual>(args)...);
  emulated::run_grid(*config, [&] { std::apply(kernel, passed); });
  return cudaSuccess;
}

// ---- What device code calls. ----

// The line of the call, for errors; threads that meet must be at the same one.
#define EMULATED_HERE int line = __builtin_LINE(), const char *file = __builtin_FILE()

inline void __syncthreads(EMULATED_HERE) { emulated::meet_block({file, line}, false); }
inline int __syncthreads_count(int given, EMULATED_HERE) {
  return emulated::meet_block({file, line}, given != 0);
}
inline int __syncthreads_or(int given, EMULATED_HERE) {
  return emulated::meet_block({file, line}, given != 0) > 0;
}
inline int __syncthreads_and(int given, EMULATED_HERE) {
  return emulated::meet_block({file, line}, given == 0) == 0;
}

inline void __threadfence() { emulated::fence(); }
inline void __threadfence_block() { emulated::fence(); }

namespace emulated {
inline unsigned lane() { return fiber->rank % kWarpLanes; }

template <class T>
T shuffle(unsigned mask, T value, unsigned source, Site site) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = meet_warp({site, mask, Exchange::kShuffle, bits, source});
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
// Lanes [first, first + width) that a lane belongs to; a source outside of them is the lane itself.
inline unsigned first_of(int width) {
  return lane() / static_cast<unsigned>(width) * static_cast<unsigned>(width);
}
inline unsigned within(long source, int width) {
  const long first = first_of(width);
  return source < first || source >= first + width ? lane() : static_cast<unsigned>(source);
}
}  // namespace emulated

inline void __syncwarp(unsigned mask = 0xffffffff, EMULATED_HERE) {
  emulated::meet_warp({{file, line}, mask, emulated::Exchange::kNothing, 0, 0});
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATED_HERE) {
  const unsigned from =
      emulated::first_of(width) + static_cast<unsigned>(source) % static_cast<unsigned>(width);
  return emulated::shuffle(mask, value, from, {file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATED_HERE) {
  return emulated::shuffle(mask, value, emulated::within(long{emulated::lane()} + delta, width),
                           {file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATED_HERE) {
  return emulated::shuffle(mask, value, emulated::within(long{emulated::lane()} - delta, width),
                           {file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMULATED_HERE) {
  const long source = emulated::lane() ^ static_cast<unsigned>(bits);
  return emulated::shuffle(mask, value, emulated::within(source, width), {file, line});
}
inline unsigned __ballot_sync(unsigned mask, int given, EMULATED_HERE) {
  return static_cast<unsigned>(
      emulated::meet_warp({{file, line}, mask, emulated::Exchange::kBallot, given != 0, 0}));
}
inline int __any_sync(unsigned mask, int given, EMULATED_HERE) {
  return __ballot_sync(mask, given, line, file) != 0;
}
inline int __all_sync(unsigned mask, int given, EMULATED_HERE) {
  return __ballot_sync(mask, !given, line, file) == 0;
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value, EMULATED_HERE) {
  return static_cast<unsigned>(
      emulated::meet_warp({{file, line}, mask, emulated::Exchange::kLargest, value, 0}));
}

// Integers only, since atomics come in any order, on which sums of floats depend. As in CUDA, they
// order no other accesses.
template <class T>
T atomicAdd(T* place, T value) {
  static_assert(std::is_integral_v<T>, "float atomics make results depend on the order of threads");
  return __atomic_fetch_add(place, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicCAS(T* place, T expected, T value) {
  static_assert(std::is_integral_v<T>);
  __atomic_compare_exchange_n(place, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
template <class T>
T atomicExch(T* place, T value) {
  static_assert(std::is_integral_v<T>);
  return __atomic_exchange_n(place, value, __ATOMIC_RELAXED);
}
template <class T, class Pick>
T emulated_update(T* place, Pick pick) {
  static_assert(std::is_integral_v<T>);
  T old = __atomic_load_n(place, __ATOMIC_RELAXED);
  while (
      !__atomic_compare_exchange_n(place, &old, pick(old), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
template <class T>
T atomicMax(T* place, T value) {
  return emulated_update(place, [&](T old) { return std::max(old, value); });
}
template <class T>
T atomicMin(T* place, T value) {
  return emulated_update(place, [&](T old) { return std::min(old, value); });
}

template <class T>
T __ldg(const T* place) {
  return *place;
}
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return std::countl_zero(static_cast<unsigned>(bits)); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }
inline double __longlong_as_double(long long bits) { return std::bit_cast<double>(bits); }
using std::isfinite;
using std::isinf;
using std::isnan;
using std::max;
using std::min;
