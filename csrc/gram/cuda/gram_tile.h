// The kernels of a product A^T B, tile by tile: what gram_product.cu launches.
#pragma once

#include <cuda_pipeline.h>

#include "gram/cuda/gram_device.h"
#include "gram/cuda/gram_entries.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/pieces.h"

namespace reapx {

namespace {

// What lies between a term and the one `depth` terms after it: terms and rows of the walk, but for
// whole rows and whole images, and floats of the operands, with the gaps after those whole ones. The
// rest may end one more row, and that one more image.
struct Stride {
  int64_t terms, rows, a, b;

  Stride(const Product& p, int64_t depth) {
    const int64_t ended = depth / p.walk.terms, images = ended / p.walk.rows;
    terms = depth % p.walk.terms;
    rows = ended % p.walk.rows;
    a = (depth + ended * p.a.row_gap + images * p.a.image_gap) * p.a.width;
    b = (depth + ended * p.b.row_gap + images * p.b.image_gap) * p.b.width;
  }
};

// A product as the device sees it: its tiles, row by row, of which the first `full` rows begin at the
// diagonal; each tile in `splits` parts of `length` terms; block and tile it begins at, in the launch;
// where its parts are added up, if they are several.
struct Job {
  Product product;
  Stride stride;
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

// What a thread copies: of one term of each stage, every kTogether-th quad of both operands.
struct Reader {
  int64_t left;   // terms up to the end of the part: none are read after it
  int term, row;  // within a row and an image of the walk
  const float *a, *b;
  int columns_a, columns_b;  // of the tile that are there, from a and b on

  template <class F>
  __device__ Reader(F, const Product& p, const Spot& spot, int64_t begin, int64_t end) {
    const int thread = static_cast<int>(threadIdx.x);
    const int64_t column = thread % F::kTogether * kQuad, k = begin + thread / F::kTogether;
    const int64_t rows = k / p.walk.terms, images = rows / p.walk.rows;
    left = end - k;
    term = static_cast<int>(k % p.walk.terms);
    row = static_cast<int>(rows % p.walk.rows);
    const auto from = [&](const Operand& operand, int64_t i, const float*& first, int& columns) {
      const int64_t packed = k + rows * operand.row_gap + images * operand.image_gap;
      first = operand.data + packed * operand.width + i;
      columns = static_cast<int>(min(operand.columns - i, int64_t{F::kSide}));
    };
    from(p.a, spot.row * F::kSide + column, a, columns_a);
    from(p.b, spot.column * F::kSide + column, b, columns_b);
  }

