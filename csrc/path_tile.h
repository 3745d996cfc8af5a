// One tile of a product A^T B on the device. Not part of any contract.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace reapx {

// A tile's, of which each of 16 x 16 threads has 8 x 4 elements: 12 reads of shared memory for 32
// multiply-adds, most of them the same for many lanes.
inline constexpr int kProductRows = 128, kProductColumns = 64, kProductThreads = 256;
inline constexpr int kOwnRows = 8, kOwnColumns = 4, kAcross = 16;  // threads along a row
inline constexpr int kTerms = 16;  // rows of A and B that shared memory holds

struct ProductTile {
  double at[kOwnRows][kOwnColumns] = {};
};

// Where the elements of this thread are within the tile.
__device__ inline int64_t own_row(int i) {
  return static_cast<int64_t>(threadIdx.x) / kAcross * kOwnRows + i;
}
__device__ inline int64_t own_column(int j) {
  return static_cast<int64_t>(threadIdx.x) % kAcross + static_cast<int64_t>(j) * kAcross;
}

// A (terms, rows) and B (terms, columns), of which the tile's part begins at the pointers; less than a
// tile of them may be left. Called by all threads of a block. Terms are added in their order.
struct Factors {
  const double *a, *b;
  int64_t a_stride, b_stride, rows, columns;
};

template <int kWidth>
__device__ void load_terms(double (*to)[kWidth], const double* from, int64_t stride, int64_t terms,
                           int64_t width) {
#pragma unroll 2  // more takes registers that the sums need
  for (int i = static_cast<int>(threadIdx.x); i < kTerms * kWidth; i += kProductThreads) {
    const int k = i / kWidth, j = i % kWidth;
    to[k][j] = k < terms && j < width ? from[k * stride + j] : 0.0;
  }
}

__device__ inline void add_products(ProductTile& sum, const Factors& f, int64_t terms) {
  __shared__ __align__(16) double a[kTerms][kProductRows], b[kTerms][kProductColumns];
  const int row = static_cast<int>(own_row(0)), column = static_cast<int>(own_column(0));
  for (int64_t first = 0; first < terms; first += kTerms) {
    __syncthreads();  // the terms before have been read
    load_terms(a, f.a + first * f.a_stride, f.a_stride, terms - first, f.rows);
    load_terms(b, f.b + first * f.b_stride, f.b_stride, terms - first, f.columns);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kTerms; ++k) {
      double x[kOwnRows], y[kOwnColumns];
#pragma unroll
      for (int i = 0; i < kOwnRows; ++i) x[i] = a[k][row + i];
#pragma unroll
      for (int j = 0; j < kOwnColumns; ++j) y[j] = b[k][column + j * kAcross];
#pragma unroll
      for (int i = 0; i < kOwnRows; ++i)
#pragma unroll
        for (int j = 0; j < kOwnColumns; ++j) sum.at[i][j] += x[i] * y[j];
    }
  }
}

inline int64_t parts_of(int64_t size, int64_t part) { return (size + part - 1) / part; }

}  // namespace reapx
