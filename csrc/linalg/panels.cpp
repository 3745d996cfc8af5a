#include "linalg/panels.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace reapx {

namespace {

constexpr int64_t kChunk = 256;  // rows of B that stay in L1 while a block uses them
constexpr int64_t kOuter = 256;  // rows whose A operand, kChunk x kOuter, stays in L2 for all panels
constexpr int64_t kBlock = 64;   // rows of one elimination step within those

// Factors the leading size x size triangle of t (row stride kTileRows) in place. Returns -1 or the
// pivot that failed. The test is written so that a NaN fails.
int64_t factor_small(double* t, int64_t size, double least) {
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t k = 0; k < i; ++k)
      for (int64_t j = i; j < size; ++j)
        t[i * kTileRows + j] -= t[k * kTileRows + i] * t[k * kTileRows + j];
    if (!(t[i * kTileRows + i] > least) || !std::isfinite(t[i * kTileRows + i])) return i;
    const double root = std::sqrt(t[i * kTileRows + i]);
    for (int64_t j = i; j < size; ++j) t[i * kTileRows + j] /= root;
  }
  return -1;
}

// Finishes rows begin .. begin+size-1 of one panel once the rows before `begin` are eliminated.
void solve_within(const Tile& tile, PanelView r, double* x, int64_t begin, int64_t size) {
  for (int64_t s = 0; s < size; s += kTileRows) {
    const int64_t row = begin + s, rows = std::min(kTileRows, size - s);
    subtract_block(tile, r, row, rows, x, begin, row, x + row * kDoubleWidth);
    tile.solve_rows(rows, r.at(row, row), kDoubleWidth, 1, x + row * kDoubleWidth, kDoubleWidth);
  }
}

void solve_within_backward(const Tile& tile, PanelView lower, double* x, int64_t begin, int64_t size) {
  for (int64_t s = (size - 1) / kTileRows * kTileRows; s >= 0; s -= kTileRows) {
    const int64_t row = begin + s, rows = std::min(kTileRows, size - s), end = row + rows - 1;
    subtract_block(tile, lower, row, rows, x, row + rows, begin + size, x + row * kDoubleWidth);
    tile.solve_rows(rows, lower.at(end, end), -kDoubleWidth, -1, x + end * kDoubleWidth, -kDoubleWidth);
  }
}

// Eliminates rows top .. begin-1 from the rows begin .. end-1 of each strip and solves for those.
void solve_block(const Tile& tile, Team& team, PanelView r, int64_t top, int64_t begin, int64_t end,
                 const std::vector<Strip>& strips) {
  team.run(static_cast<int64_t>(strips.size()), [&](int64_t i) {
    const Strip& s = strips[static_cast<size_t>(i)];
    const int64_t row = std::max(begin, s.first), rows = end - row;
    if (rows <= 0) return;
    subtract_block(tile, r, row, rows, s.c, std::max(top, s.first), begin, s.c + row * kDoubleWidth);
    solve_within(tile, r, s.c, row, rows);
  });
}

// The panels of the upper triangle of `a`, each down to its diagonal, from the panel `begin` on.
std::vector<Strip> strips_of(Panels& a, int64_t begin) {
  std::vector<Strip> strips;
  for (int64_t p = begin; p < a.count(); ++p)
    strips.push_back({a.panel(p), a.panel(p), 0, std::min((p + 1) * kDoubleWidth, a.columns())});
  return strips;
}

int64_t factor_diagonal(const Tile& tile, Panels& a, int64_t begin, int64_t size, double least) {
  const int64_t last_panel = (begin + size + kDoubleWidth - 1) / kDoubleWidth;
  for (int64_t s = 0; s < size; s += kTileRows) {
    const int64_t row = begin + s, rows = std::min(kTileRows, size - s);
    for (int64_t p = row / kDoubleWidth; p < last_panel; ++p)
      subtract_block(tile, a, row, rows, a.panel(p), begin, row, a.panel(p) + row * kDoubleWidth);
    double small[kTileRows * kTileRows] = {};
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = i; j < rows; ++j) small[i * kTileRows + j] = *a.at(row + i, row + j);
    const int64_t failed = factor_small(small, rows, least);
    if (failed >= 0) return row + failed;
    for (int64_t p = row / kDoubleWidth; p < last_panel; ++p)
      tile.solve_rows(rows, small, kTileRows, 1, a.panel(p) + row * kDoubleWidth, kDoubleWidth);
    // The panel with the triangle was solved as a whole, so the triangle itself is put back.
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < rows; ++j) *a.at(row + i, row + j) = small[i * kTileRows + j];
  }
  return -1;
}

}  // namespace

