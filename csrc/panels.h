// Dense float64 linear algebra on panel matrices (tile.h), in units of the tile core.
//
// A panel matrix of `columns` columns and room for `rows` rows is
// [ceil(columns / kDoubleWidth)][rows][kDoubleWidth], zero beyond its last column. Everything here is
// the one product C -= A^T B on rows that lie next to each other. Sums over rows run in ascending
// (backward substitution: descending) order of fixed blocks, whatever the number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.h"
#include "parallel.h"
#include "tile.h"

namespace reapx {

class Panels {
 public:
  Panels(int64_t rows, int64_t columns)
      : rows_(rows),
        columns_(columns),
        data_(static_cast<size_t>((columns + kDoubleWidth - 1) / kDoubleWidth * rows * kDoubleWidth)) {}

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  int64_t count() const { return (columns_ + kDoubleWidth - 1) / kDoubleWidth; }
  double* panel(int64_t index) { return data_.data() + index * rows_ * kDoubleWidth; }
  const double* panel(int64_t index) const { return data_.data() + index * rows_ * kDoubleWidth; }
  // Address of one element; the rest of its row within the panel follows.
  double* at(int64_t row, int64_t column) {
    return panel(column / kDoubleWidth) + row * kDoubleWidth + column % kDoubleWidth;
  }
  const double* at(int64_t row, int64_t column) const {
    return panel(column / kDoubleWidth) + row * kDoubleWidth + column % kDoubleWidth;
  }
  // Narrows the matrix. The element addresses change: the caller moves the elements.
  void reshape(int64_t rows, int64_t columns) {
    rows_ = rows;
    columns_ = columns;
  }

 private:
  int64_t rows_, columns_;
  Buffer<double> data_;
};

// c (columns x kDoubleWidth, rows next to each other) -= A^T B, where A is the rows first .. last-1
// and the columns from .. from+columns-1 of `a`, and B the same rows of one panel `b`. Empty sizes
// are fine. c may lie in b, outside the rows that are read. `from` must be a multiple of kTileRows.
void subtract_block(const Tile& tile, const Panels& a, int64_t from, int64_t columns, const double* b,
                    int64_t first, int64_t last, double* c);

// Factors a symmetric positive definite matrix (n, n), given by its upper triangle, in place:
// A = R^T R, R upper triangular. What is left below the diagonal has no meaning.
// Returns -1, or the index of the first pivot that is not above `least` (then R is incomplete).
int64_t cholesky_factor(const Tile& tile, Team& team, Panels& a, double least);

// Solves R^T Y = X for one panel x of n rows, in place. Rows before `first` (a multiple of
// kDoubleWidth) must be zero and stay so.
void solve_forward(const Tile& tile, const Panels& r, double* x, int64_t first);

// Solves R Y = X for one panel x of n rows, in place. `lower` is R^T.
void solve_backward(const Tile& tile, const Panels& lower, double* x);

// The rounding floor of a pivot: n * eps * max diagonal.
double pivot_floor(const Panels& a);

}  // namespace reapx
