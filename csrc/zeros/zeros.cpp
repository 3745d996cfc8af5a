#include "zeros/zeros.h"

#include <algorithm>

#include "runtime/cpu/buffer.h"
#include "runtime/cpu/context_cpu.h"
#include "runtime/cpu/parallel.h"

namespace reapx {

namespace {

constexpr int64_t kBlock = 1 << 21;  // weights of a block: few enough to share them evenly
constexpr int64_t kStrip = 1 << 12;  // columns whose running maxima stay in L1 (16 KiB)

// The work item of a thread: rows first .. first+count-1 of a task.
struct RowBlock {
  const ZeroTask* task;
  int64_t first, count;
  int64_t maxima;  // where in the workspace the maxima of its inputs * taps columns begin
};

int64_t width_of(const ZeroTask& task) { return task.inputs * task.taps; }

// The blocks of a task follow each other, and so do their maxima.
std::vector<RowBlock> list_blocks(const std::vector<ZeroTask>& tasks) {
  std::vector<RowBlock> blocks;
  int64_t maxima = 0;
  for (const ZeroTask& task : tasks) {
    const int64_t width = width_of(task);
    const int64_t groups = kBlock / std::max<int64_t>(width, 1) / kTileRows;
    const int64_t rows = std::max<int64_t>(groups, 1) * kTileRows;
    for (int64_t first = 0; first < task.outputs && width > 0; first += rows) {
      blocks.push_back({&task, first, std::min(rows, task.outputs - first), maxima});
      maxima += width;
    }
  }
  return blocks;
}

// Reads a block. The maxima of its rows are then final; those of its columns still lack the other
// blocks of the task.
void read_block(const Tile& tile, const RowBlock& block, float* maxima) {
  const int64_t width = width_of(*block.task);
  const float* from = block.task->weight + block.first * width;
  for (int64_t begin = 0; begin < width; begin += kStrip)
    tile.max_magnitudes(block.count, std::min(kStrip, width - begin), from + begin, width,
                        block.task->rows + block.first, maxima + begin);
}

// Joins the maxima (blocks, inputs * taps) of a task's blocks, in their first row.
void join_blocks(const Tile& tile, const ZeroTask& task, int64_t blocks, float* maxima) {
  const int64_t width = width_of(task);
  std::vector<float> unused(static_cast<size_t>(std::max(blocks, task.taps)));
  tile.max_magnitudes(blocks - 1, width, maxima + width, width, unused.data(), maxima);
  tile.max_magnitudes(task.inputs, task.taps, maxima, task.taps, task.columns, unused.data());
}

}  // namespace

void zero_scan(const std::vector<ZeroTask>& tasks, const Context& context) {
  const std::vector<RowBlock> blocks = list_blocks(tasks);
  int64_t size = 0;
  for (const RowBlock& block : blocks) size += width_of(*block.task);
  Buffer<float> maxima(static_cast<size_t>(size));
  for (const ZeroTask& task : tasks) {
    std::fill(task.rows, task.rows + task.outputs, 0.0F);
    std::fill(task.columns, task.columns + task.inputs, 0.0F);
  }
  Team team(context.threads);
  team.run(static_cast<int64_t>(blocks.size()), [&](int64_t i) {
    const RowBlock& block = blocks[static_cast<size_t>(i)];
    read_block(context.tile, block, maxima.data() + block.maxima);
  });
  for (size_t i = 0, next; i < blocks.size(); i = next) {
    for (next = i + 1; next < blocks.size() && blocks[next].task == blocks[i].task;) ++next;
    join_blocks(context.tile, *blocks[i].task, static_cast<int64_t>(next - i),
                maxima.data() + blocks[i].maxima);
  }
}

}  // namespace reapx
