#include <cuda_pipeline.h>

#include "device_buffer.h"
#include "gram_device.h"
#include "launch.h"

namespace reapx {

namespace {

constexpr int kThreads = 256, kAcross = 16;  // of a block; along either side of a tile
constexpr int kWarp = 32, kWarpRows = 4, kWarpColumns = 8, kWarpsAcross = kAcross / kWarpColumns;
constexpr int kQuad = 4;          // floats that are copied and read at once
constexpr int kFloatTerms = 256;  // longest sum kept in float32
constexpr int kStages = 3;        // of a ring of terms in shared memory

// A tile of the result is kAcross*kMicro wide, of which a thread has kMicro x kMicro entries; kDepth
// terms are in a stage.
template <int kMicro_>
struct Form {
  static constexpr int kMicro = kMicro_, kSide = kAcross * kMicro;
  static constexpr int kDepth = kMicro == 2 ? 32 : 16;
  static constexpr int kStage = 2 * kDepth * kSide;  // floats: rows of A's columns, then of B's
  static constexpr int kTogether = kThreads * kQuad / kSide;  // terms that a block copies at once
  static constexpr int kSlot = kSide * (kSide + 2);  // doubles: a tile, sums of columns, of squares
  static_assert(kDepth % kTogether == 0 && kFloatTerms % kDepth == 0);
};

// A product as the device sees it: its tiles, row by row, of which the first `full` rows begin at the
// diagonal; each tile in `splits` parts of `length` terms; block and tile it begins at, in the launch;
// where its parts are added up, if they are several.
struct Job {
  Product product;
  int64_t across, full, tiles, splits, length, first_block, first_tile, first_slot;
};

struct Spot {
  int64_t row, column;  // of a tile
  bool leads;           // is the first of its row, and has the sums of A's columns
};

__device__ Spot find_spot(const Job& job, int64_t tile) {
  int64_t row = 0, left = job.full > 0 ? job.across : 0;
  for (; row < job.full && tile >= left; --left, ++row) tile -= left;
  if (row < job.full) return {row, row + tile, tile == 0};
  return {row + tile / job.across, tile % job.across, tile % job.across == 0};
}

__device__ int64_t find_job(const Job* jobs, int64_t count, int64_t Job::* first, int64_t index) {
  int64_t low = 0, high = count;  // the last job that begins at or before the index
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (jobs[middle].*first <= index ? low : high) = middle;
  }
  return low;
}

// Where an entry of the result goes, and where sums of column i of A and of its squares do; or null.
__device__ double* place_entry(const Product& p, int64_t i, int64_t j) {
  if (i >= p.a.columns || j >= p.b.columns) return nullptr;
  if (i < p.square) return i <= j ? p.result + i * p.b.columns + j : nullptr;
  return p.below + (i - p.square) * p.b.columns + j;
}
__device__ double* place_sum(const Product& p, int64_t i, bool squares) {
  if (i >= p.a.columns || (squares && i < p.square)) return nullptr;
  double* to = squares ? p.below_square : i < p.square ? p.total : p.below_total;
  return to ? to + (i < p.square ? i : i - p.square) : nullptr;
}

// The rows of A and B that a thread copies, kTogether terms apart.
struct Reader {
  int64_t left;   // terms up to the end of the part: none are read after it
  int term, row;  // within a row and an image of the walk
  const float *a, *b;
  bool reads_a, reads_b;

  __device__ Reader(const Product& p, const Spot& spot, int side, int64_t begin, int64_t end) {
    const int quads = side / kQuad, thread = static_cast<int>(threadIdx.x);
    const int64_t column = thread % quads * kQuad, k = begin + thread / quads;
    const int64_t rows = k / p.walk.terms, images = rows / p.walk.rows;
    left = end - k;
    term = static_cast<int>(k % p.walk.terms);
    row = static_cast<int>(rows % p.walk.rows);
    const auto from = [&](const Operand& operand, int64_t i) {
      return operand.data + (k + rows * operand.row_gap + images * operand.image_gap) * operand.width +
             i;
    };
    a = from(p.a, spot.row * side + column);
    b = from(p.b, spot.column * side + column);
    reads_a = spot.row * side + column < p.a.columns;
    reads_b = spot.column * side + column < p.b.columns;
  }

