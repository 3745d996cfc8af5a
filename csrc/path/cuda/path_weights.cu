#include <algorithm>

#include "path/cuda/path_tile.h"
#include "path/path.h"
#include "runtime/cuda/device_buffer.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/pieces.h"

namespace reapx {

namespace {

constexpr int64_t kThreads = 256;

struct Job {
  const double *weight, *factor, *residual;
  const int64_t *columns, *order, *cuts;
  double* weights;
  int64_t* left_at;  // (features,): the step at which a feature's unit leaves, or steps
  int64_t features, outputs, taps, steps, count;
  int64_t across;  // tiles beside each other
};

// A thread for each feature: those of all units stay, at first.
__global__ void clear_left(Job job) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (j < job.features) job.left_at[j] = job.steps;
}

// A thread for each column that leaves.
__global__ void list_left(Job job) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < job.steps * job.taps)
    job.left_at[job.columns[job.order[i / job.taps] * job.taps + i % job.taps]] = i / job.taps;
}

// A block has one tile of the weights (outputs down, features across) at all cuts, one after another,
// and goes on summing where the cut before ended; shared memory holds a few steps' rows.
__global__ void __launch_bounds__(kProductThreads, 2) cut_tiles(Job job) {
  const int64_t top = blockIdx.x / job.across * kProductRows;
  const int64_t left = blockIdx.x % job.across * kProductColumns;
  const double *residual = job.residual + top, *factor = job.factor + left;
  ProductTile sum;
  for (int64_t i = 0, row = 0; i < job.count; ++i) {
    const int64_t cut = job.cuts[i], end = cut * job.taps;
    add_products(sum,
                 {residual + row * job.outputs, factor + row * job.features, job.outputs, job.features,
                  job.outputs - top, job.features - left},
                 end - row);
    row = end;
    double* weights = job.weights + i * job.outputs * job.features;
    bool gone[kOwnColumns];
#pragma unroll
    for (int x = 0; x < kOwnColumns; ++x)
      gone[x] = left + own_column(x) < job.features && job.left_at[left + own_column(x)] < cut;
#pragma unroll
    for (int y = 0; y < kOwnRows; ++y) {
      const int64_t m = top + own_row(y), at = m * job.features + left;
      const int64_t width = m < job.outputs ? job.features - left : 0;
      double whole[kOwnColumns];  // apart from what is written, so that they are waited for together
#pragma unroll
      for (int x = 0; x < kOwnColumns; ++x)
        whole[x] = own_column(x) < width ? job.weight[at + own_column(x)] : 0.0;
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
    const DeviceBuffer<int64_t> left_at(context, task.features);
    const int64_t across = divide_up(task.features, kProductColumns);
    const Job job{task.weight, task.factor,  task.residual,  task.columns,  task.order,
                  task.cuts,   task.weights, left_at.data(), task.features, task.outputs,
                  task.taps,   task.steps,   task.count,     across};
    launch(context, {"path_weights", blocks_of(divide_up(task.features, kThreads)), dim3(kThreads)},
           clear_left, job);
    launch(context,
           {"path_weights", blocks_of(divide_up(task.steps * task.taps, kThreads)), dim3(kThreads)},
           list_left, job);
    launch(context,
           {"path_weights", blocks_of(divide_up(task.outputs, kProductRows) * across),
            dim3(kProductThreads)},
           cut_tiles, job);
  }
}

}  // namespace reapx
