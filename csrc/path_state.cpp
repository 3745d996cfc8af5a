#include "path_state.h"

#include <algorithm>
#include <cmath>

namespace reapx {

namespace {

constexpr int64_t kPanelRows = 64;
constexpr int64_t kWorthThreads = 1 << 19;  // multiply-adds of a step from which threads help

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

template <class Work>
void run_if(bool worth, Team& team, int64_t items, Work work) {
  if (worth) {
    team.run(items, work);
  } else {
    for (int64_t i = 0; i < items; ++i) work(i);
  }
}

// c (rows, kDoubleWidth) -= A^T B for any number of rows; a (terms, rows) next to each other.
void subtract_rows(const Tile& tile, int64_t rows, int64_t terms, const double* a, int64_t a_stride,
                   const double* b, double* c) {
  for (int64_t i = 0; i < rows; i += kTileRows)
    tile.subtract_products(std::min(kTileRows, rows - i), terms, a + i, a_stride, b,
                           c + i * kDoubleWidth);
}

}  // namespace

int64_t panel_rows(int64_t taps) { return std::max(kPanelRows, taps); }

Slots::Slots(const std::vector<bool>& alive_units) : slot_of(alive_units.size(), -1) {
  for (size_t u = 0; u < alive_units.size(); ++u)
    if (alive_units[u]) {
      slot_of[u] = size();
      unit.push_back(static_cast<int64_t>(u));
    }
  alive.assign(unit.size(), true);
  unit.resize(static_cast<size_t>(round_up(size(), kLanes)), -1);
  alive.resize(unit.size(), false);
}

ConsumerState::ConsumerState(const Tile& tile, Team& team, const PathConsumer& consumer,
                             const Slots& slots)
    : c_(consumer),
      slots_(slots.size()),
      basis_(0, 0),
      weight_(0, 0),
      factor_(0, 0),
      cross_(0, 0),
      residual_(consumer.outputs, panel_rows(consumer.taps)) {
  list_columns(slots);
  load(team);
  resize_blocks();
  refresh(tile, team);
}

void ConsumerState::list_columns(const Slots& slots) {
  std::vector<bool> covered(static_cast<size_t>(c_.features));
  for (size_t i = 0; i < slots.slot_of.size() * static_cast<size_t>(c_.taps); ++i)
    covered[static_cast<size_t>(c_.columns[i])] = true;
  for (int64_t a = 0; a < c_.taps; ++a)
    for (int64_t unit : slots.unit) source_.push_back(unit < 0 ? -1 : c_.columns[unit * c_.taps + a]);
  for (int64_t i = 0; i < c_.features; ++i)
    if (!covered[static_cast<size_t>(i)]) source_.push_back(i);
}

void ConsumerState::load(Team& team) {
  const int64_t n = source_size();
  basis_ = Panels(n, n);
  weight_ = Panels(c_.outputs, n);
  factor_ = Panels(panel_rows(c_.taps), n);
  cross_ = Panels(c_.taps, n);
  const int64_t* from = source_.data();
  const auto copy_row = [&](const double* row, int64_t i, int64_t first, Panels& to) {
    for (int64_t j = first; j < n; ++j)
      if (from[j] >= 0) *to.at(i, j) = row[from[j]];
  };
  // Row by row: a row of P fits the cache, and its columns are picked from all over it.
  team.run(basis_.count(), [&](int64_t p) {
    for (int64_t i = p * kDoubleWidth; i < std::min((p + 1) * kDoubleWidth, n); ++i)
      if (from[i] >= 0) copy_row(c_.basis + from[i] * c_.features, i, p * kDoubleWidth, basis_);
  });
  team.run(c_.outputs, [&](int64_t m) { copy_row(c_.weight + m * c_.features, m, 0, weight_); });
}

void ConsumerState::resize_blocks() {
  const size_t q = static_cast<size_t>(c_.taps), slots = static_cast<size_t>(slots_);
  s_.assign(q * q * slots, 0.0);
  a_.assign(q * q * slots, 0.0);
  work_.resize((q + 1) * q * static_cast<size_t>(kLanes));
  root_.resize(q * q);
  own_.resize(static_cast<size_t>(factor_.rows()) * q);
  own_cross_.resize((static_cast<size_t>(factor_.rows()) + q) * q);
  minus_v_.resize(static_cast<size_t>(c_.outputs) * q);
}

void ConsumerState::refresh(const Tile& tile, Team& team) {
  const int64_t q = c_.taps;
  const bool worth = q * q * slots_ * c_.outputs > kWorthThreads;
  run_if(worth, team, slots_ / kLanes, [&](int64_t item) {
    const int64_t first = item * kLanes, last = first + kLanes;
    for (int64_t x = 0; x < q; ++x)
      for (int64_t y = x; y < q; ++y)
        for (int64_t u = first; u < last; ++u)
          s_[static_cast<size_t>((x * q + y) * slots_ + u)] =
              *basis_.at(x * slots_ + u, y * slots_ + u);
    tile.unit_gram(q, slots_, first, last, {weight_.panel(0), weight_.rows()}, c_.outputs, a_.data());
  });
}

void ConsumerState::add_scores(const Tile& tile, std::vector<double>& scores) {
  std::vector<double> own(static_cast<size_t>(slots_));
  tile.unit_scores(c_.taps, slots_, s_.data(), a_.data(), own.data(), work_.data());
  for (size_t u = 0; u < own.size(); ++u) scores[u] += c_.scale * own[u];
}

// R and the rows of L that belong to the unit. The block is computed anew from P, not taken from S.
void ConsumerState::find_root(int64_t slot) {
  const int64_t q = c_.taps;
  for (int64_t k = 0; k < gathered_; ++k)
    for (int64_t a = 0; a < q; ++a)
      own_[static_cast<size_t>(k * q + a)] = *factor_.at(k, a * slots_ + slot);
  double* r = root_.data();
  for (int64_t a = 0; a < q; ++a)
    for (int64_t b = 0; b < q; ++b)
      r[a * q + b] = b < a ? 0.0 : *basis_.at(a * slots_ + slot, b * slots_ + slot);
  for (int64_t k = 0; k < gathered_; ++k) {
    const double* row = own_.data() + k * q;
    for (int64_t a = 0; a < q; ++a)
      for (int64_t b = a; b < q; ++b) r[a * q + b] -= row[a] * row[b];
  }
  for (int64_t i = 0; i < q; ++i) {
    for (int64_t k = 0; k < i; ++k)
      for (int64_t j = i; j < q; ++j) r[i * q + j] -= r[k * q + i] * r[k * q + j];
    const double root = std::sqrt(r[i * q + i]);
    for (int64_t j = i; j < q; ++j) r[i * q + j] /= root;
  }
}

// v = R^-T (W_u - L_u V), written as new rows of the output V and in the two forms that products read.
void ConsumerState::write_v(int64_t slot) {
  const int64_t q = c_.taps, outputs = c_.outputs;
  for (int64_t i = 0; i < q; ++i) {
    double* v = residual_row(gathered_ + i);
    for (int64_t m = 0; m < outputs; ++m) v[m] = *weight_.at(m, i * slots_ + slot);
    for (int64_t k = 0; k < gathered_ + i; ++k) {
      const size_t at = static_cast<size_t>(k < gathered_ ? k * q + i : (k - gathered_) * q + i);
      const double factor = k < gathered_ ? own_[at] : root_[at];
      const double* row = residual_row(k);
      for (int64_t m = 0; m < outputs; ++m) v[m] -= factor * row[m];
    }
    const double pivot = root_[static_cast<size_t>(i * q + i)];
    for (int64_t m = 0; m < outputs; ++m) {
      v[m] /= pivot;
      *residual_.at(m, gathered_ + i) = v[m];
      minus_v_[static_cast<size_t>(m * q + i)] = -v[m];
    }
  }
}

// V v^T and v v^T / 2 in one product over the outputs.
void ConsumerState::multiply_v(const Tile& tile) {
  const int64_t q = c_.taps, rows = gathered_ + q;
  std::vector<double> block(static_cast<size_t>(q * kDoubleWidth));
  for (int64_t p = 0; p * kDoubleWidth < rows; ++p) {
    std::fill(block.begin(), block.end(), 0.0);
    subtract_rows(tile, q, c_.outputs, minus_v_.data(), q, residual_.panel(p), block.data());
    for (int64_t k = p * kDoubleWidth; k < std::min(rows, (p + 1) * kDoubleWidth); ++k)
      for (int64_t i = 0; i < q; ++i)
        own_cross_[static_cast<size_t>(k * q + i)] =
            (k < gathered_ ? 1.0 : 0.5) *
            block[static_cast<size_t>(i * kDoubleWidth + k % kDoubleWidth)];
  }
}

bool ConsumerState::pivot(const Tile& tile, int64_t slot, double* error) {
  const int64_t q = c_.taps;
  find_root(slot);
  for (int64_t i = 0; i < q; ++i) {
    const double root = root_[static_cast<size_t>(i * q + i)];
    if (!(root > 0.0) || !std::isfinite(root)) return false;
  }
  write_v(slot);
  multiply_v(tile);
  double sum = 0.0;
  for (int64_t i = 0; i < q; ++i) sum += own_cross_[static_cast<size_t>((gathered_ + i) * q + i)];
  *error += c_.scale * 2.0 * sum;
  return true;
}

void ConsumerState::forget_pivot() {
  std::fill(residual_row(gathered_), residual_row(gathered_ + c_.taps), 0.0);
}

// One row of the symmetric P, read from its upper triangle, at the columns of one panel.
void ConsumerState::gather(int64_t row, int64_t panel, double* to) const {
  const int64_t begin = panel * kDoubleWidth, end = std::min(begin + kDoubleWidth, basis_.columns());
  std::fill(to, to + kDoubleWidth, 0.0);
  if (row <= begin) {
    std::copy(basis_.at(row, begin), basis_.at(row, begin) + (end - begin), to);
    return;
  }
  for (int64_t j = begin; j < end; ++j)
    to[j - begin] = j < row ? *basis_.at(j, row) : *basis_.at(row, j);
}

// What is known without rounding: zero in the columns of units that left, R in the unit's own.
void ConsumerState::set_known(const Slots& slots, int64_t slot, int64_t panel, double* rows) const {
  const int64_t q = c_.taps, begin = panel * kDoubleWidth;
  const int64_t end = std::min(begin + kDoubleWidth, q * slots_);
  for (int64_t j = begin; j < end; ++j) {
    const int64_t u = j % slots_;
    if (slots.alive[static_cast<size_t>(u)] && u != slot) continue;
    for (int64_t k = 0; k < q; ++k)
      rows[k * kDoubleWidth + j - begin] =
          u == slot ? root_[static_cast<size_t>(k * q + j / slots_)] : 0.0;
  }
}

void ConsumerState::advance_panel(const Tile& tile, const Slots& slots, int64_t slot, int64_t panel) {
  const int64_t q = c_.taps;
  const double* before = factor_.panel(panel);
  double* l = factor_.panel(panel) + gathered_ * kDoubleWidth;
  for (int64_t a = 0; a < q; ++a) gather(a * slots_ + slot, panel, l + a * kDoubleWidth);
  subtract_rows(tile, q, gathered_, own_.data(), q, before, l);
  tile.solve_rows(q, root_.data(), q, 1, l, kDoubleWidth);
  set_known(slots, slot, panel, l);
  double* z = cross_.panel(panel);
  std::fill(z, z + q * kDoubleWidth, 0.0);
  subtract_rows(tile, q, c_.outputs, minus_v_.data(), q, weight_.panel(panel), z);
  // The last q rows of own_cross_ are v v^T / 2: they meet the new rows of L.
  subtract_rows(tile, q, gathered_ + q, own_cross_.data(), q, before, z);
}

void ConsumerState::advance(const Tile& tile, Team& team, const Slots& slots, int64_t slot) {
  const bool worth = step_cost() > kWorthThreads;
  run_if(worth, team, factor_.count(), [&](int64_t p) { advance_panel(tile, slots, slot, p); });
  run_if(worth, team, slots_ / kLanes, [&](int64_t item) {
    tile.unit_update(c_.taps, slots_, item * kLanes, (item + 1) * kLanes,
                     {factor_.panel(0), factor_.rows()}, gathered_, {cross_.panel(0), cross_.rows()},
                     s_.data(), a_.data());
  });
  gathered_ += c_.taps;
}

void ConsumerState::emit(int64_t panel) {
  const int64_t begin = panel * kDoubleWidth, end = std::min(begin + kDoubleWidth, source_size());
  for (int64_t k = 0; k < gathered_; ++k)
    for (int64_t j = begin; j < end; ++j) {
      const int64_t feature = source_[static_cast<size_t>(j)];
      if (feature >= 0) c_.factor[(emitted_ + k) * c_.features + feature] = *factor_.at(k, j);
    }
}

void ConsumerState::flush(const Tile& tile, Team& team) {
  const int64_t n = source_size();
  const double* residual = residual_row(0);
  const bool worth = n * gathered_ * (n / 2 + c_.outputs) > kWorthThreads;
  run_if(worth, team, factor_.count(), [&](int64_t item) {
    const int64_t p = factor_.count() - 1 - item;  // the longest first
    emit(p);
    subtract_rows(tile, c_.outputs, gathered_, residual, c_.outputs, factor_.panel(p),
                  weight_.panel(p));
    subtract_block(tile, factor_, 0, std::min((p + 1) * kDoubleWidth, n), factor_.panel(p), 0,
                   gathered_, basis_.panel(p));
  });
  emitted_ += gathered_;
  gathered_ = 0;
}

// Every element moves to the same or a lower address, and elements are taken in ascending order of
// their new address: nothing is overwritten before it is read.
void ConsumerState::compact(const Slots& before, const Slots& after) {
  std::vector<int64_t> from, source;
  for (int64_t a = 0; a < c_.taps; ++a)
    for (int64_t unit : after.unit) {
      from.push_back(unit < 0 ? -1 : a * before.size() + before.slot_of[static_cast<size_t>(unit)]);
      source.push_back(unit < 0 ? -1 : source_[static_cast<size_t>(from.back())]);
    }
  for (int64_t j = c_.taps * before.size(); j < source_size(); ++j) {
    from.push_back(j);
    source.push_back(source_[static_cast<size_t>(j)]);
  }
  const int64_t n = static_cast<int64_t>(source.size()), padded = round_up(n, kDoubleWidth);
  from.resize(static_cast<size_t>(padded), -1);
  const auto move = [&](Panels& x, bool square) {
    const int64_t rows = square ? n : x.rows();
    for (int64_t p = 0; p < padded / kDoubleWidth; ++p) {
      double* to = x.panel(0) + p * rows * kDoubleWidth;
      const int64_t used = square ? std::min(n, (p + 1) * kDoubleWidth) : rows;  // the upper triangle
      for (int64_t i = 0; i < used; ++i)
        for (int64_t j = p * kDoubleWidth; j < (p + 1) * kDoubleWidth; ++j, ++to) {
          const int64_t row = square ? from[static_cast<size_t>(i)] : i;
          const int64_t column = from[static_cast<size_t>(j)];
          *to = row < 0 || column < 0 ? 0.0 : *x.at(row, column);
        }
    }
    x.reshape(rows, n);
  };
  move(basis_, true);
  move(weight_, false);
  factor_.reshape(factor_.rows(), n);
  cross_.reshape(cross_.rows(), n);
  source_ = std::move(source);
  slots_ = after.size();
  resize_blocks();
}

}  // namespace reapx
