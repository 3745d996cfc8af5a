#include "pairs/pairs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "pairs/pair_state.h"
#include "runtime/cpu/context_cpu.h"
#include "runtime/cpu/parallel.h"

namespace reapx {

namespace {

constexpr int64_t kLarge = 1024;     // features from which on a task uses all threads
constexpr int64_t kRowsAtOnce = 16;  // rows of pairs of a work item, before the steps
constexpr double kInfinity = std::numeric_limits<double>::infinity();

class Unification {
 public:
  Unification(const PairTask& task, Team& team, const Tile& tile)
      : task_(task),
        team_(team),
        tile_(tile),
        alive_(static_cast<size_t>(task.units)),
        gone_(alive_.size(), 0.0),
        partner_(alive_.size()),
        least_(alive_.size()),
        waits_(true),
        fresh_(alive_.size()),
        looked_(alive_.size()),
        reach_(alive_.size()),
        shifts_(alive_.size()),
        slack_(alive_.size()) {
    for (int64_t u = 0; u < task.units; ++u) alive_[static_cast<size_t>(u)] = u;
    for (const PairConsumer& c : task.consumers) {
      states_.emplace_back(c, task.units, task.steps);
      PairState& state = states_.back();
      waits_ &= state.waits();
      team.run(state.panels(), [&](int64_t panel) {
        PairScratch scratch;
        state.read_units(tile, panel, scratch);
      });
    }
    team.run((task.units + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t item) {
      PairScratch scratch;
      const int64_t first = item * kRowsAtOnce, last = std::min(first + kRowsAtOnce, task.units);
      for (int64_t q = first; q < last; ++q) look_at(q, scratch, task.table);
    });
  }

  // Takes the steps.
  void run() {
    PairScratch scratch;
    for (int64_t step = 0; step < task_.steps; ++step) {
      const auto [q, p] = choose(scratch);
      task_.removed[step] = q;
      task_.partner[step] = p;
      task_.errors[step] = least_[static_cast<size_t>(q)];
      alive_.erase(std::lower_bound(alive_.begin(), alive_.end(), q));
      gone_[static_cast<size_t>(q)] = least_[static_cast<size_t>(q)] = kInfinity;
      for (PairState& state : states_) state.unify(tile_, step, q, p, scratch);
      if (step + 1 < task_.steps) follow(p, scratch);
    }
  }

 private:
  // Brings all errors up to date with the last step. Where rows may wait, only their bounds are
  // updated, except for row p.
  void follow(int64_t p, PairScratch& scratch) {
    for (PairState& state : states_)
      team_.run(state.panels(), [&](int64_t panel) { state.read_step(tile_, panel); });
    if (!waits_) return look_at_all();
    drifts_.assign(gone_.size(), 0.0);
    for (const PairState& state : states_)
      state.add_drifts(gone_.data(), shifts_.data(), drifts_.data());
    for (const int64_t u : alive_) {
      const size_t i = static_cast<size_t>(u);
      slack_[i] += std::sqrt(drifts_[i]);
      least_[i] = looked_[i] + shifts_[i] - slack_[i] * (2 * reach_[i] + slack_[i]);
    }
    fresh_.assign(fresh_.size(), false);
    catch_up(p, scratch);
  }

  void look_at_all() {
    const int64_t left = static_cast<int64_t>(alive_.size());
    team_.run((left + kTileRows - 1) / kTileRows, [&](int64_t item) {
      PairScratch scratch;
      const int64_t first = item * kTileRows, last = std::min(first + kTileRows, left);
      for (PairState& state : states_)
        state.add_overlaps(tile_, alive_.data() + first, last - first, scratch);
      for (int64_t i = first; i < last; ++i) look_at(alive_[static_cast<size_t>(i)], scratch, nullptr);
    });
  }

  void catch_up(int64_t q, PairScratch& scratch) {
    for (PairState& state : states_) state.add_overlaps(tile_, &q, 1, scratch);
    look_at(q, scratch, nullptr);
  }

