// Products of square float64 tiles, as a block of threads computes them: what the CUDA definitions of
// the linear algebra are made of.
//
// Everything is A B^T of row-major matrices, so that both operands are read along their rows. Matrices
// are padded to whole tiles: nothing here looks at a bound.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace reapx {

inline constexpr int kSide = 64;      // rows and columns of a tile
inline constexpr int kThreads = 256;  // of a block
inline constexpr int kLine = 16;      // threads along a tile's rows, and along its columns
inline constexpr int kOwn = 4;        // rows, and columns, of a tile that a thread owns: every kLine-th
inline constexpr int kDepth = 16;     // terms that are staged in shared memory at a time
inline constexpr int kStaged = 18;    // a staged row's stride: eight of them lie in different banks
inline constexpr int kTilePitch = 65;  // stride of a whole tile in shared memory, for the same reason

// Doubles of shared memory that a product works in, twice a stage of both operands; a whole tile fits.
inline constexpr int kStage = 2 * kSide * kStaged, kRoom = 2 * kStage;
static_assert(kRoom >= kSide * kTilePitch && kSide == kLine * kOwn && kThreads == kLine * kLine);

// A thread's elements of a tile: element [a][b] is in row `row(a)` and column `column(b)`.
struct OwnElements {
  double at[kOwn][kOwn];

  static __device__ int row(int a) { return static_cast<int>(threadIdx.x) / kLine + a * kLine; }
  static __device__ int column(int b) { return static_cast<int>(threadIdx.x) % kLine + b * kLine; }
};

// What a thread carries of kDepth terms from global to shared memory.
struct Carried {
  static constexpr int kPairs = kDepth / 2, kLoads = kSide * kPairs / kThreads;
  double2 a[kLoads], b[kLoads];

  __device__ void load(const double* left, const double* right, int64_t stride) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int index = static_cast<int>(threadIdx.x) + i * kThreads;
      const int64_t place = index / kPairs * stride + index % kPairs * 2;
      a[i] = *reinterpret_cast<const double2*>(left + place);
      b[i] = *reinterpret_cast<const double2*>(right + place);
    }
  }
  __device__ void store(double* stage) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int index = static_cast<int>(threadIdx.x) + i * kThreads;
      double* to = stage + index / kPairs * kStaged + index % kPairs * 2;
      *reinterpret_cast<double2*>(to) = a[i];
      *reinterpret_cast<double2*>(to + kSide * kStaged) = b[i];
    }
  }
};

__device__ inline void add_staged(const double* stage, OwnElements& sum) {
  const double* left = stage + OwnElements::row(0) * kStaged;
  const double* right = stage + (kSide + OwnElements::column(0)) * kStaged;
#pragma unroll
  for (int t = 0; t < kDepth; t += 2) {
    double2 x[kOwn], y[kOwn];
#pragma unroll
    for (int a = 0; a < kOwn; ++a) {
      x[a] = *reinterpret_cast<const double2*>(left + a * kLine * kStaged + t);
      y[a] = *reinterpret_cast<const double2*>(right + a * kLine * kStaged + t);
    }
#pragma unroll
    for (int a = 0; a < kOwn; ++a)
#pragma unroll
      for (int b = 0; b < kOwn; ++b) {
        sum.at[a][b] += x[a].x * y[b].x;
        sum.at[a][b] += x[a].y * y[b].y;
      }
  }
}

// left right^T over `terms` (a multiple of kDepth, above 0) columns of two row-major matrices of kSide
// rows, both of that stride; each sum runs in ascending order. All threads of the block call it;
// afterwards the room is free.
__device__ inline OwnElements multiply_tiles(const double* left, const double* right, int64_t stride,
                                             int64_t terms, double* room) {
  OwnElements sum = {};
  Carried next;
  next.load(left, right, stride);
  next.store(room);
  __syncthreads();
  for (int64_t t = 0; t < terms; t += kDepth) {
    const int64_t half = t / kDepth % 2;
    const bool more = t + kDepth < terms;
    if (more) next.load(left + t + kDepth, right + t + kDepth, stride);  // on its way while it computes
    add_staged(room + half * kStage, sum);
    if (more) next.store(room + (1 - half) * kStage);
    __syncthreads();
  }
  return sum;
}

}  // namespace reapx
