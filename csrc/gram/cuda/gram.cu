#include "gram/cuda/gram_device.h"
#include "gram/cuda/gram_limits.h"
#include "gram/gram.h"
#include "runtime/cuda/device_buffer.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/work_items.h"

namespace reapx {

namespace {

constexpr int kMirrorSide = 32;  // of a tile of a matrix: a warp reads and writes whole rows of it
constexpr int kMirrorRows = 8;   // rows of a tile that a block handles at once

// A block: one tile of the lower triangle of one matrix, which it copies from its mirror image in the
// upper one, through shared memory. A thread: one column of the tile, every kMirrorRows-th row.
__global__ void mirror_tiles(double* gram, int64_t size, int64_t sides) {
  // One column wider than a tile, so that a column lies in different banks.
  __shared__ double tile[kMirrorSide][kMirrorSide + 1];
  const int64_t pair = blockIdx.x % (sides * sides);
  const int64_t top = pair / sides * kMirrorSide, left = pair % sides * kMirrorSide;
  if (top > left) return;
  double* matrix = gram + blockIdx.x / (sides * sides) * size * size;
  const int64_t x = threadIdx.x;
  for (int64_t y = threadIdx.y; y < kMirrorSide; y += kMirrorRows)
    if (top + y < size && left + x < size) tile[y][x] = matrix[(top + y) * size + left + x];
  __syncthreads();
  for (int64_t y = threadIdx.y; y < kMirrorSide; y += kMirrorRows)
    if (left + y < size && top + x < size && left + y > top + x)
      matrix[(left + y) * size + top + x] = tile[x][y];
}

Axis single(int64_t size) { return {1, 1, 0, 1, size, size}; }

// Form "rows": packs rows of X and Y side by side, a chunk of them at a time. One product for each
// group then gives its Gram matrix, the cross moments below that, and all sums.
void accumulate_rows(const GramTask& task, const Context& context) {
  const int64_t d = task.features(), m = task.group_targets(), width = align_width(d + m);
  if (width == 0) return;
  const int64_t rows =
      std::min(task.samples(), std::max<int64_t>(1, kRowsChunk / (task.groups * width)));
  const DeviceBuffer<float> packed(context, task.groups * rows * width);
  const int64_t per_image = task.positions ? task.per_image : task.rows.output * task.columns.output;
  Packing x{task.input, task.rows, task.columns,  task.groups, task.positions, per_image,
            0,          0,         packed.data(), rows,        width,          m > 0 ? d : width};
  Packing y = x;
  y.images = task.target;
  y.rows = single(task.rows.output);
  y.columns = single(task.columns.output);
  y.to += d;
  y.filled = width - d;
  for (int64_t first = 0; first < task.samples(); first += rows) {
    x.first = y.first = first;
    x.count = y.count = std::min(rows, task.samples() - first);
    pack_rows(x, context);
    if (m > 0) pack_rows(y, context);
    std::vector<Product> products;
    for (int64_t g = 0; g < task.groups; ++g) {
      const float* data = packed.data() + g * rows * width;
      products.push_back({{data, width, d + m, 0, 0},
                          {data, width, d, 0, 0},
                          {x.count, 1, 1},
                          d,
                          task.gram + g * d * d,
                          nullptr,
                          task.total + g * d,
                          nullptr,
                          nullptr});
      if (m == 0) continue;
      products.back().below = task.cross + g * m * d;
      products.back().below_total = task.target_total + g * m;
      products.back().below_square = task.target_square + g * m;
    }
    multiply(products, context);
  }
}

}  // namespace

void gram_accumulate(const GramTask& task, const std::string& form, const Context& context) {
  if (task.samples() == 0) return;
  if (!accumulate_shift(task, form, context)) accumulate_rows(task, context);
}

void gram_mirror(double* gram, int64_t count, int64_t size, const Context& context) {
  const int64_t sides = divide_up(size, kMirrorSide);
  const LaunchShape shape{"gram_mirror", blocks_of(count * sides * sides),
                          dim3(kMirrorSide, kMirrorRows)};
  launch(context, shape, mirror_tiles, gram, size, sides);
}

}  // namespace reapx