  // Computes the errors of row q, into the table if there is one, and finds the least of them.
  void look_at(int64_t q, PairScratch& scratch, double* table) {
    const size_t i = static_cast<size_t>(q);
    scratch.total.resize(static_cast<size_t>(task_.units));
    double* total = table ? table + q * task_.units : scratch.total.data();
    std::copy(gone_.begin(), gone_.end(), total);
    double base = 0.0;
    for (PairState& state : states_) base += state.add_errors(tile_, q, scratch, total);
    total[q] = kInfinity;
    partner_[i] = tile_.find_least(task_.units, total);
    least_[i] = looked_[i] = partner_[i] < 0 ? kInfinity : total[partner_[i]];
    reach_[i] = base > looked_[i] ? std::sqrt(base - looked_[i]) : 0.0;
    shifts_[i] = slack_[i] = 0.0;
    fresh_[i] = true;
  }

  // Returns the pair of least error. A row that waits is looked at when its bound is the least.
  std::pair<int64_t, int64_t> choose(PairScratch& scratch) {
    for (;;) {
      const int64_t q = tile_.find_least(task_.units, least_.data());
      if (q < 0) break;
      if (fresh_[static_cast<size_t>(q)]) return {q, partner_[static_cast<size_t>(q)]};
      catch_up(q, scratch);
    }
    least_[static_cast<size_t>(alive_[0])] = kInfinity;  // it may have been NaN, as a bound
    return {alive_[0], alive_[1]};
  }

  const PairTask& task_;
  Team& team_;
  const Tile& tile_;
  std::vector<int64_t> alive_;  // units still there, ascending
  std::vector<double> gone_;    // (units,): +inf for units that are removed, 0 for others
  std::vector<PairState> states_;
  std::vector<int64_t>
      partner_;  // (units,): p of the best pair of each row, -1 where no error is finite
  std::vector<double>
      least_;  // (units,): its error, or a lower bound of it; +inf for units that are removed

  // Where the rows of all consumers may wait, a row is looked at only when its lower bound is the least
  // of all. Let b be the error of a row with a gain of 0, and z_p the vector, over consumers, of the
  // roots of what the best gains take off it. Then the error of a pair is b - |z_p|^2. A step changes b
  // by a known amount, the shift, and |z_p| by no more than the length of the change of z_p, the slack.
  // Partners that are removed only raise the least error of a row.
  //
  // Example: when the row was looked at, b was 10 and the largest |z_p|, its reach, 3; so its least
  // error was 10 - 9 = 1. A step then shifts b by 0.5, and no |z_p| by more than 0.2. The least error
  // is now at least 10.5 - 3.2^2 = 0.26, or 1 + 0.5 - 0.2 * (2 * 3 + 0.2). If some row that was looked
  // at has an error of 0.2, this row can go on waiting. If not, its row of R takes in all missed steps,
  // and it is looked at again: then its bound is its error, and shift and slack are 0.
  bool waits_;
  std::vector<char> fresh_;     // (units,): whether least_ is the error itself
  std::vector<double> looked_;  // (units,): the least error of the row when it was looked at
  std::vector<double> reach_;   // (units,): the largest |z_p| then
  std::vector<double> shifts_;  // (units,): by how much b has changed since
  std::vector<double> slack_;   // (units,): by how much |z_p| may have changed since
  std::vector<double> drifts_;  // (units,): the square of what the last step adds to the slack
};

int64_t largest(const PairTask& task) {
  int64_t features = 0;
  for (const PairConsumer& c : task.consumers) features = std::max(features, c.features);
  return features;
}

}  // namespace

void pair_scan(const std::vector<PairTask>& tasks, const Context& context) {
  const auto at = [&](int64_t i) -> const PairTask& { return tasks[static_cast<size_t>(i)]; };
  run_tasks(
      context.threads, static_cast<int64_t>(tasks.size()),
      [&](int64_t i) { return tasks.size() == 1 || largest(at(i)) >= kLarge; },
      [&](int64_t i, Team& team) { Unification(at(i), team, context.tile).run(); });
}

}  // namespace reapx
