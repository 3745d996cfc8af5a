#include <algorithm>

#include "path/cuda/path_device.h"
#include "path/path.h"
#include "runtime/cuda/device_buffer.h"
#include "runtime/cuda/launch.h"

namespace reapx {

namespace {

constexpr int64_t kThreads = 512;

// Tasks take their steps together up to this much scratch. Large tasks fill the device by themselves,
// and all of them at once might not fit its memory.
constexpr int64_t kBatchDoubles = int64_t{1} << 29;

// Hands out parts of memory. Where `memory` is null, it only counts them.
template <class T>
struct Arena {
  T* memory = nullptr;
  int64_t used = 0;

  T* take(int64_t count) {
    T* part = memory ? memory + used : nullptr;
    used += count;
    return part;
  }
};

struct PathScratch {
  Arena<double> doubles;
  Arena<int64_t> integers;
};

int64_t panel_steps_of(const PathTask& task) {
  int64_t steps = kGatheredRows;
  for (const PathConsumer& c : task.consumers)
    if (c.taps > 0) steps = std::min(steps, std::max<int64_t>(1, kGatheredRows / c.taps));
  return steps;
}

DevicePathConsumer device_consumer(const PathTask& task, const PathConsumer& c, PathScratch& scratch) {
  DevicePathConsumer r{};
  r.weight = c.weight, r.columns = c.columns, r.scale = c.scale;
  r.factor = c.factor, r.residual = c.residual;
  r.features = c.features, r.outputs = c.outputs, r.taps = c.taps;
  r.units = task.units, r.steps = task.steps;
  r.forced = task.forced, r.forced_count = task.forced_count;
  r.order = task.order, r.errors = task.errors, r.status = task.status;
  r.panel_steps = panel_steps_of(task);
  const int64_t n = c.features, size = c.taps * c.taps;
  Arena<double>& doubles = scratch.doubles;
  if (r.steps > r.panel_steps) r.updated = doubles.take(n * n);  // otherwise P stays as it is
  r.basis = r.updated ? r.updated : c.basis;
  r.gram = doubles.take(n * n);
  r.cross = doubles.take(std::min(r.panel_steps, r.steps) * c.taps * n);
  r.blocks = doubles.take(task.units * size);
  r.products = doubles.take(task.units * size);
  r.scores = doubles.take(task.units);
  r.root = doubles.take(size);
  r.half = doubles.take(size);
  if (c.taps > kSharedTaps) r.work = doubles.take(task.units * 2 * size);
  r.gone = scratch.integers.take(task.units);
  r.unit_tap = scratch.integers.take(n);
  r.chosen = scratch.integers.take(1);
  r.failed = scratch.integers.take(1);
  return r;
}

std::vector<DevicePathConsumer> device_consumers(const std::vector<PathTask>& tasks,
                                                 PathScratch& scratch) {
  std::vector<DevicePathConsumer> consumers;
  int64_t tiles = 0, groups = 0;
  for (const PathTask& task : tasks) {
    const int64_t first = static_cast<int64_t>(consumers.size());
    for (const PathConsumer& consumer : task.consumers) {
      DevicePathConsumer r = device_consumer(task, consumer, scratch);
      r.first = first;
      r.last = first + static_cast<int64_t>(task.consumers.size());
      r.first_tile = tiles, r.first_group = groups;
      r.tiles = std::max<int64_t>(1, divide_up(r.features, kTileFeatures));
      r.groups = r.taps == 1 ? divide_up(r.units, kUnitThreads) : r.units;
      tiles += r.tiles, groups += r.groups;
      consumers.push_back(r);
    }
  }
  return consumers;
}

// Inverts the list of each unit's columns. A block: one consumer. A thread: every kThreads-th column.
__global__ void find_unit_taps(const DevicePathConsumer* consumers) {
  const DevicePathConsumer& c = consumers[blockIdx.x];
  for (int64_t i = threadIdx.x; i < c.features; i += kThreads) c.unit_tap[i] = -1;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < c.units * c.taps; i += kThreads) c.unit_tap[c.columns[i]] = i;
}

void clear_outputs(const Context& context, const PathTask& task) {
  fill_bytes(context, task.status, 0xff, 1);  // -1
  fill_bytes(context, task.order, 0, task.steps);
  fill_bytes(context, task.errors, 0, task.steps);
}

void load_basis(const Context& context, const DevicePathConsumer& r, const PathConsumer& consumer) {
  if (!r.updated || r.features == 0) return;
  const std::size_t bytes = static_cast<std::size_t>(r.features * r.features) * sizeof(double);
  cuda_check(
      cudaMemcpyAsync(r.updated, consumer.basis, bytes, cudaMemcpyDeviceToDevice, context.stream),
      "cudaMemcpyAsync");
}

void prepare(const Context& context, const std::vector<PathTask>& tasks, const Batch& batch) {
  launch(context, {"path_eliminate", blocks_of(batch.count), dim3(kThreads)}, find_unit_taps,
         batch.device);
  int64_t i = 0;
  for (const PathTask& task : tasks)
    for (const PathConsumer& consumer : task.consumers) {
      load_basis(context, batch.own[i], consumer);
      make_gram(context, batch.own[i]);
      refresh_blocks(context, batch, i++);
    }
}

void run_batch(const Context& context, const std::vector<PathTask>& tasks) {
  PathScratch scratch;
  device_consumers(tasks, scratch);
  const DeviceBuffer<double> doubles(context, scratch.doubles.used);
  const DeviceBuffer<int64_t> integers(context, scratch.integers.used);
  fill_bytes(context, integers.data(), 0, scratch.integers.used);
  scratch = {{doubles.data()}, {integers.data()}};
  const std::vector<DevicePathConsumer> consumers = device_consumers(tasks, scratch);
  const DeviceBuffer<DevicePathConsumer> described(context, consumers);
  const Batch batch{consumers.data(), described.data(), static_cast<int64_t>(consumers.size())};
  prepare(context, tasks, batch);
  int64_t steps = 0;
  for (const DevicePathConsumer& r : consumers) steps = std::max(steps, r.steps);
  for (int64_t step = 0; step < steps; ++step) {
    for (int64_t i = 0; i < batch.count; ++i) {
      if (step == 0 || step >= consumers[i].steps || step % consumers[i].panel_steps != 0) continue;
      update_panel(context, consumers[i], step);
      refresh_blocks(context, batch, i);
    }
    run_step(context, batch, step, step + 1 == steps);
  }
  for (const DevicePathConsumer& r : consumers) finish_consumer(context, r);
}

int64_t doubles_of(const PathTask& task) {
  PathScratch scratch;
  for (const PathConsumer& consumer : task.consumers) device_consumer(task, consumer, scratch);
  return scratch.doubles.used;
}

}  // namespace

void path_eliminate(const std::vector<PathTask>& tasks, const Context& context) {
  std::vector<PathTask> together;
  int64_t doubles = 0;
  for (const PathTask& task : tasks) {
    clear_outputs(context, task);
    if (task.steps == 0) continue;
    const int64_t own = doubles_of(task);
    if (!together.empty() && doubles + own > kBatchDoubles) {
      run_batch(context, together);
      together.clear();
      doubles = 0;
    }
    together.push_back(task);
    doubles += own;
  }
  if (!together.empty()) run_batch(context, together);
}

}  // namespace reapx
