// The steps of path_eliminate: who leaves, the new rows of L^T and Z^T, and the scores after that.
#include <algorithm>
#include <limits>

#include "path/cuda/path_device.h"
#include "runtime/cuda/launch.h"

namespace reapx {

namespace {

constexpr unsigned kAll = 0xffffffff;
constexpr int kWarp = 32;
constexpr int kPivotThreads = 512;
constexpr int kSlices = 8;  // warps of advance_rows, among which the gathered rows are split
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
constexpr int64_t kSolvedTaps = 16;  // up to which a tile's new rows fit shared memory too

// A unit and its score. "None" loses against every unit.
struct Candidate {
  double score;
  int64_t unit;
  __device__ bool better_than(const Candidate& other) const {
    return score < other.score || (score == other.score && unit < other.unit);
  }
};

// The alive unit with the least score, on all threads of the block; the lowest of equal ones. Each
// thread looks at every kPivotThreads-th unit, some at once so that it waits for memory less often;
// shared memory has the best of each warp.
__device__ int64_t choose_unit(const Reader* readers, const Reader& c) {
  constexpr int kAtOnce = 8;
  __shared__ Candidate best_of[kPivotThreads / kWarp];
  Candidate best{kInfinity, kNone};
  for (int64_t first = threadIdx.x; first < c.units; first += kAtOnce * kPivotThreads) {
    int64_t gone[kAtOnce], unit[kAtOnce];
    double score[kAtOnce] = {};
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      unit[i] = min(first + i * kPivotThreads, c.units - 1);  // the last one again does no harm
      gone[i] = c.gone[unit[i]];
    }
    for (int64_t r = c.first; r < c.last; ++r) {
      const double scale = readers[r].scale, *scores = readers[r].scores;
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
    const Candidate other{__shfl_xor_sync(kAll, best.score, step),
                          __shfl_xor_sync(kAll, best.unit, step)};
    if (other.better_than(best)) best = other;
  }
  if (threadIdx.x % kWarp == 0) best_of[threadIdx.x / kWarp] = best;
  __syncthreads();
  for (const Candidate& other : best_of)
    if (other.better_than(best)) best = other;
  return best.unit;
}

// r (q, q) becomes R, r = R^T R, in its upper triangle; k becomes R^-T k R^-1: all of it, or only the
// lower triangle. By all threads of a block. Indices are int here: a division of int64_t takes longer
// than most of the rest.
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

// A block for each reader: all readers of a task choose the same unit. Shared memory has S and A of it,
// which become R and v v^T, unless they are too large for it.
__global__ void __launch_bounds__(kPivotThreads) pivot_units(const Reader* readers, int64_t step) {
  const Reader& c = readers[blockIdx.x];
  if (step >= c.steps || *c.status >= 0) return;
  const int64_t unit = step < c.forced_count ? c.forced[step] : choose_unit(readers, c);
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

// Whether the path goes on; if so, the order does, and if not, the first to know says so.
__device__ bool goes_on(const Reader* readers, const Reader& c, int64_t step, bool first) {
  bool failed = false;
  for (int64_t r = c.first; r < c.last; ++r) failed |= *readers[r].failed != 0;
  if (first && !failed) c.order[step] = *c.chosen;
  if (first && failed && *c.status < 0) *c.status = step;
  return !failed;
}

// x (taps, kColumns or another stride) <- R^-T x, in one column.
__device__ void solve_column(const double* root, int64_t q, double* x, int64_t stride) {
  for (int64_t i = 0; i < q; ++i) {
    double value = x[i * stride];
    for (int64_t k = 0; k < i; ++k) value -= root[k * q + i] * x[k * stride];
    x[i * stride] = value / root[i * q + i];
  }
}

// The new rows of L^T and Z^T in a tile of kColumns features, a lane each. The warps share the rows
// gathered so far, for kChunk taps at a time; their sums meet in shared memory, which before has
// L[I_u] and Z[I_u] of those taps. Beyond that it has the new rows, if they are few, while they become
// R^-T times themselves; otherwise they do so where they belong.
template <int kChunk>
__global__ void __launch_bounds__(kSlices* kWarp, kChunk == 1 ? 3 : 2)
    advance_rows(const Reader* readers, int64_t count, int64_t step) {
  const Reader& c = readers[find_last(readers, count, &Reader::first_tile, blockIdx.x)];
  if (step >= c.steps) return;
  const int64_t tile = blockIdx.x - c.first_tile;
  const bool first_one = blockIdx.x == readers[c.first].first_tile && threadIdx.x == 0;
  if (!goes_on(readers, c, step, first_one)) return;

  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t q = c.taps, n = c.features, unit = *c.chosen, j = tile * kColumns + lane;
  const int64_t gathered = step % c.panel_steps * q;
  double *l_rows = c.factor + (step * q - gathered) * n, *z_rows = c.cross;
  const int64_t* own = c.columns + unit * q;
  const int64_t place = j < n ? c.place[j] : -1, reader_unit = place < 0 ? -1 : place / q;
  const bool inside = j < n, leaves = reader_unit == unit;
  const bool needed = inside && (reader_unit < 0 || (!c.gone[reader_unit] && !leaves));

  double* shared = dynamic_shared<double>();
  double *own_l = shared, *own_z = shared + kPanelRows * kChunk, *sums = shared;
  double *l = l_rows + gathered * n + j, *z = z_rows + gathered * n + j;
  int64_t stride = n;
  if (q <= kSolvedTaps) {
    l = shared + 2 * kSlices * kChunk * kWarp + lane;
    z = l + q * kColumns;
    stride = kColumns;
  }

  for (int64_t first = 0; first < q; first += kChunk) {
    __syncthreads();
    for (int64_t i = threadIdx.x; i < gathered * kChunk; i += kSlices * kWarp) {
      const int64_t a = first + i % kChunk, at = a < q ? i / kChunk * n + own[a] : 0;
      own_l[i] = a < q ? l_rows[at] : 0.0;
      own_z[i] = a < q ? z_rows[at] : 0.0;
    }
    __syncthreads();
    double sum_l[kChunk] = {}, sum_z[kChunk] = {};
    if (needed)
#pragma unroll 4
      for (int64_t k = warp; k < gathered; k += kSlices) {
        const double l_kj = l_rows[k * n + j], z_kj = z_rows[k * n + j];
#pragma unroll
        for (int a = 0; a < kChunk; ++a) {
          sum_l[a] += own_l[k * kChunk + a] * l_kj;
          sum_z[a] += own_l[k * kChunk + a] * z_kj;
          sum_z[a] += own_z[k * kChunk + a] * l_kj;
        }
      }
    __syncthreads();
#pragma unroll
    for (int a = 0; a < kChunk; ++a) {
      sums[(warp * 2 * kChunk + a) * kWarp + lane] = sum_l[a];
      sums[(warp * 2 * kChunk + kChunk + a) * kWarp + lane] = sum_z[a];
    }
    __syncthreads();
    for (int part = warp; part < 2 * kChunk; part += kSlices) {
      const int64_t a = first + part % kChunk;
      if (a >= q || !inside) continue;
      double sum = 0.0;
      for (int slice = 0; slice < kSlices; ++slice)
        sum += sums[(slice * 2 * kChunk + part) * kWarp + lane];
      const double* from = part < kChunk ? c.basis : c.gram;
      (part < kChunk ? l : z)[a * stride] = needed ? read_upper(from, n, own[a], j) - sum : 0.0;
    }
  }
  __syncthreads();
  if (inside && warp == 0) {
    solve_column(c.root, q, l, stride);
    // What is known without rounding; those that left are zero already.
    for (int64_t a = 0; leaves && a < q; ++a) l[a * stride] = c.root[a * q + place % q];
  }
  if (inside && warp == 1) solve_column(c.root, q, z, stride);
  __syncthreads();
  for (int64_t a = warp; inside && a < q; a += kSlices) {
    double value = z[a * stride];
    for (int64_t b = 0; needed && b < q; ++b) value -= c.half[b * q + a] * l[b * stride];
    z_rows[(gathered + a) * n + j] = value;
    if (q <= kSolvedTaps) l_rows[(gathered + a) * n + j] = l[a * stride];  // else it is there
  }
}

// tr(S^-1 A) of one unit by all threads of a block. r and k are room for a block each.
__device__ void score_unit(const Reader& c, int64_t unit, double* r, double* k) {
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

__device__ double* room_of(const Reader& c, int64_t unit) {
  return c.taps <= kSharedTaps ? dynamic_shared<double>() : c.work + unit * 2 * c.taps * c.taps;
}

// The root of a negative number is none, and then neither is the score.
__device__ double score_tap(double block, double product) {
  return block > 0.0 ? product / block : kNan;
}

// S, A and the scores after a step. With one tap, a thread for each of kUnitThreads units; with more,
// a block for each unit, and in shared memory, if they fit, first its columns of the new rows and then
// its blocks.
__global__ void __launch_bounds__(kUnitThreads)
    score_units(const Reader* readers, int64_t count, int64_t step) {
  const Reader& c = readers[find_last(readers, count, &Reader::first_group, blockIdx.x)];
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

// S, A and the scores of one reader from P and K; threads and shared memory as in score_units.
__global__ void __launch_bounds__(kUnitThreads) read_units(const Reader* reader) {
  const Reader& c = *reader;
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

// Two blocks of a unit, for the largest of these readers that has them in shared memory.
std::size_t room_for(const Reader* readers, int64_t count) {
  int64_t taps = 0;
  for (int64_t i = 0; i < count; ++i)
    if (readers[i].taps <= kSharedTaps) taps = std::max(taps, readers[i].taps);
  return static_cast<std::size_t>(2 * taps * taps) * sizeof(double);
}

template <int kChunk>
void advance(const Context& context, const Batch& batch, int64_t taps, int64_t step) {
  const Reader& last = batch.own[batch.count - 1];
  const int64_t doubles = 2 * kChunk * std::max<int64_t>(kPanelRows, kSlices * kWarp) +
                          2 * kColumns * std::min(taps, kSolvedTaps);
  const Shape shape{"path_eliminate", blocks_of(last.first_tile + last.tiles), dim3(kSlices * kWarp),
                    static_cast<std::size_t>(doubles) * sizeof(double)};
  launch(context, shape, advance_rows<kChunk>, batch.device, batch.count, step);
}

}  // namespace

void run_step(const Context& context, const Batch& batch, int64_t step, bool last) {
  const std::size_t room = room_for(batch.own, batch.count);
  launch(context, {"path_eliminate", blocks_of(batch.count), dim3(kPivotThreads), room}, pivot_units,
         batch.device, step);
  int64_t taps = 0;
  for (int64_t i = 0; i < batch.count; ++i) taps = std::max(taps, batch.own[i].taps);
  // Sums are the same in both; where all have one tap, most of nine would be for nothing.
  if (taps <= 1)
    advance<1>(context, batch, taps, step);
  else
    advance<9>(context, batch, taps, step);
  if (last) return;
  const Reader& end = batch.own[batch.count - 1];
  launch(context, {"path_eliminate", blocks_of(end.first_group + end.groups), dim3(kUnitThreads), room},
         score_units, batch.device, batch.count, step);
}

void refresh_blocks(const Context& context, const Batch& batch, int64_t reader) {
  const Reader& own = batch.own[reader];
  launch(context, {"path_eliminate", blocks_of(own.groups), dim3(kUnitThreads), room_for(&own, 1)},
         read_units, batch.device + reader);
}

}  // namespace reapx
