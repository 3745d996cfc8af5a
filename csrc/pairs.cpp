#include "pairs.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "pair_reader.h"
#include "parallel.h"

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
        least_(alive_.size()),
        partner_(alive_.size()) {
    for (int64_t u = 0; u < task.units; ++u) alive_[static_cast<size_t>(u)] = u;
    for (const PairConsumer& c : task.consumers) {
      readers_.emplace_back(c, task.units, task.steps);
      PairReader& reader = readers_.back();
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
      const auto [q, p] = choose();
      task_.removed[step] = q;
      task_.partner[step] = p;
      task_.errors[step] = least_[static_cast<size_t>(q)];
      alive_.erase(std::lower_bound(alive_.begin(), alive_.end(), q));
      gone_[static_cast<size_t>(q)] = least_[static_cast<size_t>(q)] = kInfinity;
      for (PairReader& reader : readers_) reader.unify(tile_, step, q, p, scratch);
      if (step + 1 < task_.steps) follow();
    }
  }

 private:
  // What the step changes in all errors.
  void follow() {
    for (PairReader& reader : readers_)
      team_.run(reader.panels(), [&](int64_t panel) { reader.read_step(tile_, panel); });
    const int64_t left = static_cast<int64_t>(alive_.size());
    team_.run((left + kTileRows - 1) / kTileRows, [&](int64_t item) {
      PairScratch scratch;
      const int64_t first = item * kTileRows, last = std::min(first + kTileRows, left);
      for (PairReader& reader : readers_)
        reader.add_overlaps(tile_, alive_.data() + first, last - first, scratch);
      for (int64_t i = first; i < last; ++i) look_at(alive_[static_cast<size_t>(i)], scratch, nullptr);
    });
  }

  // Errors of row q, in the table if there is one, and the least of them.
  void look_at(int64_t q, PairScratch& scratch, double* table) {
    scratch.total.resize(static_cast<size_t>(task_.units));
    double* total = table ? table + q * task_.units : scratch.total.data();
    std::copy(gone_.begin(), gone_.end(), total);
    for (PairReader& reader : readers_) reader.add_errors(tile_, q, scratch, total);
    total[q] = kInfinity;
    const int64_t partner = tile_.find_least(task_.units, total);
    partner_[static_cast<size_t>(q)] = partner;
    least_[static_cast<size_t>(q)] = partner < 0 ? kInfinity : total[partner];
  }

  // The pair of least error.
  std::pair<int64_t, int64_t> choose() const {
    const int64_t q = tile_.find_least(task_.units, least_.data());
    return q < 0 ? std::pair{alive_[0], alive_[1]} : std::pair{q, partner_[static_cast<size_t>(q)]};
  }

  const PairTask& task_;
  Team& team_;
  const Tile& tile_;
  std::vector<int64_t> alive_;  // units still there, ascending
  std::vector<double> gone_;    // (units,): +inf for units that left, 0 for others
  std::vector<PairReader> readers_;
  std::vector<double> least_;     // (units,): error of each row's best pair, +inf for units that left
  std::vector<int64_t> partner_;  // (units,): its partner, -1 where no error is finite
};

int64_t largest(const PairTask& task) {
  int64_t features = 0;
  for (const PairConsumer& c : task.consumers) features = std::max(features, c.features);
  return features;
}

}  // namespace

void pair_scan(std::vector<PairTask>& tasks, int64_t threads, const Tile& tile) {
  const auto at = [&](int64_t i) -> PairTask& { return tasks[static_cast<size_t>(i)]; };
  run_tasks(
      threads, static_cast<int64_t>(tasks.size()),
      [&](int64_t i) { return tasks.size() == 1 || largest(at(i)) >= kLarge; },
      [&](int64_t i, Team& team) { Unification(at(i), team, tile).run(); });
}

}  // namespace reapx
