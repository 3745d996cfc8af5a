#include <algorithm>

#include "linalg/basis.h"
#include "linalg/cuda/cholesky.h"
#include "runtime/cuda/launch.h"

namespace reapx {

namespace {

// What a task has beside its system.
struct Job {
  const double* gram;
  double ridge;
  double* basis;
};

// A block: one tile of A = gram + ridge I, from its mirror image in the upper triangle, or zeros in the
// tiles above the diagonal, where the identity's rows will be. A thread: elements of a column of the
// tile, every fourth. Shared: the tile as gram has it.
__global__ void __launch_bounds__(kThreads)
    load_grams(const System* systems, const Job* jobs, Tiles tiles) {
  __shared__ double tile[kSide * kTilePitch];
  const Place place = tiles.of_block();
  const System system = systems[place.system];
  const Job job = jobs[place.system];
  const int64_t n = system.size, row = place.tile / system.blocks, column = place.tile % system.blocks;
  const int x = static_cast<int>(threadIdx.x) % kSide, top = static_cast<int>(threadIdx.x) / kSide;
  constexpr int kRows = kThreads / kSide;
  double* to = system.tile(row, column);
  if (row < column) {
    for (int y = top; y < kSide; y += kRows) to[y * system.stride + x] = 0.0;
    return;
  }
  for (int y = top; y < kSide; y += kRows) {
    const int64_t i = column * kSide + y, j = row * kSide + x;
    tile[y * kTilePitch + x] = i <= j && j < n ? job.gram[i * n + j] : i == j ? 1.0 : 0.0;
  }
  __syncthreads();
  for (int y = top; y < kSide; y += kRows) {
    const double value = tile[x * kTilePitch + y];
    const bool damped = row == column && x == y && row * kSide + y < n;
    to[y * system.stride + x] = damped ? value + job.ridge : value;
  }
}

// A block: one tile of P = Z Z^T and its mirror image, from the rows of Z = L^-T, which begin at the
// diagonal. A thread: its elements of the product, then elements of a column. Shared: the product's
// stages, then its tile.
__global__ void __launch_bounds__(kThreads, 2)
    write_bases(const System* systems, const Job* jobs, Tiles tiles) {
  __shared__ __align__(16) double room[kRoom];
  const Place place = tiles.of_block();
  const System system = systems[place.system];
  const int64_t n = system.size, column = place.tile / system.blocks, row = place.tile % system.blocks;
  if (row > column || *system.failed >= 0) return;
  const OwnElements own = multiply_tiles(system.tile(row, column), system.tile(column, column),
                                         system.stride, (system.blocks - column) * kSide, room);
  for (int i = 0; i < kOwn; ++i)
    for (int k = 0; k < kOwn; ++k)
      room[OwnElements::row(i) * kTilePitch + OwnElements::column(k)] = own.at[i][k];
  __syncthreads();
  double* basis = jobs[place.system].basis;
  const int x = static_cast<int>(threadIdx.x) % kSide;
  for (int y = static_cast<int>(threadIdx.x) / kSide; y < kSide; y += kThreads / kSide) {
    int64_t i = row * kSide + y, j = column * kSide + x;
    if (i <= j && j < n) basis[i * n + j] = room[y * kTilePitch + x];
    i = column * kSide + y, j = row * kSide + x;
    if (i > j && i < n) basis[i * n + j] = room[x * kTilePitch + y];
  }
}

}  // namespace

void basis_compute(const std::vector<BasisTask>& given, const Context& context) {
  std::vector<BasisTask> tasks = given;
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const BasisTask& a, const BasisTask& b) { return a.size > b.size; });
  std::vector<SystemSize> sizes;
  std::vector<Job> jobs;
  TileLists lists;
  lists.begin();
  for (const BasisTask& task : tasks) {
    sizes.push_back({task.size, kIdentity, task.failed});
    jobs.push_back({task.gram, task.ridge, task.basis});
    lists.add(tiles_along(task.size) * tiles_along(task.size));
  }
  const Systems systems(context, sizes);
  const DeviceBuffer<Job> described(context, jobs);
  const DeviceBuffer<int> firsts(context, lists.firsts());
  const Tiles tiles = lists.at(firsts.data(), 0);
  const Shape shape{"basis_compute", blocks_of(lists.count(0)), dim3(kThreads)};
  launch(context, shape, load_grams, systems.on_device(), described.data(), tiles);
  systems.factor();
  launch(context, shape, write_bases, systems.on_device(), described.data(), tiles);
}

}  // namespace reapx
