// The kernels of a product A^T B, tile by tile: what gram_product.cu launches.
#pragma once

#include <cuda_pipeline.h>

#include "gram/cuda/gram_device.h"
#include "gram/cuda/gram_entries.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/work_items.h"

namespace reapx {

namespace {

// How far a walk gets in `depth` terms, whichever term it starts from: to another term of a row, by
// `terms`; to another row of an image, by `rows`; and in the operands by `a` and `b` floats. Whole rows
// and whole images are taken out of the former two, and the gaps after them are in the latter. What is
// left may still end one more row, and that row one more image: StageCopier::advance looks.
//
// Example: maps of 7 x 7 positions, of which a product reads 6 columns and 5 rows; so the row gap is 1
// packed row, and the image gap 2 rows of 7, which is 14. In 32 terms, 5 rows of 6 end, and with them 1
// image of 5 rows: terms = 2, rows = 0, and a = 32 + 5 * 1 + 1 * 14 = 51 packed rows.
//
//   from term  0 (image 0, row 0, column 0: packed row  0) to term 32 (image 1, row 0, column 2: 51)
//   from term  5 (image 0, row 0, column 5: packed row  5) to term 37 (image 1, row 1, column 1: 57)
//   from term 29 (image 0, row 4, column 5: packed row 33) to term 61 (image 2, row 0, column 1: 99)
//
// The first one is 51 further. The second has gone beyond column 5, so a row gap is added: 52. The
// third then is beyond row 4 as well, so an image gap is added: 66.
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

// A product as the device sees it. Its tiles are counted row by row; the first `full` rows begin at the
// diagonal, the others at column 0. Each tile is computed in `splits` parts of `length` terms. The last
// three say where this product begins among all of the launch: its blocks, its tiles, and the slots in
// which the parts of its tiles wait to be added up, where there are several.
struct DeviceProduct {
  Product product;
  Stride stride;
  int64_t across, full, tiles, splits, length, first_block, first_tile, first_slot;
};

struct TilePosition {
  int64_t row, column;  // in tiles
  bool leads;           // whether it is the first of its row, which has the sums of A's columns
};

__device__ TilePosition find_position(const DeviceProduct& own, int64_t tile) {
  int64_t row = 0, left = own.full > 0 ? own.across : 0;
  for (; row < own.full && tile >= left; --left, ++row) tile -= left;
  if (row < own.full) return {row, row + tile, tile == 0};
  return {row + tile / own.across, tile % own.across, tile % own.across == 0};
}

// Where an entry of the result goes, and where the sum of column i of A or of its squares goes. Null
// where it is not wanted.
__device__ double* entry_address(const Product& p, int64_t i, int64_t j) {
  if (i >= p.a.columns || j >= p.b.columns) return nullptr;
  if (i < p.square) return i <= j ? p.result + i * p.b.columns + j : nullptr;
  return p.below + (i - p.square) * p.b.columns + j;
}
__device__ double* sum_address(const Product& p, int64_t i, bool squares) {
  if (i >= p.a.columns || (squares && i < p.square)) return nullptr;
  double* to = squares ? p.below_square : i < p.square ? p.total : p.below_total;
  return to ? to + (i < p.square ? i : i - p.square) : nullptr;
}

// Copies a thread's share of each stage: of one term, every kTogether-th quad of both operands.
struct StageCopier {
  int64_t left;   // terms that are left of the part; none are read beyond its end
  int term, row;  // where it is within a row and within an image of the walk
  const float *a, *b;
  int columns_a, columns_b;  // columns that there are from a and b on, up to the tile's width

  template <class Config>
  __device__ StageCopier(Config, const Product& p, const TilePosition& position, int64_t begin,
                         int64_t end) {
    const int thread = static_cast<int>(threadIdx.x);
    const int64_t column = thread % Config::kTogether * kQuad, k = begin + thread / Config::kTogether;
    const int64_t rows = k / p.walk.terms, images = rows / p.walk.rows;
    left = end - k;
    term = static_cast<int>(k % p.walk.terms);
    row = static_cast<int>(rows % p.walk.rows);
    const auto from = [&](const Operand& operand, int64_t i, const float*& first, int& columns) {
      const int64_t packed = k + rows * operand.row_gap + images * operand.image_gap;
      first = operand.data + packed * operand.width + i;
      columns = static_cast<int>(min(operand.columns - i, int64_t{Config::kSide}));
    };
    from(p.a, position.row * Config::kSide + column, a, columns_a);
    from(p.b, position.column * Config::kSide + column, b, columns_b);
  }

