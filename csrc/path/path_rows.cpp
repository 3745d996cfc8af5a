#include "path/path_rows.h"

namespace reapx {

namespace {

constexpr int64_t kBlock = 512;  // columns of A that stay in L2 while all panels pass

}  // namespace

void subtract_all(const Tile& tile, Team& team, PanelView a, int64_t columns,
                  const std::vector<Strip>& strips, int64_t terms) {
  for (int64_t from = 0; from < columns; from += kBlock)
    subtract_strips(tile, team, a, from, std::min(kBlock, columns - from), strips, 0, terms);
}

void subtract_upper(const Tile& tile, Team& team, PanelView a, PanelView b, int64_t terms, Panels& c) {
  std::vector<Strip> strips;
  for (int64_t p = c.count() - 1; p >= 0; --p)  // the longest first
    strips.push_back(
        {b.at(0, p * kDoubleWidth), c.panel(p), 0, std::min((p + 1) * kDoubleWidth, c.columns())});
  subtract_all(tile, team, a, c.columns(), strips, terms);
}

// Every element moves to the same or a lower address, and elements are taken in ascending order of
// their new address: nothing is overwritten before it is read.
void compact_panels(Panels& x, const std::vector<int64_t>& from, bool square) {
  const int64_t n = static_cast<int64_t>(from.size()), rows = square ? n : x.rows();
  std::vector<int64_t> offset;
  for (int64_t column : from) offset.push_back(column < 0 ? -1 : x.at(0, column) - x.panel(0));
  const std::vector<Pick> picks = picks_of(offset);
  const double* source = x.panel(0);
  double* to = x.panel(0);
  for (size_t p = 0; p < picks.size(); ++p) {
    const int64_t used = square ? std::min(n, (static_cast<int64_t>(p) + 1) * kDoubleWidth) : rows;
    double* row = to + static_cast<int64_t>(p) * rows * kDoubleWidth;
    for (int64_t i = 0; i < used; ++i, row += kDoubleWidth) {
      const int64_t old = square ? from[static_cast<size_t>(i)] : i;
      if (old >= 0) {
        picks[p].row(source + old * kDoubleWidth, row);
      } else {
        std::fill(row, row + kDoubleWidth, 0.0);
      }
    }
  }
  x.reshape(rows, n);
}

}  // namespace reapx
