// The new rows of L^T and Z^T in a step of path_eliminate.
#include <algorithm>

#include "path/cuda/path_device.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/warp.h"

namespace reapx {

namespace {

constexpr int kSlices = 8;           // warps of advance_rows, among which the gathered rows are split
constexpr int64_t kSolvedTaps = 16;  // taps up to which the new rows of a tile fit shared memory too

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

template <int kChunk>
void launch_advance(const Context& context, const Batch& batch, int64_t taps, int64_t step) {
  const DevicePathConsumer& last = batch.own[batch.count - 1];
  const int64_t doubles = 2 * kChunk * std::max<int64_t>(kGatheredRows, kSlices * kWarp) +
                          2 * kTileFeatures * std::min(taps, kSolvedTaps);
  const LaunchShape shape{"path_eliminate", blocks_of(last.first_tile + last.tiles),
                          dim3(kSlices * kWarp), static_cast<std::size_t>(doubles) * sizeof(double)};
  launch(context, shape, advance_rows<kChunk>, batch.device, batch.count, step);
}

}  // namespace

void advance(const Context& context, const Batch& batch, int64_t step) {
  int64_t taps = 0;
  for (int64_t i = 0; i < batch.count; ++i) taps = std::max(taps, batch.own[i].taps);
  // Sums are the same in both. Where all consumers have one tap, eight of nine would be wasted.
  if (taps <= 1)
    launch_advance<1>(context, batch, taps, step);
  else
    launch_advance<9>(context, batch, taps, step);
}

}  // namespace reapx
