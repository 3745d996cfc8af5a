// Dense float64 linear algebra on panel matrices (tile.h), in units of the tile core.
//
// A panel matrix of `columns` columns and room for `rows` rows is
// [ceil(columns / kDoubleWidth)][rows][kDoubleWidth], zero beyond its last column. Everything here is
// the one product C -= A^T B on rows that lie next to each other. Sums over rows run in ascending
// (backward substitution: descending) order of fixed blocks, whatever the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "runtime/cpu/buffer.h"
#include "runtime/cpu/parallel.h"
#include "tile/tile.h"

namespace reapx {

// The panels of a matrix that is only read. `data` may begin some rows into them.
struct PanelView {
  const double* data;
  int64_t rows;  // that a panel has room for

  const double* at(int64_t row, int64_t column) const {
    return data + (column / kDoubleWidth * rows + row) * kDoubleWidth + column % kDoubleWidth;
  }
};

class Panels {
 public:
  struct Raw {};  // for elements without an initial value

  Panels(int64_t rows, int64_t columns, Raw)
      : rows_(rows),
        columns_(columns),
        data_(static_cast<size_t>((columns + kDoubleWidth - 1) / kDoubleWidth * rows * kDoubleWidth)) {}
  Panels(int64_t rows, int64_t columns) : Panels(rows, columns, Raw()) {
    std::fill(data_.begin(), data_.end(), 0.0);
  }

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
  operator PanelView() const { return {data_.data(), rows_}; }
  // Narrows the matrix. The element addresses change: the caller moves the elements.
  void reshape(int64_t rows, int64_t columns) {
    rows_ = rows;
    columns_ = columns;
  }

 private:
  int64_t rows_, columns_;
  RawBuffer<double> data_;
};

// An upper and a lower triangular matrix (n, n) in the memory of one: the panel of columns p holds the
// rows of the upper one down to its diagonal block, then those of the lower one from the diagonal
// block on, kDoubleWidth rows further down. Elements have no initial value.
class PanelPair {
 public:
  explicit PanelPair(int64_t n) : upper_(n + kDoubleWidth, n, Panels::Raw()) {}

  int64_t size() const { return upper_.columns(); }
  int64_t count() const { return upper_.count(); }
  Panels& upper() { return upper_; }
  const Panels& upper() const { return upper_; }
  double* lower(int64_t p) { return upper_.panel(p) + kDoubleWidth * kDoubleWidth; }
  PanelView lower() const { return {upper_.panel(0) + kDoubleWidth * kDoubleWidth, upper_.rows()}; }

 private:
  Panels upper_;
};

// Copies up to kDoubleWidth elements; that many go through vector registers.
inline void copy_row(const double* from, int64_t width, double* to) {
  if (width == kDoubleWidth) {
    std::memcpy(to, from, kDoubleWidth * sizeof(double));
  } else {
    std::copy(from, from + width, to);
  }
}

// One panel among several that a step works on with the same A.
struct Strip {
  const double* b;  // the panel that is read; rows before `first` (a multiple of kDoubleWidth) count
                    // as zero, whatever the memory holds
  double* c;        // the panel that is written, often b itself
  int64_t first;
  int64_t last;  // rows of c from here on are not computed
};

// The panels of a matrix as strips that are read and written over their whole length.
std::vector<Strip> whole_strips(Panels& x);

// c (columns x kDoubleWidth, rows next to each other) -= A^T B, where A is the rows first .. last-1
// and the columns from .. from+columns-1 of `a`, and B the same rows of one panel `b`. Empty sizes
// are fine. c may lie in b, outside the rows that are read. `from` must be a multiple of kTileRows.
void subtract_block(const Tile& tile, PanelView a, int64_t from, int64_t columns, const double* b,
                    int64_t first, int64_t last, double* c);

// The same for many panels: for each strip, rows from .. from+columns-1 of c -= A^T B, the sum being
// over the rows first .. last-1.
void subtract_strips(const Tile& tile, Team& team, PanelView a, int64_t from, int64_t columns,
                     const std::vector<Strip>& strips, int64_t first, int64_t last);

// Factors a symmetric positive definite matrix (n, n), given by its upper triangle, in place:
// A = R^T R, R upper triangular; rows below a panel's diagonal block are left alone, and what is below
// the diagonal within that has no meaning. At the same time solves R^T Y = X for each strip, in place.
// Returns -1, or the index of the first pivot that is not above `least` (then R is incomplete).
int64_t cholesky_factor(const Tile& tile, Team& team, Panels& a, double least,
                        const std::vector<Strip>& strips);

// Solves R^T Y = X for each strip of n rows, in place.
void solve_forward(const Tile& tile, Team& team, PanelView r, int64_t n,
                   const std::vector<Strip>& strips);

// Solves R Y = X for each strip of n rows, in place; `first` must be 0. `lower` is R^T.
void solve_backward(const Tile& tile, Team& team, PanelView lower, int64_t n,
                    const std::vector<Strip>& strips);

// The rounding floor of a pivot: n * eps * max diagonal.
double pivot_floor(const Panels& a);

}  // namespace reapx
