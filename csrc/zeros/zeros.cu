#include <algorithm>

#include "runtime/cuda/device_buffer.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/warp.h"
#include "runtime/cuda/work_items.h"
#include "zeros/zeros.h"

namespace reapx {

namespace {

constexpr int kWarps = 8;     // of a block
constexpr int kLoads = 4;     // elements of a row that a lane holds
constexpr int kTogether = 4;  // rows that a warp reads before it looks at them
constexpr int64_t kStrip = kWarp * kLoads, kRows = 64;  // what a warp reads of a weight
constexpr unsigned kMagnitude = 0x7fffffff;             // bits of a float without the sign

// A task as the device sees it. Maxima are kept as the bit patterns of magnitudes, which have the order
// of the magnitudes, with NaN above infinity. So a maximum of integers, taken in any order, is exact.
struct DeviceZeroTask {
  const unsigned* weight;  // (outputs, width)
  unsigned *rows, *columns;
  int64_t outputs, inputs, taps, width;
  int64_t strips;  // along a row
  int64_t first;   // where its work items begin among those of all tasks: kRows rows of a strip each
};

// A block: one task. A thread: every blockDim.x-th maximum.
__global__ void clear_maxima(const DeviceZeroTask* tasks_on_device) {
  const DeviceZeroTask& task = tasks_on_device[blockIdx.x];
  for (int64_t i = threadIdx.x; i < task.outputs; i += blockDim.x) task.rows[i] = 0;
  for (int64_t i = threadIdx.x; i < task.inputs; i += blockDim.x) task.columns[i] = 0;
}

// A warp: one work item. A thread: every kWarp-th column of its strip.
__global__ void scan_items(const DeviceZeroTask* tasks_on_device, int64_t count, int64_t items) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (item >= items) return;
  const DeviceZeroTask task =
      tasks_on_device[find_last(tasks_on_device, count, &DeviceZeroTask::first, item)];
  const int64_t top = (item - task.first) / task.strips * kRows;
  const int64_t bottom = min(top + kRows, task.outputs);
  const int64_t left = (item - task.first) % task.strips * kStrip + threadIdx.x % kWarp;
  unsigned column[kLoads] = {};
  // Small networks fill few warps, so a warp asks for several rows before it looks at the first one.
  for (int64_t row = top; row < bottom; row += kTogether) {
    unsigned bits[kTogether][kLoads];
#pragma unroll
    for (int r = 0; r < kTogether; ++r)
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const bool inside = row + r < bottom && left + i * kWarp < task.width;
        bits[r][i] = inside ? __ldg(task.weight + (row + r) * task.width + left + i * kWarp) : 0;
      }
#pragma unroll
    for (int r = 0; r < kTogether; ++r) {
      unsigned largest = 0;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        column[i] = max(column[i], bits[r][i] & kMagnitude);
        largest = max(largest, bits[r][i] & kMagnitude);
      }
      largest = __reduce_max_sync(kAllLanes, largest);
      if (threadIdx.x % kWarp == 0 && row + r < bottom) atomicMax(task.rows + row + r, largest);
    }
  }
  for (int i = 0; i < kLoads; ++i)
    if (left + i * kWarp < task.width)
      atomicMax(task.columns + (left + i * kWarp) / task.taps, column[i]);
}

}  // namespace

void zero_scan(const std::vector<ZeroTask>& tasks, const Context& context) {
  std::vector<DeviceZeroTask> tasks_on_device;
  int64_t items = 0;
  for (const ZeroTask& task : tasks) {
    const int64_t width = task.inputs * task.taps, strips = divide_up(width, kStrip);
    tasks_on_device.push_back({reinterpret_cast<const unsigned*>(task.weight),
                               reinterpret_cast<unsigned*>(task.rows),
                               reinterpret_cast<unsigned*>(task.columns), task.outputs, task.inputs,
                               task.taps, width, strips, items});
    items += divide_up(task.outputs, kRows) * strips;
  }
  const DeviceBuffer<DeviceZeroTask> described(context, tasks_on_device);
  const int64_t count = static_cast<int64_t>(tasks_on_device.size());
  launch(context, {"zero_scan", blocks_of(count), dim3(256)}, clear_maxima, described.data());
  const LaunchShape shape{"zero_scan", blocks_of(divide_up(items, kWarps)), dim3(kWarps * kWarp)};
  launch(context, shape, scan_items, described.data(), count, items);
}

}  // namespace reapx
