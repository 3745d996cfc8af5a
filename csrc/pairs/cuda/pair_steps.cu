#include <algorithm>

#include "pairs/cuda/pair_units.h"

namespace reapx::pairs {

namespace {

constexpr int kTableTerms = 32;  // in shared memory at a time
static_assert(kPairThreads == kFormParts * kTableColumns);

// Returns the pair of a step to all lanes of a warp.
__device__ BestPair choose(const DevicePairTask& task) {
  BestPair best{kInfinity, kNoPair};
  for (int64_t i = threadIdx.x % kWarp; i < task.items; i += kWarp) best = lesser(best, task.best[i]);
  return least_of_warp(best);
}

__device__ double find_gain(const DevicePairConsumer& c, int64_t q, int64_t p) {
  const int64_t pair = q * c.units + p;
  const double norm = c.norms[pair];
  const double gain = norm > 0.0 ? (c.inner[pair] - c.overlaps[pair]) / norm : 0.0;
  return gain - gain == 0.0 ? gain : 0.0;
}

// Computes, by a warp, what a step changes for unit r: its shares, its moves, and R_rr.
__device__ void follow_unit(const DevicePairConsumer& c, int64_t r, int64_t q, int64_t p, double gain) {
  const UnitWeights own = r == p ? joined_weights(c, p, q, gain) : weights_of(c, r);
  const auto keep = [&](int64_t term, double sum) { c.shares[term * c.units + r] = sum; };
  multiply_taps(c, own, weights_of(c, q), keep);
  const int64_t *of_r = c.columns + r * c.taps, *of_q = c.columns + q * c.taps;
  const int64_t* of_p = c.columns + p * c.taps;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  double self = 0.0;
  for (int64_t term = lane; term < c.terms; term += kWarp) {  // the lane's own shares
    const int64_t column = of_r[term / c.taps], b = term % c.taps, at = term * c.units + r;
    const double grown = c.gram[of_p[b] * c.features + column];
    const double gone = c.gram[of_q[b] * c.features + column];
    const double move = (gain != 0.0 ? gain * grown : 0.0) - gone;  // 0 * NaN would be NaN
    c.grown[at] = grown;
    c.moves[at] = move;
    self += c.shares[at] * move;
  }
  self = sum_warp(self);
  if (lane != 0) return;
  if (r == p && gain != 0.0) self += gain * c.overlaps[q * c.units + p];
  c.selves[r] += self;
}

// The first half of a step for one unit, by a warp. W, R and the forms do not change in it, since other
// warps read them. The warp of the unit that is removed records the step, and computes the new A_p.
__device__ void begin_step(const DevicePairTask& task, const DevicePairConsumer* consumers, int64_t j,
                           int64_t r, int64_t step, BestPair chosen) {
  const DevicePairConsumer& c = consumers[j];
  const int64_t q = chosen.pair / task.units, p = chosen.pair % task.units;
  const bool follows = step + 1 < task.steps;
  if (r != q) {
    if (follows && task.alive[r]) follow_unit(c, r, q, p, find_gain(c, q, p));
    return;
  }
  const double gain = find_gain(c, q, p);
  if (threadIdx.x % kWarp == 0) {
    c.gains[step] = gain;
    if (j == task.first_consumer) {
      task.removed[step] = q;
      task.partner[step] = p;
      task.errors[step] = chosen.error;
      task.alive[q] = 0;
    }
  }
  if (follows) read_unit(c, p, joined_weights(c, p, q, gain));
}

// W_p <- W_p + a W_q, which the work items of the task share.
__device__ void fold_weights(const DevicePairTask& task, const DevicePairConsumer* consumers,
                             int64_t item, int64_t step) {
  for (int64_t j = task.first_consumer; j < task.last_consumer; ++j) {
    const DevicePairConsumer& c = consumers[j];
    const int64_t size = c.taps * c.outputs;
    const UnitWeights joined = joined_weights(c, task.partner[step], task.removed[step], c.gains[step]);
    double* to = c.packed + task.partner[step] * size;
    if (joined.joined)
      for (int64_t i = item * kPairThreads + threadIdx.x; i < size; i += task.items * kPairThreads)
        to[i] = joined.at(i);
  }
}

// sums[i] = <share of a row, move of a column>, for the rows and the column of a thread. Shared memory
// holds kTableTerms terms of both at a time.
__device__ void multiply_tile(const DevicePairConsumer& c, int64_t top, int64_t left,
                              double (&sums)[kThreadRows]) {
  __shared__ __align__(16) double moves[kTableTerms][kTableColumns], shares[kTableTerms][kTableRows];
  const int column = static_cast<int>(threadIdx.x) % kTableColumns;
  const int row = static_cast<int>(threadIdx.x) / kTableColumns * kThreadRows;
  for (int64_t first = 0; first < c.terms; first += kTableTerms) {
    const int count = static_cast<int>(min(int64_t{kTableTerms}, c.terms - first));
    __syncthreads();  // the terms before have been used
    for (int i = static_cast<int>(threadIdx.x); i < count * kTableColumns; i += kPairThreads)
      if (left + i % kTableColumns < c.units)
        moves[i / kTableColumns][i % kTableColumns] =
            c.moves[(first + i / kTableColumns) * c.units + left + i % kTableColumns];
    for (int i = static_cast<int>(threadIdx.x); i < count * kTableRows; i += kPairThreads)
      if (top + i % kTableRows < c.units)
        shares[i / kTableRows][i % kTableRows] =
            c.shares[(first + i / kTableRows) * c.units + top + i % kTableRows];
    __syncthreads();
#pragma unroll 4
    for (int term = 0; term < count; ++term)
      for (int i = 0; i < kThreadRows; ++i) sums[i] += shares[term][row + i] * moves[term][column];
  }
}

// Computes <A_p, G_ps> and <A_p, G_ss> anew for the columns of a tile. A thread: one part of each, of
// one column.
__device__ void renew_forms(const DevicePairConsumer& c, int64_t p, int64_t left) {
  __shared__ PairForms parts[kFormParts][kTableColumns];
  const int part = static_cast<int>(threadIdx.x) / kTableColumns;
  const int column = static_cast<int>(threadIdx.x) % kTableColumns;
  const int64_t s = left + column;
  const auto read = [&](int64_t term, int64_t, int64_t) { return c.grown[term * c.units + s]; };
  if (s < c.units) parts[part][column] = add_part(c, p, s, part, read);
  __syncthreads();
  if (part == 0 && s < c.units) {
    const PairForms a = parts[0][column], b = parts[1][column], d = parts[2][column],
                    e = parts[3][column];
    c.inner[p * c.units + s] = sum_parts(a.inner, b.inner, d.inner, e.inner);
    c.norms[p * c.units + s] = sum_parts(a.norm, b.norm, d.norm, e.norm);
  }
  __syncthreads();
}

// The rows of one column that a thread has; `alive` says in which of them both units are still there.
struct ThreadRows {
  int64_t row, column;
  bool alive[kThreadRows];
};

// Brings R up to date, and adds the errors of one consumer. Everything is read before anything is
// written, so that a thread waits for memory only once.
__device__ void add_errors(const DevicePairConsumer& c, const ThreadRows& at, int64_t q, int64_t p,
                           double gain, const double (&sums)[kThreadRows],
                           double (&totals)[kThreadRows]) {
  double overlaps[kThreadRows] = {}, inner[kThreadRows] = {}, norms[kThreadRows] = {},
         own[kThreadRows] = {};
  for (int i = 0; i < kThreadRows; ++i) {
    if (!at.alive[i]) continue;
    const int64_t r = at.row + i, pair = r * c.units + at.column;
    overlaps[i] = c.overlaps[pair];
    if (r == p && gain != 0.0) overlaps[i] += gain * c.overlaps[q * c.units + at.column];
    inner[i] = c.inner[pair];
    norms[i] = c.norms[pair];
    own[i] = c.squares[r] - 2.0 * c.selves[r];
  }
  for (int i = 0; i < kThreadRows; ++i) {
    if (!at.alive[i]) continue;
    overlaps[i] += sums[i];
    c.overlaps[(at.row + i) * c.units + at.column] = overlaps[i];
    const double error = pair_error(own[i], inner[i] - overlaps[i], norms[i], -kInfinity);
    totals[i] = add_error(totals[i], c.scale, error);
  }
}

// Brings R, the forms and the errors of a work item up to date after a step, by a block. A thread: one
// column of each tile, and kThreadRows rows.
__device__ void look_again(const DevicePairTask& task, const DevicePairConsumer* consumers,
                           int64_t item, int64_t step) {
  const int64_t q = task.removed[step], p = task.partner[step];
  const TableStrip strip = strip_of(task, item);
  ThreadRows at{strip.top + threadIdx.x / kTableColumns * kThreadRows, 0, {}};
  bool rows[kThreadRows], some = false;
  for (int i = 0; i < kThreadRows; ++i)
    some |= rows[i] = at.row + i < task.units && task.alive[at.row + i];
  BestPair best{kInfinity, kNoPair};
  const int64_t right = __syncthreads_or(some) ? strip.right : strip.left;
  for (int64_t left = strip.left; left < right; left += kTableColumns) {
    at.column = left + threadIdx.x % kTableColumns;
    const bool column = at.column < task.units && task.alive[at.column];
    if (!__syncthreads_or(column)) continue;
    for (int i = 0; i < kThreadRows; ++i) at.alive[i] = rows[i] && column;
    double totals[kThreadRows] = {};
    for (int64_t j = task.first_consumer; j < task.last_consumer; ++j) {
      const DevicePairConsumer& c = consumers[j];
      double sums[kThreadRows] = {};
      multiply_tile(c, strip.top, left, sums);
      if (strip.top <= p && p < strip.top + kTableRows) renew_forms(c, p, left);
      add_errors(c, at, q, p, c.gains[step], sums, totals);
    }
    for (int i = 0; i < kThreadRows; ++i)
      if (at.alive[i] && at.row + i != at.column)
        best = lesser({totals[i], (at.row + i) * task.units + at.column}, best);
  }
  keep_least(best, task.best + item);
}

// Takes all steps of all tasks, side by side. In the first half of a step, a warp has one unit of a
// consumer at a time; neighbouring units lie in different blocks, so that a few units use all
// processors. In the second half, a block has one work item at a time. Every warp finds the pair of the
// step by itself, which saves a barrier.
__global__ void __launch_bounds__(kPairThreads, 2) step_by_step(PairPlan plan) {
  const int64_t first = blockIdx.x, blocks = gridDim.x;
  for (int64_t step = 0; step < plan.steps; ++step) {
    int64_t known = -1;  // the task of `chosen`
    BestPair chosen{};
    for (int64_t i = first + threadIdx.x / kWarp * blocks; i < plan.units; i += blocks * kPairWarps) {
      const int64_t j =
          find_last(plan.consumers, plan.consumer_count, &DevicePairConsumer::first_unit, i);
      const DevicePairTask& task = plan.tasks[plan.consumers[j].task];
      if (step >= task.steps) continue;
      if (known != plan.consumers[j].task) chosen = choose(task);
      known = plan.consumers[j].task;
      begin_step(task, plan.consumers, j, i - plan.consumers[j].first_unit, step, chosen);
    }
    grid_sync();
    for (int64_t i = first; i < plan.items; i += blocks) {
      const DevicePairTask& task =
          plan.tasks[find_last(plan.tasks, plan.task_count, &DevicePairTask::first_item, i)];
      if (step < task.steps) fold_weights(task, plan.consumers, i - task.first_item, step);
      if (step + 1 < task.steps) look_again(task, plan.consumers, i - task.first_item, step);
    }
    grid_sync();
  }
}

}  // namespace

void take_steps(const PairPlan& plan, const Context& context) {
  LaunchShape shape{"pair_scan", dim3(1), dim3(kPairThreads), 0, true};
  const int64_t most = blocks_at_once(context, shape, step_by_step);
  // A block for each item, and no warp without a unit: more blocks only take longer to meet.
  shape.grid = blocks_of(std::clamp<int64_t>(std::max(plan.items, plan.units / kPairWarps), 1, most));
  launch(context, shape, step_by_step, plan);
}

}  // namespace reapx::pairs
