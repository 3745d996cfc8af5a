// What the CUDA kernels of pair_scan share: tasks and consumers as the device sees them, and what a
// warp computes for one unit.
//
// Example: two units with two taps each, which are features 0 and 1, and 2 and 3; two outputs.
//
//       W = 1 2 1 0      G = 2 1 1 0     packed    unit 0: 1 0 | 2 1     unit 1: 1 1 | 0 3
//           0 1 1 3          1 2 0 1               (for each tap its outputs)
//                            1 0 3 1     products  unit 0: 1 2 | 2 5  = A_0 = W_0 W_0^T
//                            0 1 1 1     blocks    term 0: 2 3, term 1: 1 1, term 2: 1 1, term 3: 2 1
//
// `products` has the terms of a unit next to each other, since one thread reads all of them. `blocks`,
// the diagonal blocks of G, has the units next to each other, since neighbouring threads read the same
// term of neighbouring units. Of the pair 0 -> 1, in which unit 1 emulates unit 0,
//
//   squares <A_0, G_00> = 1*2 + 2*1 + 2*1 + 5*2 = 16
//   inner   <A_0, G_01> = 1*1 + 2*0 + 2*0 + 5*1 = 6
//   norm    <A_0, G_11> = 1*3 + 2*1 + 2*1 + 5*1 = 12
//
// so before any step the gain is 6 / 12 = 0.5 and the error 16 - 0.5 * 6 = 13. That is indeed
// tr(Delta^T G Delta) for Delta with -W_0 on unit 0 and 0.5 W_0 on unit 1: 16 - 6 + 0.25 * 12.
#pragma once

#include <cstdint>
#include <limits>

#include "runtime/cuda/launch.h"
#include "runtime/cuda/warp.h"
#include "runtime/cuda/work_items.h"

namespace reapx::pairs {

inline constexpr int kPairThreads = 256, kPairWarps = kPairThreads / kWarp;  // of a block
// A form is added up in so many parts, one after another by one thread, or at once by several.
inline constexpr int kFormParts = 4;
inline constexpr int kTableRows = 16, kTableColumns = 64;  // of a tile of the table of pairs
inline constexpr int kThreadRows = kTableRows * kTableColumns / kPairThreads;  // that a thread has
inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A consumer as the device sees it. A term, at a * taps + b, is a pair of a tap `a` of one unit and a
// tap `b` of another one. In arrays of (terms, units), `a` is the tap of the unit that the index names.
struct DevicePairConsumer {
  const double* gram;
  double* weight;
  const int64_t* columns;
  double* gains;
  double scale;
  int64_t features, outputs, taps, terms, units;
  int64_t task;                    // the task that it belongs to
  int64_t first_unit, first_tile;  // where its own begin among those of all consumers

  double* packed;    // (units, taps, outputs): W
  double* products;  // (units, terms): A
  double* blocks;    // (terms, units): G_ss
  double* shares;    // (terms, units): W_r W_q^T of the step that is being done
  double* moves;     // (terms, units): a G_sp - G_sq of that step
  double* grown;     // (terms, units): G_sp of that step
  double* inner;     // (units, units): <A_r, G_rs>
  double* norms;     // (units, units): <A_r, G_ss>
  double* overlaps;  // (units, units): R_rs
  double* squares;   // (units,): <A_r, G_rr>
  double* selves;    // (units,): R_rr, a copy, since all tiles of a row read it while R changes
};

// A pair and its error; of two, the lesser is chosen.
struct alignas(16) BestPair {
  double error;
  int64_t pair;  // q * units + p
};
inline constexpr int64_t kNoPair = std::numeric_limits<int64_t>::max();

// A task as the device sees it. The work items are strips of its table of pairs.
struct DevicePairTask {
  int64_t units, steps;
  int64_t first_consumer, last_consumer;
  int64_t first_item;       // where its own begin among those of all tasks
  int64_t strips, columns;  // items along a row of the table, and the columns of each
  int64_t items;
  double* table;
  int64_t *removed, *partner;
  double* errors;
  int* alive;      // (units,): 1, or 0 for units that are removed
  BestPair* best;  // (items,): of each item
};

// All tasks and consumers of a call, on the device, and the counts that launches are sized by.
struct PairPlan {
  const DevicePairTask* tasks;
  const DevicePairConsumer* consumers;
  int64_t task_count, consumer_count;
  int64_t units;  // of all consumers
  int64_t tiles;  // of all weights
  int64_t items;  // of all tasks
  int64_t steps;  // of the task with the most
};

// The steps of all tasks, after the first look.
void take_steps(const PairPlan& plan, const Context& context);

__device__ inline double sum_warp(double value) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAllLanes, value, lanes);
  return value;
}

__device__ inline BestPair lesser(BestPair a, BestPair b) {
  return a.error < b.error || (a.error == b.error && a.pair < b.pair) ? a : b;
}

__device__ inline BestPair least_of_warp(BestPair best) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
    best = lesser(best, {__shfl_xor_sync(kAllLanes, best.error, lanes),
                         __shfl_xor_sync(kAllLanes, best.pair, lanes)});
  return best;
}

// W of a unit, [tap * outputs + output], or what it becomes when another unit joins it.
struct UnitWeights {
  const double *own, *joined;  // the latter null where nothing joins
  double gain;
  __device__ double at(int64_t i) const { return joined ? own[i] + gain * joined[i] : own[i]; }
};

__device__ inline UnitWeights weights_of(const DevicePairConsumer& c, int64_t unit) {
  return {c.packed + unit * c.taps * c.outputs, nullptr, 0.0};
}

