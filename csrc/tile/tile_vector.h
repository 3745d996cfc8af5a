// Part of the tile core (tile_core.h): vectors of TILE_BYTES bytes.
#pragma once

#include "tile/tile.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace reapx {
namespace {

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(TILE_BYTES)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(TILE_BYTES)));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
constexpr int64_t kLength = TILE_BYTES / sizeof(T);
using Lanes = Vector<double>;
constexpr int64_t kStep = kLength<double>;
static_assert(kLanes % kStep == 0);

template <class T>
inline Vector<T> load(const T* from) {
  Vector<T> value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

template <class T>
inline void store(T* to, Vector<T> value) {
  __builtin_memcpy(to, &value, sizeof value);
}

// The two halves of a float32 vector in float64. (The generic expression takes six instructions where
// one does.)
#if defined(__AVX512DQ__)
inline Lanes low_half(Vector<float> x) { return _mm512_cvtps_pd(_mm512_castps512_ps256(x)); }
inline Lanes high_half(Vector<float> x) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)); }
#elif defined(__AVX2__)
inline Lanes low_half(Vector<float> x) { return _mm256_cvtps_pd(_mm256_castps256_ps128(x)); }
inline Lanes high_half(Vector<float> x) { return _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)); }
#else
inline Lanes low_half(Vector<float> x) {
  Lanes half;
  for (int i = 0; i < kStep; ++i) half[i] = static_cast<double>(x[i]);
  return half;
}
inline Lanes high_half(Vector<float> x) {
  Lanes half;
  for (int i = 0; i < kStep; ++i) half[i] = static_cast<double>(x[kStep + i]);
  return half;
}
#endif

}  // namespace
}  // namespace reapx
