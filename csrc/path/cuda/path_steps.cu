// The steps of path_eliminate: which unit is removed, and the scores after that.
#include <algorithm>
#include <limits>

#include "path/cuda/path_device.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/warp.h"

namespace reapx {

namespace {

constexpr int kPivotThreads = 512;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

// A unit and its score. "None" loses against every unit.
struct Candidate {
  double score;
  int64_t unit;
  __device__ bool better_than(const Candidate& other) const {
    return score < other.score || (score == other.score && unit < other.unit);
  }
};

// Returns the alive unit with the least score, the lowest of equal ones, to all threads of the block. A
// thread looks at every kPivotThreads-th unit, several at once so that it waits for memory less often.
// Shared memory holds the best unit of each warp.
__device__ int64_t choose_unit(const DevicePathConsumer* consumers, const DevicePathConsumer& c) {
  constexpr int kAtOnce = 8;
  __shared__ Candidate best_of[kPivotThreads / kWarp];
  Candidate best{kInfinity, kNone};
  for (int64_t first = threadIdx.x; first < c.units; first += kAtOnce * kPivotThreads) {
    int64_t gone[kAtOnce], unit[kAtOnce];
    double score[kAtOnce] = {};
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      unit[i] = min(first + i * kPivotThreads, c.units - 1);  // reading the last one again does no harm
      gone[i] = c.gone[unit[i]];
    }
    for (int64_t r = c.first; r < c.last; ++r) {
      const double scale = consumers[r].scale, *scores = consumers[r].scores;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) score[i] += scale * scores[unit[i]];
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const Candidate own{isnan(score[i]) ? kInfinity : score[i], unit[i]};
      if (gone[i] == 0 && own.better_than(best)) best = own;
    }
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const Candidate other{__shfl_xor_sync(kAllLanes, best.score, step),
                          __shfl_xor_sync(kAllLanes, best.unit, step)};
    if (other.better_than(best)) best = other;
  }
  if (threadIdx.x % kWarp == 0) best_of[threadIdx.x / kWarp] = best;
  __syncthreads();
  for (const Candidate& other : best_of)
    if (other.better_than(best)) best = other;
  return best.unit;
}

// By all threads of a block: r (q, q) = R^T R becomes R in its upper triangle, and k becomes R^-T k
// R^-1, all of it or only its lower triangle. Indices are int here because a division of int64_t takes
// longer than most of the rest.
__device__ void whiten(double* r, double* k, int q, bool all) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int i = 0; i < q; ++i) {
    __syncthreads();
    const double root = sqrt(r[i * q + i]);
    __syncthreads();
    for (int j = i + thread; j < q; j += threads) r[i * q + j] /= root;
    __syncthreads();
    const int rest = q - i - 1;
    for (int e = thread; e < rest * rest; e += threads) {
      const int x = i + 1 + e / rest, y = i + 1 + e % rest;
      if (x <= y) r[x * q + y] -= r[i * q + x] * r[i * q + y];
    }
  }
  __syncthreads();
  for (int j = thread; j < q; j += threads)
    for (int i = 0; i < q; ++i) {
      double value = k[i * q + j];
      for (int row = 0; row < i; ++row) value -= r[row * q + i] * k[row * q + j];
      k[i * q + j] = value / r[i * q + i];
    }
  __syncthreads();
  for (int i = thread; i < q; i += threads)
    for (int j = 0; j < (all ? q : i + 1); ++j) {
      double value = k[i * q + j];
      for (int row = 0; row < j; ++row) value -= k[i * q + row] * r[row * q + j];
      k[i * q + j] = value / r[j * q + j];
    }
  __syncthreads();
}

// A block: one consumer; all consumers of a task choose the same unit. Shared memory holds S and A of
// this unit, which become R and v v^T; where they are too large for it, the consumer's scratch does.
__global__ void __launch_bounds__(kPivotThreads)
    pivot_units(const DevicePathConsumer* consumers, int64_t step) {
  const DevicePathConsumer& c = consumers[blockIdx.x];
  if (step >= c.steps || *c.status >= 0) return;
  const int64_t unit = step < c.forced_count ? c.forced[step] : choose_unit(consumers, c);
  const int64_t q = c.taps, size = q * q;
  double* r = q <= kSharedTaps ? dynamic_shared<double>() : c.root;
  double* k = q <= kSharedTaps ? r + size : c.half;
  for (int64_t i = threadIdx.x; i < size; i += kPivotThreads) {
    r[i] = c.blocks[unit * size + i];
    k[i] = c.products[unit * size + i];
  }
  whiten(r, k, static_cast<int>(q), true);
  int wrong = 0;
  for (int64_t i = threadIdx.x; i < q; i += kPivotThreads)
    wrong |= !(r[i * q + i] > 0.0) || !isfinite(r[i * q + i]);
  wrong = __syncthreads_or(wrong);
  for (int64_t i = threadIdx.x; i < size; i += kPivotThreads) {
    c.root[i] = i / q <= i % q ? r[i] : 0.0;
    c.half[i] = k[i] / 2.0;
  }
  if (threadIdx.x > 0) return;
  *c.chosen = unit;
  *c.failed = wrong;
  c.gone[unit] = 1;
}

