// The products of path_eliminate over many rows: K, the update of P and K, and V.
#include <algorithm>

#include "path/cuda/path_device.h"
#include "path/cuda/path_tile.h"
#include "runtime/cuda/launch.h"

namespace reapx {

namespace {

constexpr int64_t kThreads = 256;
constexpr int kSolveRows = 64, kSolveColumns = 32, kWarps = 8;
constexpr int64_t kZeroBlocks = 264;
static_assert(kThreads == kProductThreads &&
              kSolveRows % kProductTerms == 0);  // as CarriedTerms has them

// target (size, size) = A^T B, or, with `subtract`, -= A^T B; with `both`, B^T A is added to that
// product. A and B have `terms` rows. Only tiles that touch the upper triangle are computed.
struct Update {
  double* target;
  const double *a, *b;
  int64_t terms, size;
  bool both, subtract;
  const int64_t* status;
};

// A block: one tile. A thread: its elements of the tile. Shared memory holds a few terms of A and B.
__global__ void __launch_bounds__(kProductThreads, 2) update_tiles(Update u) {
  const int64_t across = divide_up(u.size, kProductColumns), n = u.size;
  const int64_t top = blockIdx.x / across * kProductRows, left = blockIdx.x % across * kProductColumns;
  if (top >= left + kProductColumns || *u.status >= 0) return;
  ProductTile sum;
  for (int i = 0; i < (u.both ? 2 : 1); ++i) {
    const double *a = i == 0 ? u.a : u.b, *b = i == 0 ? u.b : u.a;
    add_products(sum, {a + top, b + left, n, n, n - top, n - left}, u.terms);
  }
#pragma unroll
  for (int y = 0; y < kOwnRows; ++y) {
    double* to = u.target + (top + own_row(y)) * n + left;
    const int64_t width = top + own_row(y) < n ? n - left : 0;
    double before[kOwnColumns];  // read before anything is written, so that a thread waits once
#pragma unroll
    for (int x = 0; x < kOwnColumns; ++x)
      before[x] = u.subtract && own_column(x) < width ? to[own_column(x)] : 0.0;
#pragma unroll
    for (int x = 0; x < kOwnColumns; ++x)
      if (own_column(x) < width)
        to[own_column(x)] = u.subtract ? before[x] - sum.at[y][x] : sum.at[y][x];
  }
}

void launch_update(const Context& context, const Update& update) {
  const int64_t tiles = divide_up(update.size, kProductRows) * divide_up(update.size, kProductColumns);
  launch(context, {"path_eliminate", blocks_of(tiles), dim3(kProductThreads)}, update_tiles, update);
}

__device__ int64_t removed_columns(const DevicePathConsumer& c) {
  return (*c.status < 0 ? c.steps : *c.status) * c.taps;
}

__device__ int64_t removed_column(const DevicePathConsumer& c, int64_t i) {
  return c.columns[c.order[i / c.taps] * c.taps + i % c.taps];
}

// Gathers the columns of L^T that are removed, in their order: the upper triangle of R of all of them,
// which takes the memory of K. A thread: one element.
__global__ void gather_root(DevicePathConsumer c, int64_t size) {
  const int64_t across = divide_up(size, kThreads);
  const int64_t row = blockIdx.x / across, i = blockIdx.x % across * kThreads + threadIdx.x;
  const int64_t removed = removed_columns(c);
  if (row < removed && i >= row && i < removed)
    c.gram[row * size + i] = c.factor[row * c.features + removed_column(c, i)];
}

// Adds R^T V over the rows before `top` to the sums of a thread: kSolveRows / kWarps rows of one
// column.
__device__ void add_rows_before(const DevicePathConsumer& c, int64_t size, int64_t top, int64_t removed,
                                int64_t column, double* shared, double* sums) {
  double (*r)[kSolveRows] = reinterpret_cast<double (*)[kSolveRows]>(shared);
  double (*v)[kSolveColumns] =
      reinterpret_cast<double (*)[kSolveColumns]>(shared + kProductTerms * kSolveRows);
  const int lane = static_cast<int>(threadIdx.x) % kSolveColumns;
  const int warp = static_cast<int>(threadIdx.x) / kSolveColumns;
  const int64_t across = column - lane;  // the block's first
  for (int64_t first = 0; first < top; first += kProductTerms) {
    CarriedTerms<kSolveRows> next_r;
    CarriedTerms<kSolveColumns> next_v;
    next_r.read(c.gram + first * size + top, size, kProductTerms, removed - top);
    next_v.read(c.residual + first * c.outputs + across, c.outputs, kProductTerms, c.outputs - across);
    __syncthreads();
    next_r.write(r);
    next_v.write(v);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kProductTerms; ++k)
#pragma unroll
      for (int i = 0; i < kSolveRows / kWarps; ++i)
        sums[i] += r[k][warp * (kSolveRows / kWarps) + i] * v[k][lane];
  }
}

// V = R^-T W_S^T; rows behind a failure are zero. A block: kSolveColumns outputs, kSolveRows rows at a
// time. A thread: the output of its lane, and an eighth of the rows. Shared memory holds a few terms of
// the product with the rows before, and then the block of R on the diagonal and the rows it solves.
__global__ void __launch_bounds__(kThreads) solve_rows(DevicePathConsumer c, int64_t size) {
  constexpr int kOwn = kSolveRows / kWarps;
  double* shared = dynamic_shared<double>();
  double (*r)[kSolveRows] = reinterpret_cast<double (*)[kSolveRows]>(shared);
  double (*x)[kSolveColumns] =
      reinterpret_cast<double (*)[kSolveColumns]>(shared + kSolveRows * kSolveRows);
  const int lane = static_cast<int>(threadIdx.x) % kSolveColumns;
  const int warp = static_cast<int>(threadIdx.x) / kSolveColumns;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kSolveColumns + lane;
  const int64_t removed = removed_columns(c);
  for (int64_t top = 0; top < size; top += kSolveRows) {
    const int rows =
        static_cast<int>(max(min(removed - top, static_cast<int64_t>(kSolveRows)), int64_t{0}));
    double sums[kOwn] = {};
    if (rows > 0) add_rows_before(c, size, top, removed, column, shared, sums);
    __syncthreads();
    for (int i = 0; i < kOwn; ++i) {
      const int row = warp * kOwn + i;
      x[row][lane] = row < rows && column < c.outputs
                         ? c.weight[column * c.features + removed_column(c, top + row)] - sums[i]
                         : 0.0;
    }
    for (int i = static_cast<int>(threadIdx.x); i < rows * kSolveRows; i += kThreads) {
      const int k = i / kSolveRows, j = i % kSolveRows;
      if (k <= j && j < rows) r[k][j] = c.gram[(top + k) * size + top + j];
    }
    for (int i = 0; i < rows; ++i) {
      __syncthreads();
      const double value = x[i][lane] / r[i][i];
      for (int row = i + 1 + warp; row < rows; row += kWarps) x[row][lane] -= r[i][row] * value;
      if (warp == 0 && column < c.outputs) c.residual[(top + i) * c.outputs + column] = value;
    }
    for (int row = rows + warp; row < kSolveRows && top + row < size; row += kWarps)
      if (column < c.outputs) c.residual[(top + row) * c.outputs + column] = 0.0;
    __syncthreads();
  }
}

// Adds |v|^2 to the error of a step. A block: one step. A thread: every kThreads-th element of v.
// Shared memory: the threads' sums, which are then added in pairs.
__global__ void add_errors(DevicePathConsumer c) {
  __shared__ double sums[kThreads];
  const int64_t step = blockIdx.x, size = c.taps * c.outputs;
  if (*c.status >= 0 && step >= *c.status) return;
  const double* v = c.residual + step * size;
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < size; i += kThreads) sum += v[i] * v[i];
  sums[threadIdx.x] = sum;
  for (int64_t half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) c.errors[step] += c.scale * sums[0];
}

