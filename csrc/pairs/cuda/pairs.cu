#include <algorithm>
#include <utility>
#include <vector>

#include "pairs/cuda/pair_units.h"
#include "pairs/pairs.h"
#include "runtime/cuda/device_buffer.h"
#include "runtime/cuda/launch.h"

namespace reapx {

namespace pairs {

namespace {

constexpr int kPackSide = 32;    // of a tile of the weights
constexpr int kPackRows = 8;     // rows of it that a block moves at once
constexpr int64_t kItems = 512;  // of a task, about: each step compares what all of them found

// Copies W of all units to `packed`. A block: one tile, which it transposes in shared memory, so that
// both sides are read and written along their rows. A thread: one column of the tile, every
// kPackRows-th row.
__global__ void pack_weights(PairPlan plan) {
  // One column wider than a tile, so that a column lies in different banks.
  __shared__ double tile[kPackSide][kPackSide + 1];
  const DevicePairConsumer& c = plan.consumers[find_last(plan.consumers, plan.consumer_count,
                                                         &DevicePairConsumer::first_tile, blockIdx.x)];
  const int64_t width = c.units * c.taps, across = divide_up(width, kPackSide);
  const int64_t left = (blockIdx.x - c.first_tile) % across * kPackSide, x = threadIdx.x;
  const int64_t top = (blockIdx.x - c.first_tile) / across * kPackSide;
  for (int64_t y = threadIdx.y; y < kPackSide; y += kPackRows)
    if (top + y < c.outputs && left + x < width)
      tile[y][x] = c.weight[(top + y) * c.features + c.columns[left + x]];
  __syncthreads();
  for (int64_t y = threadIdx.y; y < kPackSide; y += kPackRows)
    if (left + y < width && top + x < c.outputs)
      c.packed[(left + y) * c.outputs + top + x] = tile[x][y];
}

// Copies `packed` back to W, with zeros for units that are removed. Blocks and threads as above.
__global__ void unpack_weights(PairPlan plan) {
  __shared__ double tile[kPackSide][kPackSide + 1];
  const DevicePairConsumer& c = plan.consumers[find_last(plan.consumers, plan.consumer_count,
                                                         &DevicePairConsumer::first_tile, blockIdx.x)];
  const int* alive = plan.tasks[c.task].alive;
  const int64_t width = c.units * c.taps, across = divide_up(width, kPackSide);
  const int64_t left = (blockIdx.x - c.first_tile) % across * kPackSide, x = threadIdx.x;
  const int64_t top = (blockIdx.x - c.first_tile) / across * kPackSide;
  for (int64_t y = threadIdx.y; y < kPackSide; y += kPackRows)
    if (left + y < width && top + x < c.outputs)
      tile[y][x] = alive[(left + y) / c.taps] ? c.packed[(left + y) * c.outputs + top + x] : 0.0;
  __syncthreads();
  for (int64_t y = threadIdx.y; y < kPackSide; y += kPackRows)
    if (top + y < c.outputs && left + x < width)
      c.weight[(top + y) * c.features + c.columns[left + x]] = tile[x][y];
}

// Computes A_u, G_uu and <A_u, G_uu>. A warp: one unit of one consumer. A thread: every kWarp-th output
// and term.
__global__ void read_units(PairPlan plan) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kPairWarps + threadIdx.x / kWarp;
  if (i >= plan.units) return;
  const DevicePairConsumer& c = plan.consumers[find_last(plan.consumers, plan.consumer_count,
                                                         &DevicePairConsumer::first_unit, i)];
  const int64_t u = i - c.first_unit, lane = threadIdx.x % kWarp;
  const int64_t* own = c.columns + u * c.taps;
  for (int64_t term = lane; term < c.terms; term += kWarp)
    c.blocks[term * c.units + u] = c.gram[own[term / c.taps] * c.features + own[term % c.taps]];
  if (lane == 0) c.selves[u] = 0.0;
  read_unit(c, u, weights_of(c, u));
}

__device__ PairForms find_form(const DevicePairConsumer& c, int64_t r, int64_t s) {
  const int64_t *of_r = c.columns + r * c.taps, *of_s = c.columns + s * c.taps;
  const auto read = [&](int64_t, int64_t a, int64_t b) {
    return c.gram[of_r[b] * c.features + of_s[a]];
  };
  PairForms parts[kFormParts];
  for (int i = 0; i < kFormParts; ++i) parts[i] = add_part(c, r, s, i, read);
  return {sum_parts(parts[0].inner, parts[1].inner, parts[2].inner, parts[3].inner),
          sum_parts(parts[0].norm, parts[1].norm, parts[2].norm, parts[3].norm)};
}

// Returns the error of one pair before any step, and keeps its forms for the steps.
__device__ double first_error(const DevicePairConsumer* consumers, const DevicePairTask& task,
                              int64_t r, int64_t s) {
  double total = 0.0;
  for (int64_t j = task.first_consumer; j < task.last_consumer; ++j) {
    const DevicePairConsumer& c = consumers[j];
    const PairForms form = find_form(c, r, s);
    if (task.steps > 0) {
      c.inner[r * c.units + s] = form.inner;
      c.norms[r * c.units + s] = form.norm;
      c.overlaps[r * c.units + s] = 0.0;
    }
    total = add_error(total, c.scale, pair_error(c.squares[r], form.inner, form.norm, 0.0));
  }
  return r == s ? kInfinity : total;
}

// Computes the errors of all pairs before any step. A block: one work item. A thread: one column of
// each tile of it, and kThreadRows rows. Shared memory is used to find the least error.
__global__ void first_look(PairPlan plan) {
  const DevicePairTask& task =
      plan.tasks[find_last(plan.tasks, plan.task_count, &DevicePairTask::first_item, blockIdx.x)];
  const int64_t item = blockIdx.x - task.first_item, units = task.units;
  const TableStrip strip = strip_of(task, item);
  const int64_t from = strip.top + threadIdx.x / kTableColumns * kThreadRows;
  BestPair best{kInfinity, kNoPair};
  for (int64_t s = strip.left + threadIdx.x % kTableColumns; s < strip.right; s += kTableColumns)
    for (int64_t r = from; r < min(from + kThreadRows, units); ++r) {
      const double error = first_error(plan.consumers, task, r, s);
      if (task.table) task.table[r * units + s] = error;
      if (r != s) best = lesser({error, r * units + s}, best);
    }
  if (item % task.strips == 0 && threadIdx.x < kTableRows && strip.top + threadIdx.x < units)
    task.alive[strip.top + threadIdx.x] = 1;
  keep_least(best, task.best + item);
}

// On the host: what the device needs to know about a call, except for its scratch.
struct CallDescription {
  std::vector<DevicePairTask> tasks;
  std::vector<DevicePairConsumer> consumers;
  int64_t units = 0, tiles = 0, items = 0, steps = 0, alive = 0;

