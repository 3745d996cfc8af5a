// Entries of a product A^T B, summed on tensor cores: what a thread of gram_tile.h does with terms that
// are in shared memory.
//
// Each product of floats is computed as three of TF32 (tensor_core.h). The errors of a sum, in units of
// the sum of its terms' magnitudes, are:
//
// - 2^-23 from what TF32 cannot hold of one factor in four, of either sign;
// - up to 2^-22 from small*small, which is left out: of either sign, except in squares, where it adds
//   up to 4e-8;
// - up to 2^-23 from cutting off sums of kMmaTerms; positive terms lose about half of that;
// - up to 2^-24 from rounding each of kSumTerms / kMmaTerms = 32 additions, of either sign.
//
// So sums of positive numbers lose 1e-7, and errors of either sign add about as much. Tensor cores of
// some generations also cut off before they add, at one bit or more beyond the largest term, which may
// double the third error. The tests want a matrix to be right to 1e-6.
#pragma once

#include "gram/cuda/tensor_core.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/warp.h"

namespace reapx {

namespace {

constexpr int kQuad = 4;        // floats that are copied at once, and read at once at most
constexpr int kSumTerms = 256;  // longest sum kept in one float32, as kFloatTerms on the CPU

// How a block computes a tile of the result, of kSide rows and columns. The tile is split among
// kWarpsDown x kWarpsAcross warps, each of which has kDown x kOver products of a tensor core: the more
// of these, the fewer other instructions there are for each. Terms wait in a ring of stages in shared
// memory, with one row of kPitch floats for each term. Lanes read four such rows at once, and eight
// columns, pairs or quads of each; a pitch of 8 more than a multiple of 32 puts all of these into
// different banks.
template <int kSide_, int kWarpsDown_, int kWarpsAcross_, int kStages_, int kAhead_>
struct TileConfig {
  static constexpr int kSide = kSide_, kWarpsDown = kWarpsDown_, kWarpsAcross = kWarpsAcross_;
  static constexpr int kDown = kSide / kWarpsDown / kMmaRows,
                       kOver = kSide / kWarpsAcross / kMmaColumns;
  static constexpr int kThreads = kWarpsDown * kWarpsAcross * kWarp;
  static constexpr int kDepth = 32, kStages = kStages_;
  static constexpr int kTogether = kThreads / kDepth;  // threads that copy one term
  static constexpr int kAhead = kAhead_;  // unrolled steps of kMmaTerms, limited by registers
  static constexpr int kPitch = kSide + 8;
  static constexpr int kStage = 2 * kDepth * kPitch;         // floats: rows of A's columns, then of B's
  static constexpr int kEntries = kSide * kSide / kThreads;  // of the tile, for each thread
  static constexpr int kSlot = kSide * (kSide + 2);  // doubles: a tile, sums of columns, of squares
  static_assert(kDown * kWarpsDown * kMmaRows == kSide && kOver * kWarpsAcross * kMmaColumns == kSide);
  static_assert(kSide % (kTogether * kQuad) == 0 && kSide <= kThreads);
  static_assert(kPitch % 32 == 8 && kDepth % kMmaTerms == 0 && kSumTerms % kDepth == 0);
};
// Two stages are enough: the next copy has the time in which this block, and others on the same
// processor, work through a whole stage.
using SmallTile = TileConfig<32, 1, 2, 2, 2>;
using MiddleTile = TileConfig<64, 2, 2, 2, 2>;
using LargeTile = TileConfig<128, 2, 4, 2, 1>;

// Of a warp's 8*kCount columns, the one that is entry i among those at index `slot` (0..7) in the
// matrices of a tensor core. Any order would do; in this one a lane reads up to four columns at once.
template <int kCount>
inline constexpr int kRun = kCount < kQuad ? kCount : kQuad;
template <int kCount>
__device__ constexpr int column_of(int slot, int i) {
  return (i / kRun<kCount> * 8 + slot) * kRun<kCount> + i % kRun<kCount>;
}

template <int kCount>
__device__ void read_columns(const float* from, int slot, float (&to)[kCount]) {
  struct alignas(kRun<kCount> * sizeof(float)) Run {
    float values[kRun<kCount>];
  };
#pragma unroll
  for (int i = 0; i < kCount; i += kRun<kCount>) {
    const Run run = *reinterpret_cast<const Run*>(from + column_of<kCount>(slot, i));
#pragma unroll
    for (int j = 0; j < kRun<kCount>; ++j) to[i + j] = run.values[j];
  }
}

// The warp of a thread within its tile (down, across), and its lane 4g + t in the matrices of a tensor
// core.
struct Lane {
  int g, t, down, across;
  template <class Config>
  __device__ explicit Lane(Config) {
    const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp;
    g = thread % kWarp / 4;
    t = thread % 4;
    down = warp / Config::kWarpsAcross;
    across = warp % Config::kWarpsAcross;
  }
};

// A sum, high + low. Terms are added to low; after every kSumTerms of them, settle adds low to high and
// keeps in low exactly what high could not hold. This is as accurate as adding float32 sums to a
// double, but takes two registers instead of three, of which a tile of 128 with its 64 sums a thread
// has too few.
struct Sum {
  float high = 0, low = 0;

