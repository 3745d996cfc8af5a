#include "path.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "path_state.h"

namespace reapx {

namespace {

constexpr int64_t kLarge = 1024;  // features from which a task is worth all threads

int64_t largest(const PathTask& task) {
  int64_t features = 0;
  for (const PathConsumer& c : task.consumers) features = std::max(features, c.features);
  return features;
}

void clear_outputs(const PathTask& task) {
  *task.status = -1;
  std::fill(task.order, task.order + task.steps, 0);
  std::fill(task.errors, task.errors + task.steps, 0.0);
  for (const PathConsumer& c : task.consumers) {
    std::fill(c.factor, c.factor + task.steps * c.taps * c.features, 0.0);
    std::fill(c.residual, c.residual + task.steps * c.taps * c.outputs, 0.0);
  }
}

class Elimination {
 public:
  Elimination(const PathTask& task, Team& team, const Tile& tile)
      : task_(task),
        team_(team),
        tile_(tile),
        alive_(static_cast<size_t>(task.units), true),
        slots_(alive_) {
    for (const PathConsumer& c : task.consumers) {
      states_.emplace_back(tile, team, c, slots_);
      if (c.taps > 0) panel_steps_ = std::min(panel_steps_, panel_rows(c.taps) / c.taps);
    }
  }

  void run() {
    for (int64_t step = 0; step < task_.steps; ++step) {
      const int64_t slot = step < task_.forced_count
                               ? slots_.slot_of[static_cast<size_t>(task_.forced[step])]
                               : choose();
      if (!remove(step, slot)) {
        *task_.status = step;
        break;
      }
      if ((step + 1) % panel_steps_ == 0 && step + 1 < task_.steps) renew();
    }
    for (ConsumerState& state : states_) state.flush(tile_, team_);
  }

 private:
  int64_t choose() {
    scores_.assign(static_cast<size_t>(slots_.size()), 0.0);
    for (ConsumerState& state : states_) state.add_scores(tile_, scores_);
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
    for (size_t j = 0; j < states_.size(); ++j)
      if (!states_[j].pivot(tile_, slot, &error)) {
        for (size_t k = 0; k < j; ++k) states_[k].forget_pivot();
        return false;
      }
    for (ConsumerState& state : states_) state.advance(tile_, team_, slots_, slot);
    const int64_t unit = slots_.unit[static_cast<size_t>(slot)];
    slots_.alive[static_cast<size_t>(slot)] = false;
    alive_[static_cast<size_t>(unit)] = false;
    task_.order[step] = unit;
    task_.errors[step] = error;
    return true;
  }

  void renew() {
    for (ConsumerState& state : states_) state.flush(tile_, team_);
    Slots fewer(alive_);
    if (fewer.size() * 8 <= slots_.size() * 7) {
      for (ConsumerState& state : states_) state.compact(slots_, fewer);
      slots_ = std::move(fewer);
    }
    for (ConsumerState& state : states_) state.refresh(tile_, team_);
  }

  const PathTask& task_;
  Team& team_;
  const Tile& tile_;
  std::vector<bool> alive_;  // (units,)
  Slots slots_;
  std::vector<ConsumerState> states_;
  std::vector<double> scores_;
  int64_t panel_steps_ = 32;
};

}  // namespace

void path_eliminate(std::vector<PathTask>& tasks, int64_t threads, const Tile& tile) {
  const auto at = [&](int64_t i) -> PathTask& { return tasks[static_cast<size_t>(i)]; };
  run_tasks(
      threads, static_cast<int64_t>(tasks.size()),
      [&](int64_t i) { return tasks.size() == 1 || largest(at(i)) >= kLarge; },
      [&](int64_t i, Team& team) {
        clear_outputs(at(i));
        if (at(i).steps > 0) Elimination(at(i), team, tile).run();
      });
}

}  // namespace reapx
