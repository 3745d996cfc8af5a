#include "pairs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "buffer.h"
#include "parallel.h"

namespace reapx {

namespace {

constexpr int64_t kLarge = 1024;        // features from which a task is worth all threads
constexpr int64_t kRowsAtOnce = 16;     // rows of pairs that one thread looks at in a go
constexpr int64_t kPackedColumns = 64;  // columns of W that one thread packs: 8 lines of each row
constexpr int64_t kPackedRows = 16;     // rows of W packed at a time: they stay in L1
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// What one thread writes on. Sized by those who use it; what it holds means nothing between calls.
struct Scratch {
  Buffer<double> total, inner, norms, gathered, packed, work;
  std::vector<const double*> rows, blocks;
};

// One consumer with what the errors need besides G: A and the diagonal blocks.
class Reader {
 public:
  Reader(const PairConsumer& consumer, int64_t units)
      : c_(consumer),
        units_(units),
        products_(static_cast<size_t>(units * c_.taps * c_.taps)),
        blocks_(static_cast<size_t>(units * c_.taps * c_.taps)) {
    for (int64_t i = 0; i < units * c_.taps; ++i) adjacent_ &= c_.columns[i] == c_.columns[0] + i;
  }

  // How many units to read at a time.
  int64_t units_at_once() const {
    return std::max(kPackedColumns / std::max<int64_t>(c_.taps, 1) / kLanes, int64_t{1}) * kLanes;
  }

  // G_uu for units first <= u < last.
  void read_blocks(int64_t first, int64_t last);

  // A_u for these units, from the weights as they are.
  void read_products(const Tile& tile, int64_t first, int64_t last, Scratch& scratch);

  // total[p] += alpha err(q -> p) for all p.
  void add_errors(const Tile& tile, int64_t q, Scratch& scratch, double* total) const;

  // a of one pair, by the arithmetic of its error; 0 where it is not finite.
  double find_gain(const Tile& tile, int64_t q, int64_t p, Scratch& scratch) const;

  // W_p <- W_p + a W_q, W_q <- 0.
  void unify(int64_t q, int64_t p, double gain);

  double* gains() const { return c_.gains; }

 private:
  const int64_t* columns_of(int64_t unit) const { return c_.columns + unit * c_.taps; }

  // inner[i] = <A_q, G_qp> and norms[i] = <A_q, G_pp> for the units p = first + i, i < count.
  void multiply(const Tile& tile, int64_t q, int64_t first, int64_t count, Scratch& scratch) const;