// W_p + a W_q. Nothing joins at a gain of 0, where 0 * inf would be NaN.
__device__ inline UnitWeights joined_weights(const DevicePairConsumer& c, int64_t p, int64_t q,
                                             double gain) {
  return {weights_of(c, p).own, gain != 0.0 ? weights_of(c, q).own : nullptr, gain};
}

// The products of all taps of two units, by a warp. The lane term % kWarp gets the product of a term,
// as keep(term, product). kTaps * kTaps of them are summed at a time, so that each value that is read
// is used kTaps times.
template <int kTaps, class Keep>
__device__ void multiply_units(const DevicePairConsumer& c, const UnitWeights& left,
                               const UnitWeights& right, const Keep& keep) {
  const int64_t taps = c.taps, outputs = c.outputs;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int64_t a = 0; a < taps; a += kTaps)
    for (int64_t b = 0; b < taps; b += kTaps) {
      double sums[kTaps][kTaps] = {};
#pragma unroll(kTaps == 1 ? 8 : 2)
      for (int64_t m = lane; m < outputs; m += kWarp) {
        double x[kTaps], y[kTaps];
        for (int i = 0; i < kTaps; ++i) {
          x[i] = a + i < taps ? left.at((a + i) * outputs + m) : 0.0;
          y[i] = b + i < taps ? right.at((b + i) * outputs + m) : 0.0;
        }
        for (int i = 0; i < kTaps; ++i)
          for (int j = 0; j < kTaps; ++j) sums[i][j] += x[i] * y[j];
      }
#pragma unroll
      for (int i = 0; i < kTaps; ++i)
#pragma unroll
        for (int j = 0; j < kTaps; ++j) {
          const double sum = sum_warp(sums[i][j]);
          const int64_t term = (a + i) * taps + b + j;
          if (a + i < taps && b + j < taps && lane == term % kWarp) keep(term, sum);
        }
    }
}

template <class Keep>
__device__ void multiply_taps(const DevicePairConsumer& c, const UnitWeights& left,
                              const UnitWeights& right, const Keep& keep) {
  if (c.taps == 1)
    multiply_units<1>(c, left, right, keep);
  else
    multiply_units<3>(c, left, right, keep);
}

struct PairForms {
  double inner, norm;  // <A_r, G_rs>, <A_r, G_ss>
};

// One of the kFormParts parts of both forms; `read(term, a, b)` is G of tap a of s and tap b of r. All
// forms are added up in these parts and in one order, so that those of equal units are equal.
template <class Read>
__device__ PairForms add_part(const DevicePairConsumer& c, int64_t r, int64_t s, int part,
                              const Read& read) {
  const int64_t taps = c.taps;
  const double *products = c.products + r * c.terms, *blocks = c.blocks + s;
  PairForms sum{0.0, 0.0};
  for (int64_t a = part; a < taps; a += kFormParts)
#pragma unroll 4
    for (int64_t b = 0; b < taps; ++b) {
      const int64_t term = a * taps + b;
      sum.inner += products[term] * read(term, a, b);
      sum.norm += products[term] * blocks[term * c.units];
    }
  return sum;
}

__device__ inline double sum_parts(double a, double b, double c, double d) { return (a + b) + (c + d); }

// Computes A_u and <A_u, G_uu> for given W_u, by a warp.
__device__ inline void read_unit(const DevicePairConsumer& c, int64_t u, const UnitWeights& weights) {
  double* products = c.products + u * c.terms;
  multiply_taps(c, weights, weights, [&](int64_t term, double sum) { products[term] = sum; });
  __syncwarp();  // lanes read each other's products
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const auto nothing = [](int64_t, int64_t, int64_t) { return 0.0; };
  const double part = lane < kFormParts ? add_part(c, u, u, lane, nothing).norm : 0.0;
  double parts[kFormParts];
  for (int i = 0; i < kFormParts; ++i) parts[i] = __shfl_sync(kAllLanes, part, i);
  if (lane == 0) c.squares[u] = sum_parts(parts[0], parts[1], parts[2], parts[3]);
}

// A work item: kTableRows rows of a table from `top` on, and the columns left <= s < right.
struct TableStrip {
  int64_t top, left, right;
};
__device__ inline TableStrip strip_of(const DevicePairTask& task, int64_t item) {
  const int64_t left = item % task.strips * task.columns;
  return {item / task.strips * kTableRows, left, min(left + task.columns, task.units)};
}

// base is <A_q, G_qq> - 2 R_qq, inner is <A_q, G_qp> - R_qp, norm is <A_q, G_pp>.
__device__ inline double pair_error(double base, double inner, double norm, double floor) {
  const double gain = norm <= 0.0 ? 0.0 : inner / norm;
  const double error = base - gain * inner;
  if (error - error != 0.0) return kInfinity;  // error is infinite or NaN
  return error < floor ? floor : error;
}

__device__ inline double add_error(double total, double scale, double error) {
  const double sum = total + scale * error;
  return sum == sum ? sum : kInfinity;
}

// Writes the least of what the threads of a block found. All threads must call it.
__device__ inline void keep_least(BestPair best, BestPair* to) {
  __shared__ BestPair of_warps[kPairWarps];
  best = least_of_warp(best);
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = best;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kPairWarps; ++i) best = lesser(best, of_warps[i]);
    *to = best;
  }
  __syncthreads();  // of_warps is read before the next call writes it
}

}  // namespace reapx::pairs