std::vector<Strip> whole_strips(Panels& x) {
  std::vector<Strip> strips;
  for (int64_t p = 0; p < x.count(); ++p) strips.push_back({x.panel(p), x.panel(p), 0, x.rows()});
  return strips;
}

void subtract_block(const Tile& tile, PanelView a, int64_t from, int64_t columns, const double* b,
                    int64_t first, int64_t last, double* c) {
  for (int64_t t = first; t < last; t += kChunk) {
    const int64_t terms = std::min(kChunk, last - t);
    for (int64_t s = 0; s < columns; s += kTileRows)
      tile.subtract_products(std::min(kTileRows, columns - s), terms, a.at(t, from + s), kDoubleWidth,
                             b + t * kDoubleWidth, c + s * kDoubleWidth);
  }
}

void subtract_strips(const Tile& tile, Team& team, PanelView a, int64_t from, int64_t columns,
                     const std::vector<Strip>& strips, int64_t first, int64_t last) {
  for (int64_t t = first; t < last; t += kChunk)
    team.run(static_cast<int64_t>(strips.size()), [&](int64_t i) {
      const Strip& s = strips[static_cast<size_t>(i)];
      subtract_block(tile, a, from, std::min(columns, s.last - from), s.b, std::max(t, s.first),
                     std::min(t + kChunk, last), s.c + from * kDoubleWidth);
    });
}

int64_t cholesky_factor(const Tile& tile, Team& team, Panels& a, double least,
                        const std::vector<Strip>& strips) {
  const int64_t n = a.columns();
  for (int64_t top = 0; top < n; top += kOuter) {
    const int64_t bottom = std::min(top + kOuter, n);
    std::vector<Strip> left = strips_of(a, top / kDoubleWidth);
    left.insert(left.end(), strips.begin(), strips.end());
    subtract_strips(tile, team, a, top, bottom - top, left, 0, top);
    for (int64_t begin = top; begin < bottom; begin += kBlock) {
      const int64_t size = std::min(kBlock, bottom - begin);
      const int64_t own = (size + kDoubleWidth - 1) / kDoubleWidth;
      team.run(own, [&](int64_t i) {
        const Strip& s = left[static_cast<size_t>(i)];
        subtract_block(tile, a, begin, std::min(size, s.last - begin), s.b, top, begin,
                       s.c + begin * kDoubleWidth);
      });
      const int64_t failed = factor_diagonal(tile, a, begin, size, least);
      if (failed >= 0) return failed;
      left.erase(left.begin(), left.begin() + own);
      solve_block(tile, team, a, top, begin, begin + size, left);
    }
  }
  return -1;
}

void solve_forward(const Tile& tile, Team& team, PanelView r, int64_t n,
                   const std::vector<Strip>& strips) {
  for (int64_t top = 0; top < n; top += kOuter) {
    const int64_t bottom = std::min(top + kOuter, n);
    subtract_strips(tile, team, r, top, bottom - top, strips, 0, top);
    for (int64_t begin = top; begin < bottom; begin += kBlock)
      solve_block(tile, team, r, top, begin, std::min(begin + kBlock, bottom), strips);
  }
}

void solve_backward(const Tile& tile, Team& team, PanelView lower, int64_t n,
                    const std::vector<Strip>& strips) {
  for (int64_t top = (n - 1) / kOuter * kOuter; top >= 0 && n > 0; top -= kOuter) {
    const int64_t bottom = std::min(top + kOuter, n);
    subtract_strips(tile, team, lower, top, bottom - top, strips, bottom, n);
    team.run(static_cast<int64_t>(strips.size()), [&](int64_t i) {
      double* x = strips[static_cast<size_t>(i)].c;
      for (int64_t begin = top + (bottom - top - 1) / kBlock * kBlock; begin >= top; begin -= kBlock) {
        const int64_t size = std::min(kBlock, bottom - begin);
        subtract_block(tile, lower, begin, size, x, begin + size, bottom, x + begin * kDoubleWidth);
        solve_within_backward(tile, lower, x, begin, size);
      }
    });
  }
}

double pivot_floor(const Panels& a) {
  double largest = 0.0;
  for (int64_t i = 0; i < a.columns(); ++i) largest = std::max(largest, *a.at(i, i));
  return static_cast<double>(a.columns()) * std::numeric_limits<double>::epsilon() * largest;
}

}  // namespace reapx
