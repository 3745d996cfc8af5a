#include "pairs/pair_state.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace reapx {

namespace {

constexpr int64_t kPackedRows = 16;  // rows of W that are packed at a time, so that they stay in L1

}  // namespace

PairState::PairState(const PairConsumer& consumer, int64_t units, int64_t steps)
    : c_(consumer),
      units_(units),
      panels_((units + kDoubleWidth - 1) / kDoubleWidth),
      slots_(waits() ? steps | 1 : 1),
      follows_(steps > 1),
      products_(static_cast<size_t>(units * c_.taps * c_.taps)),
      blocks_(static_cast<size_t>(units * c_.taps * c_.taps)) {
  for (int64_t i = 0; i < units * c_.taps; ++i) adjacent_ &= c_.columns[i] == c_.columns[0] + i;
  if (!follows_) return;
  packed_.resize(static_cast<size_t>(panels_ * c_.taps * c_.outputs * kDoubleWidth));
  // With one tap, computing forms from G is faster than reading them from memory.
  if (c_.taps > 1) forms_.resize(static_cast<size_t>(2 * units * units));
  has_forms_.resize(static_cast<size_t>(units));
  seen_.resize(static_cast<size_t>(units));
  shares_.resize(static_cast<size_t>(panels_ * slots_ * c_.taps * c_.taps * kDoubleWidth));
  moves_.resize(shares_.size());
}

void PairState::read_units(const Tile& tile, int64_t panel, PairScratch& scratch) {
  const int64_t taps = c_.taps, first = panel * kDoubleWidth;
  for (int64_t u = first; u < std::min(first + kDoubleWidth, units_); ++u)
    for (int64_t a = 0; a < taps; ++a) {
      const double* row = c_.gram + columns_of(u)[a] * c_.features;
      for (int64_t b = 0; b < taps; ++b)
        blocks_[static_cast<size_t>((a * units_ + u) * taps + b)] = row[columns_of(u)[b]];
    }
  if (!follows_) scratch.packed.resize(static_cast<size_t>(taps * c_.outputs * kDoubleWidth));
  double* packed = follows_ ? packed_panel(panel) : scratch.packed.data();
  pack(panel, packed);
  read_products(tile, panel, 0, kDoubleWidth, packed, scratch);
}

void PairState::pack(int64_t panel, double* packed) const {
  const int64_t taps = c_.taps, first = panel * kDoubleWidth;
  const int64_t count = std::min(kDoubleWidth, units_ - first);
  if (count < kDoubleWidth) std::fill(packed, packed + taps * c_.outputs * kDoubleWidth, 0.0);
  for (int64_t m = 0; m < c_.outputs; m += kPackedRows)
    for (int64_t i = 0; i < count * taps; ++i) {
      const double* from = c_.weight + columns_of(first)[i];
      double* column = packed + i % taps * c_.outputs * kDoubleWidth + i / taps;
      for (int64_t k = m; k < std::min(m + kPackedRows, c_.outputs); ++k)
        column[k * kDoubleWidth] = from[k * c_.features];
    }
}

void PairState::read_products(const Tile& tile, int64_t panel, int64_t first, int64_t last,
                              const double* packed, PairScratch& scratch) {
  const int64_t taps = c_.taps, start = panel * kDoubleWidth;
  scratch.work.resize(static_cast<size_t>(taps * taps * kDoubleWidth));
  double* work = scratch.work.data();
  tile.unit_gram(taps, kDoubleWidth, first, last, {packed, c_.outputs}, c_.outputs, work);
  for (int64_t u = first; u < std::min(last, units_ - start); ++u)
    for (int64_t a = 0; a < taps; ++a)
      for (int64_t b = 0; b < taps; ++b)
        products_[static_cast<size_t>(((start + u) * taps + a) * taps + b)] =
            work[(std::min(a, b) * taps + std::max(a, b)) * kDoubleWidth + u];
}

