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

constexpr int kSide = 32, kRowsAtOnce = 8;  // of a tile of the weights that a block turns
constexpr int64_t kItems = 512;  // pieces of a table, about: each step looks at what each of them found

// W of all units into `packed`. A block turns one tile, through shared memory, so that both sides are
// read and written along their rows; a thread moves every kRowsAtOnce'th row of it.
__global__ void pack_weights(Plan plan) {
  __shared__ double tile[kSide][kSide + 1];  // one more: columns then lie in different banks
  const Reader& c =
      plan.readers[find_last(plan.readers, plan.reader_count, &Reader::first_tile, blockIdx.x)];
  const int64_t width = c.units * c.taps, across = divide_up(width, kSide);
  const int64_t left = (blockIdx.x - c.first_tile) % across * kSide, x = threadIdx.x;
  const int64_t top = (blockIdx.x - c.first_tile) / across * kSide;
  for (int64_t y = threadIdx.y; y < kSide; y += kRowsAtOnce)
    if (top + y < c.outputs && left + x < width)
      tile[y][x] = c.weight[(top + y) * c.features + c.columns[left + x]];
  __syncthreads();
  for (int64_t y = threadIdx.y; y < kSide; y += kRowsAtOnce)
    if (left + y < width && top + x < c.outputs)
      c.packed[(left + y) * c.outputs + top + x] = tile[x][y];
}

// And back, with zeros for units that left. Blocks and threads as above.
__global__ void unpack_weights(Plan plan) {
  __shared__ double tile[kSide][kSide + 1];
  const Reader& c =
      plan.readers[find_last(plan.readers, plan.reader_count, &Reader::first_tile, blockIdx.x)];
  const int* alive = plan.jobs[c.job].alive;
  const int64_t width = c.units * c.taps, across = divide_up(width, kSide);
  const int64_t left = (blockIdx.x - c.first_tile) % across * kSide, x = threadIdx.x;
  const int64_t top = (blockIdx.x - c.first_tile) / across * kSide;
  for (int64_t y = threadIdx.y; y < kSide; y += kRowsAtOnce)
    if (left + y < width && top + x < c.outputs)
      tile[y][x] = alive[(left + y) / c.taps] ? c.packed[(left + y) * c.outputs + top + x] : 0.0;
  __syncthreads();
  for (int64_t y = threadIdx.y; y < kSide; y += kRowsAtOnce)
    if (top + y < c.outputs && left + x < width)
      c.weight[(top + y) * c.features + c.columns[left + x]] = tile[x][y];
}

// A_u, G_uu and <A_u, G_uu>: a warp has one unit of one consumer, its lanes share outputs and terms.
__global__ void read_units(Plan plan) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (i >= plan.units) return;
  const Reader& c = plan.readers[find_last(plan.readers, plan.reader_count, &Reader::first_unit, i)];
  const int64_t u = i - c.first_unit, lane = threadIdx.x % kWarp;
  const int64_t* own = c.columns + u * c.taps;
  for (int64_t term = lane; term < c.terms; term += kWarp)
    c.blocks[term * c.units + u] = c.gram[own[term / c.taps] * c.features + own[term % c.taps]];
  if (lane == 0) c.selves[u] = 0.0;
  read_unit(c, u, rows_of(c, u));
}

__device__ Form find_form(const Reader& c, int64_t r, int64_t s) {
  const int64_t *of_r = c.columns + r * c.taps, *of_s = c.columns + s * c.taps;
  const auto read = [&](int64_t, int64_t a, int64_t b) {
    return c.gram[of_r[b] * c.features + of_s[a]];
  };
  Form parts[kParts];
  for (int i = 0; i < kParts; ++i) parts[i] = add_part(c, r, s, i, read);
  return {sum_parts(parts[0].inner, parts[1].inner, parts[2].inner, parts[3].inner),
          sum_parts(parts[0].norm, parts[1].norm, parts[2].norm, parts[3].norm)};
}

// The error of one pair before any step; its forms are kept.
__device__ double first_error(const Reader* readers, const Job& job, int64_t r, int64_t s) {
  double total = 0.0;
  for (int64_t j = job.first_reader; j < job.last_reader; ++j) {
    const Reader& c = readers[j];
    const Form form = find_form(c, r, s);
    if (job.steps > 0) {
      c.inner[r * c.units + s] = form.inner;
      c.norms[r * c.units + s] = form.norm;
      c.overlaps[r * c.units + s] = 0.0;
    }
    total = add_error(total, c.scale, pair_error(c.squares[r], form.inner, form.norm, 0.0));
  }
  return r == s ? kInfinity : total;
}

