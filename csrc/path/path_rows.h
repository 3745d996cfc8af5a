// Rows of panel matrices, as path_eliminate picks, gathers and updates them. Not part of its contract.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "linalg/panels.h"

namespace reapx {

inline constexpr int64_t kWorthTeam = 1 << 19;  // multiply-adds from which threads help

// Runs the items on the team, or on this thread alone where the work does not pay for waking it.
template <class Work>
void run_if(bool worth, Team& team, int64_t items, Work work) {
  if (worth) {
    team.run(items, work);
  } else {
    for (int64_t i = 0; i < items; ++i) work(i);
  }
}

// c (rows, kDoubleWidth) -= A^T B for any number of rows; a (terms, rows) next to each other.
inline void subtract_rows(const Tile& tile, int64_t rows, int64_t terms, const double* a,
                          const double* b, double* c) {
  // In parts of about equal size, since a single row that is left over would cost half as much as
  // eight.
  for (int64_t i = 0, parts = (rows + kTileRows - 1) / kTileRows; parts > 0; --parts) {
    const int64_t count = (rows - i + parts - 1) / parts;
    tile.subtract_products(count, terms, a + i, rows, b, c + i * kDoubleWidth);
    i += count;
  }
}

// Picks the columns of a panel from a row: to[j] = from[index[j]], or zero where index[j] is -1.
class Pick {
 public:
  Pick(const int64_t* index, int64_t count) {
    std::fill(std::copy(index, index + count, index_), index_ + kDoubleWidth, -1);
    full_ = std::find(index_, index_ + kDoubleWidth, -1) == index_ + kDoubleWidth;
  }
  void row(const double* from, double* to) const {
    if (full_) {
      for (int64_t j = 0; j < kDoubleWidth; ++j) to[j] = from[index_[j]];
    } else {
      for (int64_t j = 0; j < kDoubleWidth; ++j) to[j] = index_[j] < 0 ? 0.0 : from[index_[j]];
    }
  }

 private:
  int64_t index_[kDoubleWidth];
  bool full_;
};

// One for each panel of a matrix with those columns.
inline std::vector<Pick> picks_of(const std::vector<int64_t>& index) {
  std::vector<Pick> picks;
  const int64_t n = static_cast<int64_t>(index.size());
  for (int64_t j = 0; j < n; j += kDoubleWidth)
    picks.emplace_back(index.data() + j, std::min(kDoubleWidth, n - j));
  return picks;
}

// One row of a symmetric matrix, read from its upper triangle, at the columns of one panel.
inline void gather_row(const Panels& x, int64_t row, int64_t panel, double* to) {
  const int64_t begin = panel * kDoubleWidth, end = std::min(begin + kDoubleWidth, x.columns());
  if (row <= begin) {
    const double* from = x.at(row, begin);  // zero beyond the last column
    for (int64_t j = 0; j < kDoubleWidth; ++j) to[j] = from[j];
    return;
  }
  const int64_t middle = std::min(end, row);
  const double* from = x.at(begin, row);
  for (int64_t j = 0; j < middle - begin; ++j) to[j] = from[j * kDoubleWidth];
  for (int64_t j = middle; j < end; ++j) to[j - begin] = *x.at(row, j);
  std::fill(to + (end - begin), to + kDoubleWidth, 0.0);
}

// subtract_strips over `terms` rows for any number of columns of A.
void subtract_all(const Tile& tile, Team& team, PanelView a, int64_t columns,
                  const std::vector<Strip>& strips, int64_t terms);

// c -= A^T B in the upper triangle of c, over `terms` rows.
void subtract_upper(const Tile& tile, Team& team, PanelView a, PanelView b, int64_t terms, Panels& c);

// Narrows x to the columns that `from` lists, -1 for zero; of a square matrix, of which the upper
// triangle counts, to those rows as well.
void compact_panels(Panels& x, const std::vector<int64_t>& from, bool square);

}  // namespace reapx