  __device__ void advance(const Product& p, int terms) {
    left -= terms;
    term += terms;
    a += terms * p.a.width;
    b += terms * p.b.width;
    while (term >= p.walk.terms) {
      term -= static_cast<int>(p.walk.terms);
      a += p.a.row_gap * p.a.width;
      b += p.b.row_gap * p.b.width;
      if (++row < p.walk.rows) continue;
      row = 0;
      a += p.a.image_gap * p.a.width;
      b += p.b.image_gap * p.b.width;
    }
  }
};

__device__ void copy_quad(float* to, const float* from, bool reads) {
  if (reads) {
    __pipeline_memcpy_async(to, from, kQuad * sizeof(float));
  } else {
    *reinterpret_cast<float4*>(to) = make_float4(0, 0, 0, 0);
  }
}

// The next stage of both operands.
template <class F>
__device__ void copy_stage(Reader& reader, const Product& p, float* stage) {
  float* to = stage + static_cast<int>(threadIdx.x) * kQuad;  // a warp writes whole rows
  for (int i = 0; i < F::kDepth / F::kTogether; ++i, to += kThreads * kQuad) {
    copy_quad(to, reader.a, reader.reads_a && reader.left > 0);
    copy_quad(to + F::kDepth * F::kSide, reader.b, reader.reads_b && reader.left > 0);
    reader.advance(p, F::kTogether);
  }
  __pipeline_commit();
}

// Entry i of those of a thread, along a side on which it is the `place`th of kAcross: four that are
// next to each other, so that a warp reads whole rows, then the four that are half a tile further.
template <class F>
__device__ int entry_of(int place, int i) {
  constexpr int run = F::kMicro < kQuad ? F::kMicro : kQuad;
  return (i / run * kAcross + place) * run + i % run;
}

template <class F>
__device__ void read_entries(const float* from, int place, float (&to)[F::kMicro]) {
  if constexpr (F::kMicro < kQuad) {
    for (int i = 0; i < F::kMicro; ++i) to[i] = from[entry_of<F>(place, i)];
  } else {
#pragma unroll
    for (int i = 0; i < F::kMicro; i += kQuad) {
      const float4 quad = *reinterpret_cast<const float4*>(from + entry_of<F>(place, i));
      to[i] = quad.x;
      to[i + 1] = quad.y;
      to[i + 2] = quad.z;
      to[i + 3] = quad.w;
    }
  }
}

// A sum: up to kFloatTerms terms in float32, those in float64.
struct Sum {
  float part = 0;
  double whole = 0;
  __device__ void flush() {
    whole += part;
    part = 0;
  }
};

// part += A^T B over the terms of a stage, for a thread's entries.
template <class F>
__device__ void add_stage(const float* stage, int down, int right,
                          float (&part)[F::kMicro][F::kMicro]) {
#pragma unroll
  for (int k = 0; k < F::kDepth; ++k) {
    float a[F::kMicro], b[F::kMicro];
    read_entries<F>(stage + k * F::kSide, down, a);
    read_entries<F>(stage + (F::kDepth + k) * F::kSide, right, b);
#pragma unroll
    for (int i = 0; i < F::kMicro; ++i)
#pragma unroll
      for (int j = 0; j < F::kMicro; ++j) part[i][j] += a[i] * b[j];
  }
}

// A block has one tile of one product over one part of its terms, and a thread kMicro x kMicro entries.
// In shared memory, the job and a ring of stages: while one is multiplied, the next ones are copied.
template <class F>
__global__ void __launch_bounds__(kThreads)
    multiply_tiles(const Job* jobs, int64_t count, double* slots) {
  float* stages = dynamic_shared<float>();
  Job& job = *reinterpret_cast<Job*>(stages + kStages * F::kStage);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const Job* own = jobs + find_job(jobs, count, &Job::first_block, blockIdx.x);
  if (thread < static_cast<int>(sizeof(Job) / sizeof(int64_t)))
    reinterpret_cast<int64_t*>(&job)[thread] = reinterpret_cast<const int64_t*>(own)[thread];
  __syncthreads();
  const Product& p = job.product;
  const int64_t tile = (blockIdx.x - job.first_block) / job.splits;
  const int64_t split = (blockIdx.x - job.first_block) % job.splits;
  const Spot spot = find_spot(job, tile);
  const int64_t all = p.walk.terms * p.walk.rows * p.walk.images;
  const int64_t begin = split * job.length, end = min(begin + job.length, all);
  const int down = warp / kWarpsAcross * kWarpRows + lane / kWarpColumns;
  const int right = warp % kWarpsAcross * kWarpColumns + lane % kWarpColumns;
  const bool sums = spot.leads && thread < F::kSide, multiplies = p.b.columns > 0;

  Reader reader(p, spot, F::kSide, begin, end);
  for (int i = 0; i < kStages - 1; ++i) copy_stage<F>(reader, p, stages + i * F::kStage);
  float part[F::kMicro][F::kMicro] = {};
  double whole[F::kMicro][F::kMicro] = {};
  Sum total, square;
  const int steps = static_cast<int>((end - begin + F::kDepth - 1) / F::kDepth);
  for (int step = 0; step < steps; ++step) {
    __pipeline_wait_prior(kStages - 2);
    __syncthreads();  // the copies of all threads are there, and nobody reads the stage before
    copy_stage<F>(reader, p, stages + (step + kStages - 1) % kStages * F::kStage);
    const float* stage = stages + step % kStages * F::kStage;
    if (multiplies) add_stage<F>(stage, down, right, part);
    for (int k = 0; sums && k < F::kDepth; ++k) {
      const float value = stage[k * F::kSide + thread];
      total.part += value;
      square.part += value * value;
    }
    if ((step + 1) % (kFloatTerms / F::kDepth) != 0 && step + 1 < steps) continue;
    total.flush();
    square.flush();
#pragma unroll
    for (int i = 0; i < F::kMicro; ++i)
#pragma unroll
      for (int j = 0; j < F::kMicro; ++j) {
        whole[i][j] += part[i][j];
        part[i][j] = 0;
      }
  }

  double* slot = slots + (job.first_slot + tile * job.splits + split) * F::kSlot;
  const auto give = [&](int index, double* place, double value) {
    if (job.splits > 1) {
      slot[index] = value;
    } else if (place) {
      *place += value;
    }
  };
  const int64_t top = spot.row * F::kSide, left = spot.column * F::kSide;
#pragma unroll
  for (int i = 0; i < F::kMicro; ++i)
#pragma unroll
    for (int j = 0; j < F::kMicro; ++j) {
      const int y = entry_of<F>(down, i), x = entry_of<F>(right, j);
      give(y * F::kSide + x, place_entry(p, top + y, left + x), whole[i][j]);
    }
  if (!sums) return;
  give(F::kSide * F::kSide + thread, place_sum(p, top + thread, false), total.whole);
  give(F::kSide * (F::kSide + 1) + thread, place_sum(p, top + thread, true), square.whole);
}

// Adds up the parts of a tile, in their order. The blocks of one x share a tile, its entries taking
// turns.
template <class F>
__global__ void __launch_bounds__(kThreads)
    add_parts(const Job* jobs, int64_t count, const double* slots) {
  const Job& job = jobs[find_job(jobs, count, &Job::first_tile, blockIdx.x)];
  if (job.splits == 1) return;
  const int64_t tile = blockIdx.x - job.first_tile;
  const Spot spot = find_spot(job, tile);
  const double* from = slots + (job.first_slot + tile * job.splits) * F::kSlot;
  const int step = static_cast<int>(gridDim.y) * kThreads;
  for (int e = static_cast<int>(blockIdx.y * kThreads + threadIdx.x); e < F::kSlot; e += step) {
    const int64_t y = e / F::kSide, x = e % F::kSide;
    double* to = nullptr;
    if (y < F::kSide) {
      to = place_entry(job.product, spot.row * F::kSide + y, spot.column * F::kSide + x);
    } else if (spot.leads) {
      to = place_sum(job.product, spot.row * F::kSide + x, y > F::kSide);
    }
    if (!to) continue;
    double sum = 0;
#pragma unroll 4
    for (int64_t split = 0; split < job.splits; ++split) sum += from[split * F::kSlot + e];
    *to += sum;
  }
}

int64_t tiles_over(int64_t columns, int64_t side) { return (columns + side - 1) / side; }

// Tiles of a product; one without columns of B has the sums of A's.
template <class F>
int64_t count_tiles(int64_t rows, int64_t columns, int64_t square) {
  const int64_t across = std::max<int64_t>(1, tiles_over(columns, F::kSide)), full = square / F::kSide;
  return tiles_over(rows, F::kSide) * across - full * (full - 1) / 2;
}

// Estimates, not measured: small tiles read more for each product, and a split needs blocks for all
// processors a few times over. Fixed numbers: results must not depend on the device.
template <class F>
constexpr double kEntryCost = F::kMicro == 8   ? 1.0
                              : F::kMicro == 4 ? 1.25
                                               : 2.0;
template <class F>
constexpr int64_t kBlocks = F::kMicro == 8   ? 528
                            : F::kMicro == 4 ? 1584
                                             : 4224;

template <class F>
double tile_cost(int64_t rows, int64_t columns, int64_t square, int64_t terms) {
  return kEntryCost<F> * F::kSide * F::kSide *
         static_cast<double>(count_tiles<F>(rows, columns, square)) * static_cast<double>(terms);
}

template <class F>
double total_cost(const std::vector<Product>& products) {
  double cost = 0;
  for (const Product& p : products)
    cost += tile_cost<F>(p.a.columns, p.b.columns, p.square, p.walk.count());
  return cost;
}

template <class F>
void run(const std::vector<Product>& products, const Context& context) {
  std::vector<Job> jobs;
  int64_t work = 0, blocks = 0, tiles = 0, slots = 0;
  for (const Product& p : products) {
    if (p.walk.count() == 0 || p.a.columns == 0) continue;
    const int64_t count = count_tiles<F>(p.a.columns, p.b.columns, p.square);
    const int64_t across = std::max<int64_t>(1, tiles_over(p.b.columns, F::kSide));
    jobs.push_back({p, across, p.square / F::kSide, count, 0, 0, 0, 0, 0});
    work += count * p.walk.count();
  }
  const int64_t length = (work / kBlocks<F> / kFloatTerms + 1) * kFloatTerms;
  for (Job& job : jobs) {
    job.length = length;
    job.splits = (job.product.walk.count() + length - 1) / length;
    job.first_block = blocks;
    job.first_tile = tiles;
    job.first_slot = slots;
    blocks += job.tiles * job.splits;
    tiles += job.tiles;
    if (job.splits > 1) slots += job.tiles * job.splits;
  }
  const DeviceBuffer<Job> described(context, jobs);
  const DeviceBuffer<double> parts(context, slots * F::kSlot);
  const int64_t count = static_cast<int64_t>(jobs.size());
  const std::size_t shared = kStages * F::kStage * sizeof(float) + sizeof(Job);
  launch(context, {"gram_accumulate", blocks_of(blocks), dim3(kThreads), shared}, multiply_tiles<F>,
         described.data(), count, parts.data());
  Shape shape{"gram_accumulate", blocks_of(slots > 0 ? tiles : 0), dim3(kThreads)};
  shape.grid.y = static_cast<unsigned>(F::kMicro * 2);
  launch(context, shape, add_parts<F>, described.data(), count, parts.data());
}

}  // namespace

double product_cost(int64_t rows, int64_t columns, int64_t square, int64_t terms) {
  return std::min({tile_cost<Form<2>>(rows, columns, square, terms),
                   tile_cost<Form<4>>(rows, columns, square, terms),
                   tile_cost<Form<8>>(rows, columns, square, terms)});
}

void multiply(const std::vector<Product>& products, const Context& context) {
  const double small = total_cost<Form<2>>(products), middle = total_cost<Form<4>>(products);
  const double large = total_cost<Form<8>>(products);
  if (small < middle && small < large) {
    run<Form<2>>(products, context);
  } else if (middle < large) {
    run<Form<4>>(products, context);
  } else {
    run<Form<8>>(products, context);
  }
}

}  // namespace reapx
