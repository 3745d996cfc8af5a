#include "path/path_state.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "path/path_rows.h"

namespace reapx {

namespace {

constexpr int64_t kRows = 8;  // rows of P that are read at a time

}  // namespace

Slots::Slots(const std::vector<bool>& alive_units) : slot_of(alive_units.size(), -1) {
  for (size_t u = 0; u < alive_units.size(); ++u)
    if (alive_units[u]) {
      slot_of[u] = size();
      unit.push_back(static_cast<int64_t>(u));
    }
  alive.assign(unit.size(), true);
  unit.resize(static_cast<size_t>((size() + kLanes - 1) / kLanes * kLanes), -1);
  alive.resize(unit.size(), false);
}

PathState::PathState(const Tile& tile, Team& team, const PathConsumer& consumer, const Slots& slots,
                     int64_t panel_steps, int64_t steps)
    : c_(consumer), basis_(0, 0) {
  list_columns(slots);
  load(team);
  gathered_.capacity = panel_steps * c_.taps;
  form_ = make_form(tile, team, c_, columns_, gathered_.capacity, steps);
  gathered_.rows = Panels(gathered_.capacity * form_->copies(), columns_.size(), Panels::Raw());
  gathered_.own.resize(static_cast<size_t>(gathered_.capacity * c_.taps));
  gathered_.root.resize(static_cast<size_t>(c_.taps * c_.taps));
  place_features();
  resize_blocks();
  refresh(tile, team);
}

void PathState::list_columns(const Slots& slots) {
  std::vector<bool> covered(static_cast<size_t>(c_.features));
  for (size_t i = 0; i < slots.slot_of.size() * static_cast<size_t>(c_.taps); ++i)
    covered[static_cast<size_t>(c_.columns[i])] = true;
  columns_.taps = c_.taps;
  columns_.slots = slots.size();
  for (int64_t a = 0; a < c_.taps; ++a)
    for (int64_t unit : slots.unit)
      columns_.source.push_back(unit < 0 ? -1 : c_.columns[unit * c_.taps + a]);
  for (int64_t i = 0; i < c_.features; ++i)
    if (!covered[static_cast<size_t>(i)]) columns_.source.push_back(i);
}

// Takes a few rows at a time, so that the elements that are picked from all over them stay in the
// cache, and those that are written to a panel lie next to each other.
void PathState::load(Team& team) {
  const int64_t n = columns_.size();
  basis_ = Panels(n, n, Panels::Raw());
  const std::vector<Pick> picks = picks_of(columns_.source);
  team.run((n + kRows - 1) / kRows, [&](int64_t block) {
    const int64_t first = block * kRows, last = std::min(first + kRows, n);
    for (int64_t p = first / kDoubleWidth; p < basis_.count(); ++p)
      for (int64_t i = first; i < last; ++i) {
        const int64_t feature = columns_.source[static_cast<size_t>(i)];
        double* to = basis_.panel(p) + i * kDoubleWidth;
        if (feature < 0) {
          std::fill(to, to + kDoubleWidth, 0.0);
        } else {
          picks[static_cast<size_t>(p)].row(c_.basis + feature * c_.features, to);
        }
      }
  });
}

void PathState::place_features() {
  place_.assign(static_cast<size_t>(c_.features), -1);
  for (int64_t j = 0; j < columns_.size(); ++j)
    if (const int64_t feature = columns_.source[static_cast<size_t>(j)]; feature >= 0)
      place_[static_cast<size_t>(feature)] = gathered_.rows.at(0, j) - gathered_.rows.panel(0);
}

void PathState::resize_blocks() {
  const size_t q = static_cast<size_t>(c_.taps), slots = static_cast<size_t>(columns_.slots);
  s_.assign(q * q * slots, 0.0);
  a_.assign(q * q * slots, 0.0);
  scores_.resize(slots);
}

void PathState::refresh(const Tile& tile, Team& team) {
  const int64_t q = c_.taps, slots = columns_.slots;
  const bool worth = q * q * slots * c_.outputs > kWorthTeam;
  run_if(worth, team, slots / kLanes, [&](int64_t item) {
    const int64_t first = item * kLanes, last = first + kLanes;
    for (int64_t x = 0; x < q; ++x)
      for (int64_t y = x; y < q; ++y)
        for (int64_t u = first; u < last; ++u)
          s_[static_cast<size_t>((x * q + y) * slots + u)] = *basis_.at(x * slots + u, y * slots + u);
    form_->refresh(tile, first, last, a_.data());
    score(tile, first, last);
  });
}

void PathState::score(const Tile& tile, int64_t first, int64_t last) {
  // The scratch is on the stack where it fits: an allocation would take longer than the scores of one
  // tap.
  double small[1024];
  std::vector<double> large;
  const size_t needed = static_cast<size_t>((c_.taps + 1) * c_.taps * kLanes);
  if (needed > std::size(small)) large.resize(needed);
  tile.unit_scores(c_.taps, columns_.slots, first, last, s_.data(), a_.data(), scores_.data(),
                   large.empty() ? small : large.data());
}

void PathState::add_scores(std::vector<double>& scores) const {
  for (size_t u = 0; u < scores_.size(); ++u) scores[u] += c_.scale * scores_[u];
}

// Computes R, and gathers the rows of L that belong to the unit. P_uu is computed anew from P and not
// taken from S, which has drifted.
void PathState::find_root(int64_t slot) {
  const int64_t q = c_.taps, slots = columns_.slots, count = gathered_.count;
  double *own = gathered_.own.data(), *r = gathered_.root.data();
  for (int64_t k = 0; k < count; ++k)
    for (int64_t a = 0; a < q; ++a) own[k * q + a] = *gathered_.rows.at(k, a * slots + slot);
  for (int64_t a = 0; a < q; ++a)
    for (int64_t b = 0; b < q; ++b)
      r[a * q + b] = b < a ? 0.0 : *basis_.at(a * slots + slot, b * slots + slot);
  for (int64_t k = 0; k < count; ++k)
    for (int64_t a = 0; a < q; ++a)
      for (int64_t b = a; b < q; ++b) r[a * q + b] -= own[k * q + a] * own[k * q + b];
  for (int64_t i = 0; i < q; ++i) {
    for (int64_t k = 0; k < i; ++k)
      for (int64_t j = i; j < q; ++j) r[i * q + j] -= r[k * q + i] * r[k * q + j];
    const double root = std::sqrt(r[i * q + i]);
    for (int64_t j = i; j < q; ++j) r[i * q + j] /= root;
  }
}

bool PathState::pivot(const Tile& tile, int64_t slot, double* error) {
  const int64_t q = c_.taps;
  find_root(slot);
  for (int64_t i = 0; i < q; ++i) {
    const double root = gathered_.root[static_cast<size_t>(i * q + i)];
    if (!(root > 0.0) || !std::isfinite(root)) return false;
  }
  *error += c_.scale * form_->pivot(tile, gathered_, slot);
  return true;
}

// Writes what is known without rounding: zeros in the columns of removed units, and R in the unit's
// own.
void PathState::set_known(const Slots& slots, int64_t slot, int64_t panel, double* rows) const {
  const int64_t q = c_.taps, begin = panel * kDoubleWidth;
  const int64_t end = std::min(begin + kDoubleWidth, q * columns_.slots);
  for (int64_t j = begin; j < end; ++j) {
    const int64_t u = j % columns_.slots;
    if (slots.alive[static_cast<size_t>(u)] && u != slot) continue;
    for (int64_t k = 0; k < q; ++k)
      rows[k * kDoubleWidth + j - begin] =
          u == slot ? gathered_.root[static_cast<size_t>(k * q + j / columns_.slots)] : 0.0;
  }
}

void PathState::advance_panel(const Tile& tile, const Slots& slots, int64_t slot, int64_t panel) {
  const int64_t q = c_.taps;
  double* before = gathered_.rows.panel(panel);
  double* l = before + gathered_.count * kDoubleWidth;
  for (int64_t a = 0; a < q; ++a)
    gather_row(basis_, a * columns_.slots + slot, panel, l + a * kDoubleWidth);
  subtract_rows(tile, q, gathered_.count, gathered_.own.data(), before, l);
  tile.solve_rows(q, gathered_.root.data(), q, 1, l, kDoubleWidth);
  set_known(slots, slot, panel, l);
  form_->advance(tile, gathered_, slot, panel);
}

// Updates S, A and the scores of some slots, once all their columns have the new rows.
void PathState::advance_units(const Tile& tile, int64_t first, int64_t last) {
  const UnitPanels l{gathered_.rows.panel(0), gathered_.rows.rows()};
  tile.unit_update(c_.taps, columns_.slots, first, last, l, gathered_.count, form_->cross(gathered_),
                   s_.data(), a_.data());
  score(tile, first, last);
}

void PathState::advance(const Tile& tile, Team& team, const Slots& slots, int64_t slot) {
  const int64_t q = c_.taps;
  // With few rows memory is the limit, and 6 more rows would take about the same time.
  const int64_t cost = columns_.size() * (q + 6) * (gathered_.count + form_->advance_cost(gathered_));
  const bool worth = cost > kWorthTeam;
  run_if(worth, team, gathered_.rows.count(), [&](int64_t p) {
    advance_panel(tile, slots, slot, p);
    const int64_t first = p * kDoubleWidth;  // with one tap, a panel has all columns of its units
    if (q == 1 && first < columns_.slots)
      advance_units(tile, first, std::min(first + kDoubleWidth, columns_.slots));
  });
  if (q != 1)
    run_if(worth, team, columns_.slots / kLanes,
           [&](int64_t item) { advance_units(tile, item * kLanes, (item + 1) * kLanes); });
  gathered_.count += q;
}

// Writes one row of the factor, in the order of the features; those of units removed earlier are zero.
void PathState::emit(int64_t row) {
  const double* from = gathered_.rows.panel(0) + row * kDoubleWidth;
  double* to = c_.factor + (emitted_ + row) * c_.features;
  for (int64_t j = 0; j < c_.features; ++j) {
    const int64_t place = place_[static_cast<size_t>(j)];
    to[j] = place < 0 ? 0.0 : from[place];
  }
}

void PathState::flush(const Tile& tile, Team& team, bool last) {
  const int64_t n = columns_.size();
  Team alone(1);
  Team& any = n * n * gathered_.count > kWorthTeam ? team : alone;
  any.run(gathered_.count, [&](int64_t row) { emit(row); });
  if (!last) subtract_upper(tile, any, gathered_.rows, gathered_.rows, gathered_.count, basis_);
  form_->flush(tile, any, gathered_, emitted_, last);
  emitted_ += gathered_.count;
  gathered_.count = 0;
}

void PathState::compact(const Slots& before, const Slots& after) {
  std::vector<int64_t> from, source;
  for (int64_t a = 0; a < c_.taps; ++a)
    for (int64_t unit : after.unit) {
      from.push_back(unit < 0 ? -1 : a * before.size() + before.slot_of[static_cast<size_t>(unit)]);
      source.push_back(unit < 0 ? -1 : columns_.source[static_cast<size_t>(from.back())]);
    }
  for (int64_t j = c_.taps * before.size(); j < columns_.size(); ++j) {
    from.push_back(j);
    source.push_back(columns_.source[static_cast<size_t>(j)]);
  }
  columns_.source = std::move(source);
  columns_.slots = after.size();
  compact_panels(basis_, from, true);
  form_->compact(from);
  gathered_.rows.reshape(gathered_.rows.rows(), columns_.size());
  place_features();
  resize_blocks();
}

void PathState::finish(const Tile& tile, Team& team, const int64_t* order, int64_t count, int64_t steps,
                       double* errors) {
  basis_ = Panels(0, 0);
  gathered_.rows = Panels(0, 0);
  form_->finish(tile, team, order, count, errors);
  const int64_t done = count * c_.taps, all = steps * c_.taps;
  std::fill(c_.factor + done * c_.features, c_.factor + all * c_.features, 0.0);
  std::fill(c_.residual + done * c_.outputs, c_.residual + all * c_.outputs, 0.0);
}

}  // namespace reapx
