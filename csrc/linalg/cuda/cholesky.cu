// Panels of kTileSide columns. To save passes over the large rest of a matrix, panels are taken kGroup
// at a time: a panel that is solved is eliminated at once from the others of its group, and the columns
// beyond the group are brought up to date when the whole group is done. All systems take the same step
// in one launch.
#include <algorithm>
#include <limits>

#include "linalg/cuda/cholesky.h"
#include "runtime/cuda/launch.h"

namespace reapx {

namespace {

constexpr int64_t kGroup = 4;
constexpr int kRowLanes = 4;  // threads that share a row of a tile in solve_panels
constexpr int kLaneColumns = kTileSide / kRowLanes;
constexpr double kEpsilon = std::numeric_limits<double>::epsilon();
static_assert(kTileThreads == kTileSide * kRowLanes);

// An update of the tiles of the columns `column` to `column + columns - 1` with the columns `depth` to
// `end - 1`, or, if `columns` is 0, the solution of the panel `column`.
struct Step {
  int64_t column, columns, depth, end;
};

// Factors the tile on the diagonal that the block's threads have, and writes it to the system's
// diagonals. Its first `width` columns are not padding; only its lower triangle has a meaning. `room`
// holds kTileSide pivots, and two columns that are used in turn, so that one barrier for each column is
// enough.
//
// Columns are scaled by the roots of their pivots at the end, so that the next pivot waits for a
// division but not for a root.
__device__ void factor_diagonal(const System& system, int64_t block, OwnElements& a, double* room) {
  const int64_t width = min(system.size - block * kTileSide, int64_t{kTileSide});
  const double least = *system.least;
  double *pivots = room, *columns = room + kTileSide;
  if (threadIdx.x < kTileSide) pivots[threadIdx.x] = 1.0;
  __syncthreads();
#pragma unroll
  for (int high = 0; high < kOwn; ++high)
    for (int low = 0; low < kTileLine && high * kTileLine + low < width; ++low) {
      const int j = high * kTileLine + low;
      double* column = columns + j % 2 * kTileSide;
      if (OwnElements::column(high) == j)
#pragma unroll
        for (int i = 0; i < kOwn; ++i) column[OwnElements::row(i)] = a.at[i][high];
      __syncthreads();
      const double pivot = column[j];
      if (!(pivot > least) || !isfinite(pivot)) {  // the same for all threads
        if (threadIdx.x == 0) *system.failed = block * kTileSide + j;
        return;
      }
      if (threadIdx.x == 0) pivots[j] = pivot;
      const double inverse = 1.0 / pivot;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const double scaled = column[OwnElements::row(i)] * inverse;
#pragma unroll
        for (int k = high; k < kOwn; ++k)
          if (OwnElements::column(k) > j) a.at[i][k] -= scaled * column[OwnElements::column(k)];
      }
    }
  __syncthreads();
  double* diagonal = system.diagonals + block * kTileSide * kTileSide;
#pragma unroll
  for (int k = 0; k < kOwn; ++k) {
    const int column = OwnElements::column(k);
    const double scale = 1.0 / sqrt(pivots[column]);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int row = OwnElements::row(i);
      diagonal[row * kTileSide + column] = row < column    ? 0.0
                                           : row == column ? scale
                                                           : a.at[i][k] * scale;
    }
  }
}

// A block: one system, whose rounding floor it finds and whose first tile it factors. A thread: every
// kTileThreads-th element of the diagonal, then its elements of the tile. Shared memory: a maximum for
// each thread, then the room of factor_diagonal.
__global__ void __launch_bounds__(kTileThreads) start_systems(const System* systems) {
  __shared__ double room[3 * kTileSide > kTileThreads ? 3 * kTileSide : kTileThreads];
  const System system = systems[blockIdx.x];
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) *system.failed = -1;
  if (system.size == 0) return;
  double largest = 0.0;
  for (int64_t i = thread; i < system.size; i += kTileThreads) {
    const double value = system.matrix[i * system.stride + i];
    if (value > largest) largest = value;  // false for NaN, which fails as a pivot
  }
  room[thread] = largest;
  for (int half = kTileThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half && room[thread + half] > room[thread]) room[thread] = room[thread + half];
  }
  if (thread == 0) *system.least = static_cast<double>(system.size) * kEpsilon * room[0];
  __syncthreads();
  OwnElements own;
  for (int i = 0; i < kOwn; ++i)
    for (int k = 0; k < kOwn; ++k)
      own.at[i][k] = system.matrix[OwnElements::row(i) * system.stride + OwnElements::column(k)];
  factor_diagonal(system, 0, own, room);
}

