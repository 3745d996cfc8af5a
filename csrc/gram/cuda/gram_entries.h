// Entries of a product A^T B, summed on tensor cores: what a thread of gram_tile.h does with terms that
// are in shared memory.
//
// Each product of floats is three of TF32 (tensor_core.h). How far a sum may be off, in units of the
// sum of its terms' magnitudes:
//
// - what TF32 leaves of a factor, 2^-23 in one of four factors, and either sign;
// - small*small, up to 2^-22; of either sign, but in squares, where it adds up to 4e-8;
// - cutting off sums of kMmaTerms, up to 2^-23, where positive terms lose about half of that;
// - kFloatTerms / kMmaTerms = 32 additions, each rounded by up to 2^-24, of either sign.
//
// So sums of positive numbers lose 1e-7, and chance adds about as much. Tensor cores of some makes also
// cut off before they add, at one bit or more beyond the largest term, which may double the third. The
// tests want a matrix to be right to 1e-6.
#pragma once

#include "gram/cuda/tensor_core.h"
#include "runtime/cuda/launch.h"

namespace reapx {

namespace {

constexpr int kWarp = 32;
constexpr int kQuad = 4;          // floats that are copied at once, or read at most
constexpr int kFloatTerms = 256;  // longest sum kept in one float32

// A tile of the result is kSide wide and has kWarpsDown x kWarpsAcross warps, of kDown x kOver products
// of a tensor core each: the more these are, the fewer instructions go with each of them. Terms are in
// a ring of stages in shared memory, one row of kPitch floats for each: lanes read four such rows at
// once, eight columns or pairs or quads of each, and 8 more than a multiple of 32 puts them all into
// different banks.
template <int kSide_, int kWarpsDown_, int kWarpsAcross_, int kStages_, int kAhead_>
struct Form {
  static constexpr int kSide = kSide_, kWarpsDown = kWarpsDown_, kWarpsAcross = kWarpsAcross_;
  static constexpr int kDown = kSide / kWarpsDown / kMmaRows,
                       kOver = kSide / kWarpsAcross / kMmaColumns;
  static constexpr int kThreads = kWarpsDown * kWarpsAcross * kWarp;
  static constexpr int kDepth = 32, kStages = kStages_;
  static constexpr int kTogether = kThreads / kDepth;  // threads that copy one term
  static constexpr int kAhead = kAhead_;               // steps of kMmaTerms at once: registers limit it
  static constexpr int kPitch = kSide + 8;
  static constexpr int kStage = 2 * kDepth * kPitch;         // floats: rows of A's columns, then of B's
  static constexpr int kEntries = kSide * kSide / kThreads;  // of the tile, for each thread
  static constexpr int kSlot = kSide * (kSide + 2);  // doubles: a tile, sums of columns, of squares
  static_assert(kDown * kWarpsDown * kMmaRows == kSide && kOver * kWarpsAcross * kMmaColumns == kSide);
  static_assert(kSide % (kTogether * kQuad) == 0 && kSide <= kThreads);
  static_assert(kPitch % 32 == 8 && kDepth % kMmaTerms == 0 && kFloatTerms % kDepth == 0);
};
// Two stages do: a block has the time of a whole stage, and that of its neighbours, for the next copy.
using SmallForm = Form<32, 1, 2, 2, 2>;
using MiddleForm = Form<64, 2, 2, 2, 2>;
using LargeForm = Form<128, 2, 4, 2, 1>;

// Which of a warp's 8*kCount columns is entry i of those that have the `place`th of 8 places in the
// matrices of a tensor core. Any order will do, and in this one a lane reads up to four at once.
template <int kCount>
inline constexpr int kRun = kCount < kQuad ? kCount : kQuad;
template <int kCount>
__device__ constexpr int column_of(int place, int i) {
  return (i / kRun<kCount> * 8 + place) * kRun<kCount> + i % kRun<kCount>;
}

template <int kCount>
__device__ void read_columns(const float* from, int place, float (&to)[kCount]) {
  struct alignas(kRun<kCount> * sizeof(float)) Run {
    float values[kRun<kCount>];
  };
#pragma unroll
  for (int i = 0; i < kCount; i += kRun<kCount>) {
    const Run run = *reinterpret_cast<const Run*>(from + column_of<kCount>(place, i));
#pragma unroll
    for (int j = 0; j < kRun<kCount>; ++j) to[i + j] = run.values[j];
  }
}

// Where a thread is in its tile, and its lane in the matrices of a tensor core.
struct Lane {
  int g, t, down, across;
  template <class F>
  __device__ explicit Lane(F) {
    const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp;
    g = thread % kWarp / 4;
    t = thread % 4;
    down = warp / F::kWarpsAcross;
    across = warp % F::kWarpsAcross;
  }
};

// A sum, high + low. Terms are added to low, and every kFloatTerms of them, settle adds it to high and
// leaves there exactly what high could not take. It is as good as a double, which besides a float32 sum
// would need three registers: for a tile of 128, where threads have 64 sums, too many.
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
template <class F>
__device__ int entry_row(const Lane& lane, int i, int e) {
  return lane.down * kMmaRows * F::kDown + column_of<2 * F::kDown>(lane.g, 2 * i + e / 2);
}
template <class F>
__device__ int entry_column(const Lane& lane, int j, int e) {
  return lane.across * kMmaColumns * F::kOver + column_of<F::kOver>(2 * lane.t + e % 2, j);
}

// A thread's entries of the result: for each of its warp's products, the four of its lane.
template <class F>
struct Entries {
  Sum sums[F::kDown][F::kOver][4];

  __device__ void settle() {
#pragma unroll
    for (int i = 0; i < F::kDown; ++i)
#pragma unroll
      for (int j = 0; j < F::kOver; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i][j][e].settle();
  }

  // give(which of the thread's entries, row, column, value), row and column within the tile.
  template <class Give>
  __device__ void give_all(const Lane& lane, const Give& give) const {
#pragma unroll
    for (int i = 0; i < F::kDown; ++i)
#pragma unroll
      for (int j = 0; j < F::kOver; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          give((i * F::kOver + j) * 4 + e, entry_row<F>(lane, i, e), entry_column<F>(lane, j, e),
               sums[i][j][e].value());
  }
};

// entries += A^T B over kMmaTerms terms, from a and b on. The sum of these begins at zero, so that
// nothing is cut off but by the last of its three products: the other two are smaller by 2^-11.
template <class F>
__device__ void add_terms(const float* a, const float* b, const Lane& lane, Entries<F>& entries) {
  constexpr int down = F::kDown, over = F::kOver;
  float left[2][2 * down], right[2][over], big_b[over][2], small_b[over][2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = (lane.t + 4 * half) * F::kPitch;
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

  template <class F>
  __device__ void add(const float* column) {
    for (int k = 0; k < F::kDepth; ++k) {
      const float value = column[k * F::kPitch];
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
