#include <algorithm>

#include "linalg/basis.h"
#include "linalg/cuda/cholesky.h"
#include "runtime/cuda/launch.h"

namespace reapx {

namespace {

// A block: one tile of A = gram + ridge I, which it copies from its mirror image in the upper triangle,
// or zeros in the tiles above the diagonal, where the identity's rows will be. A thread: every fourth
// element of a column of the tile. Shared memory: the tile as gram has it.
__global__ void __launch_bounds__(kTileThreads)
    load_grams(const System* systems, const BasisTask* tasks, Tiles tiles) {
  __shared__ double tile[kTileSide * kTilePitch];
  const SystemTile at = tiles.of_block();
  const System system = systems[at.system];
  const BasisTask task = tasks[at.system];
  const int64_t n = system.size, row = at.tile / system.blocks, column = at.tile % system.blocks;
  const int x = static_cast<int>(threadIdx.x) % kTileSide,
            top = static_cast<int>(threadIdx.x) / kTileSide;
  constexpr int kRows = kTileThreads / kTileSide;
  double* to = system.tile(row, column);
  if (row < column) {
    for (int y = top; y < kTileSide; y += kRows) to[y * system.stride + x] = 0.0;
    return;
  }
  for (int y = top; y < kTileSide; y += kRows) {
    const int64_t i = column * kTileSide + y, j = row * kTileSide + x;
    tile[y * kTilePitch + x] = i <= j && j < n ? task.gram[i * n + j] : i == j ? 1.0 : 0.0;
  }
  __syncthreads();
  for (int y = top; y < kTileSide; y += kRows) {
    const double value = tile[x * kTilePitch + y];
    const bool damped = row == column && x == y && row * kTileSide + y < n;
    to[y * system.stride + x] = damped ? value + task.ridge : value;
  }
}

// A block: one tile of P = Z Z^T and its mirror image, from the rows of Z = L^-T, which begin at the
// diagonal. A thread: its elements of the product, then elements of a column. Shared memory: the stages
// of the product, then its tile.
__global__ void __launch_bounds__(kTileThreads, 2)
    write_bases(const System* systems, const BasisTask* tasks, Tiles tiles) {
  __shared__ __align__(16) double room[kRoomDoubles];
  const SystemTile at = tiles.of_block();
  const System system = systems[at.system];
  const int64_t n = system.size, column = at.tile / system.blocks, row = at.tile % system.blocks;
  if (row > column || *system.failed >= 0) return;
  const OwnElements own = multiply_tiles(system.tile(row, column), system.tile(column, column),
                                         system.stride, (system.blocks - column) * kTileSide, room);
  for (int i = 0; i < kOwn; ++i)
    for (int k = 0; k < kOwn; ++k)
      room[OwnElements::row(i) * kTilePitch + OwnElements::column(k)] = own.at[i][k];
  __syncthreads();
  double* basis = tasks[at.system].basis;
  const int x = static_cast<int>(threadIdx.x) % kTileSide;
  for (int y = static_cast<int>(threadIdx.x) / kTileSide; y < kTileSide;
       y += kTileThreads / kTileSide) {
    int64_t i = row * kTileSide + y, j = column * kTileSide + x;
    if (i <= j && j < n) basis[i * n + j] = room[y * kTilePitch + x];
    i = column * kTileSide + y, j = row * kTileSide + x;
    if (i > j && i < n) basis[i * n + j] = room[x * kTilePitch + y];
  }
}

}  // namespace

void basis_compute(const std::vector<BasisTask>& given, const Context& context) {
  std::vector<BasisTask> tasks = given;
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const BasisTask& a, const BasisTask& b) { return a.size > b.size; });
  std::vector<SystemSize> sizes;
  TileLists lists;
  lists.begin();
  for (const BasisTask& task : tasks) {
    sizes.push_back({task.size, kIdentity, task.failed});
    lists.add(tiles_along(task.size) * tiles_along(task.size));
  }
  const Systems systems(context, sizes);
  const DeviceBuffer<BasisTask> described(context, tasks);
  const DeviceBuffer<int> firsts(context, lists.firsts());
  const Tiles tiles = lists.at(firsts.data(), 0);
  const LaunchShape shape{"basis_compute", blocks_of(lists.count(0)), dim3(kTileThreads)};
  launch(context, shape, load_grams, systems.on_device(), described.data(), tiles);
  systems.factor();
  launch(context, shape, write_bases, systems.on_device(), described.data(), tiles);
}

}  // namespace reapx