void PairState::read_forms(const Tile& tile, int64_t q, PairScratch& scratch, double* inner,
                           double* norms) const {
  const int64_t taps = c_.taps, width = units_ * taps;
  scratch.work.resize(static_cast<size_t>(taps * (taps + 2) * kLanes));
  scratch.rows.resize(static_cast<size_t>(taps));
  scratch.blocks.resize(static_cast<size_t>(taps));
  if (!adjacent_) scratch.gathered.resize(static_cast<size_t>(taps * width));
  for (int64_t a = 0; a < taps; ++a) {
    const double* row = c_.gram + columns_of(q)[a] * c_.features;
    if (adjacent_) {
      scratch.rows[static_cast<size_t>(a)] = row + c_.columns[0];
    } else {
      double* gathered = scratch.gathered.data() + a * width;
      for (int64_t i = 0; i < width; ++i) gathered[i] = row[c_.columns[i]];
      scratch.rows[static_cast<size_t>(a)] = gathered;
    }
    scratch.blocks[static_cast<size_t>(a)] = blocks_.data() + a * width;
  }
  const double* product = products_.data() + q * taps * taps;
  tile.pair_products(taps, units_, scratch.rows.data(), scratch.blocks.data(), product, inner, norms,
                     scratch.work.data());
}

PairState::FormRows PairState::forms_of(const Tile& tile, int64_t q, PairScratch& scratch) {
  if (forms_.empty()) {
    scratch.inner.resize(static_cast<size_t>(units_));
    scratch.norms.resize(static_cast<size_t>(units_));
    read_forms(tile, q, scratch, scratch.inner.data(), scratch.norms.data());
    return {scratch.inner.data(), scratch.norms.data()};
  }
  double* inner = forms_.data() + 2 * q * units_;
  char& has = has_forms_[static_cast<size_t>(q)];
  if (!has) read_forms(tile, q, scratch, inner, inner + units_);
  has = true;
  return {inner, inner + units_};
}

double PairState::add_errors(const Tile& tile, int64_t q, PairScratch& scratch, double* total) {
  const FormRows forms = forms_of(tile, q, scratch);
  const double* overlaps = overlaps_.empty() ? nullptr : overlaps_of(q);
  const double own = forms.norms[q] - (overlaps ? 2 * overlaps[q] : 0.0);
  tile.add_pair_errors(units_, own, c_.scale, forms.inner, overlaps, forms.norms, total);
  return c_.scale * own;
}

double PairState::find_gain(const Tile& tile, int64_t q, int64_t p, PairScratch& scratch) {
  const FormRows forms = forms_of(tile, q, scratch);
  const double inner = forms.inner[p] - (overlaps_.empty() ? 0.0 : overlaps_of(q)[p]);
  const double gain = forms.norms[p] > 0 ? inner / forms.norms[p] : 0.0;
  return std::isfinite(gain) ? gain : 0.0;
}

void PairState::fold() {
  leaving_.resize(static_cast<size_t>(c_.outputs * c_.taps));
  for (int64_t m = 0; m < c_.outputs; ++m) {
    double* row = c_.weight + m * c_.features;
    for (int64_t a = 0; a < c_.taps; ++a) {
      double* gone = row + columns_of(q_)[a];
      leaving_[static_cast<size_t>(m * c_.taps + a)] = *gone;
      if (gain_ != 0.0) row[columns_of(p_)[a]] += gain_ * *gone;  // 0 * inf would be NaN
      *gone = 0.0;
    }
  }
}

void PairState::unify(const Tile& tile, int64_t step, int64_t q, int64_t p, PairScratch& scratch) {
  if (waits() && step_ >= 0)
    for (const int64_t unit : {q, p}) add_late(tile, unit, scratch);
  step_ = step;
  q_ = q;
  p_ = p;
  gain_ = c_.gains[step] = find_gain(tile, q, p, scratch);
  fold();
  if (!follows_) return;
  overlaps_.resize(static_cast<size_t>(units_ * panels_ * kDoubleWidth));
  // R is linear in W, so this makes row p that of the new W_p.
  if (gain_ != 0.0) tile.add_scaled(units_, gain_, overlaps_of(q), overlaps_of(p));
  const int64_t panel = p / kDoubleWidth, lane = p % kDoubleWidth, first = lane / kLanes * kLanes;
  double* packed = packed_panel(panel) + lane;
  for (int64_t a = 0; a < c_.taps; ++a)
    for (int64_t m = 0; m < c_.outputs; ++m)
      packed[(a * c_.outputs + m) * kDoubleWidth] = c_.weight[m * c_.features + columns_of(p)[a]];
  read_products(tile, panel, first, first + kLanes, packed_panel(panel), scratch);
  has_forms_[static_cast<size_t>(p)] = false;
}

