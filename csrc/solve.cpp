#include "solve.h"

#include <algorithm>

#include "panels.h"

namespace reapx {

namespace {

constexpr int64_t kLarge = 384;  // kept inputs from which a task is worth all threads

Panels gather_gram(Team& team, const SolveTask& task) {
  const int64_t n = task.kept_count;
  Panels a(n, n);
  team.run(a.count(), [&](int64_t p) {
    const int64_t begin = p * kDoubleWidth, end = std::min(begin + kDoubleWidth, n);
    for (int64_t i = 0; i < end; ++i) {
      const double* from = task.gram + task.kept[i] * task.features;
      for (int64_t j = begin; j < end; ++j) *a.at(i, j) = from[task.kept[j]];
    }
    for (int64_t i = begin; i < end; ++i) *a.at(i, i) += task.ridge;
  });
  return a;
}

Panels transpose_upper(Team& team, const Panels& r) {
  const int64_t n = r.columns();
  Panels lower(n, n);
  team.run(lower.count(), [&](int64_t p) {
    const int64_t begin = p * kDoubleWidth, end = std::min(begin + kDoubleWidth, n);
    for (int64_t i = begin; i < n; ++i)
      for (int64_t j = begin; j < std::min(end, i + 1); ++j) *lower.at(i, j) = *r.at(j, i);
  });
  return lower;
}

// Rows of W are columns of the panel: kDoubleWidth outputs are solved for at a time.
void solve_outputs(const Tile& tile, const SolveTask& task, const Panels& r, const Panels& lower,
                   int64_t begin) {
  const int64_t n = task.kept_count, count = std::min(kDoubleWidth, task.outputs - begin);
  Panels x(n, kDoubleWidth);
  for (int64_t m = 0; m < count; ++m) {
    const int64_t row = (begin + m) * task.features;
    for (int64_t i = 0; i < n; ++i) *x.at(i, m) = task.cross[row + task.kept[i]];
    if (task.reference)
      for (int64_t i = 0; i < n; ++i) *x.at(i, m) += task.ridge * task.reference[row + task.kept[i]];
  }
  solve_forward(tile, r, x.panel(0), 0);
  solve_backward(tile, lower, x.panel(0));
  for (int64_t m = 0; m < count; ++m)
    for (int64_t i = 0; i < n; ++i) task.weight[(begin + m) * n + i] = *x.at(i, m);
}

}  // namespace

void batch_solve(std::vector<SolveTask>& tasks, int64_t threads, const Tile& tile) {
  const auto at = [&](int64_t i) -> SolveTask& { return tasks[static_cast<size_t>(i)]; };
  run_tasks(
      threads, static_cast<int64_t>(tasks.size()),
      [&](int64_t i) { return at(i).kept_count >= kLarge; },
      [&](int64_t i, Team& team) {
        SolveTask& task = at(i);
        Panels r = gather_gram(team, task);
        task.failed = cholesky_factor(tile, team, r, pivot_floor(r));
        if (task.failed >= 0 || task.kept_count == 0) return;
        const Panels lower = transpose_upper(team, r);
        team.run((task.outputs + kDoubleWidth - 1) / kDoubleWidth,
                 [&](int64_t p) { solve_outputs(tile, task, r, lower, p * kDoubleWidth); });
      });
}

}  // namespace reapx
