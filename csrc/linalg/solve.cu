#include <algorithm>

#include "linalg/cuda/cholesky.h"
#include "linalg/solve.h"
#include "runtime/cuda/launch.h"

namespace reapx {

namespace {

constexpr int kRows = kTileThreads / kTileSide;  // rows of a tile that a block handles at once

// A block: one tile of A = G_RR + ridge I, or of X = cross_R + ridge * reference_R below it. A thread:
// every fourth element of a column of the tile.
__global__ void __launch_bounds__(kTileThreads)
    gather_tasks(const System* systems, const SolveTask* tasks, Tiles tiles) {
  const SystemTile at = tiles.of_block();
  const System system = systems[at.system];
  const SolveTask task = tasks[at.system];
  const int64_t row = at.tile / system.blocks, column = at.tile % system.blocks;
  if (row < column) return;
  const int x = static_cast<int>(threadIdx.x) % kTileSide,
            top = static_cast<int>(threadIdx.x) / kTileSide;
  const int64_t n = task.kept_count, j = column * kTileSide + x, kept = j < n ? task.kept[j] : 0;
  double* to = system.tile(row, column) + x;
  if (row < system.blocks) {
    for (int y = top; y < kTileSide; y += kRows) {
      const int64_t i = row * kTileSide + y;
      double value = i == j ? 1.0 : 0.0;
      if (i < n && j < n)
        value = task.gram[task.kept[i] * task.features + kept] + (i == j ? task.ridge : 0.0);
      to[y * system.stride] = value;
    }
    return;
  }
  for (int y = top; y < kTileSide; y += kRows) {
    const int64_t i = (row - system.blocks) * kTileSide + y, from = i * task.features + kept;
    double value = 0.0;
    if (i < task.outputs && j < n) {
      value = task.cross[from];
      if (task.reference) value += task.ridge * task.reference[from];
    }
    to[y * system.stride] = value;
  }
}

// A block: one tile of a weight. A thread: every fourth element of a column of the tile.
__global__ void __launch_bounds__(kTileThreads)
    write_weights(const System* systems, const SolveTask* tasks, Tiles tiles) {
  const SystemTile at = tiles.of_block();
  const System system = systems[at.system];
  if (*system.failed >= 0) return;
  const SolveTask task = tasks[at.system];
  const int64_t row = at.tile / system.blocks, column = at.tile % system.blocks;
  const int x = static_cast<int>(threadIdx.x) % kTileSide,
            top = static_cast<int>(threadIdx.x) / kTileSide;
  const int64_t n = task.kept_count, j = column * kTileSide + x;
  if (j >= n) return;
  const double* from = system.tile(system.blocks + row, column) + x;
  for (int y = top; y < kTileSide && row * kTileSide + y < task.outputs; y += kRows)
    task.weight[(row * kTileSide + y) * n + j] = from[y * system.stride];
}

}  // namespace

void batch_solve(const std::vector<SolveTask>& given, const Context& context) {
  std::vector<SolveTask> tasks = given;
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const SolveTask& a, const SolveTask& b) { return a.kept_count > b.kept_count; });
  std::vector<SystemSize> sizes;
  for (const SolveTask& task : tasks) sizes.push_back({task.kept_count, task.outputs, task.failed});
  const Systems systems(context, sizes);
  TileLists lists;
  lists.begin();
  for (const System& system : systems.all()) lists.add(system.rows * system.blocks);
  lists.begin();
  for (const System& system : systems.all()) lists.add((system.rows - system.blocks) * system.blocks);
  const DeviceBuffer<SolveTask> described(context, tasks);
  const DeviceBuffer<int> firsts(context, lists.firsts());
  launch(context, {"batch_solve", blocks_of(lists.count(0)), dim3(kTileThreads)}, gather_tasks,
         systems.on_device(), described.data(), lists.at(firsts.data(), 0));
  systems.factor();
  systems.solve_backward();
  launch(context, {"batch_solve", blocks_of(lists.count(1)), dim3(kTileThreads)}, write_weights,
         systems.on_device(), described.data(), lists.at(firsts.data(), 1));
}

}  // namespace reapx
