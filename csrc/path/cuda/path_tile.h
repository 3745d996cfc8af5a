// One tile of a product A^T B on the device. Not part of any contract.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace reapx {

// The sizes of a tile. Each of 16 x 16 threads has 8 x 4 of its elements: that is 12 reads of shared
// memory for 32 multiply-adds, and most reads are the same for many lanes.
inline constexpr int kProductRows = 128, kProductColumns = 64, kProductThreads = 256;
inline constexpr int kOwnRows = 8, kOwnColumns = 4, kAcross = 16;  // threads along a row
inline constexpr int kProductTerms = 16;  // rows of A and B that shared memory holds

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

// A (terms, rows) and B (terms, columns), of which the part of the tile begins at the pointers. rows
// and columns are what is left of them there, which may be less than a tile.
struct Factors {
  const double *a, *b;
  int64_t a_stride, b_stride, rows, columns;
};

// The elements that a thread copies from global to shared memory, of kProductTerms rows of kWidth. It
// reads all of them before it writes any, so that it waits for memory once and not for each element.
template <int kWidth>
struct CarriedTerms {
  static constexpr int kRows = kProductThreads / kWidth;  // that the block reads at once
  static_assert(kProductThreads % kWidth == 0 && kProductTerms % kRows == 0);
  double at[kProductTerms / kRows];

  __device__ void read(const double* from, int64_t stride, int64_t terms, int64_t width) {
    const int row = static_cast<int>(threadIdx.x) / kWidth;
    const int column = static_cast<int>(threadIdx.x) % kWidth;
    from += row * stride + column;
#pragma unroll
    for (int i = 0; i < kProductTerms / kRows; ++i)
      at[i] = column < width && row + i * kRows < terms ? from[i * kRows * stride] : 0.0;
  }
  __device__ void write(double (*to)[kWidth]) const {
#pragma unroll
    for (int i = 0; i < kProductTerms / kRows; ++i)
      to[static_cast<int>(threadIdx.x) / kWidth + i * kRows][threadIdx.x % kWidth] = at[i];
  }
};

// sum += A^T B over `terms` rows, added in their order. To be called by all threads of a block.
__device__ inline void add_products(ProductTile& sum, const Factors& f, int64_t terms) {
  __shared__ __align__(16) double a[kProductTerms][kProductRows], b[kProductTerms][kProductColumns];
  const int row = static_cast<int>(own_row(0)), column = static_cast<int>(own_column(0));
  for (int64_t first = 0; first < terms; first += kProductTerms) {
    CarriedTerms<kProductRows> next_a;
    CarriedTerms<kProductColumns> next_b;
    next_a.read(f.a + first * f.a_stride, f.a_stride, terms - first, f.rows);
    next_b.read(f.b + first * f.b_stride, f.b_stride, terms - first, f.columns);
    __syncthreads();  // the terms before have been read
    next_a.write(a);
    next_b.write(b);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kProductTerms; ++k) {
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

}  // namespace reapx
