#include "gram/cuda/gram_device.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/pieces.h"

namespace reapx {

namespace {

constexpr int kRows = 32, kColumns = 64, kThreads = 256;  // of a tile; of a block

// What a packed row, and what a packed column adds to where a value lies, and to its row and column in
// the image, of which those outside are zero. A column of zeros is far outside.
struct Place {
  int64_t offset;
  int row, column;
};
constexpr int kFar = 1 << 29;

__device__ Place place_row(const Packing& p, int64_t s) {
  const int64_t image = s / p.per_image;
  const int64_t position = p.positions ? p.positions[s] : s % p.per_image;
  const int64_t row = position / p.columns.output * p.rows.stride - p.rows.padding;
  const int64_t column = position % p.columns.output * p.columns.stride - p.columns.padding;
  return {image * p.images.image_step + row * p.images.row_step + column * p.images.column_step,
          static_cast<int>(row), static_cast<int>(column)};
}

__device__ Place place_column(const Packing& p, int64_t group, int64_t column) {
  const int64_t taps = p.rows.kernel * p.columns.kernel, channels = p.images.channels / p.groups;
  if (column >= channels * taps) return {0, kFar, kFar};
  const int64_t channel = group * channels + column / taps, tap = column % taps;
  const int64_t down = tap / p.columns.kernel * p.rows.dilation;
  const int64_t right = tap % p.columns.kernel * p.columns.dilation;
  return {channel * p.images.channel_step + down * p.images.row_step + right * p.images.column_step,
          static_cast<int>(down), static_cast<int>(right)};
}

// Bits of half precision, by what they mean.
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

// By hand, so that the emulator tests what the device runs. Exponent and fraction moved to where
// float32 has them mean 2^112 times less, of subnormals too, and the product is exact; but the largest
// exponent, that of Inf and NaN, is to stay the largest.
__device__ float read_value(const Half* at) {
  const unsigned bits = __ldg(&at->bits), moved = (bits & 0x7fff) << 13;
  const bool finite = moved < (0x1fu << 23);
  const unsigned magnitude =
      finite ? __float_as_uint(__uint_as_float(moved) * 0x1p112f) : moved | (0xffu << 23);
  return __uint_as_float(magnitude | ((bits & 0x8000) << 16));
}

// A block writes one tile of the rows of one group: it finds out once where rows and columns lie, reads
// along whichever of them lies next to each other in the images, and writes along columns. In between
// the tile is in shared memory, one column wider, so that either order uses all banks.
template <class T>
__global__ void __launch_bounds__(kThreads) gather_tiles(Packing p, int64_t down, int64_t across) {
  __shared__ Place rows[kRows], columns[kColumns];
  __shared__ float tile[kRows][kColumns + 1];
  const int64_t group = blockIdx.x / (down * across), index = blockIdx.x % (down * across);
  const int64_t top = index / across * kRows, left = index % across * kColumns;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kRows) {
    if (top + thread < p.count) rows[thread] = place_row(p, p.first + top + thread);
  } else if (thread < kRows + kColumns) {
    columns[thread - kRows] = place_column(p, group, left + thread - kRows);
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
  const Shape shape{"gram_accumulate", blocks_of(packing.groups * down * across), dim3(kThreads)};
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