// Writes zeros to the rows of the factor behind a failure, with few blocks, since there is rarely one.
__global__ void clear_tail(DevicePathConsumer c) {
  const int64_t first = removed_columns(c) * c.features, end = c.steps * c.taps * c.features;
  for (int64_t i = first + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < end;
       i += kZeroBlocks * kThreads)
    c.factor[i] = 0.0;
}

}  // namespace

void make_gram(const Context& context, const DevicePathConsumer& c) {
  launch_update(context, {c.gram, c.weight, c.weight, c.outputs, c.features, false, false, c.status});
}

void update_panel(const Context& context, const DevicePathConsumer& c, int64_t step) {
  const int64_t terms = c.panel_steps * c.taps;
  const double *l = c.factor + (step * c.taps - terms) * c.features, *z = c.cross;
  launch_update(context, {c.updated, l, l, terms, c.features, false, true, c.status});
  launch_update(context, {c.gram, l, z, terms, c.features, true, true, c.status});
}

void finish_consumer(const Context& context, const DevicePathConsumer& c) {
  const int64_t size = c.steps * c.taps;
  launch(context, {"path_eliminate", blocks_of(size * divide_up(size, kThreads)), dim3(kThreads)},
         gather_root, c, size);
  const std::size_t shared = sizeof(double) * kSolveRows * (kSolveRows + kSolveColumns);
  launch(context,
         {"path_eliminate", blocks_of(divide_up(c.outputs, kSolveColumns)), dim3(kThreads), shared},
         solve_rows, c, size);
  launch(context, {"path_eliminate", blocks_of(c.steps), dim3(kThreads)}, add_errors, c);
  launch(context, {"path_eliminate", dim3(kZeroBlocks), dim3(kThreads)}, clear_tail, c);
}

}  // namespace reapx
