#include "path/path.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>

#include "path/path_state.h"
#include "runtime/cpu/context_cpu.h"

namespace reapx {

namespace {

constexpr int64_t kLarge = 1024;       // features from which on a task uses all threads
constexpr int64_t kRefreshSteps = 32;  // after which the blocks that the scores need are computed anew

int64_t largest(const PathTask& task) {
  int64_t features = 0;
  for (const PathConsumer& c : task.consumers) features = std::max(features, c.features);
  return features;
}

// Roughly what a task costs: P is updated once for each column that is removed.
double cost(const PathTask& task) {
  double sum = 0.0;
  for (const PathConsumer& c : task.consumers)
    sum += static_cast<double>(task.steps * c.taps) * static_cast<double>(c.features) *
           static_cast<double>(c.features + c.outputs);
  return sum;
}

class Elimination {
 public:
  Elimination(const PathTask& task, Team& team, const Tile& tile)
      : task_(task),
        team_(team),
        tile_(tile),
        alive_(static_cast<size_t>(task.units), true),
        slots_(alive_) {
    for (const PathConsumer& c : task.consumers)
      if (c.taps > 0) panel_steps_ = std::min(panel_steps_, std::max<int64_t>(1, kPanelRows / c.taps));
    for (const PathConsumer& c : task.consumers)
      states_.push_back(std::make_unique<PathState>(tile, team, c, slots_, panel_steps_, task.steps));
  }

  void run() {
    int64_t step = 0;
    for (; step < task_.steps; ++step) {
      if (step > 0 && step % panel_steps_ == 0) renew();
      const int64_t slot = step < task_.forced_count
                               ? slots_.slot_of[static_cast<size_t>(task_.forced[step])]
                               : choose();
      if (!remove(step, slot)) {
        *task_.status = step;
        break;
      }
    }
    for (auto& state : states_) {
      state->flush(tile_, team_, true);
      state->finish(tile_, team_, task_.order, step, task_.steps, task_.errors);
    }
  }

 private:
  int64_t choose() {
    scores_.assign(static_cast<size_t>(slots_.size()), 0.0);
    for (auto& state : states_) state->add_scores(scores_);
    int64_t best = -1;
    double least = 0.0;
    for (int64_t u = 0; u < slots_.size(); ++u) {
      if (!slots_.alive[static_cast<size_t>(u)]) continue;
      double score = scores_[static_cast<size_t>(u)];
      if (std::isnan(score)) score = std::numeric_limits<double>::infinity();
      if (best < 0 || score < least) {
        best = u;
        least = score;
      }
    }
    return best;
  }

  bool remove(int64_t step, int64_t slot) {
    double error = 0.0;
    for (auto& state : states_)
      if (!state->pivot(tile_, slot, &error)) return false;
    for (auto& state : states_) state->advance(tile_, team_, slots_, slot);
    const int64_t unit = slots_.unit[static_cast<size_t>(slot)];
    slots_.alive[static_cast<size_t>(slot)] = false;
    alive_[static_cast<size_t>(unit)] = false;
    task_.order[step] = unit;
    task_.errors[step] = error;
    return true;
  }

  void renew() {
    for (auto& state : states_) state->flush(tile_, team_, false);
    since_refresh_ += panel_steps_;
    Slots fewer(alive_);
    if (fewer.size() * 8 <= slots_.size() * 7) {
      for (auto& state : states_) state->compact(slots_, fewer);
      slots_ = std::move(fewer);
      since_refresh_ = kRefreshSteps;
    }
    if (since_refresh_ < kRefreshSteps) return;
    for (auto& state : states_) state->refresh(tile_, team_);
    since_refresh_ = 0;
  }

  const PathTask& task_;
  Team& team_;
  const Tile& tile_;
  std::vector<bool> alive_;  // (units,)
  Slots slots_;
  std::vector<std::unique_ptr<PathState>> states_;
  std::vector<double> scores_;
  int64_t panel_steps_ = kPanelRows;
  int64_t since_refresh_ = 0;  // steps
};

}  // namespace

void path_eliminate(const std::vector<PathTask>& tasks, const Context& context) {
  // The longest first, so that no thread is left with a long one at the end.
  std::vector<size_t> sorted(tasks.size());
  std::iota(sorted.begin(), sorted.end(), size_t{0});
  std::stable_sort(sorted.begin(), sorted.end(),
                   [&](size_t i, size_t j) { return cost(tasks[i]) > cost(tasks[j]); });
  const auto at = [&](int64_t i) -> const PathTask& { return tasks[sorted[static_cast<size_t>(i)]]; };
  run_tasks(
      context.threads, static_cast<int64_t>(tasks.size()),
      [&](int64_t i) { return tasks.size() == 1 || largest(at(i)) >= kLarge; },
      [&](int64_t i, Team& team) {
        const PathTask& task = at(i);
        *task.status = -1;
        std::fill(task.order, task.order + task.steps, 0);
        std::fill(task.errors, task.errors + task.steps, 0.0);
        if (task.steps > 0) Elimination(task, team, context.tile).run();
      });
}

}  // namespace reapx
