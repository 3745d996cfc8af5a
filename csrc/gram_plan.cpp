#include <algorithm>
#include <array>

#include "gram_forms.h"

namespace reapx {

namespace {

struct Piece {
  int64_t point;  // -1: the whole axis
  double sign;
};

// Sum over outputs = sum over the whole axis - sum over the outputs that do not exist but for which
// both taps hit the input.
std::vector<Piece> axis_pieces(const Axis& axis, int64_t a, int64_t b) {
  std::vector<Piece> pieces{{-1, 1.0}};
  const int64_t span = (axis.kernel - 1) * axis.dilation;
  for (int64_t o = axis.padding - span; o < axis.input + axis.padding; ++o) {
    if (o >= 0 && o < axis.output) continue;
    const int64_t u = o + a * axis.dilation - axis.padding, v = o + b * axis.dilation - axis.padding;
    if (u >= 0 && u < axis.input && v >= 0 && v < axis.input) pieces.push_back({u, -1.0});
  }
  return pieces;
}

bool suits(const Axis& axis) {
  const int64_t span = (axis.kernel - 1) * axis.dilation;
  return axis.stride == 1 && axis.input + span - axis.output <= 2 * span;
}

using Key = std::array<int64_t, 4>;

class Planner {
 public:
  Planner(const GramTask& task, ShiftPlan& plan) : task_(task), plan_(plan) {}

  void add_pair(int64_t a, int64_t b) {
    const int64_t kc = task_.columns.kernel;
    std::vector<ShiftUse>& uses = plan_.pair_uses[static_cast<size_t>(a * task_.taps() + b)];
    const int64_t row_shift = b / kc - a / kc, column_shift = b % kc - a % kc;
    // Shifts that share a product: the panel holds `copies` neighbouring columns.
    const int64_t offset = column_shift + kc - 1;
    const int64_t base = offset / plan_.copies * plan_.copies - (kc - 1);
    for (const Piece& row : axis_pieces(task_.rows, a / kc, b / kc))
      for (const Piece& column : axis_pieces(task_.columns, a % kc, b % kc)) {
        const double sign = row.sign * column.sign;
        uses.push_back(
            {product({row.point, column.point, row_shift, base}, a == b), column_shift - base, sign});
        if (a == b)
          plan_.tap_uses[static_cast<size_t>(a)].push_back({sum(row.point, column.point), 0, sign});
      }
  }

 private:
  int64_t product(const Key& key, bool diagonal) {
    const auto [at, added] = products_.try_emplace(key, static_cast<int64_t>(plan_.products.size()));
    if (added)
      plan_.products.push_back({key[0], key[1], key[2], key[3], diagonal && plan_.copies == 1});
    return at->second;
  }
  int64_t sum(int64_t row, int64_t column) {
    const auto [at, added] = sums_.try_emplace({row, column}, static_cast<int64_t>(plan_.sums.size()));
    if (added) plan_.sums.push_back({row, column});
    return at->second;
  }

  const GramTask& task_;
  ShiftPlan& plan_;
  std::map<Key, int64_t> products_;
  std::map<std::pair<int64_t, int64_t>, int64_t> sums_;
};

}  // namespace

ShiftPlan plan_shifts(const GramTask& task) {
  ShiftPlan plan{};
  const int64_t taps = task.taps();
  plan.possible = taps > 1 && suits(task.rows) && suits(task.columns);
  if (!plan.possible) return plan;
  plan.copies = std::max<int64_t>(1, kFloatWidth / task.group_channels());
  plan.pair_uses.resize(static_cast<size_t>(taps * taps));
  plan.tap_uses.resize(static_cast<size_t>(taps));
  Planner planner(task, plan);
  for (int64_t a = 0; a < taps; ++a)
    for (int64_t b = a; b < taps; ++b) planner.add_pair(a, b);
  return plan;
}

double shift_cost(const GramTask& task, const ShiftPlan& plan) {
  const Axis &r = task.rows, &c = task.columns;
  const double pitch = static_cast<double>(std::max(c.input + (c.kernel - 1) * c.dilation, c.output));
  const double panels = static_cast<double>(panels_of(task.group_channels()));
  const double width = panels * kFloatWidth;
  const double channels = static_cast<double>((task.group_channels() + 7) / 8 * 8);
  double cost = static_cast<double>(r.input) * pitch * width * kFloatWidth;
  for (const ShiftProduct& p : plan.products) {
    const double positions =
        (p.row < 0 ? static_cast<double>(r.input) : 1.0) * (p.column < 0 ? pitch : 1.0);
    cost += positions * channels * width * (p.symmetric ? 0.5 * (1 + 1 / panels) : 1.0);
  }
  const double groups_of_taps =
      static_cast<double>(r.kernel * ((c.kernel + plan.copies - 1) / plan.copies));
  cost += static_cast<double>(r.output) * pitch * groups_of_taps * width *
          static_cast<double>((task.group_targets() + 7) / 8 * 8);
  // Measured: putting the pieces together costs as much as 300 products for each entry of the result.
  const double entries = static_cast<double>(task.features()) * static_cast<double>(task.features());
  return cost * static_cast<double>(task.input.images) + 300.0 * entries;
}

}  // namespace reapx
