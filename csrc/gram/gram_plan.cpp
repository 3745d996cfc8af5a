#include "gram/gram_plan.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

namespace reapx {

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

Span span_of(const AxisPlan& plan, const AxisTerm& term, int64_t margin) {
  if (term.point >= 0) return {term.point, term.point + 1};
  return overlap(plan.length(term.a_phase), plan.length(term.b_phase), term.shift, margin);
}

namespace {

struct SignedTerm {
  AxisTerm term;
  int64_t copy;
  double sign;
};

// The terms of one pair of taps: the sum over the outputs is that over the whole phase, less those of
// the outputs that do not exist although both taps would read inside the input. The shift is rounded
// down to a multiple of `copies` taps, and the copy says which of the shifts from there it is.
std::vector<SignedTerm> terms_of(const AxisPlan& plan, int64_t a, int64_t b, int64_t copies) {
  const PhaseTap &from = plan.tap(a), &to = plan.tap(b);
  const int64_t taps = to.index - from.index + plan.most - 1;
  const int64_t copy = taps % copies;
  const int64_t shift = to.offset - from.offset - copy * plan.unit;
  std::vector<SignedTerm> terms{{{from.phase, to.phase, shift, -1}, copy, 1.0}};
  const int64_t begin = std::max(-from.offset, -to.offset);
  const int64_t end =
      std::min(plan.length(from.phase) - from.offset, plan.length(to.phase) - to.offset);
  for (int64_t o = begin; o < end; ++o)
    if (o < 0 || o >= plan.axis.output)
      terms.push_back({{from.phase, to.phase, shift, o + from.offset}, copy, -1.0});
  return terms;
}

// All pairs of taps of one axis, [a * kernel + b].
std::vector<std::vector<SignedTerm>> all_terms(const AxisPlan& plan, int64_t copies) {
  std::vector<std::vector<SignedTerm>> all;
  for (int64_t a = 0; a < plan.axis.kernel; ++a)
    for (int64_t b = 0; b < plan.axis.kernel; ++b) all.push_back(terms_of(plan, a, b, copies));
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
      copies(std::clamp<int64_t>(most_copies, 1, 2 * columns.most - 1)) {
  if (!possible) return;
  const int64_t taps = task.taps(), kernel = task.columns.kernel;
  const auto row_terms = all_terms(rows, 1), column_terms = all_terms(columns, copies);
  pair_uses.resize(static_cast<size_t>(taps * taps));
  std::map<std::pair<AxisTerm, AxisTerm>, size_t> known;
  for (int64_t a = 0; a < taps; ++a)
    for (int64_t b = a; b < taps; ++b)
      for (const SignedTerm& r :
           row_terms[static_cast<size_t>(a / kernel * task.rows.kernel + b / kernel)])
        for (const SignedTerm& c :
             column_terms[static_cast<size_t>(a % kernel * kernel + b % kernel)]) {
          const auto [at, added] = known.try_emplace({r.term, c.term}, products.size());
          if (added) products.push_back({r.term, c.term, false});
          products[at->second].diagonal |= a == b;
          pair_uses[static_cast<size_t>(a * taps + b)].push_back(
              {static_cast<int64_t>(at->second), c.copy, r.sign * c.sign});
        }
}

}  // namespace reapx
