// Form "shift" of gram_accumulate: which products of shifted maps a patch Gram matrix is made of. Both
// devices compute by such a plan. See gram.h for the result.
//
// Tap a of output o reads input o*stride + a*dilation - padding. Inputs that are `stride` apart form a
// phase, in which the tap reads position o + offset. For taps a and b in phases f and g and the shift
// d = offset_b - offset_a, the entry G[(c,a),(e,b)] is the sum over the outputs o of
//
//   x_c(o + offset_a) x_e(o + offset_b),    or, with v = o + offset_a, of    x_c(v) x_e(v + d).
//
// Over all positions v of the phase, that is the correlation of two whole maps, which depends on the
// phases and the shift only: many pairs of taps share it. It has too many terms: those of outputs
// that do not exist, although both taps would read inside the input. They are the boundary terms: along
// one axis, single positions v that are subtracted from the whole phase.
//
// Example: a map of 3 rows and 4 columns, kernel 3x3, stride 1, padding 1; so there is one phase, and
// the offsets of the taps of an axis are -1, 0 and 1. The pair of a = b = (0, 0) has the shift (0, 0),
// and reads, over all outputs, the positions marked s:
//
//              column 0 1 2 3       along the rows:      the whole phase, less position 2
//      row 0          s s s c       along the columns:   the whole phase, less position 3
//      row 1          s s s c
//      row 2          r r r x
//
// The product of both is inclusion and exclusion: all 12 positions, less row 2 (r and x, 4 positions),
// less column 3 (c and x, 3 positions), plus the corner x, which was subtracted twice: 6 positions. So
// the entry is made of four products: whole x whole, whole x position, position x whole and position x
// position. The first one serves all nine pairs of equal taps, and the 45 pairs that 9 taps have need
// no more than 13 whole products, one for each shift. A pair may need no boundary term: for the taps
// (0, 0) and (0, 1), shift (0, 1), the outputs 1, 2 and 3 read the columns v = 0, 1 and 2, which are
// all that have a neighbour v + 1.
//
// With stride 2, taps 0 and 2 of 4 inputs both read the odd ones, at offsets -1 and 0 of that phase,
// and tap 1 reads the even ones, at offset 0.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "gram/gram.h"

namespace reapx {

// A tap along one axis, as it lies in its phase.
struct PhaseTap {
  int64_t phase;   // index into AxisPlan::phases
  int64_t offset;  // position in the phase that output 0 reads
  int64_t index;   // among the taps of this phase; the next one reads `unit` positions further
};

struct AxisPlan {
  explicit AxisPlan(const Axis& axis);

  // The first input of phase `index`, and how many inputs it has.
  int64_t first(int64_t index) const { return phases[static_cast<size_t>(index)]; }
  int64_t length(int64_t index) const;
  const PhaseTap& tap(int64_t a) const { return taps[static_cast<size_t>(a)]; }
  int64_t phase_count() const { return static_cast<int64_t>(phases.size()); }
  // Offset of the first tap of a phase.
  int64_t origin(int64_t phase) const { return tap(phase).offset; }

  Axis axis;
  int64_t unit;      // positions between neighbouring taps of a phase
  int64_t most = 0;  // taps of the phase that has most
  std::vector<int64_t> phases;
  std::vector<PhaseTap> taps;
};

// One axis of a product: operands x(v) and x(v + shift), where v runs over the whole phase, or, in a
// boundary term, is one position.
struct AxisTerm {
  int64_t a_phase, b_phase;
  int64_t shift;
  int64_t point;  // the position of a boundary term, or -1 for the whole phase
  auto operator<=>(const AxisTerm&) const = default;
};

struct ShiftProduct {
  AxisTerm row, column;
  bool diagonal;  // a pair of equal taps uses it, so the sums of its first operand are needed too
};

struct ShiftUse {
  int64_t product;
  int64_t copy;  // the result is in columns copy*channels .. of the product
  double sign;
};

struct ShiftPlan {
  // The second operand of a product may hold several copies of the channels, each shifted by one tap
  // of its phase more, so that few channels fill a panel: at most `most_copies` of them.
  ShiftPlan(const GramTask& task, int64_t most_copies);

  // A product with the target holds `copies` neighbouring taps of a phase. How many such products there
  // are of a phase, of a kernel row, and in all; and the product and the copy that hold a tap.
  int64_t groups_of_phase() const { return (columns.most + copies - 1) / copies; }
  int64_t column_groups() const { return columns.phase_count() * groups_of_phase(); }
  int64_t cross_products() const { return rows.axis.kernel * column_groups(); }
  std::pair<int64_t, int64_t> find_cross(int64_t row, int64_t column) const {
    const PhaseTap& tap = columns.tap(column);
    return {row * column_groups() + tap.phase * groups_of_phase() + tap.index / copies,
            tap.index % copies};
  }

  // Columns before the first one that the shifted copies reach.
  int64_t margin() const { return (copies - 1) * columns.unit; }
  // Whether both operands are the same.
  bool symmetric(const ShiftProduct& product) const { return product.diagonal && copies == 1; }

  AxisPlan rows, columns;
  bool possible;   // false for a single tap, and where there would be far too many boundary terms
  int64_t copies;  // of the channels in one panel
  std::vector<ShiftProduct> products;
  std::vector<std::vector<ShiftUse>> pair_uses;  // [tap a * taps + tap b], a <= b
};

// Positions [begin, end).
struct Span {
  int64_t begin, end;
};

// The positions v in [0, length) for which v + shift is in [-margin, other).
Span overlap(int64_t length, int64_t other, int64_t shift, int64_t margin);

// The positions v of a term. The second operand of a whole phase may begin up to `margin` positions
// before its own phase.
Span span_of(const AxisPlan& plan, const AxisTerm& term, int64_t margin);

}  // namespace reapx
