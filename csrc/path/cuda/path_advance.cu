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

// The new rows of L^T and Z^T. A block: a tile of kTileFeatures features. A thread: one of these, which
// its lane says, and a share of the gathered rows, which its warp says. Shared memory is used three
// ways, the first two in turn for each chunk of kChunk taps:
//
// 1. own_l and own_z, [gathered row][tap of the chunk], are L[I_u] and Z[I_u]. Every warp sums over its
//    share of the gathered rows.
// 2. sums, in the same place, [warp][taps of the chunk for L^T, then for Z^T][lane], are what the warps
//    have summed. Every warp adds up the slices of some rows and subtracts them from P and K.
// 3. l and z, behind these, are the new rows of all taps while they are multiplied by R^-T. With more
//    than kSolvedTaps taps, this is done where the rows belong, in global memory.
//
// Example: units of 9 taps, chunks of 9, and the sixth step since an update, so 45 gathered rows.
//
//   use 1   own_l    0 ..  404   45 x 9, [row][tap]        use 2   sums   0 .. 4607   8 warps x 18 x 32
//           own_z 1152 .. 1556   45 x 9                    use 3   l   4608 .. 4895   9 taps x 32 lanes
//                                                                  z   4896 .. 5183
//
// Warp 2 sums over the gathered rows 2, 10, .., 42. It then adds up the slices of rows 2 and 10 of 18:
// these are row 2 of L^T, and, as those of Z^T begin at 9, row 1 of Z^T.
template <int kChunk>
__global__ void __launch_bounds__(kSlices* kWarp, kChunk == 1 ? 3 : 2)
    advance_rows(const DevicePathConsumer* consumers, int64_t count, int64_t step) {
  const DevicePathConsumer& c =
      consumers[find_last(consumers, count, &DevicePathConsumer::first_tile, blockIdx.x)];
  if (step >= c.steps) return;
  const int64_t tile = blockIdx.x - c.first_tile;
  const bool first_one = blockIdx.x == consumers[c.first].first_tile && threadIdx.x == 0;
  if (!goes_on(consumers, c, step, first_one)) return;

  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t q = c.taps, n = c.features, unit = *c.chosen, j = tile * kTileFeatures + lane;
  const int64_t gathered = step % c.panel_steps * q;
  double *l_rows = c.factor + (step * q - gathered) * n, *z_rows = c.cross;
  const int64_t* own = c.columns + unit * q;
  const int64_t unit_tap = j < n ? c.unit_tap[j] : -1, column_unit = unit_tap < 0 ? -1 : unit_tap / q;
  const bool inside = j < n, leaves = column_unit == unit;
  const bool needed = inside && (column_unit < 0 || (!c.gone[column_unit] && !leaves));

  double* shared = dynamic_shared<double>();
  double *own_l = shared, *own_z = shared + kGatheredRows * kChunk, *sums = shared;
  double *l = l_rows + gathered * n + j, *z = z_rows + gathered * n + j;
  int64_t stride = n;
  if (q <= kSolvedTaps) {
    l = shared + 2 * kSlices * kChunk * kWarp + lane;
    z = l + q * kTileFeatures;
    stride = kTileFeatures;
  }

  for (int64_t first = 0; first < q; first += kChunk) {
    __syncthreads();  // the sums of the last chunk have been used: use 1
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
    __syncthreads();  // own_l and own_z have been used: use 2
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
  __syncthreads();  // all new rows are there: use 3
  if (inside && warp == 0) {
    solve_column(c.root, q, l, stride);
    // The unit's own columns are known without rounding; those of removed units are zero already.
    for (int64_t a = 0; leaves && a < q; ++a) l[a * stride] = c.root[a * q + unit_tap % q];
  }
  if (inside && warp == 1) solve_column(c.root, q, z, stride);
  __syncthreads();
  for (int64_t a = warp; inside && a < q; a += kSlices) {
    double value = z[a * stride];
    for (int64_t b = 0; needed && b < q; ++b) value -= c.half[b * q + a] * l[b * stride];
    z_rows[(gathered + a) * n + j] = value;
    if (q <= kSolvedTaps) l_rows[(gathered + a) * n + j] = l[a * stride];  // with more taps it is there
  }
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
