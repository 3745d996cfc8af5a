#include "pairs/pairs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "pairs/pair_reader.h"
#include "runtime/cpu/context_cpu.h"
#include "runtime/cpu/parallel.h"

namespace reapx {

namespace {

constexpr int64_t kLarge = 1024;     // features from which a task is worth all threads
constexpr int64_t kRowsAtOnce = 16;  // rows of pairs that one thread looks at first in a go
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
      readers_.emplace_back(c, task.units, task.steps);
      PairReader& reader = readers_.back();
      waits_ &= reader.waits();
      team.run(reader.panels(), [&](int64_t panel) {
        PairScratch scratch;
        reader.read_units(tile, panel, scratch);
      });
    }
    team.run((task.units + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t item) {
      PairScratch scratch;
      const int64_t first = item * kRowsAtOnce, last = std::min(first + kRowsAtOnce, task.units);
      for (int64_t q = first; q < last; ++q) look_at(q, scratch, task.table);
    });
  }

  // The steps.
  void run() {
    PairScratch scratch;
    for (int64_t step = 0; step < task_.steps; ++step) {
      const auto [q, p] = choose(scratch);
      task_.removed[step] = q;
      task_.partner[step] = p;
      task_.errors[step] = least_[static_cast<size_t>(q)];
      alive_.erase(std::lower_bound(alive_.begin(), alive_.end(), q));
      gone_[static_cast<size_t>(q)] = least_[static_cast<size_t>(q)] = kInfinity;
      for (PairReader& reader : readers_) reader.unify(tile_, step, q, p, scratch);
      if (step + 1 < task_.steps) follow(p, scratch);
    }
  }

 private:
  // What the step changes in all errors. Where rows may wait, only their bounds change, but for row p.
  void follow(int64_t p, PairScratch& scratch) {
    for (PairReader& reader : readers_)
      team_.run(reader.panels(), [&](int64_t panel) { reader.read_step(tile_, panel); });
    if (!waits_) return look_at_all();
    drifts_.assign(gone_.size(), 0.0);
    for (const PairReader& reader : readers_)
      reader.add_drifts(gone_.data(), shifts_.data(), drifts_.data());
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
      for (PairReader& reader : readers_)
        reader.add_overlaps(tile_, alive_.data() + first, last - first, scratch);
      for (int64_t i = first; i < last; ++i) look_at(alive_[static_cast<size_t>(i)], scratch, nullptr);
    });
  }

  void catch_up(int64_t q, PairScratch& scratch) {
    for (PairReader& reader : readers_) reader.add_overlaps(tile_, &q, 1, scratch);
    look_at(q, scratch, nullptr);
  }

  // Errors of row q, in the table if there is one, and the least of them.
  void look_at(int64_t q, PairScratch& scratch, double* table) {
    const size_t i = static_cast<size_t>(q);
    scratch.total.resize(static_cast<size_t>(task_.units));
    double* total = table ? table + q * task_.units : scratch.total.data();
    std::copy(gone_.begin(), gone_.end(), total);
    double base = 0.0;
    for (PairReader& reader : readers_) base += reader.add_errors(tile_, q, scratch, total);
    total[q] = kInfinity;
    partner_[i] = tile_.find_least(task_.units, total);
    least_[i] = looked_[i] = partner_[i] < 0 ? kInfinity : total[partner_[i]];
    reach_[i] = base > looked_[i] ? std::sqrt(base - looked_[i]) : 0.0;
    shifts_[i] = slack_[i] = 0.0;
    fresh_[i] = true;
  }

  // The pair of least error: rows that wait are looked at while their bounds come first.
  std::pair<int64_t, int64_t> choose(PairScratch& scratch) {
    for (;;) {
      const int64_t q = tile_.find_least(task_.units, least_.data());
      if (q < 0) break;
      if (fresh_[static_cast<size_t>(q)]) return {q, partner_[static_cast<size_t>(q)]};
      catch_up(q, scratch);
    }
    least_[static_cast<size_t>(alive_[0])] = kInfinity;  // or NaN, as a bound
    return {alive_[0], alive_[1]};
  }

  const PairTask& task_;
  Team& team_;
  const Tile& tile_;
  std::vector<int64_t> alive_;  // units still there, ascending
  std::vector<double> gone_;    // (units,): +inf for units that left, 0 for others
  std::vector<PairReader> readers_;
  std::vector<int64_t> partner_;  // (units,): of each row's best pair, -1 where no error is finite
  std::vector<double> least_;     // (units,): its error, or a bound below it; +inf for units that left

  // Where all consumers can wait, a row is looked at only when its bound comes first. With b the error
  // at a gain of 0 and z_p, over consumers, what the best gains take off it, as a vector of roots, a
  // pair's error is b - |z_p|^2. Steps change b by what is known, and |z_p| at most by the length of
  // what they change in z_p. Partners that leave only raise the least.
  bool waits_;
  std::vector<char> fresh_;     // (units,): whether least_ is the error
  std::vector<double> looked_;  // (units,): the error when it was looked at
  std::vector<double> reach_;   // (units,): the largest |z_p| then
  std::vector<double> shifts_;  // (units,): by how much b has changed since
  std::vector<double> slack_;   // (units,): by how much |z_p| may have
  std::vector<double> drifts_;  // (units,): the square of what the last step adds to that
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