// Computes tr(S^-1 A) of one unit, by all threads of a block. r and k are scratch, (q, q) each.
__device__ void score_unit(const DevicePathConsumer& c, int64_t unit, double* r, double* k) {
  const int64_t q = c.taps, size = q * q;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < size; i += kUnitThreads) {
    r[i] = c.blocks[unit * size + i];
    k[i] = c.products[unit * size + i];
  }
  whiten(r, k, static_cast<int>(q), false);
  if (threadIdx.x > 0) return;
  double sum = 0.0;
  for (int64_t i = 0; i < q; ++i) sum += k[i * q + i];
  c.scores[unit] = sum;
}

__device__ double* room_of(const DevicePathConsumer& c, int64_t unit) {
  return c.taps <= kSharedTaps ? dynamic_shared<double>() : c.work + unit * 2 * c.taps * c.taps;
}

// As in score_unit, where the root of a negative number makes the score NaN.
__device__ double score_tap(double block, double product) {
  return block > 0.0 ? product / block : kNan;
}

// Computes S, A and the scores after a step. With one tap, a thread has one unit. With more taps, a
// block has one unit, and shared memory holds, if they fit, first its columns of the new rows and then
// its S and A.
__global__ void __launch_bounds__(kUnitThreads)
    score_units(const DevicePathConsumer* consumers, int64_t count, int64_t step) {
  const DevicePathConsumer& c =
      consumers[find_last(consumers, count, &DevicePathConsumer::first_group, blockIdx.x)];
  if (step >= c.steps || *c.status >= 0) return;
  const int64_t q = c.taps, n = c.features, size = q * q, group = blockIdx.x - c.first_group;
  const double* l_rows = c.factor + step * q * n;
  const double* z_rows = c.cross + step % c.panel_steps * q * n;
  if (q == 1) {
    const int64_t unit = group * kUnitThreads + threadIdx.x;
    if (unit >= c.units || c.gone[unit]) return;
    const double l = l_rows[c.columns[unit]], z = z_rows[c.columns[unit]];
    const double block = c.blocks[unit] - l * l, product = c.products[unit] - 2.0 * l * z;
    c.blocks[unit] = block;
    c.products[unit] = product;
    c.scores[unit] = score_tap(block, product);
    return;
  }
  if (c.gone[group]) return;
  const int64_t* columns = c.columns + group * q;
  double *l = room_of(c, group), *z = l + size;
  for (int64_t i = threadIdx.x; i < size; i += kUnitThreads) {
    l[i] = l_rows[i / q * n + columns[i % q]];
    z[i] = z_rows[i / q * n + columns[i % q]];
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < size; i += kUnitThreads) {
    double block = 0.0, product = 0.0;
    for (int64_t k = 0; k < q; ++k) {
      const double l_x = l[k * q + i / q], l_y = l[k * q + i % q];
      block += l_x * l_y;
      product += l_x * z[k * q + i % q];
      product += z[k * q + i / q] * l_y;
    }
    c.blocks[group * size + i] -= block;
    c.products[group * size + i] -= product;
  }
  score_unit(c, group, l, z);
}

// Computes S, A and the scores of one consumer from P and K. Threads and shared memory are used as in
// score_units.
__global__ void __launch_bounds__(kUnitThreads) read_units(const DevicePathConsumer* consumer) {
  const DevicePathConsumer& c = *consumer;
  if (*c.status >= 0) return;
  const int64_t q = c.taps, n = c.features, size = q * q;
  if (q == 1) {
    const int64_t unit = static_cast<int64_t>(blockIdx.x) * kUnitThreads + threadIdx.x;
    if (unit >= c.units || c.gone[unit]) return;
    c.blocks[unit] = c.basis[c.columns[unit] * (n + 1)];
    c.products[unit] = c.gram[c.columns[unit] * (n + 1)];
    c.scores[unit] = score_tap(c.blocks[unit], c.products[unit]);
    return;
  }
  const int64_t unit = blockIdx.x;
  if (c.gone[unit]) return;
  const int64_t* columns = c.columns + unit * q;
  for (int64_t i = threadIdx.x; i < size; i += kUnitThreads) {
    c.blocks[unit * size + i] = read_upper(c.basis, n, columns[i / q], columns[i % q]);
    c.products[unit * size + i] = read_upper(c.gram, n, columns[i / q], columns[i % q]);
  }
  double* room = room_of(c, unit);
  score_unit(c, unit, room, room + size);
}

// Bytes of S and A of a unit, for the largest of these consumers that has them in shared memory.
std::size_t room_for(const DevicePathConsumer* consumers, int64_t count) {
  int64_t taps = 0;
  for (int64_t i = 0; i < count; ++i)
    if (consumers[i].taps <= kSharedTaps) taps = std::max(taps, consumers[i].taps);
  return static_cast<std::size_t>(2 * taps * taps) * sizeof(double);
}

}  // namespace

void run_step(const Context& context, const Batch& batch, int64_t step, bool last) {
  const std::size_t room = room_for(batch.own, batch.count);
  launch(context, {"path_eliminate", blocks_of(batch.count), dim3(kPivotThreads), room}, pivot_units,
         batch.device, step);
  advance(context, batch, step);
  if (last) return;
  const DevicePathConsumer& end = batch.own[batch.count - 1];
  launch(context, {"path_eliminate", blocks_of(end.first_group + end.groups), dim3(kUnitThreads), room},
         score_units, batch.device, batch.count, step);
}

void refresh_blocks(const Context& context, const Batch& batch, int64_t consumer) {
  const DevicePathConsumer& own = batch.own[consumer];
  launch(context, {"path_eliminate", blocks_of(own.groups), dim3(kUnitThreads), room_for(&own, 1)},
         read_units, batch.device + consumer);
}

}  // namespace reapx
