#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "gram/gram_forms.h"

namespace reapx {

constexpr double kUseCost = 20;  // multiply-adds for each entry of a block that a piece is added to

AxisPlan::AxisPlan(const Axis& given) : axis(given) {
  const int64_t common = std::gcd(axis.stride, axis.dilation);
  const int64_t step = axis.stride / common;  // neighbouring taps of a phase
  unit = axis.dilation / common;
  for (int64_t a = 0; a < axis.kernel; ++a) {
    const int64_t input = a * axis.dilation - axis.padding;
    const int64_t phase = (input % axis.stride + axis.stride) % axis.stride;
    if (a < step) phases.push_back(phase);
    taps.push_back({a % step, (input - phase) / axis.stride, a / step});
    most = std::max(most, a / step + 1);
  }
}

int64_t AxisPlan::length(int64_t index) const {
  return std::max<int64_t>(0, (axis.input - first(index) + axis.stride - 1) / axis.stride);
}

Span overlap(int64_t length, int64_t other, int64_t shift, int64_t margin) {
  const int64_t begin = std::max<int64_t>(0, -shift - margin);
  return {begin, std::max(begin, std::min(length, other - shift))};
}

Span span_of(const AxisPlan& plan, const Piece& piece, int64_t margin) {
  if (piece.point >= 0) return {piece.point, piece.point + 1};
  return overlap(plan.length(piece.a_phase), plan.length(piece.b_phase), piece.shift, margin);
}

namespace {

struct SignedPiece {
  Piece piece;
  int64_t copy;
  double sign;
};

// Sum over outputs = sum over the whole phase - sum over the outputs that do not exist but for which
// both taps hit the input. The shift is rounded down to a multiple of `copies` taps.
std::vector<SignedPiece> pieces_of(const AxisPlan& plan, int64_t a, int64_t b, int64_t copies) {
  const TapPlace &from = plan.tap(a), &to = plan.tap(b);
  const int64_t taps = to.index - from.index + plan.most - 1;
  const int64_t copy = taps % copies;
  const int64_t shift = to.offset - from.offset - copy * plan.unit;
  std::vector<SignedPiece> pieces{{{from.phase, to.phase, shift, -1}, copy, 1.0}};
  const int64_t begin = std::max(-from.offset, -to.offset);
  const int64_t end =
      std::min(plan.length(from.phase) - from.offset, plan.length(to.phase) - to.offset);
  for (int64_t o = begin; o < end; ++o)
    if (o < 0 || o >= plan.axis.output)
      pieces.push_back({{from.phase, to.phase, shift, o + from.offset}, copy, -1.0});
  return pieces;
}

// All pairs of taps of one axis, [a * kernel + b].
std::vector<std::vector<SignedPiece>> all_pieces(const AxisPlan& plan, int64_t copies) {
  std::vector<std::vector<SignedPiece>> all;
  for (int64_t a = 0; a < plan.axis.kernel; ++a)
    for (int64_t b = 0; b < plan.axis.kernel; ++b) all.push_back(pieces_of(plan, a, b, copies));
  return all;
}

// An output size that leaves out much of the input would need a product for each position left out.
bool suits(const AxisPlan& plan) {
  const Axis& axis = plan.axis;
  const int64_t limit = 2 * ((axis.kernel - 1) * axis.dilation / axis.stride + 1);
  for (int64_t a = 0; a < axis.kernel; ++a) {
    const int64_t begin = -plan.tap(a).offset, end = begin + plan.length(plan.tap(a).phase);
    if (end - begin - std::max<int64_t>(0, std::min(end, axis.output) - std::max<int64_t>(begin, 0)) >
        limit)
      return false;
  }
  return true;
}

}  // namespace

ShiftPlan::ShiftPlan(const GramTask& task, int64_t most_copies)
    : rows(task.rows),
      columns(task.columns),
      possible(task.taps() > 1 && suits(rows) && suits(columns)),
      copies(std::clamp<int64_t>(kFloatWidth / std::max<int64_t>(1, task.group_channels()), 1,
                                 std::min(most_copies, 2 * columns.most - 1))) {
  if (!possible) return;
  const int64_t taps = task.taps(), kernel = task.columns.kernel;
  const auto row_pieces = all_pieces(rows, 1), column_pieces = all_pieces(columns, copies);
  pair_uses.resize(static_cast<size_t>(taps * taps));
  std::map<std::pair<Piece, Piece>, size_t> known;
  for (int64_t a = 0; a < taps; ++a)
    for (int64_t b = a; b < taps; ++b)
      for (const SignedPiece& r :
           row_pieces[static_cast<size_t>(a / kernel * task.rows.kernel + b / kernel)])
        for (const SignedPiece& c :
             column_pieces[static_cast<size_t>(a % kernel * kernel + b % kernel)]) {
          const auto [at, added] = known.try_emplace({r.piece, c.piece}, products.size());
          if (added) products.push_back({r.piece, c.piece, false});
          products[at->second].diagonal |= a == b;
          pair_uses[static_cast<size_t>(a * taps + b)].push_back(
              {static_cast<int64_t>(at->second), c.copy, r.sign * c.sign});
        }
}

double least_shift_cost(const GramTask& task) {
  const double taps = static_cast<double>(task.taps());
  return kUseCost * static_cast<double>(kBlockSize) * taps * (taps + 1) / 2;
}

double shift_cost(const GramTask& task, const ShiftPlan& plan) {
  const auto count = [](const AxisPlan& axis, const Piece& piece, int64_t margin) {
    const Span span = span_of(axis, piece, margin);
    return static_cast<double>(span.end - span.begin);
  };
  const double panels = static_cast<double>(panels_of(task.group_channels()));
  const double width = panels * kFloatWidth;
  // Measured: a tile of few rows waits for its loads and costs as much as two full ones.
  const int64_t tiles = (task.group_channels() + kTileRows - 1) / kTileRows;
  const int64_t waiting = task.group_channels() < kTileRows ? 2 : 1;
  const double channels = static_cast<double>(tiles * waiting * kTileRows);
  double cost = static_cast<double>(task.rows.input * task.columns.input) * width * kFloatWidth;
  for (const ShiftProduct& p : plan.products)
    cost += count(plan.rows, p.row, 0) * count(plan.columns, p.column, plan.margin()) * channels *
            width * (plan.symmetric(p) ? 0.5 * (1 + 1 / panels) : 1.0);
  cost += static_cast<double>(task.rows.output * task.columns.output) *
          static_cast<double>(task.rows.kernel * plan.column_groups()) * width *
          static_cast<double>((task.group_targets() + 7) / 8 * 8);
  double uses = static_cast<double>(plan.products.size());
  for (const auto& pair : plan.pair_uses) uses += 2 * static_cast<double>(pair.size());
  // Measured: putting the pieces together costs as much as 300 products for each entry of the result.
  const double entries = static_cast<double>(task.features()) * static_cast<double>(task.features());
  return cost * static_cast<double>(task.input.images) +
         kUseCost * uses * static_cast<double>(kBlockSize) + 300.0 * entries;
}

}  // namespace reapx