  // By one stage, in the same few steps however short the rows are: in small maps one row after another
  // ends within a stage.
  __device__ void advance(const Job& job, int terms) {
    const Product& p = job.product;
    left -= terms;
    term += static_cast<int>(job.stride.terms);
    row += static_cast<int>(job.stride.rows);
    a += job.stride.a;
    b += job.stride.b;
    if (term >= p.walk.terms) {
      term -= static_cast<int>(p.walk.terms);
      ++row;
      a += p.a.row_gap * p.a.width;
      b += p.b.row_gap * p.b.width;
    }
    if (row >= p.walk.rows) {
      row -= static_cast<int>(p.walk.rows);
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
__device__ void copy_stage(Reader& reader, const Job& job, float* stage) {
  const int thread = static_cast<int>(threadIdx.x);
  float* to = stage + thread / F::kTogether * F::kPitch + thread % F::kTogether * kQuad;
#pragma unroll
  for (int i = 0; i < F::kSide; i += F::kTogether * kQuad) {
    copy_quad(to + i, reader.a + i, reader.left > 0 && i < reader.columns_a);
    copy_quad(to + F::kDepth * F::kPitch + i, reader.b + i, reader.left > 0 && i < reader.columns_b);
  }
  reader.advance(job, F::kDepth);
  __pipeline_commit();
}

// Whether any entry of a warp is wanted: neither all outside of the result nor all below its diagonal.
template <class F>
__device__ bool has_entries(const Product& p, const Spot& spot, const Lane& lane) {
  constexpr int rows = kMmaRows * F::kDown, columns = kMmaColumns * F::kOver;
  const int64_t top = spot.row * F::kSide + lane.down * rows;
  const int64_t left = spot.column * F::kSide + lane.across * columns;
  if (top >= p.a.columns || left >= p.b.columns) return false;
  return top + rows > p.square || left + columns > top;
}

// What a block has: one tile of one product over one part of its terms.
struct Part {
  int64_t tile, split, begin, end;
  Spot spot;
  bool sums;  // of A's columns are wanted

  __device__ explicit Part(const Job& job) {
    const Walk& walk = job.product.walk;
    // Tiles of one part are next to each other: they read the same packed rows at about the same time.
    tile = (blockIdx.x - job.first_block) % job.tiles;
    split = (blockIdx.x - job.first_block) / job.tiles;
    begin = split * job.length;
    end = min(begin + job.length, walk.terms * walk.rows * walk.images);
    spot = find_spot(job, tile);
    const Product& p = job.product;
    sums = spot.leads && (p.total || p.below_total || p.below_square);
  }
  __device__ bool has_sums(int side) const { return sums && static_cast<int>(threadIdx.x) < side; }
};

// Adds up a part, through a ring of stages: while one is multiplied, the next ones are copied.
template <class F>
__device__ void add_part(const Job& job, float* stages, Entries<F>& entries, ColumnSums& sums) {
  const Product& p = job.product;
  const Part part(job);
  const Lane lane(F{});
  const bool multiplies = has_entries<F>(p, part.spot, lane), adds = part.has_sums(F::kSide);
  Reader reader(F{}, p, part.spot, part.begin, part.end);
  for (int i = 0; i < F::kStages - 1; ++i) copy_stage<F>(reader, job, stages + i * F::kStage);
  const int steps = static_cast<int>(divide_up(part.end - part.begin, F::kDepth));
  for (int step = 0; step < steps; ++step) {
    __pipeline_wait_prior(F::kStages - 2);
    __syncthreads();  // the copies of all threads are there, and nobody reads the stage before
    copy_stage<F>(reader, job, stages + (step + F::kStages - 1) % F::kStages * F::kStage);
    const float* a = stages + step % F::kStages * F::kStage;
    if (multiplies) {
#pragma unroll F::kAhead
      for (int k = 0; k < F::kDepth; k += kMmaTerms)
        add_terms<F>(a + k * F::kPitch, a + (F::kDepth + k) * F::kPitch, lane, entries);
    }
    if (adds) sums.add<F>(a + threadIdx.x);
    if ((step + 1) % (kFloatTerms / F::kDepth) != 0) continue;
    entries.settle();
    sums.settle();
  }
}

// Hands a part over: to the results, or to where parts wait to be added up. There entries lie as
// threads have them, first of all threads, then second, so that those of a warp are next to each other.
template <class F>
__device__ void give_part(const Job& job, double* slots, const Entries<F>& entries,
                          const ColumnSums& sums) {
  const Product& p = job.product;
  const Part part(job);
  double* slot = slots + (job.first_slot + part.tile * job.splits + part.split) * F::kSlot;
  const auto give = [&](int index, double* place, double value) {
    if (job.splits > 1) {
      slot[index] = value;
    } else if (place) {
      *place += value;
    }
  };
  const int64_t top = part.spot.row * F::kSide, left = part.spot.column * F::kSide;
  const int x = static_cast<int>(threadIdx.x);
  entries.give_all(Lane(F{}), [&](int entry, int row, int column, double value) {
    give(entry * F::kThreads + x, place_entry(p, top + row, left + column), value);
  });
  if (!part.has_sums(F::kSide)) return;
  give(F::kSide * F::kSide + x, place_sum(p, top + x, false), sums.total.value());
  give(F::kSide * (F::kSide + 1) + x, place_sum(p, top + x, true), sums.square.value());
}

// A block has one tile of one product over one part of its terms, a warp a rectangle of it, and a
// thread a 32nd of that. In shared memory, a ring of stages and the job. Both functions ask the job
// where the block is, rather than keep that in registers in between.
template <class F>
__global__ void __launch_bounds__(F::kThreads)
    multiply_tiles(const Job* jobs, int64_t count, double* slots) {
  float* stages = dynamic_shared<float>();
  Job& job = *reinterpret_cast<Job*>(stages + F::kStages * F::kStage);
  const Job* own = jobs + find_last(jobs, count, &Job::first_block, blockIdx.x);
  static_assert(sizeof(Job) / sizeof(int64_t) <= F::kThreads);
  if (threadIdx.x < sizeof(Job) / sizeof(int64_t))
    reinterpret_cast<int64_t*>(&job)[threadIdx.x] = reinterpret_cast<const int64_t*>(own)[threadIdx.x];
  __syncthreads();
  Entries<F> entries;
  ColumnSums sums;
  add_part(job, stages, entries, sums);
  give_part(job, slots, entries, sums);
}

// Adds up the parts of a tile, in their order. The blocks of one x share a tile, taking turns at what
// its threads had as their first entry, as their second, and so on, and at the sums of columns.
template <class F>
__global__ void __launch_bounds__(F::kThreads)
    add_parts(const Job* jobs, int64_t count, const double* slots) {
  const Job& job = jobs[find_last(jobs, count, &Job::first_tile, blockIdx.x)];
  if (job.splits == 1) return;
  const int64_t tile = blockIdx.x - job.first_tile;
  const Spot spot = find_spot(job, tile);
  const double* from = slots + (job.first_slot + tile * job.splits) * F::kSlot;
  const int64_t top = spot.row * F::kSide, left = spot.column * F::kSide;
  const Lane lane(F{});
  for (int e = static_cast<int>(blockIdx.y); e * F::kThreads < F::kSlot;
       e += static_cast<int>(gridDim.y)) {
    const int index = e * F::kThreads + static_cast<int>(threadIdx.x),
              sums = index - F::kSide * F::kSide;
    double* to = nullptr;
    if (e < F::kEntries) {
      to = place_entry(job.product, top + entry_row<F>(lane, e / 4 / F::kOver, e % 4),
                       left + entry_column<F>(lane, e / 4 % F::kOver, e % 4));
    } else if (spot.leads && index < F::kSlot) {
      to = place_sum(job.product, top + sums % F::kSide, sums >= F::kSide);
    }
    if (!to) continue;
    double sum = 0;
#pragma unroll 4
    for (int64_t split = 0; split < job.splits; ++split) sum += from[split * F::kSlot + index];
    *to += sum;
  }
}

}  // namespace

}  // namespace reapx