// x L^T = x for a row of a tile of which kRowLanes threads hold every kRowLanes-th element each, or,
// backward, x L = x. `lower` has kTilePitch; columns from `width` on are 0 and stay so.
template <bool kBackward>
__device__ void solve_row(const double* lower, int64_t width, double (&x)[kLaneColumns]) {
  const int lane = static_cast<int>(threadIdx.x) % kRowLanes;
#pragma unroll
  for (int step = 0; step < kLaneColumns; ++step) {
    const int own = kBackward ? kLaneColumns - 1 - step : step;
    if (own * kRowLanes >= width) continue;
#pragma unroll
    for (int turn = 0; turn < kRowLanes; ++turn) {
      const int owner = kBackward ? kRowLanes - 1 - turn : turn, j = own * kRowLanes + owner;
      const double value = __shfl_sync(kAllLanes, x[own] * lower[j * kTilePitch + j], owner, kRowLanes);
      if (lane == owner) x[own] = value;
#pragma unroll
      for (int other = 0; other < kLaneColumns; ++other) {
        const int i = other * kRowLanes + lane;
        if (kBackward && other <= own && i < j) x[other] -= value * lower[j * kTilePitch + i];
        if (!kBackward && other >= own && i > j) x[other] -= value * lower[i * kTilePitch + j];
      }
    }
  }
}

// A block: one tile of a panel, which it multiplies by the inverse of the panel's tile on the diagonal
// (transposed, if forward). A thread: kLaneColumns elements of a row. Shared memory: the tile on the
// diagonal. Forward, X L^-T of an identity begins at the tile on the diagonal, and L is also written,
// mirrored, above the diagonal, where solving backward reads it.
template <bool kBackward>
__global__ void __launch_bounds__(kTileThreads)
    solve_panels(const System* systems, Tiles tiles, int64_t panel) {
  __shared__ double lower[kTileSide * kTilePitch];
  const SystemTile at = tiles.of_block();
  const System system = systems[at.system];
  if (*system.failed >= 0) return;
  const int64_t top = kBackward ? system.blocks : system.inverse ? 0 : panel + 1;
  const int64_t row = top + at.tile;
  const double* diagonal = system.diagonals + panel * kTileSide * kTileSide;
  for (int i = static_cast<int>(threadIdx.x); i < kTileSide * kTileSide; i += kTileThreads)
    lower[i / kTileSide * kTilePitch + i % kTileSide] = diagonal[i];
  const int y = static_cast<int>(threadIdx.x) / kRowLanes,
            lane = static_cast<int>(threadIdx.x) % kRowLanes;
  double* tile = system.tile(row, panel) + y * system.stride + lane;
  double x[kLaneColumns];
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i)
    x[i] = row == panel ? y == i * kRowLanes + lane : tile[i * kRowLanes];
  __syncthreads();
  solve_row<kBackward>(lower, min(system.size - panel * kTileSide, int64_t{kTileSide}), x);
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) tile[i * kRowLanes] = x[i];
  if (kBackward || system.inverse || row >= system.blocks) return;
  double* mirror = system.tile(panel, row) + lane * system.stride + y;
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) mirror[i * kRowLanes * system.stride] = x[i];
}

// A block: one tile, from which it subtracts the product of two strips of tiles. The next tile on the
// diagonal is then factored too, which saves a launch. A thread: its elements of the tile. Shared
// memory: the stages of the product, then the room of factor_diagonal.
template <bool kBackward>
__global__ void __launch_bounds__(kTileThreads, 2)
    update_tiles(const System* systems, Tiles tiles, Step step) {
  __shared__ __align__(16) double room[kRoomDoubles];
  const SystemTile at = tiles.of_block();
  const System system = systems[at.system];
  const int64_t top = kBackward ? system.blocks : system.inverse ? 0 : step.column;
  const int64_t row = top + at.tile % (system.rows - top);
  const int64_t column = step.column + at.tile / (system.rows - top);
  const int64_t end = min(step.end, system.blocks);
  if (!kBackward && row < column && row >= end) return;
  // The rows of an identity are zero to the left of the diagonal, where L is.
  const int64_t depth = kBackward || row >= end ? step.depth : max(step.depth, row);
  OwnElements own = multiply_tiles(system.tile(row, depth), system.tile(column, depth), system.stride,
                                   (end - depth) * kTileSide, room);
  double* tile = system.tile(row, column);
#pragma unroll
  for (int i = 0; i < kOwn; ++i)
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      double* element = tile + OwnElements::row(i) * system.stride + OwnElements::column(k);
      own.at[i][k] = *element - own.at[i][k];
      *element = own.at[i][k];
    }
  if (!kBackward && row == step.column && column == row && *system.failed < 0)
    factor_diagonal(system, column, own, room);
}

int64_t forward_tiles(const System& system, const Step& step) {
  if (system.blocks <= step.column) return 0;
  if (step.columns == 0) return system.inverse ? system.blocks : system.rows - step.column - 1;
  const int64_t rows = system.rows - (system.inverse ? 0 : step.column);
  return rows * (std::min(step.column + step.columns, system.blocks) - step.column);
}

