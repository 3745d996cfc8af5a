#include "panels.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace reapx {

namespace {

constexpr int64_t kBlock = 64;   // rows of one elimination step: its A operand stays in L2
constexpr int64_t kChunk = 256;  // rows of B that stay in L1 while the block passes over them

// Factors the leading size x size triangle of t (row stride kTileRows) in place. Returns -1 or the
// pivot that failed. Written so that a NaN fails.
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
void solve_within(const Tile& tile, const Panels& r, double* x, int64_t begin, int64_t size) {
  for (int64_t s = 0; s < size; s += kTileRows) {
    const int64_t row = begin + s, rows = std::min(kTileRows, size - s);
    subtract_block(tile, r, row, rows, x, begin, row, x + row * kDoubleWidth);
    tile.solve_rows(rows, r.at(row, row), kDoubleWidth, 1, x + row * kDoubleWidth, kDoubleWidth);
  }
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
    // The panel that holds the triangle was solved as a whole: put the triangle itself back.
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < rows; ++j) *a.at(row + i, row + j) = small[i * kTileRows + j];
  }
  return -1;
}

}  // namespace

void subtract_block(const Tile& tile, const Panels& a, int64_t from, int64_t columns, const double* b,
                    int64_t first, int64_t last, double* c) {
  for (int64_t t = first; t < last; t += kChunk) {
    const int64_t terms = std::min(kChunk, last - t);
    for (int64_t s = 0; s < columns; s += kTileRows)
      tile.subtract_products(std::min(kTileRows, columns - s), terms, a.at(t, from + s), kDoubleWidth,
                             b + t * kDoubleWidth, c + s * kDoubleWidth);
  }
}

int64_t cholesky_factor(const Tile& tile, Team& team, Panels& a, double least) {
  const int64_t n = a.columns();
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t size = std::min(kBlock, n - begin);
    const int64_t own = begin / kDoubleWidth, next = (begin + size + kDoubleWidth - 1) / kDoubleWidth;
    team.run(next - own, [&](int64_t i) {
      double* x = a.panel(own + i);
      subtract_block(tile, a, begin, size, x, 0, begin, x + begin * kDoubleWidth);
    });
    const int64_t failed = factor_diagonal(tile, a, begin, size, least);
    if (failed >= 0) return failed;
    team.run(a.count() - next, [&](int64_t i) {
      double* x = a.panel(next + i);
      subtract_block(tile, a, begin, size, x, 0, begin, x + begin * kDoubleWidth);
      solve_within(tile, a, x, begin, size);
    });
  }
  return -1;
}

void solve_forward(const Tile& tile, const Panels& r, double* x, int64_t first) {
  const int64_t n = r.columns();
  for (int64_t begin = first; begin < n; begin += kBlock) {
    const int64_t size = std::min(kBlock, n - begin);
    subtract_block(tile, r, begin, size, x, first, begin, x + begin * kDoubleWidth);
    solve_within(tile, r, x, begin, size);
  }
}

void solve_backward(const Tile& tile, const Panels& lower, double* x) {
  const int64_t n = lower.columns();
  for (int64_t begin = (n - 1) / kBlock * kBlock; begin >= 0 && n > 0; begin -= kBlock) {
    const int64_t size = std::min(kBlock, n - begin);
    subtract_block(tile, lower, begin, size, x, begin + size, n, x + begin * kDoubleWidth);
    for (int64_t s = (size - 1) / kTileRows * kTileRows; s >= 0; s -= kTileRows) {
      const int64_t row = begin + s, rows = std::min(kTileRows, size - s), end = row + rows - 1;
      subtract_block(tile, lower, row, rows, x, row + rows, begin + size, x + row * kDoubleWidth);
      tile.solve_rows(rows, lower.at(end, end), -kDoubleWidth, -1, x + end * kDoubleWidth,
                      -kDoubleWidth);
    }
  }
}

double pivot_floor(const Panels& a) {
  double largest = 0.0;
  for (int64_t i = 0; i < a.columns(); ++i) largest = std::max(largest, *a.at(i, i));
  return static_cast<double>(a.columns()) * std::numeric_limits<double>::epsilon() * largest;
}

}  // namespace reapx