  void add(const PairConsumer& c, const PairTask& task) {
    DevicePairConsumer consumer{};
    consumer.gram = c.gram;
    consumer.weight = c.weight;
    consumer.columns = c.columns;
    consumer.gains = c.gains;
    consumer.scale = c.scale;
    consumer.features = c.features;
    consumer.outputs = c.outputs;
    consumer.taps = c.taps;
    consumer.terms = c.taps * c.taps;
    consumer.units = task.units;
    consumer.task = static_cast<int64_t>(tasks.size());
    consumer.first_unit = std::exchange(units, units + task.units);
    const int64_t count = divide_up(task.units * c.taps, kPackSide) * divide_up(c.outputs, kPackSide);
    consumer.first_tile = std::exchange(tiles, tiles + count);
    consumers.push_back(consumer);
  }

  void add(const PairTask& given) {
    DevicePairTask task{};
    task.units = given.units;
    task.steps = given.steps;
    task.first_consumer = static_cast<int64_t>(consumers.size());
    for (const PairConsumer& c : given.consumers) add(c, given);
    task.last_consumer = static_cast<int64_t>(consumers.size());
    const int64_t down = divide_up(task.units, kTableRows);
    const int64_t across = divide_up(task.units, kTableColumns);
    task.columns =
        std::clamp<int64_t>(down * across / kItems, 1, std::max<int64_t>(across, 1)) * kTableColumns;
    task.strips = divide_up(task.units, task.columns);
    task.items = down * task.strips;
    task.first_item = std::exchange(items, items + task.items);
    task.table = given.table;
    task.removed = given.removed;
    task.partner = given.partner;
    task.errors = given.errors;
    alive += task.units;
    steps = std::max(steps, task.steps);
    tasks.push_back(task);
  }
};

// Gives a consumer its arrays, from `from` on, and returns how many doubles they take. Where `from` is
// null, it only returns that.
int64_t give_scratch(DevicePairConsumer& consumer, bool steps, double* from) {
  const int64_t weights = consumer.taps * consumer.outputs, pairs = steps ? consumer.units : 0;
  int64_t used = 0;
  const auto give = [&](double*& array, int64_t of_unit) {
    if (from) array = from + used;
    used += consumer.units * of_unit;
  };
  give(consumer.packed, weights);
  for (double** array :
       {&consumer.products, &consumer.blocks, &consumer.shares, &consumer.moves, &consumer.grown})
    give(*array, consumer.terms);
  for (double** array : {&consumer.inner, &consumer.norms, &consumer.overlaps}) give(*array, pairs);
  for (double** array : {&consumer.squares, &consumer.selves}) give(*array, 1);
  return used;
}

void scan_pairs(CallDescription description, const Context& context) {
  std::vector<DevicePairConsumer>& consumers = description.consumers;
  std::vector<DevicePairTask>& tasks = description.tasks;
  const auto steps_of = [&](const DevicePairConsumer& consumer) {
    return tasks[static_cast<size_t>(consumer.task)].steps > 0;
  };
  int64_t doubles = 0, alive = 0;
  for (DevicePairConsumer& consumer : consumers)
    doubles += give_scratch(consumer, steps_of(consumer), nullptr);
  const DeviceBuffer<double> scratch(context, doubles);
  const DeviceBuffer<int> all_alive(context, description.alive);
  const DeviceBuffer<BestPair> best(context, description.items);
  doubles = 0;
  for (DevicePairConsumer& consumer : consumers)
    if (consumer.units > 0)
      doubles += give_scratch(consumer, steps_of(consumer), scratch.data() + doubles);
  for (DevicePairTask& task : tasks) {
    task.alive = all_alive.data() + std::exchange(alive, alive + task.units);
    task.best = best.data() + task.first_item;
  }
  const DeviceBuffer<DevicePairTask> all_tasks(context, tasks);
  const DeviceBuffer<DevicePairConsumer> all_consumers(context, consumers);
  const PairPlan plan{all_tasks.data(),
                      all_consumers.data(),
                      static_cast<int64_t>(tasks.size()),
                      static_cast<int64_t>(consumers.size()),
                      description.units,
                      description.tiles,
                      description.items,
                      description.steps};
  const dim3 tile(kPackSide, kPackRows), threads(kPairThreads), tiles = blocks_of(plan.tiles);
  const dim3 warps = blocks_of(divide_up(plan.units, kPairWarps));
  launch(context, {"pair_scan", tiles, tile}, pack_weights, plan);
  launch(context, {"pair_scan", warps, threads}, read_units, plan);
  launch(context, {"pair_scan", blocks_of(plan.items), threads}, first_look, plan);
  if (plan.steps == 0) return;
  take_steps(plan, context);
  launch(context, {"pair_scan", tiles, tile}, unpack_weights, plan);
}

}  // namespace

}  // namespace pairs

void pair_scan(const std::vector<PairTask>& tasks, const Context& context) {
  pairs::CallDescription description;
  for (const PairTask& task : tasks) description.add(task);
  pairs::scan_pairs(std::move(description), context);
}

}  // namespace reapx