void PairState::read_step(const Tile& tile, int64_t panel) {
  const int64_t taps = c_.taps, first = panel * kDoubleWidth;
  const int64_t count = std::min(kDoubleWidth, units_ - first);
  double* shares = shares_.data() + step_at(panel);
  double* moves = moves_.data() + step_at(panel);
  std::fill(shares, shares + taps * taps * kDoubleWidth, 0.0);
  const int64_t parts =
      (taps + kTileRows - 1) / kTileRows;  // of about equal size, since few rows are no faster
  for (int64_t a = 0; a < taps; ++a)
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t b = taps * part / parts, end = taps * (part + 1) / parts;
      tile.subtract_products(end - b, c_.outputs, leaving_.data() + b, taps,
                             packed_panel(panel) + a * c_.outputs * kDoubleWidth,
                             shares + (a * taps + b) * kDoubleWidth);
    }
  for (int64_t b = 0; b < taps; ++b) {
    const double* gone = c_.gram + columns_of(q_)[b] * c_.features;
    const double* grown = c_.gram + columns_of(p_)[b] * c_.features;
    for (int64_t i = 0; i < count * taps; ++i) {
      const int64_t column = columns_of(first)[i];
      moves[(i % taps * taps + b) * kDoubleWidth + i / taps] =
          (gain_ != 0.0 ? gain_ * grown[column] : 0.0) - gone[column];  // 0 * NaN would be NaN
    }
  }
}

void PairState::add_overlaps(const Tile& tile, const int64_t* units, int64_t count,
                             PairScratch& scratch) {
  const int64_t terms = c_.taps * c_.taps;
  if (waits()) {
    for (int64_t i = 0; i < count; ++i) add_late(tile, units[i], scratch);
    return;
  }
  scratch.shares.resize(static_cast<size_t>(terms * kTileRows));
  for (int64_t i = 0; i < count; ++i) {
    const double* from = shares_.data() + step_at(units[i] / kDoubleWidth);
    for (int64_t k = 0; k < terms; ++k)
      scratch.shares[static_cast<size_t>(k * kTileRows + i)] =
          from[k * kDoubleWidth + units[i] % kDoubleWidth];
  }
  for (int64_t panel = 0; panel < panels_; ++panel) {
    double sums[kTileRows * kDoubleWidth] = {};
    tile.subtract_products(count, terms, scratch.shares.data(), kTileRows,
                           moves_.data() + step_at(panel), sums);
    for (int64_t i = 0; i < count; ++i) {
      double* to = overlaps_of(units[i]) + panel * kDoubleWidth;
      for (int64_t j = 0; j < kDoubleWidth; ++j) to[j] += sums[i * kDoubleWidth + j];
    }
  }
}

void PairState::add_late(const Tile& tile, int64_t unit, PairScratch& scratch) {
  const int64_t first = std::exchange(seen_[static_cast<size_t>(unit)], step_ + 1);
  const int64_t steps = step_ + 1 - first;
  if (steps == 0) return;
  scratch.shares.resize(static_cast<size_t>(steps));
  const double* from = shares_.data() + (unit / kDoubleWidth * slots_ + first) * kDoubleWidth;
  for (int64_t k = 0; k < steps; ++k)
    scratch.shares[static_cast<size_t>(k)] = from[k * kDoubleWidth + unit % kDoubleWidth];
  for (int64_t panel = 0; panel < panels_; ++panel)
    tile.subtract_products(1, steps, scratch.shares.data(), 1,
                           moves_.data() + (panel * slots_ + first) * kDoubleWidth,
                           overlaps_of(unit) + panel * kDoubleWidth);
}

void PairState::add_drifts(const double* gone, double* bases, double* squares) const {
  const auto each = [&](auto look) {
    for (int64_t u = 0; u < units_; ++u) {
      const int64_t at = step_at(u / kDoubleWidth) + u % kDoubleWidth;
      if (gone[u] == 0.0) look(u, -shares_[static_cast<size_t>(at)], moves_[static_cast<size_t>(at)]);
    }
  };
  // Pairs whose change is not finite have no finite error from then on, so they need no bound. Neither
  // do units without a norm, whose gain is always 0.
  double largest = 0.0;
  each([&](int64_t u, double, double move) {
    const double norm = blocks_[static_cast<size_t>(u)], square = norm > 0 ? move * move / norm : 0.0;
    if (square > largest && std::isfinite(square)) largest = square;
  });
  each([&](int64_t u, double share, double move) {
    const double product = products_[static_cast<size_t>(u)];
    bases[u] -= 2 * c_.scale * share * move;
    if (product != 0.0) squares[u] += c_.scale * largest * (share * share / product);
  });
}

}  // namespace reapx
