#include "gram.h"
#include "launch.h"

namespace reapx {

namespace {

constexpr int kSide = 32;  // a tile's: a warp reads and writes whole rows of it
constexpr int kRows = 8;   // of a tile that a block handles at once

// One tile of the lower triangle of one matrix, from its mirror image in the upper one.
__global__ void mirror_tiles(double* gram, int64_t size, int64_t sides) {
  __shared__ double tile[kSide][kSide + 1];  // one more: columns then lie in different banks
  const int64_t pair = blockIdx.x % (sides * sides);
  const int64_t top = pair / sides * kSide, left = pair % sides * kSide;
  if (top > left) return;
  double* matrix = gram + blockIdx.x / (sides * sides) * size * size;
  const int64_t x = threadIdx.x;
  for (int64_t y = threadIdx.y; y < kSide; y += kRows)
    if (top + y < size && left + x < size) tile[y][x] = matrix[(top + y) * size + left + x];
  __syncthreads();
  for (int64_t y = threadIdx.y; y < kSide; y += kRows)
    if (left + y < size && top + x < size && left + y > top + x)
      matrix[(left + y) * size + top + x] = tile[x][y];
}

}  // namespace

void gram_mirror(double* gram, int64_t count, int64_t size, const Context& context) {
  const int64_t sides = (size + kSide - 1) / kSide;
  const Shape shape{"gram_mirror", blocks_of(count * sides * sides), dim3(kSide, kRows)};
  launch(context, shape, mirror_tiles, gram, size, sides);
}

}  // namespace reapx