  __device__ void settle() {
    const float sum = high + low, taken = sum - high;
    low = (high - (sum - taken)) + (low - taken);
    high = sum;
  }
  __device__ double value() const { return static_cast<double>(high) + static_cast<double>(low); }
};

// Row and column within the tile of a thread's entry e of its warp's product (i, j).
template <class Config>
__device__ int entry_row(const Lane& lane, int i, int e) {
  return lane.down * kMmaRows * Config::kDown + column_of<2 * Config::kDown>(lane.g, 2 * i + e / 2);
}
template <class Config>
__device__ int entry_column(const Lane& lane, int j, int e) {
  return lane.across * kMmaColumns * Config::kOver + column_of<Config::kOver>(2 * lane.t + e % 2, j);
}

// A thread's entries of the result: for each of its warp's products, the four of its lane.
template <class Config>
struct Entries {
  Sum sums[Config::kDown][Config::kOver][4];

  __device__ void settle() {
#pragma unroll
    for (int i = 0; i < Config::kDown; ++i)
#pragma unroll
      for (int j = 0; j < Config::kOver; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i][j][e].settle();
  }

  // give(which of the thread's entries, row, column, value), row and column within the tile.
  template <class Give>
  __device__ void give_all(const Lane& lane, const Give& give) const {
#pragma unroll
    for (int i = 0; i < Config::kDown; ++i)
#pragma unroll
      for (int j = 0; j < Config::kOver; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          give((i * Config::kOver + j) * 4 + e, entry_row<Config>(lane, i, e),
               entry_column<Config>(lane, j, e), sums[i][j][e].value());
  }
};

// entries += A^T B over kMmaTerms terms, from a and b on. The sum of these begins at zero, and the two
// small products come first, so that only the last one, which is larger by 2^11, is cut off noticeably.
template <class Config>
__device__ void add_terms(const float* a, const float* b, const Lane& lane, Entries<Config>& entries) {
  constexpr int down = Config::kDown, over = Config::kOver;
  float left[2][2 * down], right[2][over], big_b[over][2], small_b[over][2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = (lane.t + 4 * half) * Config::kPitch;
    read_columns(a + row + lane.down * kMmaRows * down, lane.g, left[half]);
    read_columns(b + row + lane.across * kMmaColumns * over, lane.g, right[half]);
#pragma unroll
    for (int j = 0; j < over; ++j) split(right[half][j], big_b[j][half], small_b[j][half]);
  }
#pragma unroll
  for (int i = 0; i < down; ++i) {
    float big_a[4], small_a[4], sum[over][4] = {};
#pragma unroll
    for (int e = 0; e < 4; ++e) split(left[e / 2][2 * i + e % 2], big_a[e], small_a[e]);
    multiply_add(sum, small_a, big_b);
    multiply_add(sum, big_a, small_b);
    multiply_add(sum, big_a, big_b);
    finish_products();
#pragma unroll
    for (int j = 0; j < over; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) entries.sums[i][j][e].low += sum[j][e];
  }
}

// Sums of one of A's columns and of its squares.
struct ColumnSums {
  Sum total, square;

  template <class Config>
  __device__ void add(const float* column) {
    for (int k = 0; k < Config::kDepth; ++k) {
      const float value = column[k * Config::kPitch];
      total.low += value;
      square.low += value * value;
    }
  }
  __device__ void settle() {
    total.settle();
    square.settle();
  }
};

}  // namespace

}  // namespace reapx