int64_t backward_tiles(const System& system, const Step& step) {
  if (system.blocks <= (step.columns == 0 ? step.column : step.depth)) return 0;
  return (system.rows - system.blocks) * std::max<int64_t>(step.columns, 1);
}

std::vector<Step> forward_steps(int64_t blocks) {
  std::vector<Step> steps;
  for (int64_t top = 0; top < blocks; top += kGroup) {
    const int64_t bottom = std::min(top + kGroup, blocks);
    for (int64_t panel = top; panel < bottom; ++panel) {
      steps.push_back({panel, 0, 0, 0});
      if (panel + 1 < bottom) steps.push_back({panel + 1, bottom - panel - 1, panel, panel + 1});
    }
    if (bottom < blocks) steps.push_back({bottom, blocks - bottom, top, bottom});
  }
  return steps;
}

std::vector<Step> backward_steps(int64_t blocks) {
  std::vector<Step> steps;
  for (int64_t top = (blocks - 1) / kGroup * kGroup; top >= 0 && blocks > 0; top -= kGroup) {
    const int64_t bottom = std::min(top + kGroup, blocks);
    for (int64_t panel = bottom - 1; panel >= top; --panel) {
      steps.push_back({panel, 0, 0, 0});
      if (panel > top) steps.push_back({top, panel - top, panel, panel + 1});
    }
    if (top > 0) steps.push_back({0, top, top, bottom});
  }
  return steps;
}

template <bool kBackward>
void run(const Context& context, const std::vector<System>& systems, const System* described) {
  const int64_t most = systems.empty() ? 0 : systems.front().blocks;
  const std::vector<Step> steps = kBackward ? backward_steps(most) : forward_steps(most);
  TileLists lists;
  for (const Step& step : steps) {
    lists.begin();
    for (const System& system : systems)
      lists.add(kBackward ? backward_tiles(system, step) : forward_tiles(system, step));
  }
  const DeviceBuffer<int> firsts(context, lists.firsts());
  for (size_t i = 0; i < steps.size(); ++i) {
    const LaunchShape shape{"cholesky", blocks_of(lists.count(i)), dim3(kTileThreads)};
    const Tiles tiles = lists.at(firsts.data(), i);
    if (steps[i].columns == 0) {
      launch(context, shape, solve_panels<kBackward>, described, tiles, steps[i].column);
    } else {
      launch(context, shape, update_tiles<kBackward>, described, tiles, steps[i]);
    }
  }
}

int64_t rows_of(const SystemSize& size) {
  return tiles_along(size.size) + (size.right == kIdentity ? 0 : tiles_along(size.right));
}

int64_t doubles_of(const std::vector<SystemSize>& sizes) {
  int64_t doubles = static_cast<int64_t>(sizes.size());
  for (const SystemSize& size : sizes)
    doubles += (rows_of(size) + 1) * tiles_along(size.size) * kTileSide * kTileSide;
  return doubles;
}

std::vector<System> placed(const std::vector<SystemSize>& sizes, double* scratch) {
  std::vector<System> systems;
  for (const SystemSize& size : sizes) {
    const int64_t blocks = tiles_along(size.size), rows = rows_of(size);
    double* diagonals = scratch + rows * blocks * kTileSide * kTileSide;
    systems.push_back({scratch, diagonals, nullptr, size.failed, size.size, blocks * kTileSide, blocks,
                       rows, size.right == kIdentity});
    scratch = diagonals + blocks * kTileSide * kTileSide;
  }
  for (System& system : systems) system.least = scratch++;  // after the tiles, which have to be aligned
  return systems;
}

}  // namespace

void TileLists::begin() {
  if (!lists_.empty()) firsts_.resize(lists_.back().end);
  lists_.push_back({firsts_.size(), firsts_.size(), 0});
}

void TileLists::add(int64_t tiles) {
  List& list = lists_.back();
  firsts_.push_back(static_cast<int>(list.tiles));  // a launch of more blocks than fit is refused
  list.tiles += tiles;
  if (tiles > 0) list.end = firsts_.size();
}

Systems::Systems(const Context& context, const std::vector<SystemSize>& sizes)
    : context_(context),
      scratch_(context, doubles_of(sizes)),
      systems_(placed(sizes, scratch_.data())),
      described_(context, systems_) {}

void Systems::factor() const {
  launch(context_, {"cholesky", blocks_of(static_cast<int64_t>(systems_.size())), dim3(kTileThreads)},
         start_systems, on_device());
  run<false>(context_, systems_, on_device());
}

void Systems::solve_backward() const { run<true>(context_, systems_, on_device()); }

}  // namespace reapx
