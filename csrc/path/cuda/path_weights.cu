#include <algorithm>

#include "path/cuda/path_tile.h"
#include "path/path.h"
#include "runtime/cuda/device_buffer.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/work_items.h"

namespace reapx {

namespace {

constexpr int64_t kThreads = 256;

struct DeviceCutsTask {
  const double *weight, *factor, *residual;
  const int64_t *columns, *order, *cuts;
  double* weights;
  int64_t* removed_at;  // (features,): the step at which its unit is removed, or steps
  int64_t features, outputs, taps, steps, count;
  int64_t across;  // tiles along a row of the weights
};

// A thread: one feature, of which nothing is removed at first.
__global__ void clear_removed(DeviceCutsTask task) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (j < task.features) task.removed_at[j] = task.steps;
}

// A thread: one column that is removed.
__global__ void list_removed(DeviceCutsTask task) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < task.steps * task.taps)
    task.removed_at[task.columns[task.order[i / task.taps] * task.taps + i % task.taps]] =
        i / task.taps;
}

// A block: one tile of the weights, outputs down and features across, at all cuts one after another;
// each cut goes on summing where the one before ended. A thread: its elements of the tile. Shared
// memory holds a few rows of factor and residual.
__global__ void __launch_bounds__(kProductThreads, 2) cut_tiles(DeviceCutsTask task) {
  const int64_t top = blockIdx.x / task.across * kProductRows;
  const int64_t left = blockIdx.x % task.across * kProductColumns;
  const double *residual = task.residual + top, *factor = task.factor + left;
  ProductTile sum;
  for (int64_t i = 0, row = 0; i < task.count; ++i) {
    const int64_t cut = task.cuts[i], end = cut * task.taps;
    add_products(sum,
                 {residual + row * task.outputs, factor + row * task.features, task.outputs,
                  task.features, task.outputs - top, task.features - left},
                 end - row);
    row = end;
    double* weights = task.weights + i * task.outputs * task.features;
    bool gone[kOwnColumns];
#pragma unroll
    for (int x = 0; x < kOwnColumns; ++x)
      gone[x] = left + own_column(x) < task.features && task.removed_at[left + own_column(x)] < cut;
#pragma unroll
    for (int y = 0; y < kOwnRows; ++y) {
      const int64_t m = top + own_row(y), at = m * task.features + left;
      const int64_t width = m < task.outputs ? task.features - left : 0;
      double whole[kOwnColumns];  // read before anything is written, so that a thread waits once
#pragma unroll
      for (int x = 0; x < kOwnColumns; ++x)
        whole[x] = own_column(x) < width ? task.weight[at + own_column(x)] : 0.0;
#pragma unroll
      for (int x = 0; x < kOwnColumns; ++x)
        if (own_column(x) < width)
          weights[at + own_column(x)] = gone[x] ? 0.0 : whole[x] - sum.at[y][x];
    }
  }
}

}  // namespace

void path_weights(const std::vector<CutsTask>& tasks, const Context& context) {
  for (const CutsTask& task : tasks) {
    if (task.count == 0) continue;
    const DeviceBuffer<int64_t> removed_at(context, task.features);
    const int64_t across = divide_up(task.features, kProductColumns);
    const DeviceCutsTask device_task{task.weight,   task.factor,  task.residual, task.columns,
                                     task.order,    task.cuts,    task.weights,  removed_at.data(),
                                     task.features, task.outputs, task.taps,     task.steps,
                                     task.count,    across};
    launch(context, {"path_weights", blocks_of(divide_up(task.features, kThreads)), dim3(kThreads)},
           clear_removed, device_task);
    launch(context,
           {"path_weights", blocks_of(divide_up(task.steps * task.taps, kThreads)), dim3(kThreads)},
           list_removed, device_task);
    launch(context,
           {"path_weights", blocks_of(divide_up(task.outputs, kProductRows) * across),
            dim3(kProductThreads)},
           cut_tiles, device_task);
  }
}

}  // namespace reapx