  // Moves on by one stage. In small maps several rows end within one, but this takes the same few steps
  // for any map.
  __device__ void advance(const DeviceProduct& own, int terms) {
    const Product& p = own.product;
    left -= terms;
    term += static_cast<int>(own.stride.terms);
    row += static_cast<int>(own.stride.rows);
    a += own.stride.a;
    b += own.stride.b;
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
template <class Config>
__device__ void copy_stage(StageCopier& copier, const DeviceProduct& own, float* stage) {
  const int thread = static_cast<int>(threadIdx.x);
  float* to = stage + thread / Config::kTogether * Config::kPitch + thread % Config::kTogether * kQuad;
#pragma unroll
  for (int i = 0; i < Config::kSide; i += Config::kTogether * kQuad) {
    copy_quad(to + i, copier.a + i, copier.left > 0 && i < copier.columns_a);
    copy_quad(to + Config::kDepth * Config::kPitch + i, copier.b + i,
              copier.left > 0 && i < copier.columns_b);
  }
  copier.advance(own, Config::kDepth);
  __pipeline_commit();
}

// Whether any entry of a warp is wanted: they may all be outside of the result, or below its diagonal.
template <class Config>
__device__ bool has_entries(const Product& p, const TilePosition& position, const Lane& lane) {
  constexpr int rows = kMmaRows * Config::kDown, columns = kMmaColumns * Config::kOver;
  const int64_t top = position.row * Config::kSide + lane.down * rows;
  const int64_t left = position.column * Config::kSide + lane.across * columns;
  if (top >= p.a.columns || left >= p.b.columns) return false;
  return top + rows > p.square || left + columns > top;
}

// The work item of a block: one tile of one product, over one part of its terms.
struct TilePart {
  int64_t tile, split, begin, end;
  TilePosition position;
  bool sums;  // whether those of A's columns are wanted

  __device__ explicit TilePart(const DeviceProduct& own) {
    const Walk& walk = own.product.walk;
    // The tiles of one part come one after another: they read the same packed rows at about the same
    // time.
    tile = (blockIdx.x - own.first_block) % own.tiles;
    split = (blockIdx.x - own.first_block) / own.tiles;
    begin = split * own.length;
    end = min(begin + own.length, walk.terms * walk.rows * walk.images);
    position = find_position(own, tile);
    const Product& p = own.product;
    sums = position.leads && (p.total || p.below_total || p.below_square);
  }
  __device__ bool has_sums(int side) const { return sums && static_cast<int>(threadIdx.x) < side; }
};

// Adds up a part through the ring of stages: while one stage is multiplied, the next ones are copied.
template <class Config>
__device__ void add_part(const DeviceProduct& own, float* stages, Entries<Config>& entries,
                         ColumnSums& sums) {
  const Product& p = own.product;
  const TilePart part(own);
  const Lane lane(Config{});
  const bool multiplies = has_entries<Config>(p, part.position, lane),
             adds = part.has_sums(Config::kSide);
  StageCopier copier(Config{}, p, part.position, part.begin, part.end);
  for (int i = 0; i < Config::kStages - 1; ++i)
    copy_stage<Config>(copier, own, stages + i * Config::kStage);
  const int steps = static_cast<int>(divide_up(part.end - part.begin, Config::kDepth));
  for (int step = 0; step < steps; ++step) {
    __pipeline_wait_prior(Config::kStages - 2);
    __syncthreads();  // the copies of all threads are there, and the last stage has been read
    copy_stage<Config>(copier, own,
                       stages + (step + Config::kStages - 1) % Config::kStages * Config::kStage);
    const float* a = stages + step % Config::kStages * Config::kStage;
    if (multiplies) {
#pragma unroll Config::kAhead
      for (int k = 0; k < Config::kDepth; k += kMmaTerms)
        add_terms<Config>(a + k * Config::kPitch, a + (Config::kDepth + k) * Config::kPitch, lane,
                          entries);
    }
    if (adds) sums.add<Config>(a + threadIdx.x);
    if ((step + 1) % (kSumTerms / Config::kDepth) != 0) continue;
    entries.settle();
    sums.settle();
  }
}

// Adds a part to the results, or, where a tile has several, writes it to its slot. A slot has the first
// entries of all threads, then their second ones, and so on, so that a warp writes next to each other.
template <class Config>
__device__ void give_part(const DeviceProduct& own, double* slots, const Entries<Config>& entries,
                          const ColumnSums& sums) {
  const Product& p = own.product;
  const TilePart part(own);
  double* slot = slots + (own.first_slot + part.tile * own.splits + part.split) * Config::kSlot;
  const auto give = [&](int index, double* to, double value) {
    if (own.splits > 1) {
      slot[index] = value;
    } else if (to) {
      *to += value;
    }
  };
  const int64_t top = part.position.row * Config::kSide, left = part.position.column * Config::kSide;
  const int x = static_cast<int>(threadIdx.x);
  entries.give_all(Lane(Config{}), [&](int entry, int row, int column, double value) {
    give(entry * Config::kThreads + x, entry_address(p, top + row, left + column), value);
  });
  if (!part.has_sums(Config::kSide)) return;
  give(Config::kSide * Config::kSide + x, sum_address(p, top + x, false), sums.total.value());
  give(Config::kSide * (Config::kSide + 1) + x, sum_address(p, top + x, true), sums.square.value());
}

// A block: one work item. A warp: a rectangle of the tile, of which each thread has a 32nd. Shared
// memory: the ring of stages, then the product. Both functions work the block's item out anew, since
// keeping it in between would take registers.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads)
    multiply_tiles(const DeviceProduct* products, int64_t count, double* slots) {
  float* stages = dynamic_shared<float>();
  DeviceProduct& own = *reinterpret_cast<DeviceProduct*>(stages + Config::kStages * Config::kStage);
  const DeviceProduct* from =
      products + find_last(products, count, &DeviceProduct::first_block, blockIdx.x);
  static_assert(sizeof(DeviceProduct) / sizeof(int64_t) <= Config::kThreads);
  if (threadIdx.x < sizeof(DeviceProduct) / sizeof(int64_t))
    reinterpret_cast<int64_t*>(&own)[threadIdx.x] = reinterpret_cast<const int64_t*>(from)[threadIdx.x];
  __syncthreads();
  Entries<Config> entries;
  ColumnSums sums;
  add_part(own, stages, entries, sums);
  give_part(own, slots, entries, sums);
}

// Adds up the parts of a tile, in their order. The blocks of one x share a tile: they take turns at the
// first entries of its threads, their second ones, and so on, and at the sums of columns.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads)
    add_parts(const DeviceProduct* products, int64_t count, const double* slots) {
  const DeviceProduct& own =
      products[find_last(products, count, &DeviceProduct::first_tile, blockIdx.x)];
  if (own.splits == 1) return;
  const int64_t tile = blockIdx.x - own.first_tile;
  const TilePosition position = find_position(own, tile);
  const double* from = slots + (own.first_slot + tile * own.splits) * Config::kSlot;
  const int64_t top = position.row * Config::kSide, left = position.column * Config::kSide;
  const Lane lane(Config{});
  for (int e = static_cast<int>(blockIdx.y); e * Config::kThreads < Config::kSlot;
       e += static_cast<int>(gridDim.y)) {
    const int index = e * Config::kThreads + static_cast<int>(threadIdx.x),
              sums = index - Config::kSide * Config::kSide;
    double* to = nullptr;
    if (e < Config::kEntries) {
      to = entry_address(own.product, top + entry_row<Config>(lane, e / 4 / Config::kOver, e % 4),
                         left + entry_column<Config>(lane, e / 4 % Config::kOver, e % 4));
    } else if (position.leads && index < Config::kSlot) {
      to = sum_address(own.product, top + sums % Config::kSide, sums >= Config::kSide);
    }
    if (!to) continue;
    double sum = 0;
#pragma unroll 4
    for (int64_t split = 0; split < own.splits; ++split) sum += from[split * Config::kSlot + index];
    *to += sum;
  }
}

}  // namespace

}  // namespace reapx
