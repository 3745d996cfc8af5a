// Products of square float64 tiles, as a block of threads computes them: what the CUDA definitions of
// the linear algebra are made of.
//
// All products are A B^T of row-major matrices, so that both operands are read along their rows.
// Matrices are padded to whole tiles, so nothing here checks a bound.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace reapx {

inline constexpr int kTileSide = 64;      // rows and columns of a tile
inline constexpr int kTileThreads = 256;  // of a block
inline constexpr int kTileLine = 16;      // threads along the rows of a tile, and along its columns
inline constexpr int kOwn = 4;  // rows, and columns, of a tile that a thread has: every kTileLine-th
inline constexpr int kStageDepth = 16;  // terms that are staged in shared memory at a time
inline constexpr int kStagePitch = 18;  // a staged row's stride: eight of them lie in different banks
inline constexpr int kTilePitch = 65;   // stride of a whole tile in shared memory, for the same reason

// Doubles of shared memory that a product works in, twice a stage of both operands; a whole tile fits.
inline constexpr int kStageDoubles = 2 * kTileSide * kStagePitch, kRoomDoubles = 2 * kStageDoubles;
static_assert(kRoomDoubles >= kTileSide * kTilePitch && kTileSide == kTileLine * kOwn &&
              kTileThreads == kTileLine * kTileLine);

// A thread's elements of a tile: element [a][b] is in row `row(a)` and column `column(b)`.
struct OwnElements {
  double at[kOwn][kOwn];

  static __device__ int row(int a) { return static_cast<int>(threadIdx.x) / kTileLine + a * kTileLine; }
  static __device__ int column(int b) {
    return static_cast<int>(threadIdx.x) % kTileLine + b * kTileLine;
  }
};

// The elements that a thread copies from global to shared memory, of kStageDepth terms.
struct Carried {
  static constexpr int kPairs = kStageDepth / 2, kLoads = kTileSide * kPairs / kTileThreads;
  double2 a[kLoads], b[kLoads];

  __device__ void load(const double* left, const double* right, int64_t stride) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int index = static_cast<int>(threadIdx.x) + i * kTileThreads;
      const int64_t own = index / kPairs * stride + index % kPairs * 2;
      a[i] = *reinterpret_cast<const double2*>(left + own);
      b[i] = *reinterpret_cast<const double2*>(right + own);
    }
  }
  __device__ void store(double* stage) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int index = static_cast<int>(threadIdx.x) + i * kTileThreads;
      double* to = stage + index / kPairs * kStagePitch + index % kPairs * 2;
      *reinterpret_cast<double2*>(to) = a[i];
      *reinterpret_cast<double2*>(to + kTileSide * kStagePitch) = b[i];
    }
  }
};

__device__ inline void add_staged(const double* stage, OwnElements& sum) {
  const double* left = stage + OwnElements::row(0) * kStagePitch;
  const double* right = stage + (kTileSide + OwnElements::column(0)) * kStagePitch;
#pragma unroll
  for (int t = 0; t < kStageDepth; t += 2) {
    double2 x[kOwn], y[kOwn];
#pragma unroll
    for (int a = 0; a < kOwn; ++a) {
      x[a] = *reinterpret_cast<const double2*>(left + a * kTileLine * kStagePitch + t);
      y[a] = *reinterpret_cast<const double2*>(right + a * kTileLine * kStagePitch + t);
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

// left right^T over `terms` (a multiple of kStageDepth, above 0) columns of two row-major matrices of
// kTileSide rows, both of that stride; each sum runs in ascending order. All threads of the block call
// it; afterwards the room is free.
__device__ inline OwnElements multiply_tiles(const double* left, const double* right, int64_t stride,
                                             int64_t terms, double* room) {
  OwnElements sum = {};
  Carried next;
  next.load(left, right, stride);
  next.store(room);
  __syncthreads();
  for (int64_t t = 0; t < terms; t += kStageDepth) {
    const int64_t half = t / kStageDepth % 2;
    const bool more = t + kStageDepth < terms;
    if (more)
      next.load(left + t + kStageDepth, right + t + kStageDepth,
                stride);  // it arrives while the stage is added
    add_staged(room + half * kStageDoubles, sum);
    if (more) next.store(room + (1 - half) * kStageDoubles);
    __syncthreads();
  }
  return sum;
}

}  // namespace reapx
