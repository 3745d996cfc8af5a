// The two steps of gram_accumulate on the device: packing rows of numbers, and multiplying them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gram/gram.h"
#include "runtime/cuda/context_cuda.h"
#include "runtime/cuda/work_items.h"

namespace reapx {

// Packed rows are read four floats at a time.
inline constexpr int64_t kAlign = 4;
inline int64_t align_width(int64_t columns) { return divide_up(columns, kAlign) * kAlign; }

// Rows of a matrix, to be written for each of `groups` groups. Row s is what a window reads of the
// images at output position s (or positions[s]); its column c*taps + t is what tap t reads of channel c
// of the group.
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

// The order of the terms of a product: `terms` in each row, `rows` in each image. An Operand says how
// many packed rows lie between the end of a row or an image and the beginning of the next one.
struct Walk {
  int64_t terms, rows, images;
  int64_t count() const { return terms * rows * images; }
};
struct Operand {
  const float* data;  // the packed row of the first term, aligned to kAlign floats
  int64_t width;      // floats of a packed row, a multiple of kAlign
  int64_t columns;
  int64_t row_gap, image_gap;  // packed rows that are left out after each row, and each image
};

// result += A^T B, row-major, with a column for each of B's. Of the first `square` rows only the upper
// triangle is wanted; the rows from there on are added to `below`. The sums of A's columns are added to
// total and, from `square` on, to below_total; those of their squares, from `square` on, to
// below_square. What is null is not wanted. No two products that run together have a result in common.
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