// Everything about pairs before any step. A block has a piece of one table, a thread one column of each
// of its tiles and kEach rows; shared memory only serves to find the least.
__global__ void first_look(Plan plan) {
  const Job& job = plan.jobs[find_last(plan.jobs, plan.job_count, &Job::first_item, blockIdx.x)];
  const int64_t item = blockIdx.x - job.first_item, units = job.units;
  const Span span = span_of(job, item);
  const int64_t from = span.top + threadIdx.x / kColumns * kEach;
  Best best{kInfinity, kNoPair};
  for (int64_t s = span.left + threadIdx.x % kColumns; s < span.right; s += kColumns)
    for (int64_t r = from; r < min(from + kEach, units); ++r) {
      const double error = first_error(plan.readers, job, r, s);
      if (job.table) job.table[r * units + s] = error;
      if (r != s) best = lesser({error, r * units + s}, best);
    }
  if (item % job.spans == 0 && threadIdx.x < kRows && span.top + threadIdx.x < units)
    job.alive[span.top + threadIdx.x] = 1;
  keep_least(best, job.best + item);
}

// Host: what the device needs to know about a call, its scratch left out.
struct Description {
  std::vector<Job> jobs;
  std::vector<Reader> readers;
  int64_t units = 0, tiles = 0, items = 0, steps = 0, alive = 0;

  void add(const PairConsumer& c, const PairTask& task) {
    Reader reader{};
    reader.gram = c.gram;
    reader.weight = c.weight;
    reader.columns = c.columns;
    reader.gains = c.gains;
    reader.scale = c.scale;
    reader.features = c.features;
    reader.outputs = c.outputs;
    reader.taps = c.taps;
    reader.terms = c.taps * c.taps;
    reader.units = task.units;
    reader.job = static_cast<int64_t>(jobs.size());
    reader.first_unit = std::exchange(units, units + task.units);
    const int64_t count = divide_up(task.units * c.taps, kSide) * divide_up(c.outputs, kSide);
    reader.first_tile = std::exchange(tiles, tiles + count);
    readers.push_back(reader);
  }

  void add(const PairTask& task) {
    Job job{};
    job.units = task.units;
    job.steps = task.steps;
    job.first_reader = static_cast<int64_t>(readers.size());
    for (const PairConsumer& c : task.consumers) add(c, task);
    job.last_reader = static_cast<int64_t>(readers.size());
    const int64_t down = divide_up(task.units, kRows), across = divide_up(task.units, kColumns);
    job.columns =
        std::clamp<int64_t>(down * across / kItems, 1, std::max<int64_t>(across, 1)) * kColumns;
    job.spans = divide_up(task.units, job.columns);
    job.items = down * job.spans;
    job.first_item = std::exchange(items, items + job.items);
    job.table = task.table;
    job.removed = task.removed;
    job.partner = task.partner;
    job.errors = task.errors;
    alive += task.units;
    steps = std::max(steps, task.steps);
    jobs.push_back(job);
  }
};

// Gives a reader the next of the doubles, and says how many. Without an array, only says so.
int64_t give_scratch(Reader& reader, bool steps, double* from) {
  const int64_t weights = reader.taps * reader.outputs, pairs = steps ? reader.units : 0;
  int64_t used = 0;
  const auto give = [&](double*& array, int64_t of_unit) {
    if (from) array = from + used;
    used += reader.units * of_unit;
  };
  give(reader.packed, weights);
  for (double** array :
       {&reader.products, &reader.blocks, &reader.shares, &reader.moves, &reader.grown})
    give(*array, reader.terms);
  for (double** array : {&reader.inner, &reader.norms, &reader.overlaps}) give(*array, pairs);
  for (double** array : {&reader.squares, &reader.selves}) give(*array, 1);
  return used;
}

void scan_pairs(Description description, const Context& context) {
  std::vector<Reader>& readers = description.readers;
  std::vector<Job>& jobs = description.jobs;
  const auto steps_of = [&](const Reader& reader) {
    return jobs[static_cast<size_t>(reader.job)].steps > 0;
  };
  int64_t doubles = 0, alive = 0;
  for (Reader& reader : readers) doubles += give_scratch(reader, steps_of(reader), nullptr);
  const DeviceBuffer<double> scratch(context, doubles);
  const DeviceBuffer<int> all_alive(context, description.alive);
  const DeviceBuffer<Best> best(context, description.items);
  doubles = 0;
  for (Reader& reader : readers)
    if (reader.units > 0) doubles += give_scratch(reader, steps_of(reader), scratch.data() + doubles);
  for (Job& job : jobs) {
    job.alive = all_alive.data() + std::exchange(alive, alive + job.units);
    job.best = best.data() + job.first_item;
  }
  const DeviceBuffer<Job> all_jobs(context, jobs);
  const DeviceBuffer<Reader> all_readers(context, readers);
  const Plan plan{all_jobs.data(),
                  all_readers.data(),
                  static_cast<int64_t>(jobs.size()),
                  static_cast<int64_t>(readers.size()),
                  description.units,
                  description.tiles,
                  description.items,
                  description.steps};
  const dim3 tile(kSide, kRowsAtOnce), threads(kThreads), tiles = blocks_of(plan.tiles);
  const dim3 warps = blocks_of(divide_up(plan.units, kWarps));
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
  pairs::Description description;
  for (const PairTask& task : tasks) description.add(task);
  pairs::scan_pairs(std::move(description), context);
}

}  // namespace reapx
