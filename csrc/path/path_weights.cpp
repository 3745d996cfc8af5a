#include <algorithm>

#include "linalg/panels.h"
#include "path/path.h"
#include "path/path_rows.h"
#include "runtime/cpu/context_cpu.h"

namespace reapx {

namespace {

constexpr int64_t kLarge = 1 << 22;    // multiply-adds from which a task is worth all threads
constexpr int64_t kSegmentRows = 256;  // of factor and residual, made into panels at a time

int64_t most_terms(const CutsTask& task) {
  int64_t most = 0;
  for (int64_t i = 0, before = 0; i < task.count; before = task.cuts[i++])
    most = std::max(most, (task.cuts[i] - before) * task.taps);
  return std::min(most, kSegmentRows);
}

// `count` rows of a row-major matrix with x.columns() columns become the rows of its panels.
void load_rows(Team& team, const double* from, int64_t count, Panels& x) {
  const int64_t columns = x.columns();
  team.run((count + kDoubleWidth - 1) / kDoubleWidth, [&](int64_t block) {
    const int64_t first = block * kDoubleWidth, last = std::min(first + kDoubleWidth, count);
    for (int64_t p = 0; p < x.count(); ++p) {
      const int64_t begin = p * kDoubleWidth, width = std::min(kDoubleWidth, columns - begin);
      for (int64_t i = first; i < last; ++i) {
        copy_row(from + i * columns + begin, width, x.at(i, begin));
        std::fill(x.at(i, begin) + width, x.at(i, begin) + kDoubleWidth, 0.0);
      }
    }
  });
}

class Cuts {
 public:
  Cuts(const CutsTask& task, Team& team, const Tile& tile)
      : task_(task),
        team_(team),
        tile_(tile),
        removed_at_(static_cast<size_t>(task.features), task.steps),
        now_(task.outputs, task.features, Panels::Raw()),
        factor_(most_terms(task), task.features, Panels::Raw()),
        residual_(most_terms(task), task.outputs, Panels::Raw()) {
    for (int64_t t = 0; t < task.steps; ++t)
      for (int64_t a = 0; a < task.taps; ++a)
        removed_at_[static_cast<size_t>(task.columns[task.order[t] * task.taps + a])] = t;
    load_rows(team, task.weight, task.outputs, now_);
  }

  void run() {
    int64_t row = 0;
    for (int64_t i = 0; i < task_.count; ++i) {
      const int64_t cut = task_.cuts[i], end = cut * task_.taps;
      for (; row < end; row = std::min(row + kSegmentRows, end))
        subtract(row, std::min(kSegmentRows, end - row), cut);
      write(cut, task_.weights + i * task_.outputs * task_.features);
    }
  }

 private:
  bool stays(int64_t feature, int64_t cut) const {
    return removed_at_[static_cast<size_t>(feature)] >= cut;
  }

  void subtract(int64_t row, int64_t terms, int64_t cut) {
    load_rows(team_, task_.factor + row * task_.features, terms, factor_);
    load_rows(team_, task_.residual + row * task_.outputs, terms, residual_);
    std::vector<Strip> strips;
    for (int64_t p = 0; p < now_.count(); ++p) {
      bool needed = false;
      for (int64_t j = p * kDoubleWidth; j < std::min((p + 1) * kDoubleWidth, task_.features); ++j)
        needed |= stays(j, cut);
      if (needed) strips.push_back({factor_.panel(p), now_.panel(p), 0, task_.outputs});
    }
    subtract_all(tile_, team_, residual_, task_.outputs, strips, terms);
  }

  void write(int64_t cut, double* weights) {
    const int64_t features = task_.features;
    team_.run((task_.outputs + kDoubleWidth - 1) / kDoubleWidth, [&](int64_t block) {
      const int64_t first = block * kDoubleWidth, last = std::min(first + kDoubleWidth, task_.outputs);
      for (int64_t p = 0; p < now_.count(); ++p) {
        const int64_t begin = p * kDoubleWidth, width = std::min(kDoubleWidth, features - begin);
        for (int64_t m = first; m < last; ++m)
          copy_row(now_.at(m, begin), width, weights + m * features + begin);
        for (int64_t j = begin; j < begin + width; ++j)
          if (!stays(j, cut))
            for (int64_t m = first; m < last; ++m) weights[m * features + j] = 0.0;
      }
    });
  }

  const CutsTask& task_;
  Team& team_;
  const Tile& tile_;
  std::vector<int64_t> removed_at_;  // (features,): the step at which its unit is removed, or steps
  Panels now_;                       // the weights at the current cut: row = output
  Panels factor_, residual_;         // rows of the current segment
};

}  // namespace

void path_weights(const std::vector<CutsTask>& tasks, const Context& context) {
  const auto at = [&](int64_t i) -> const CutsTask& { return tasks[static_cast<size_t>(i)]; };
  run_tasks(
      context.threads, static_cast<int64_t>(tasks.size()),
      [&](int64_t i) {
        const CutsTask& t = at(i);
        return t.steps * t.taps * t.features * t.outputs > kLarge;
      },
      [&](int64_t i, Team& team) {
        if (at(i).count > 0) Cuts(at(i), team, context.tile).run();
      });
}

}  // namespace reapx
