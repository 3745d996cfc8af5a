#include "gram/cuda/gram_device.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/work_items.h"

namespace reapx {

namespace {

constexpr int kRows = 32, kColumns = 64, kThreads = 256;  // of a tile; of a block

// What a packed row, and what a packed column, adds to the address of a value and to its row and column
// in the image. The value at the sum of both is read, or is zero where the sum is outside the image; a
// packed column that is zero throughout is far outside.
struct Offset {
  int64_t offset;
  int row, column;
};
constexpr int kFar = 1 << 29;

__device__ Offset row_offset(const Packing& p, int64_t s) {
  const int64_t image = s / p.per_image;
  const int64_t position = p.positions ? p.positions[s] : s % p.per_image;
  const int64_t row = position / p.columns.output * p.rows.stride - p.rows.padding;
  const int64_t column = position % p.columns.output * p.columns.stride - p.columns.padding;
  return {image * p.images.image_step + row * p.images.row_step + column * p.images.column_step,
          static_cast<int>(row), static_cast<int>(column)};
}

__device__ Offset column_offset(const Packing& p, int64_t group, int64_t column) {
  const int64_t taps = p.rows.kernel * p.columns.kernel, channels = p.images.channels / p.groups;
  if (column >= channels * taps) return {0, kFar, kFar};
  const int64_t channel = group * channels + column / taps, tap = column % taps;
  const int64_t down = tap / p.columns.kernel * p.rows.dilation;
  const int64_t right = tap % p.columns.kernel * p.columns.dilation;
  return {channel * p.images.channel_step + down * p.images.row_step + right * p.images.column_step,
          static_cast<int>(down), static_cast<int>(right)};
}

// The bits of a number of half precision, as types that say which format it is.
struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

__device__ float read_value(const float* at) { return __ldg(at); }

__device__ float read_value(const Bfloat* at) {
  return __uint_as_float(unsigned{__ldg(&at->bits)} << 16);
}

// Written out rather than left to CUDA's own conversion, so that the tests without a GPU run this code
// too. Exponent and fraction, moved to their place in a float32, mean a number that is 2^112 times too
// small, also for subnormals, and multiplying by that is exact. The largest exponent, that of Inf and
// NaN, has to become the largest one of float32.
__device__ float read_value(const Half* at) {
  const unsigned bits = __ldg(&at->bits), moved = (bits & 0x7fff) << 13;
  const bool finite = moved < (0x1fu << 23);
  const unsigned magnitude =
      finite ? __float_as_uint(__uint_as_float(moved) * 0x1p112f) : moved | (0xffu << 23);
  return __uint_as_float(magnitude | ((bits & 0x8000) << 16));
}

// A block: one tile of the rows of one group. A thread: first the offset of one row or column, then
// values of the tile. Values are read in the order in which they lie in the images, which is along
// columns or along rows, and written along columns. In between, the tile is in shared memory, one
// column wider than it is, so that both orders use all banks.
template <class T>
__global__ void __launch_bounds__(kThreads) gather_tiles(Packing p, int64_t down, int64_t across) {
  __shared__ Offset rows[kRows], columns[kColumns];
  __shared__ float tile[kRows][kColumns + 1];
  const int64_t group = blockIdx.x / (down * across), index = blockIdx.x % (down * across);
  const int64_t top = index / across * kRows, left = index % across * kColumns;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kRows) {
    if (top + thread < p.count) rows[thread] = row_offset(p, p.first + top + thread);
  } else if (thread < kRows + kColumns) {
    columns[thread - kRows] = column_offset(p, group, left + thread - kRows);
  }
  __syncthreads();
  const T* data = static_cast<const T*>(p.images.data);
  const bool along_columns = p.images.channel_step == 1;
  for (int i = thread; i < kRows * kColumns; i += kThreads) {
    const int y = along_columns ? i / kColumns : i % kRows,
              x = along_columns ? i % kColumns : i / kRows;
    if (top + y >= p.count) continue;
    const int row = rows[y].row + columns[x].row, column = rows[y].column + columns[x].column;
    const bool inside = row >= 0 && row < p.rows.input && column >= 0 && column < p.columns.input;
    tile[y][x] = inside ? read_value(data + rows[y].offset + columns[x].offset) : 0.0f;
  }
  __syncthreads();
  float* to = p.to + (group * p.group_rows + top) * p.width + left;
  for (int i = thread; i < kRows * kColumns; i += kThreads) {
    const int y = i / kColumns, x = i % kColumns;
    if (top + y < p.count && left + x < p.filled) to[y * p.width + x] = tile[y][x];
  }
}

}  // namespace

void pack_rows(const Packing& packing, const Context& context) {
  const int64_t down = divide_up(packing.count, kRows);
  const int64_t across = divide_up(packing.filled, kColumns);
  const LaunchShape shape{"gram_accumulate", blocks_of(packing.groups * down * across), dim3(kThreads)};
  switch (packing.images.element) {
    case Element::kFloat32:
      return launch(context, shape, gather_tiles<float>, packing, down, across);
    case Element::kFloat16:
      return launch(context, shape, gather_tiles<Half>, packing, down, across);
    case Element::kBfloat16:
      return launch(context, shape, gather_tiles<Bfloat>, packing, down, across);
  }
}

}  // namespace reapx
