// The steps of gram_accumulate on the device: what packs rows of numbers, and what multiplies them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gram/gram.h"
#include "runtime/cuda/context_cuda.h"
#include "runtime/cuda/pieces.h"

namespace reapx {

// Floats of packed rows held at a time. Form "shift": 32 MB, which stay in the L2 cache of a large GPU
// while product after product reads them all. Form "rows": 256 MB; its tiles read the same rows at
// about the same time, so that the cache holds what they need anyway, and each chunk has parts to add
// up. Estimates, not measured. The emulator's tests want several chunks of what they can afford.
#if defined(REAPX_GRAM_CHUNK)
inline constexpr int64_t kShiftChunk = REAPX_GRAM_CHUNK, kRowsChunk = REAPX_GRAM_CHUNK;
#else
inline constexpr int64_t kShiftChunk = int64_t{1} << 23, kRowsChunk = int64_t{1} << 26;
#endif

// Packed rows are read four floats at a time.
inline constexpr int64_t kAlign = 4;
inline int64_t align_width(int64_t columns) { return divide_up(columns, kAlign) * kAlign; }

// Rows of a matrix, to be written for each of `groups` groups: row s is what a window sees of the
// images at output position s (or positions[s]), column c*taps + t its tap t of channel c of the group.
struct Packing {
  Images images;
  Axis rows, columns;
  int64_t groups;
  const int64_t* positions;  // as in GramTask
  int64_t per_image;         // rows of an image
  int64_t first, count;      // the rows wanted

  // Row s of group g goes to to + (g*group_rows + s - first)*width: `columns_of` columns, then zeros up
  // to `filled`.
  float* to;
  int64_t group_rows, width, filled;

  int64_t taps() const { return rows.kernel * columns.kernel; }
  int64_t columns_of() const { return images.channels / groups * taps(); }
};

void pack_rows(const Packing& packing, const Context& context);

// Where the terms of a product are: `images` times `rows` times `terms` of them; row and image begin
// that many packed rows further than the one before ended.
struct Walk {
  int64_t terms, rows, images;
  int64_t count() const { return terms * rows * images; }
};
struct Operand {
  const float* data;  // packed row of the first term
  int64_t width;  // of packed rows: a multiple of kAlign, as is the distance of `data` from alignment
  int64_t columns;
  int64_t row_gap, image_gap;  // packed rows left out after each row and each image
};

// result += A^T B, row by row of B's columns; rows `square` and up go to `below`, and above them only
// the upper triangle is wanted. The sums of A's columns go to total and, for rows `square` and up, to
// below_total, and those of their squares to below_square. Nothing goes to null. No two products that
// run together have a result in common.
struct Product {
  Operand a, b;
  Walk walk;
  int64_t square;
  double *result, *below;
  double *total, *below_total, *below_square;
};

void multiply(const std::vector<Product>& products, const Context& context);

// Estimated work of A^T B, in multiply-adds.
double product_cost(int64_t rows, int64_t columns, int64_t square, int64_t terms);

// The task in form "shift", where that can be done and is wanted; otherwise nothing is done.
bool accumulate_shift(const GramTask& task, const std::string& form, const Context& context);

}  // namespace reapx
