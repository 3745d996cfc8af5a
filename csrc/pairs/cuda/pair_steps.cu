#include <algorithm>

#include "pairs/cuda/pair_units.h"

namespace reapx::pairs {

namespace {

constexpr int kTerms = 32;  // in shared memory at a time
static_assert(kThreads == kParts * kColumns);

// The pair of a step, by a warp; all lanes have it.
__device__ Best choose(const Job& job) {
  Best best{kInfinity, kNoPair};
  for (int64_t i = threadIdx.x % kWarp; i < job.items; i += kWarp) best = lesser(best, job.best[i]);
  return least_of_warp(best);
}

__device__ double find_gain(const Reader& c, int64_t q, int64_t p) {
  const int64_t pair = q * c.units + p;
  const double norm = c.norms[pair];
  const double gain = norm > 0.0 ? (c.inner[pair] - c.overlaps[pair]) / norm : 0.0;
  return gain - gain == 0.0 ? gain : 0.0;
}

// What the step means for unit r, by a warp: its shares, its moves, and R_rr.
__device__ void follow_unit(const Reader& c, int64_t r, int64_t q, int64_t p, double gain) {
  const Rows own = r == p ? joined_rows(c, p, q, gain) : rows_of(c, r);
  const auto keep = [&](int64_t term, double sum) { c.shares[term * c.units + r] = sum; };
  multiply_taps(c, own, rows_of(c, q), keep);
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

// The first half of a step for one unit, by a warp: nobody changes W, R or the forms yet. The warp of
// the unit that leaves writes down the step, and has A_p as it becomes.
__device__ void begin_step(const Job& job, const Reader* readers, int64_t j, int64_t r, int64_t step,
                           Best chosen) {
  const Reader& c = readers[j];
  const int64_t q = chosen.pair / job.units, p = chosen.pair % job.units;
  const bool follows = step + 1 < job.steps;
  if (r != q) {
    if (follows && job.alive[r]) follow_unit(c, r, q, p, find_gain(c, q, p));
    return;
  }
  const double gain = find_gain(c, q, p);
  if (threadIdx.x % kWarp == 0) {
    c.gains[step] = gain;
    if (j == job.first_reader) {
      job.removed[step] = q;
      job.partner[step] = p;
      job.errors[step] = chosen.error;
      job.alive[q] = 0;
    }
  }
  if (follows) read_unit(c, p, joined_rows(c, p, q, gain));
}

// W_p <- W_p + a W_q; the pieces of the task share it.
__device__ void fold_weights(const Job& job, const Reader* readers, int64_t item, int64_t step) {
  for (int64_t j = job.first_reader; j < job.last_reader; ++j) {
    const Reader& c = readers[j];
    const int64_t size = c.taps * c.outputs;
    const Rows rows = joined_rows(c, job.partner[step], job.removed[step], c.gains[step]);
    double* to = c.packed + job.partner[step] * size;
    if (rows.joined)
      for (int64_t i = item * kThreads + threadIdx.x; i < size; i += job.items * kThreads)
        to[i] = rows.at(i);
  }
}

// sums[i] = <share of a row, move of a column> for the rows and the column of a thread. The block has
// kTerms terms of both in shared memory at a time.
__device__ void multiply_tile(const Reader& c, int64_t top, int64_t left, double (&sums)[kEach]) {
  __shared__ __align__(16) double moves[kTerms][kColumns], shares[kTerms][kRows];
  const int column = static_cast<int>(threadIdx.x) % kColumns;
  const int row = static_cast<int>(threadIdx.x) / kColumns * kEach;
  for (int64_t first = 0; first < c.terms; first += kTerms) {
    const int count = static_cast<int>(min(int64_t{kTerms}, c.terms - first));
    __syncthreads();  // what is there has been used
    for (int i = static_cast<int>(threadIdx.x); i < count * kColumns; i += kThreads)
      if (left + i % kColumns < c.units)
        moves[i / kColumns][i % kColumns] =
            c.moves[(first + i / kColumns) * c.units + left + i % kColumns];
    for (int i = static_cast<int>(threadIdx.x); i < count * kRows; i += kThreads)
      if (top + i % kRows < c.units)
        shares[i / kRows][i % kRows] = c.shares[(first + i / kRows) * c.units + top + i % kRows];
    __syncthreads();
#pragma unroll 4
    for (int term = 0; term < count; ++term)
      for (int i = 0; i < kEach; ++i) sums[i] += shares[term][row + i] * moves[term][column];
  }
}

// <A_p, G_ps> and <A_p, G_ss> anew for the columns of a tile, a part of each by a thread.
__device__ void renew_forms(const Reader& c, int64_t p, int64_t left) {
  __shared__ Form parts[kParts][kColumns];
  const int part = static_cast<int>(threadIdx.x) / kColumns;
  const int column = static_cast<int>(threadIdx.x) % kColumns;
  const int64_t s = left + column;
  const auto read = [&](int64_t term, int64_t, int64_t) { return c.grown[term * c.units + s]; };
  if (s < c.units) parts[part][column] = add_part(c, p, s, part, read);
  __syncthreads();
  if (part == 0 && s < c.units) {
    const Form a = parts[0][column], b = parts[1][column], d = parts[2][column], e = parts[3][column];
    c.inner[p * c.units + s] = sum_parts(a.inner, b.inner, d.inner, e.inner);
    c.norms[p * c.units + s] = sum_parts(a.norm, b.norm, d.norm, e.norm);
  }
  __syncthreads();
}

// The rows of one column that a thread has; `there` says which have a pair that is left.
struct Place {
  int64_t row, column;
  bool there[kEach];
};

// Brings R up to date, and adds the errors of one consumer. All is read before anything is written, so
// that a thread waits for memory once.
__device__ void add_errors(const Reader& c, const Place& at, int64_t q, int64_t p, double gain,
                           const double (&sums)[kEach], double (&totals)[kEach]) {
  double overlaps[kEach] = {}, inner[kEach] = {}, norms[kEach] = {}, own[kEach] = {};
  for (int i = 0; i < kEach; ++i) {
    if (!at.there[i]) continue;
    const int64_t r = at.row + i, pair = r * c.units + at.column;
    overlaps[i] = c.overlaps[pair];
    if (r == p && gain != 0.0) overlaps[i] += gain * c.overlaps[q * c.units + at.column];
    inner[i] = c.inner[pair];
    norms[i] = c.norms[pair];
    own[i] = c.squares[r] - 2.0 * c.selves[r];
  }
  for (int i = 0; i < kEach; ++i) {
    if (!at.there[i]) continue;
    overlaps[i] += sums[i];
    c.overlaps[(at.row + i) * c.units + at.column] = overlaps[i];
    const double error = pair_error(own[i], inner[i] - overlaps[i], norms[i], -kInfinity);
    totals[i] = add_error(totals[i], c.scale, error);
  }
}

// R, the forms and the errors of a piece after a step, by a block; a thread has one column of each tile
// and kEach rows.
__device__ void look_again(const Job& job, const Reader* readers, int64_t item, int64_t step) {
  const int64_t q = job.removed[step], p = job.partner[step];
  const Span span = span_of(job, item);
  Place at{span.top + threadIdx.x / kColumns * kEach, 0, {}};
  bool rows[kEach], some = false;
  for (int i = 0; i < kEach; ++i) some |= rows[i] = at.row + i < job.units && job.alive[at.row + i];
  Best best{kInfinity, kNoPair};
  const int64_t right = __syncthreads_or(some) ? span.right : span.left;
  for (int64_t left = span.left; left < right; left += kColumns) {
    at.column = left + threadIdx.x % kColumns;
    const bool column = at.column < job.units && job.alive[at.column];
    if (!__syncthreads_or(column)) continue;
    for (int i = 0; i < kEach; ++i) at.there[i] = rows[i] && column;
    double totals[kEach] = {};
    for (int64_t j = job.first_reader; j < job.last_reader; ++j) {
      const Reader& c = readers[j];
      double sums[kEach] = {};
      multiply_tile(c, span.top, left, sums);
      if (span.top <= p && p < span.top + kRows) renew_forms(c, p, left);
      add_errors(c, at, q, p, c.gains[step], sums, totals);
    }
    for (int i = 0; i < kEach; ++i)
      if (at.there[i] && at.row + i != at.column)
        best = lesser({totals[i], (at.row + i) * job.units + at.column}, best);
  }
  keep_least(best, job.best + item);
}

// All steps of all tasks, which do theirs side by side. In the first half of a step a warp has a unit
// of a consumer; neighbours lie in different blocks, so that few units use all processors. In the
// second half a block has a piece of a table. Every warp finds the pair of the step by itself: one
// barrier less.
__global__ void __launch_bounds__(kThreads, 2) step_by_step(Plan plan) {
  const int64_t first = blockIdx.x, blocks = gridDim.x;
  for (int64_t step = 0; step < plan.steps; ++step) {
    int64_t known = -1;  // the task that `chosen` is of
    Best chosen{};
    for (int64_t i = first + threadIdx.x / kWarp * blocks; i < plan.units; i += blocks * kWarps) {
      const int64_t j = find_last(plan.readers, plan.reader_count, &Reader::first_unit, i);
      const Job& job = plan.jobs[plan.readers[j].job];
      if (step >= job.steps) continue;
      if (known != plan.readers[j].job) chosen = choose(job);
      known = plan.readers[j].job;
      begin_step(job, plan.readers, j, i - plan.readers[j].first_unit, step, chosen);
    }
    grid_sync();
    for (int64_t i = first; i < plan.items; i += blocks) {
      const Job& job = plan.jobs[find_last(plan.jobs, plan.job_count, &Job::first_item, i)];
      if (step < job.steps) fold_weights(job, plan.readers, i - job.first_item, step);
      if (step + 1 < job.steps) look_again(job, plan.readers, i - job.first_item, step);
    }
    grid_sync();
  }
}

}  // namespace

void take_steps(const Plan& plan, const Context& context) {
  Shape shape{"pair_scan", dim3(1), dim3(kThreads), 0, true};
  const int64_t most = blocks_at_once(context, shape, step_by_step);
  // One for each piece, and no warp without a unit: more blocks only take longer to meet.
  shape.grid = blocks_of(std::clamp<int64_t>(std::max(plan.items, plan.units / kWarps), 1, most));
  launch(context, shape, step_by_step, plan);
}

}  // namespace reapx::pairs
