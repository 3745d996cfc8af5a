// The steps of path_eliminate: which unit is removed, the new rows of L^T and Z^T, and the scores.
#include <algorithm>
#include <limits>

#include "path/cuda/path_device.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/warp.h"

namespace reapx {

namespace {

constexpr int kPivotThreads = 512;
constexpr int kSlices = 8;  // warps of advance_rows, among which the gathered rows are split
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
constexpr int64_t kSolvedTaps = 16;  // taps up to which the new rows of a tile fit shared memory too

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

// Whether the path goes on after this step. The first thread of a task writes the order or the status.
__device__ bool goes_on(const DevicePathConsumer* consumers, const DevicePathConsumer& c, int64_t step,
                        bool first) {
  bool failed = false;
  for (int64_t r = c.first; r < c.last; ++r) failed |= *consumers[r].failed != 0;
  if (first && !failed) c.order[step] = *c.chosen;
  if (first && failed && *c.status < 0) *c.status = step;
  return !failed;
}

// x <- R^-T x in one column of x (taps,), whose rows are `stride` apart.
__device__ void solve_column(const double* root, int64_t q, double* x, int64_t stride) {
  for (int64_t i = 0; i < q; ++i) {
    double value = x[i * stride];
    for (int64_t k = 0; k < i; ++k) value -= root[k * q + i] * x[k * stride];
    x[i * stride] = value / root[i * q + i];
  }
}

// Where a thread of advance_rows is, and where it reads and writes.
struct NewRows {
  int lane, warp;
  int64_t taps, features, column;  // the column is the feature of the lane
  int64_t gathered;                // rows of L^T and Z^T since the last update of P and K
  double *l_rows, *z_rows;         // these rows; the new ones follow them
  const int64_t* own;              // (taps,): the columns of the unit that is removed
  int64_t unit_tap;                // of the column, or -1 where it is of no unit
  bool inside, leaves, needed;     // whether it is there, is one of `own`, and is still needed
  double *l, *z;                   // the new rows in the column, [tap * stride]
  int64_t stride;
};

// Use 1 of the shared memory: own_l and own_z, [gathered row][tap of the chunk], are L[I_u] and Z[I_u].
// Every warp adds up its share of the gathered rows, every kSlices-th of them, for its lanes' columns.
template <int kChunk>
__device__ void sum_slice(const NewRows& rows, int64_t first, double* shared, double (&sum_l)[kChunk],
                          double (&sum_z)[kChunk]) {
  double *own_l = shared, *own_z = shared + kGatheredRows * kChunk;
  const int64_t q = rows.taps, n = rows.features;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < rows.gathered * kChunk; i += kSlices * kWarp) {
    const int64_t a = first + i % kChunk, at = a < q ? i / kChunk * n + rows.own[a] : 0;
    own_l[i] = a < q ? rows.l_rows[at] : 0.0;
    own_z[i] = a < q ? rows.z_rows[at] : 0.0;
  }
  __syncthreads();
  if (rows.needed)
#pragma unroll 4
    for (int64_t k = rows.warp; k < rows.gathered; k += kSlices) {
      const double l_kj = rows.l_rows[k * n + rows.column], z_kj = rows.z_rows[k * n + rows.column];
#pragma unroll
      for (int a = 0; a < kChunk; ++a) {
        sum_l[a] += own_l[k * kChunk + a] * l_kj;
        sum_z[a] += own_l[k * kChunk + a] * z_kj;
        sum_z[a] += own_z[k * kChunk + a] * l_kj;
      }
    }
  __syncthreads();
}

// Use 2, in the same place: sums, [warp][taps of the chunk for L^T, then for Z^T][lane]. Every warp
// adds up the warps' sums of some of these rows and subtracts them from P and K, which gives the new
// rows before they are multiplied by R^-T.
template <int kChunk>
__device__ void join_slices(const DevicePathConsumer& c, const NewRows& rows, int64_t first,
                            double* sums, const double (&sum_l)[kChunk],
                            const double (&sum_z)[kChunk]) {
#pragma unroll
  for (int a = 0; a < kChunk; ++a) {
    sums[(rows.warp * 2 * kChunk + a) * kWarp + rows.lane] = sum_l[a];
    sums[(rows.warp * 2 * kChunk + kChunk + a) * kWarp + rows.lane] = sum_z[a];
  }
  __syncthreads();
  for (int part = rows.warp; part < 2 * kChunk; part += kSlices) {
    const int64_t a = first + part % kChunk;
    if (a >= rows.taps || !rows.inside) continue;
    double sum = 0.0;
    for (int slice = 0; slice < kSlices; ++slice)
      sum += sums[(slice * 2 * kChunk + part) * kWarp + rows.lane];
    const double* from = part < kChunk ? c.basis : c.gram;
    (part < kChunk ? rows.l : rows.z)[a * rows.stride] =
        rows.needed ? read_upper(from, rows.features, rows.own[a], rows.column) - sum : 0.0;
  }
}

// Multiplies the new rows by R^-T, corrects those of Z^T by v v^T L^T / 2, and writes all of them.
__device__ void finish_rows(const DevicePathConsumer& c, const NewRows& rows) {
  const int64_t q = rows.taps;
  __syncthreads();
  if (rows.inside && rows.warp == 0) {
    solve_column(c.root, q, rows.l, rows.stride);
    // The unit's own columns are known without rounding; those of removed units are zero already.
    for (int64_t a = 0; rows.leaves && a < q; ++a)
      rows.l[a * rows.stride] = c.root[a * q + rows.unit_tap % q];
  }
  if (rows.inside && rows.warp == 1) solve_column(c.root, q, rows.z, rows.stride);
  __syncthreads();
  for (int64_t a = rows.warp; rows.inside && a < q; a += kSlices) {
    const int64_t at = (rows.gathered + a) * rows.features + rows.column;
    double value = rows.z[a * rows.stride];
    for (int64_t b = 0; rows.needed && b < q; ++b) value -= c.half[b * q + a] * rows.l[b * rows.stride];
    rows.z_rows[at] = value;
    if (q <= kSolvedTaps) rows.l_rows[at] = rows.l[a * rows.stride];  // with more taps it is there
  }
}

// The new rows of L^T and Z^T. A block: a tile of kTileFeatures features. A thread: one of these, which
// its lane says, and a share of the gathered rows, which its warp says. Shared memory is used three
// ways. For each chunk of kChunk taps, its first part holds, one after the other, uses 1 and 2 (above).
// Behind it, up to kSolvedTaps taps, are the new rows of all taps while they are being made: use 3.
// With more taps, these are made where they belong, in global memory.
//
// Example: units of 9 taps, chunks of 9, and the sixth step since an update, so 45 gathered rows.
//
//   use 1   own_l    0 ..  404   45 x 9, [row][tap]        use 2   sums   0 .. 4607   8 warps x 18 x 32
//           own_z 1152 .. 1556   45 x 9                    use 3   l   4608 .. 4895   9 taps x 32 lanes
//                                                                  z   4896 .. 5183
//
// Warp 2 adds up the gathered rows 2, 10, .., 42. It then joins the eight warps' sums 2, 10 of 18: row
// 2 of L^T, and, of the sums from 9 on, row 1 of Z^T.
template <int kChunk>
__global__ void __launch_bounds__(kSlices* kWarp, kChunk == 1 ? 3 : 2)
    advance_rows(const DevicePathConsumer* consumers, int64_t count, int64_t step) {
  const DevicePathConsumer& c =
      consumers[find_last(consumers, count, &DevicePathConsumer::first_tile, blockIdx.x)];
  if (step >= c.steps) return;
  const bool first_one = blockIdx.x == consumers[c.first].first_tile && threadIdx.x == 0;
  if (!goes_on(consumers, c, step, first_one)) return;

  double* shared = dynamic_shared<double>();
  NewRows rows{};
  rows.lane = static_cast<int>(threadIdx.x) % kWarp, rows.warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t q = rows.taps = c.taps, n = rows.features = c.features;
  const int64_t j = rows.column = (blockIdx.x - c.first_tile) * kTileFeatures + rows.lane;
  rows.gathered = step % c.panel_steps * q;
  rows.l_rows = c.factor + (step * q - rows.gathered) * n, rows.z_rows = c.cross;
  rows.own = c.columns + *c.chosen * q;
  rows.inside = j < n;
  rows.unit_tap = rows.inside ? c.unit_tap[j] : -1;
  const int64_t unit = rows.unit_tap < 0 ? -1 : rows.unit_tap / q;
  rows.leaves = unit == *c.chosen;
  rows.needed = rows.inside && (unit < 0 || (!c.gone[unit] && !rows.leaves));
  const bool solved = q <= kSolvedTaps;
  rows.l =
      solved ? shared + 2 * kSlices * kChunk * kWarp + rows.lane : rows.l_rows + rows.gathered * n + j;
  rows.z = solved ? rows.l + q * kTileFeatures : rows.z_rows + rows.gathered * n + j;
  rows.stride = solved ? kTileFeatures : n;

  for (int64_t first = 0; first < q; first += kChunk) {
    double sum_l[kChunk] = {}, sum_z[kChunk] = {};
    sum_slice(rows, first, shared, sum_l, sum_z);
    join_slices(c, rows, first, shared, sum_l, sum_z);
  }
  finish_rows(c, rows);
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

template <int kChunk>
void advance(const Context& context, const Batch& batch, int64_t taps, int64_t step) {
  const DevicePathConsumer& last = batch.own[batch.count - 1];
  const int64_t doubles = 2 * kChunk * std::max<int64_t>(kGatheredRows, kSlices * kWarp) +
                          2 * kTileFeatures * std::min(taps, kSolvedTaps);
  const LaunchShape shape{"path_eliminate", blocks_of(last.first_tile + last.tiles),
                          dim3(kSlices * kWarp), static_cast<std::size_t>(doubles) * sizeof(double)};
  launch(context, shape, advance_rows<kChunk>, batch.device, batch.count, step);
}

}  // namespace

void run_step(const Context& context, const Batch& batch, int64_t step, bool last) {
  const std::size_t room = room_for(batch.own, batch.count);
  launch(context, {"path_eliminate", blocks_of(batch.count), dim3(kPivotThreads), room}, pivot_units,
         batch.device, step);
  int64_t taps = 0;
  for (int64_t i = 0; i < batch.count; ++i) taps = std::max(taps, batch.own[i].taps);
  // Sums are the same in both. Where all consumers have one tap, eight of nine would be wasted.
  if (taps <= 1)
    advance<1>(context, batch, taps, step);
  else
    advance<9>(context, batch, taps, step);
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
