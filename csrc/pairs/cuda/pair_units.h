// What the CUDA kernels of pair_scan share: tasks and consumers as the device sees them, and what a
// warp works out about one unit.
#pragma once

#include <cstdint>
#include <limits>

#include "runtime/cuda/launch.h"
#include "runtime/cuda/pieces.h"

namespace reapx::pairs {

inline constexpr int kWarp = 32;
inline constexpr int kThreads = 256, kWarps = kThreads / kWarp;  // of a block
inline constexpr unsigned kAll = 0xffffffff;
inline constexpr int kParts = 4;  // of a form: sums that one thread adds up in turn, or several at once
inline constexpr int kRows = 16, kColumns = 64;            // of a tile of the table of pairs
inline constexpr int kEach = kRows * kColumns / kThreads;  // rows of such a tile that a thread has
inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A consumer. A term is a tap `a` of one unit and a tap `b` of another, at a * taps + b. In arrays of
// (terms, units), `a` is the tap of the unit that the last index names.
struct Reader {
  const double* gram;
  double* weight;
  const int64_t* columns;
  double* gains;
  double scale;
  int64_t features, outputs, taps, terms, units;
  int64_t job;                     // the task that it belongs to
  int64_t first_unit, first_tile;  // its first ones, where those of all readers are counted through

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
  double* selves;    // (units,): R_rr, kept apart, as all tiles of a row want it while R changes
};

// A pair and its error; of two, the lesser is chosen.
struct alignas(16) Best {
  double error;
  int64_t pair;  // q * units + p
};
inline constexpr int64_t kNoPair = std::numeric_limits<int64_t>::max();

// A task.
struct Job {
  int64_t units, steps;
  int64_t first_reader, last_reader;
  int64_t first_item;      // where the pieces of all tables are counted through
  int64_t spans, columns;  // pieces of a row, and how many columns one has
  int64_t items;           // pieces in all
  double* table;
  int64_t *removed, *partner;
  double* errors;
  int* alive;  // (units,): 1, or 0 for units that left
  Best* best;  // (items,): of each piece
};

// All tasks and consumers of a call, on the device, and how much there is of what launches go by.
struct Plan {
  const Job* jobs;
  const Reader* readers;
  int64_t job_count, reader_count;
  int64_t units;  // of all readers
  int64_t tiles;  // of all weights
  int64_t items;  // pieces of all tables
  int64_t steps;  // of the task that has most
};

// The steps of all tasks, after the first look.
void take_steps(const Plan& plan, const Context& context);

__device__ inline double sum_warp(double value) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAll, value, lanes);
  return value;
}

__device__ inline Best lesser(Best a, Best b) {
  return a.error < b.error || (a.error == b.error && a.pair < b.pair) ? a : b;
}

__device__ inline Best least_of_warp(Best best) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
    best = lesser(best,
                  {__shfl_xor_sync(kAll, best.error, lanes), __shfl_xor_sync(kAll, best.pair, lanes)});
  return best;
}

// W of a unit, [tap * outputs + output], or what it becomes when another unit joins it.
struct Rows {
  const double *own, *joined;  // the latter null where nothing joins
  double gain;
  __device__ double at(int64_t i) const { return joined ? own[i] + gain * joined[i] : own[i]; }
};

__device__ inline Rows rows_of(const Reader& c, int64_t unit) {
  return {c.packed + unit * c.taps * c.outputs, nullptr, 0.0};
}

// W_p + a W_q. Nothing joins at a gain of 0, where 0 * inf would be NaN.
__device__ inline Rows joined_rows(const Reader& c, int64_t p, int64_t q, double gain) {
  return {rows_of(c, p).own, gain != 0.0 ? rows_of(c, q).own : nullptr, gain};
}

// The products of all taps of two units, by a warp: each is given, with its term, to the lane that has
// this term, term % kWarp. kTaps * kTaps of them at a time, so that what is read is used kTaps times.
template <int kTaps, class Keep>
__device__ void multiply_units(const Reader& c, const Rows& left, const Rows& right, const Keep& keep) {
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
__device__ void multiply_taps(const Reader& c, const Rows& left, const Rows& right, const Keep& keep) {
  if (c.taps == 1)
    multiply_units<1>(c, left, right, keep);
  else
    multiply_units<3>(c, left, right, keep);
}

struct Form {
  double inner, norm;  // <A_r, G_rs>, <A_r, G_ss>
};

// One of the kParts parts of both; `read(term, a, b)` is G of tap a of s and tap b of r. All forms are
// added up part by part, in one order, so that those of equal units are equal.
template <class Read>
__device__ Form add_part(const Reader& c, int64_t r, int64_t s, int part, const Read& read) {
  const int64_t taps = c.taps;
  const double *products = c.products + r * c.terms, *blocks = c.blocks + s;
  Form sum{0.0, 0.0};
  for (int64_t a = part; a < taps; a += kParts)
#pragma unroll 4
    for (int64_t b = 0; b < taps; ++b) {
      const int64_t term = a * taps + b;
      sum.inner += products[term] * read(term, a, b);
      sum.norm += products[term] * blocks[term * c.units];
    }
  return sum;
}

__device__ inline double sum_parts(double a, double b, double c, double d) { return (a + b) + (c + d); }

// A_u and <A_u, G_uu> for given W_u, by a warp.
__device__ inline void read_unit(const Reader& c, int64_t u, const Rows& rows) {
  double* products = c.products + u * c.terms;
  multiply_taps(c, rows, rows, [&](int64_t term, double sum) { products[term] = sum; });
  __syncwarp();  // lanes read each other's products
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const auto nothing = [](int64_t, int64_t, int64_t) { return 0.0; };
  const double part = lane < kParts ? add_part(c, u, u, lane, nothing).norm : 0.0;
  double parts[kParts];
  for (int i = 0; i < kParts; ++i) parts[i] = __shfl_sync(kAll, part, i);
  if (lane == 0) c.squares[u] = sum_parts(parts[0], parts[1], parts[2], parts[3]);
}

// A piece of a table: kRows rows from `top`, columns left <= s < right.
struct Span {
  int64_t top, left, right;
};
__device__ inline Span span_of(const Job& job, int64_t item) {
  const int64_t left = item % job.spans * job.columns;
  return {item / job.spans * kRows, left, min(left + job.columns, job.units)};
}

// own is <A_q, G_qq> - 2 R_qq, left is <A_q, G_qp> - R_qp, norm is <A_q, G_pp>.
__device__ inline double pair_error(double own, double left, double norm, double floor) {
  const double gain = norm <= 0.0 ? 0.0 : left / norm;
  const double error = own - gain * left;
  return error - error == 0.0 ? (error < floor ? floor : error) : kInfinity;  // not so for inf and NaN
}

__device__ inline double add_error(double total, double scale, double error) {
  const double sum = total + scale * error;
  return sum == sum ? sum : kInfinity;
}

// The least of what the threads of a block found; all must come.
__device__ inline void keep_least(Best best, Best* to) {
  __shared__ Best of_warps[kWarps];
  best = least_of_warp(best);
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = best;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kWarps; ++i) best = lesser(best, of_warps[i]);
    *to = best;
  }
  __syncthreads();  // before others write of_warps
}

}  // namespace reapx::pairs
