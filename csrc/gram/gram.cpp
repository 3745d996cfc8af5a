#include "gram/gram.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "gram/gram_forms.h"
#include "runtime/cpu/context_cpu.h"

namespace reapx {

void add_block(const Tile& tile, int64_t rows, int64_t runs, int64_t terms, Runs a, Runs b,
               double* block) {
  if (a.run == terms * a.step && b.run == terms * b.step) {
    terms *= runs;
    runs = 1;
  }
  if (runs == 0 || terms == 0) return;
  // Equal shares of at most kFloatTerms each: several short runs, or a part of a long one.
  const int64_t parts = (terms + kFloatTerms - 1) / kFloatTerms;
  const int64_t length = (terms + parts - 1) / parts;
  const int64_t most = std::max<int64_t>(1, kFloatTerms / terms);
  const int64_t shares = (runs + most - 1) / most, together = (runs + shares - 1) / shares;
  for (int64_t r = 0; r < runs; r += together)
    for (int64_t t = 0; t < terms; t += length)
      for (int64_t i = 0; i < rows; i += kTileRows)
        tile.add_products(std::min(kTileRows, rows - i), std::min(together, runs - r),
                          std::min(length, terms - t),
                          {a.data + r * a.run + t * a.step + i, a.step, a.run},
                          {b.data + r * b.run + t * b.step, b.step, b.run}, block + i * kFloatWidth);
}

namespace {

constexpr double kMostImageBytes = 512 << 20;  // an image with larger panels is not packed
constexpr double kWorthThreads = 4e6;          // multiply-adds that take longer than a thread to start

// Running sums of kLanes values at a time, which are enough independent chains to hide the latency of
// an addition.
struct LaneSums {
  double total[kLanes] = {}, square[kLanes] = {};

  void add(const float* from, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const double value = from[i];
      total[i] += value;
      square[i] += value * value;
    }
  }
};

// One channel whose columns lie next to each other: the lanes take turns.
void add_plane_sums(const GramTask& task, int64_t m) {
  const Images& y = task.target;
  LaneSums sums;
  for (int64_t b = 0; b < y.images; ++b)
    for (int64_t r = 0; r < y.rows; ++r) {
      const float* row = y.floats() + b * y.image_step + m * y.channel_step + r * y.row_step;
      int64_t c = 0;
      for (; c + kLanes <= y.columns; c += kLanes) sums.add(row + c, kLanes);
      sums.add(row + c, y.columns - c);
    }
  for (int64_t i = 0; i < kLanes; ++i) {
    task.target_total[m] += sums.total[i];
    task.target_square[m] += sums.square[i];
  }
}

// Channels m .. m+count-1, next to each other: one lane each.
void add_channel_sums(const GramTask& task, int64_t m, int64_t count) {
  const Images& y = task.target;
  LaneSums sums;
  for (int64_t b = 0; b < y.images; ++b)
    for (int64_t r = 0; r < y.rows; ++r)
      for (int64_t c = 0; c < y.columns; ++c)
        sums.add(y.floats() + b * y.image_step + r * y.row_step + c * y.column_step + m, count);
  for (int64_t i = 0; i < count; ++i) {
    task.target_total[m + i] += sums.total[i];
    task.target_square[m + i] += sums.square[i];
  }
}

void add_sampled_sums(const GramTask& task, int64_t m) {
  const Images& y = task.target;
  for (int64_t s = 0; s < task.samples(); ++s) {
    const int64_t position = task.positions[s];
    const double value =
        y.floats()[s / task.per_image * y.image_step + m * y.channel_step +
                   position / y.columns * y.row_step + position % y.columns * y.column_step];
    task.target_total[m] += value;
    task.target_square[m] += value * value;
  }
}

void add_target_sums(const GramTask& task, Team& team) {
  const int64_t channels = task.target.channels;
  if (task.positions) {
    team.run(channels, [&](int64_t m) { add_sampled_sums(task, m); });
    return;
  }
  if (task.target.column_step == 1) {
    team.run(channels, [&](int64_t m) { add_plane_sums(task, m); });
    return;
  }
  const int64_t lanes = task.target.channel_step == 1 ? kLanes : 1;
  team.run((channels + lanes - 1) / lanes, [&](int64_t item) {
    add_channel_sums(task, item * lanes, std::min(lanes, channels - item * lanes));
  });
}

// The plan of form "shift", or none where that form is not possible or not wanted; "" wants the faster
// form.
std::optional<ShiftPlan> choose_shift(const GramTask& task, const std::string& form) {
  const double image = static_cast<double>(panels_of(task.group_channels()) * kFloatWidth) *
                       sizeof(float) * static_cast<double>(task.rows.input * task.columns.input);
  if (form == "rows" || task.positions || task.taps() == 1 || image > kMostImageBytes) return {};
  if (form == "" && least_shift_cost(task) >= rows_cost(task)) return {};
  std::optional<ShiftPlan> plan(std::in_place, task, panel_copies(task));
  if (!plan->possible || (form == "" && shift_cost(task, *plan) >= rows_cost(task))) return {};
  return plan;
}

}  // namespace

void gram_accumulate(const GramTask& task, const std::string& form, const Context& context) {
  if (task.samples() == 0) return;
  const bool worth = rows_cost(task) * static_cast<double>(task.groups) > kWorthThreads;
  Team team(worth ? context.threads : 1);
  if (task.target.data) add_target_sums(task, team);
  if (task.features() == 0) return;
  const std::optional<ShiftPlan> plan = choose_shift(task, form);
  const bool few = task.groups < kManyItems * team.threads();
  run_tasks(
      team, task.groups, [&](int64_t) { return few; },
      [&](int64_t group, Team& helpers) {
        if (plan) {
          gram_shift(task, *plan, group, helpers, context.tile);
        } else {
          gram_rows(task, group, helpers, context.tile);
        }
      });
}

void gram_mirror(double* gram, int64_t count, int64_t size, const Context& context) {
  constexpr int64_t side = 64;
  const int64_t sides = (size + side - 1) / side;
  Team team(context.threads);
  team.run(count * sides, [&](int64_t item) {
    double* matrix = gram + item / sides * size * size;
    const int64_t begin = item % sides * side, rows = std::min(side, size - begin);
    for (int64_t from = 0; from < begin; from += side)
      context.tile.transpose_doubles(rows, side, matrix + from * size + begin, size,
                                     matrix + begin * size + from, size);
    for (int64_t i = begin; i < begin + rows; ++i)
      for (int64_t j = begin; j < i; ++j) matrix[i * size + j] = matrix[j * size + i];
  });
}

}  // namespace reapx
