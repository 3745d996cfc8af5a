// Part of the tile core (tile_core.h): the inner loops of pair_scan and zero_scan.
#pragma once

#include "tile/tile_vector.h"

namespace reapx {
namespace {

// Doubles that are prefetched ahead: q rows in turn are more streams than the hardware prefetches.
constexpr int64_t kAhead = 128;

// to[i] = sum_a factors[a*width + i] * rows[a][offset + i] for the Vectors vectors from i on, and the
// same with `blocks` at to[width + i].
template <int Vectors>
inline void multiply_taps(int64_t q, const double* const* rows, const double* const* blocks,
                          int64_t offset, const double* factors, int64_t width, int64_t i, double* to) {
  Lanes inner[Vectors] = {}, norm[Vectors] = {};
  for (int64_t a = 0; a < q; ++a)
    for (int v = 0; v < Vectors; ++v) {
      const Lanes factor = load(factors + a * width + i + v * kStep);
      __builtin_prefetch(rows[a] + offset + i + v * kStep + kAhead);
      inner[v] += factor * load(rows[a] + offset + i + v * kStep);
      norm[v] += factor * load(blocks[a] + offset + i + v * kStep);
    }
  for (int v = 0; v < Vectors; ++v) store(to + i + v * kStep, inner[v]);
  for (int v = 0; v < Vectors; ++v) store(to + width + i + v * kStep, norm[v]);
}

// sums[u] = sum_b terms[u*q + b]
inline void add_taps(int64_t q, int64_t units, const double* terms, double* sums) {
  double sum[kLanes] = {};
  for (int64_t b = 0; b < q; ++b)
    for (int64_t u = 0; u < kLanes; ++u) sum[u] += terms[u * q + b];
  for (int64_t u = 0; u < units; ++u) sums[u] = sum[u];
}

void pair_products(int64_t q, int64_t units, const double* const* rows, const double* const* blocks,
                   const double* product, double* inner, double* norms, double* work) {
  if (q == 1) {
    for (int64_t u = 0; u < units; ++u) inner[u] = product[0] * rows[0][u];
    for (int64_t u = 0; u < units; ++u) norms[u] = product[0] * blocks[0][u];
    return;
  }
  const int64_t width = q * kLanes;  // kLanes units: a whole number of vectors for any q
  double* factors = work;            // row a: A[a][0 .. q-1], kLanes times
  double* terms = work + q * width;
  for (int64_t a = 0; a < q; ++a)
    for (int64_t u = 0; u < kLanes; ++u)
      for (int64_t b = 0; b < q; ++b) factors[a * width + u * q + b] = product[a * q + b];
  for (int64_t u = 0; u < units; u += kLanes) {
    const int64_t count = units - u < kLanes ? units - u : kLanes, used = count * q;
    int64_t i = 0;
    for (; i + 4 * kStep <= used; i += 4 * kStep)
      multiply_taps<4>(q, rows, blocks, u * q, factors, width, i, terms);
    for (; i + kStep <= used; i += kStep)
      multiply_taps<1>(q, rows, blocks, u * q, factors, width, i, terms);
    for (; i < used; ++i) {
      double sum = 0.0, norm = 0.0;
      for (int64_t a = 0; a < q; ++a) {
        sum += factors[a * width + i] * rows[a][u * q + i];
        norm += factors[a * width + i] * blocks[a][u * q + i];
      }
      terms[i] = sum;
      terms[width + i] = norm;
    }
    add_taps(q, count, terms, inner + u);
    add_taps(q, count, terms + width, norms + u);
  }
}

inline Lanes pair_errors(double own, double floor, Lanes left, Lanes norms) {
  const Lanes zero{}, infinity = zero + __builtin_inf();
  const Lanes gains = norms <= zero ? zero : left / norms;
  const Lanes errors = own - gains * left;
  const Lanes clamped = errors < floor ? zero + floor : errors;
  return errors - errors == zero ? clamped : infinity;  // false for infinities and NaN
}

void add_pair_errors(int64_t units, double own, double scale, const double* inner,
                     const double* overlaps, const double* norms, double* sums) {
  const double floor = overlaps ? -__builtin_inf() : 0.0;
  const auto add = [&](Lanes h, Lanes r, Lanes k, Lanes s) {
    const Lanes sum = s + scale * pair_errors(own, floor, h - r, k);
    return sum == sum ? sum : Lanes{} + __builtin_inf();
  };
  int64_t u = 0;
  for (; u + kStep <= units; u += kStep)
    store(sums + u, add(load(inner + u), overlaps ? load(overlaps + u) : Lanes{}, load(norms + u),
                        load(sums + u)));
  if (u == units) return;
  Lanes rest[4] = {};
  const unsigned long bytes = static_cast<unsigned long>(units - u) * sizeof(double);
  __builtin_memcpy(&rest[0], inner + u, bytes);
  if (overlaps) __builtin_memcpy(&rest[1], overlaps + u, bytes);
  __builtin_memcpy(&rest[2], norms + u, bytes);
  __builtin_memcpy(&rest[3], sums + u, bytes);
  const Lanes sum = add(rest[0], rest[1], rest[2], rest[3]);
  __builtin_memcpy(sums + u, &sum, bytes);
}

// Takes the least of a block with a few vectors, and looks at a block again only where that is a new
// least.
int64_t find_least(int64_t count, const double* from) {
  constexpr int64_t block = 4 * kLanes;
  int64_t at = -1;
  double least = __builtin_inf();
  for (int64_t first = 0; first < count; first += block) {
    const int64_t last = first + block < count ? first + block : count;
    Lanes best = Lanes{} + least;
    int64_t i = first;
    for (; i + kStep <= last; i += kStep) {
      const Lanes value = load(from + i);
      best = value < best ? value : best;
    }
    bool lower = false;
    for (int64_t v = 0; v < kStep; ++v) lower |= best[v] < least;
    for (; i < last; ++i) lower |= from[i] < least;
    for (i = lower ? first : last; i < last; ++i)
      if (from[i] < least) {
        at = i;
        least = from[i];
      }
  }
  return at;
}

// Magnitudes of floats have the order of their bit patterns without the sign, with NaN above infinity.
typedef int32_t Bits __attribute__((vector_size(TILE_BYTES)));
constexpr int32_t kMagnitude = 0x7fffffff;

template <class T>
inline T bits_at(const float* from) {
  T bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return bits;
}

template <class T>
inline T larger(T a, T b) {
  return a > b ? a : b;
}

template <int Rows>
void max_rows(int64_t columns, const float* from, int64_t stride, float* row_max, float* column_max) {
  Bits best[Rows] = {};
  int64_t j = 0;
  for (; j + kLength<float> <= columns; j += kLength<float>) {
    Bits column = bits_at<Bits>(column_max + j);
    for (int i = 0; i < Rows; ++i) {
      const Bits value = bits_at<Bits>(from + i * stride + j) & kMagnitude;
      best[i] = larger(best[i], value);
      column = larger(column, value);
    }
    __builtin_memcpy(column_max + j, &column, sizeof column);
  }
  for (int i = 0; i < Rows; ++i) {
    int32_t row = bits_at<int32_t>(row_max + i);
    for (int64_t v = 0; v < kLength<float>; ++v) row = larger(row, best[i][v]);
    for (int64_t k = j; k < columns; ++k) {
      const int32_t value = bits_at<int32_t>(from + i * stride + k) & kMagnitude;
      const int32_t column = larger(value, bits_at<int32_t>(column_max + k));
      __builtin_memcpy(column_max + k, &column, sizeof column);
      row = larger(row, value);
    }
    __builtin_memcpy(row_max + i, &row, sizeof row);
  }
}

void max_magnitudes(int64_t rows, int64_t columns, const float* from, int64_t stride, float* row_max,
                    float* column_max) {
  int64_t i = 0;
  for (; i + kTileRows <= rows; i += kTileRows)
    max_rows<kTileRows>(columns, from + i * stride, stride, row_max + i, column_max);
  for (; i < rows; ++i) max_rows<1>(columns, from + i * stride, stride, row_max + i, column_max);
}

}  // namespace
}  // namespace reapx
