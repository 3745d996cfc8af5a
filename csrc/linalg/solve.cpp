#include "linalg/solve.h"

#include <algorithm>

#include "linalg/panels.h"
#include "runtime/cpu/context_cpu.h"

namespace reapx {

namespace {

constexpr int64_t kLarge = 384;  // kept inputs from which on a task uses all threads

// Gathers the upper triangle. Below it the panels have no value, except for zeros in the diagonal
// blocks.
void gather_gram(const SolveTask& task, int64_t block, Panels& a) {
  const int64_t n = task.kept_count, begin = block * kDoubleWidth;
  for (int64_t i = begin; i < std::min(begin + kDoubleWidth, n); ++i) {
    const double* row = task.gram + task.kept[i] * task.features;
    for (int64_t p = block; p < a.count(); ++p) {
      const int64_t first = p * kDoubleWidth, width = std::min(kDoubleWidth, n - first);
      double* to = a.panel(p) + i * kDoubleWidth;
      for (int64_t j = 0; j < width; ++j) to[j] = row[task.kept[first + j]];
      std::fill(to + width, to + kDoubleWidth, 0.0);
    }
    std::fill(a.at(i, begin), a.at(i, i), 0.0);
    *a.at(i, i) += task.ridge;
  }
}

// Copies the rows of one block of R to a panel of R^T.
void transpose_block(int64_t p, PanelPair& x) {
  const int64_t n = x.size(), begin = p * kDoubleWidth;
  double* to = x.lower(p);
  for (int64_t from = p; from < x.count(); ++from) {
    const double* block = x.upper().panel(from) + begin * kDoubleWidth;
    for (int64_t i = from * kDoubleWidth; i < std::min((from + 1) * kDoubleWidth, n); ++i)
      for (int64_t j = 0; j < std::min(kDoubleWidth, n - begin); ++j)
        to[i * kDoubleWidth + j] = block[j * kDoubleWidth + i % kDoubleWidth];
  }
}

// Gathers cross_R + ridge * reference_R for kDoubleWidth outputs, whose rows become columns of the
// panels.
void gather_cross(const SolveTask& task, int64_t p, Panels& x) {
  const int64_t n = task.kept_count, begin = p * kDoubleWidth;
  const int64_t count = std::min(kDoubleWidth, task.outputs - begin);
  for (int64_t top = 0; top < n; top += kDoubleWidth)
    for (int64_t m = 0; m < kDoubleWidth; ++m) {
      const int64_t row = (begin + m) * task.features;
      for (int64_t i = top; i < std::min(top + kDoubleWidth, n); ++i) {
        double value = m < count ? task.cross[row + task.kept[i]] : 0.0;
        if (m < count && task.reference) value += task.ridge * task.reference[row + task.kept[i]];
        *x.at(i, begin + m) = value;
      }
    }
}

void write_weight(const SolveTask& task, int64_t p, const Panels& x) {
  const int64_t n = task.kept_count, begin = p * kDoubleWidth;
  for (int64_t top = 0; top < n; top += kDoubleWidth)
    for (int64_t m = begin; m < std::min(begin + kDoubleWidth, task.outputs); ++m)
      for (int64_t i = top; i < std::min(top + kDoubleWidth, n); ++i)
        task.weight[m * n + i] = *x.at(i, m);
}

void solve(const Tile& tile, Team& team, const SolveTask& task) {
  const int64_t n = task.kept_count;
  PanelPair r(n);
  Panels x(n, task.outputs, Panels::Raw());
  team.run(r.count(), [&](int64_t p) { gather_gram(task, p, r.upper()); });
  team.run(x.count(), [&](int64_t p) { gather_cross(task, p, x); });
  const std::vector<Strip> strips = whole_strips(x);
  *task.failed = cholesky_factor(tile, team, r.upper(), pivot_floor(r.upper()), strips);
  if (*task.failed >= 0) return;
  team.run(r.count(), [&](int64_t p) { transpose_block(p, r); });
  solve_backward(tile, team, r.lower(), n, strips);
  team.run(x.count(), [&](int64_t p) { write_weight(task, p, x); });
}

}  // namespace

void batch_solve(const std::vector<SolveTask>& tasks, const Context& context) {
  const auto at = [&](int64_t i) -> const SolveTask& { return tasks[static_cast<size_t>(i)]; };
  run_tasks(
      context.threads, static_cast<int64_t>(tasks.size()),
      [&](int64_t i) { return at(i).kept_count >= kLarge; },
      [&](int64_t i, Team& team) { solve(context.tile, team, at(i)); });
}

}  // namespace reapx
