#include "basis.h"

#include <algorithm>

#include "panels.h"

namespace reapx {

namespace {

constexpr int64_t kLarge = 384;  // from here on a matrix is worth all threads
constexpr int64_t kBlock = 64;   // rows of P that one item computes at a time

Panels load_upper(Team& team, const BasisTask& task) {
  Panels a(task.size, task.size);
  team.run(a.count(), [&](int64_t p) {
    const int64_t begin = p * kDoubleWidth, end = std::min(begin + kDoubleWidth, task.size);
    double* to = a.panel(p);
    for (int64_t i = 0; i < end; ++i)
      std::copy(task.gram + i * task.size + begin, task.gram + i * task.size + end,
                to + i * kDoubleWidth);
    for (int64_t i = begin; i < end; ++i) *a.at(i, i) += task.ridge;
  });
  return a;
}

// Y = R^-T, lower triangular: each panel of columns is a forward substitution of its own.
Panels invert(const Tile& tile, Team& team, const Panels& r) {
  const int64_t n = r.columns();
  Panels y(n, n);
  team.run(y.count(), [&](int64_t p) {
    const int64_t begin = p * kDoubleWidth, end = std::min(begin + kDoubleWidth, n);
    for (int64_t i = begin; i < end; ++i) *y.at(i, i) = 1.0;
    solve_forward(tile, r, y.panel(p), begin);
  });
  return y;
}

// One panel of columns of P = Y^T Y, from the diagonal up, written to both triangles.
void write_panel(const Tile& tile, const Panels& y, int64_t p, double* basis) {
  const int64_t n = y.columns();
  const int64_t begin = p * kDoubleWidth, width = std::min(kDoubleWidth, n - begin);
  for (int64_t top = 0; top < begin + width; top += kBlock) {
    const int64_t rows = std::min(kBlock, begin + width - top);
    double c[kBlock * kDoubleWidth] = {};
    subtract_block(tile, y, top, rows, y.panel(p), begin, n, c);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = std::max<int64_t>(0, top + i - begin); j < width; ++j) {
        const double value = -c[i * kDoubleWidth + j];
        basis[(top + i) * n + begin + j] = value;
        basis[(begin + j) * n + top + i] = value;
      }
  }
}

}  // namespace

void basis_compute(std::vector<BasisTask>& tasks, int64_t threads, const Tile& tile) {
  const auto at = [&](int64_t i) -> BasisTask& { return tasks[static_cast<size_t>(i)]; };
  run_tasks(
      threads, static_cast<int64_t>(tasks.size()), [&](int64_t i) { return at(i).size >= kLarge; },
      [&](int64_t i, Team& team) {
        BasisTask& task = at(i);
        Panels r = load_upper(team, task);
        task.failed = cholesky_factor(tile, team, r, pivot_floor(r));
        if (task.failed >= 0) return;
        const Panels y = invert(tile, team, r);
        // The last panels have the fewest terms but the most rows; begin with them.
        team.run(y.count(), [&](int64_t p) { write_panel(tile, y, y.count() - 1 - p, task.basis); });
      });
}

}  // namespace reapx