  PairConsumer c_;
  int64_t units_;
  bool adjacent_ = true;          // the columns of all units follow each other
  std::vector<double> products_;  // [unit][tap][tap]: A
  std::vector<double> blocks_;    // [tap][unit][tap]: the diagonal blocks of G
};

void Reader::read_blocks(int64_t first, int64_t last) {
  const int64_t q = c_.taps;
  for (int64_t u = first; u < last; ++u)
    for (int64_t a = 0; a < q; ++a) {
      const double* row = c_.gram + columns_of(u)[a] * c_.features;
      for (int64_t b = 0; b < q; ++b)
        blocks_[static_cast<size_t>((a * units_ + u) * q + b)] = row[columns_of(u)[b]];
    }
}

void Reader::read_products(const Tile& tile, int64_t first, int64_t last, Scratch& scratch) {
  const int64_t q = c_.taps, n = (last - first + kLanes - 1) / kLanes * kLanes;
  const int64_t panels = (q * n + kDoubleWidth - 1) / kDoubleWidth;
  scratch.packed.resize(static_cast<size_t>(panels * c_.outputs * kDoubleWidth));
  scratch.work.resize(static_cast<size_t>(q * q * n));
  double* packed = scratch.packed.data();  // lanes of no unit hold anything: lanes do not mix
  for (int64_t m = 0; m < c_.outputs; m += kPackedRows)
    for (int64_t i = 0; i < (last - first) * q; ++i) {
      const int64_t to = i % q * n + i / q;
      const double* from = c_.weight + columns_of(first)[i];
      double* column = packed + to / kDoubleWidth * c_.outputs * kDoubleWidth + to % kDoubleWidth;
      for (int64_t k = m; k < std::min(m + kPackedRows, c_.outputs); ++k)
        column[k * kDoubleWidth] = from[k * c_.features];
    }
  tile.unit_gram(q, n, 0, n, {packed, c_.outputs}, c_.outputs, scratch.work.data());
  for (int64_t u = first; u < last; ++u)
    for (int64_t a = 0; a < q; ++a)
      for (int64_t b = 0; b < q; ++b)
        products_[static_cast<size_t>((u * q + a) * q + b)] =
            scratch.work[static_cast<size_t>((std::min(a, b) * q + std::max(a, b)) * n + u - first)];
}

void Reader::multiply(const Tile& tile, int64_t q, int64_t first, int64_t count,
                      Scratch& scratch) const {
  const int64_t taps = c_.taps, width = count * taps;
  const int64_t* others = columns_of(first);
  scratch.inner.resize(static_cast<size_t>(count));
  scratch.norms.resize(static_cast<size_t>(count));
  scratch.work.resize(static_cast<size_t>(taps * (taps + 2) * kLanes));
  scratch.rows.resize(static_cast<size_t>(taps));
  scratch.blocks.resize(static_cast<size_t>(taps));
  if (!adjacent_) scratch.gathered.resize(static_cast<size_t>(taps * width));
  for (int64_t a = 0; a < taps; ++a) {
    const double* row = c_.gram + columns_of(q)[a] * c_.features;
    if (adjacent_) {
      scratch.rows[static_cast<size_t>(a)] = row + others[0];
    } else {
      double* gathered = scratch.gathered.data() + a * width;
      for (int64_t i = 0; i < width; ++i) gathered[i] = row[others[i]];
      scratch.rows[static_cast<size_t>(a)] = gathered;
    }
    scratch.blocks[static_cast<size_t>(a)] = blocks_.data() + (a * units_ + first) * taps;
  }
  const double* product = products_.data() + q * taps * taps;
  tile.pair_products(taps, count, scratch.rows.data(), scratch.blocks.data(), product,
                     scratch.inner.data(), scratch.norms.data(), scratch.work.data());
}

void Reader::add_errors(const Tile& tile, int64_t q, Scratch& scratch, double* total) const {
  multiply(tile, q, 0, units_, scratch);
  const double own = scratch.norms[static_cast<size_t>(q)];
  tile.add_pair_errors(units_, own, c_.scale, scratch.inner.data(), scratch.norms.data(), total);
}

double Reader::find_gain(const Tile& tile, int64_t q, int64_t p, Scratch& scratch) const {
  multiply(tile, q, p, 1, scratch);
  const double gain = scratch.norms[0] > 0 ? scratch.inner[0] / scratch.norms[0] : 0.0;
  return std::isfinite(gain) ? gain : 0.0;
}

void Reader::unify(int64_t q, int64_t p, double gain) {
  for (int64_t m = 0; m < c_.outputs; ++m) {
    double* row = c_.weight + m * c_.features;
    for (int64_t a = 0; a < c_.taps; ++a) {
      double* gone = row + columns_of(q)[a];
      if (gain != 0.0) row[columns_of(p)[a]] += gain * *gone;  // 0 * inf would be NaN
      *gone = 0.0;
    }
  }
}

class Unification {
 public:
  Unification(const PairTask& task, Team& team, const Tile& tile)
      : task_(task),
        tile_(tile),
        alive_(static_cast<size_t>(task.units), true),
        least_(alive_.size()),
        partner_(alive_.size()) {
    for (const PairConsumer& c : task.consumers) {
      readers_.emplace_back(c, task.units);
      Reader& reader = readers_.back();
      const int64_t n = reader.units_at_once();
      team.run((task.units + n - 1) / n, [&](int64_t item) {
        const int64_t first = item * n, last = std::min(first + n, task.units);
        reader.read_blocks(first, last);
        Scratch scratch;
        reader.read_products(tile, first, last, scratch);
      });
    }
    team.run((task.units + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t item) {
      Scratch scratch;
      const int64_t first = item * kRowsAtOnce, last = std::min(first + kRowsAtOnce, task.units);
      for (int64_t q = first; q < last; ++q) look_at(q, scratch, task.table);
    });
  }

  // The steps.
  void run() {
    Scratch scratch;
    for (int64_t step = 0; step < task_.steps; ++step) {
      const auto [q, p] = choose(scratch);
      task_.removed[step] = q;
      task_.partner[step] = p;
      task_.errors[step] = least_[static_cast<size_t>(q)];
      alive_[static_cast<size_t>(q)] = false;
      least_[static_cast<size_t>(q)] = kInfinity;
      for (Reader& reader : readers_) {
        const double gain = reader.find_gain(tile_, q, p, scratch);
        reader.gains()[step] = gain;
        reader.unify(q, p, gain);
        reader.read_products(tile_, p, p + 1, scratch);
      }
      look_at(p, scratch, nullptr);
    }
  }

 private:
  // Errors of row q, in the table if there is one, and the least of them.
  void look_at(int64_t q, Scratch& scratch, double* table) {
    scratch.total.resize(static_cast<size_t>(task_.units));
    double* total = table ? table + q * task_.units : scratch.total.data();
    std::fill(total, total + task_.units, 0.0);
    for (const Reader& reader : readers_) reader.add_errors(tile_, q, scratch, total);
    total[q] = kInfinity;
    int64_t partner = -1;
    double least = kInfinity;
    for (int64_t p = 0; p < task_.units; ++p)
      if (total[p] < least && alive_[static_cast<size_t>(p)]) {
        partner = p;
        least = total[p];
      }
    least_[static_cast<size_t>(q)] = least;
    partner_[static_cast<size_t>(q)] = partner;
  }

  // The pair of least error. A row whose partner has left is looked at only when it comes first:
  // partners that leave only raise its least error, so that the one it knows is a lower bound.
  std::pair<int64_t, int64_t> choose(Scratch& scratch) {
    for (;;) {
      const auto first = std::min_element(least_.begin(), least_.end());
      if (*first == kInfinity) break;
      const int64_t q = first - least_.begin(), p = partner_[static_cast<size_t>(q)];
      if (alive_[static_cast<size_t>(p)]) return {q, p};
      look_at(q, scratch, nullptr);
    }
    const auto q = std::find(alive_.begin(), alive_.end(), true);
    const auto p = std::find(q + 1, alive_.end(), true);
    return {q - alive_.begin(), p - alive_.begin()};
  }

  const PairTask& task_;
  const Tile& tile_;
  std::vector<bool> alive_;  // (units,)
  std::vector<Reader> readers_;
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
