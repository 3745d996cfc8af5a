// The two ways of computing a patch Gram matrix, and what they share. See gram.h for the result.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "gram/gram.h"
#include "runtime/cpu/parallel.h"
#include "tile/tile.h"

namespace reapx {

inline constexpr int64_t kBlockSize = kFloatWidth * kFloatWidth;

inline int64_t panels_of(int64_t columns) { return (columns + kFloatWidth - 1) / kFloatWidth; }

// With so many items for each thread, they run side by side; with fewer, one after another.
inline constexpr int64_t kManyItems = 4;

// Columns in use of panel `panel` of a matrix.
inline int64_t width_of(int64_t columns, int64_t panel) {
  const int64_t left = columns - panel * kFloatWidth;
  return left < kFloatWidth ? left : kFloatWidth;
}

// block (kFloatWidth, kFloatWidth) += A^T B over `runs` runs of `terms` panel rows; the first `rows`
// columns of A only. Any number of runs and terms.
void add_block(const Tile& tile, int64_t rows, int64_t runs, int64_t terms, Runs a, Runs b,
               double* block);

// ---- Form "rows": blocks of patch rows. ----

void gram_rows(const GramTask& task, int64_t group, Team& team, const Tile& tile);

// ---- Form "shift". ----
//
// Tap a of output o reads input o*stride + a*dilation - padding. Inputs that are `stride` apart form a
// phase, in which the tap reads position o + offset. With taps a, b in phases f, g and the shift
// d = offset_b - offset_a, G[(c,a),(e,b)] is the sum over outputs o of x_c(o + offset_a)
// x_e(o + offset_b): the correlation of whole phases at shift d, less the outputs that do not exist
// but for which both taps hit the input. Per axis that is "the whole phase" minus single positions;
// over two axes the products of these pieces. Pieces are shared by many tap pairs.

struct TapPlace {
  int64_t phase;   // index into AxisPlan::phases
  int64_t offset;  // position in the phase that output 0 reads
  int64_t index;   // among the taps of this phase; one more reads `unit` positions further
};

struct AxisPlan {
  explicit AxisPlan(const Axis& axis);

  // The first input of phase `index`, and how many inputs it has.
  int64_t first(int64_t index) const { return phases[static_cast<size_t>(index)]; }
  int64_t length(int64_t index) const;
  const TapPlace& tap(int64_t a) const { return taps[static_cast<size_t>(a)]; }
  int64_t phase_count() const { return static_cast<int64_t>(phases.size()); }
  // Offset of the first tap of a phase.
  int64_t origin(int64_t phase) const { return tap(phase).offset; }

  Axis axis;
  int64_t unit;      // positions between neighbouring taps of a phase
  int64_t most = 0;  // taps of the phase that has most
  std::vector<int64_t> phases;
  std::vector<TapPlace> taps;
};

// One axis of a product: operands x(v) and x(v + shift), v over the whole phase or one position.
struct Piece {
  int64_t a_phase, b_phase;
  int64_t shift;
  int64_t point;  // -1 for the whole phase
  auto operator<=>(const Piece&) const = default;
};

struct ShiftProduct {
  Piece row, column;
  bool diagonal;  // a pair of equal taps uses it: then the sums of its first operand are needed, too
};

struct ShiftUse {
  int64_t product;
  int64_t copy;  // the result is in columns copy*channels .. of the product
  double sign;
};

struct ShiftPlan {
  // At most so many copies of the channels: whoever has no panels wants one.
  explicit ShiftPlan(const GramTask& task, int64_t most_copies = kFloatWidth);

  // A product with the target holds `copies` neighbouring taps of a phase: how many there are of a
  // phase, of a kernel row, in all; and the product and the copy that hold a tap.
  int64_t groups_of_phase() const { return (columns.most + copies - 1) / copies; }
  int64_t column_groups() const { return columns.phase_count() * groups_of_phase(); }
  int64_t cross_products() const { return rows.axis.kernel * column_groups(); }
  std::pair<int64_t, int64_t> cross_place(int64_t row, int64_t column) const {
    const TapPlace& tap = columns.tap(column);
    return {row * column_groups() + tap.phase * groups_of_phase() + tap.index / copies,
            tap.index % copies};
  }

  // Columns before the first that neighbouring copies reach.
  int64_t margin() const { return (copies - 1) * columns.unit; }
  // Whether both operands are the same.
  bool symmetric(const ShiftProduct& product) const { return product.diagonal && copies == 1; }

  AxisPlan rows, columns;
  bool possible;   // false: one tap, or far more positions than whole phases
  int64_t copies;  // of the channels in one panel, each shifted by one tap of its phase more
  std::vector<ShiftProduct> products;
  std::vector<std::vector<ShiftUse>> pair_uses;  // [tap a * taps + tap b], a <= b
};

// Positions [begin, end).
struct Span {
  int64_t begin, end;
};

// The positions v in [0, length) for which v + shift is in [-margin, other).
Span overlap(int64_t length, int64_t other, int64_t shift, int64_t margin);

// The positions v of a piece. The second operand of a whole phase may begin up to `margin` positions
// before its own phase.
Span span_of(const AxisPlan& plan, const Piece& piece, int64_t margin);

// Estimated multiply-adds of the two forms for one group.
double shift_cost(const GramTask& task, const ShiftPlan& plan);
double rows_cost(const GramTask& task);
// Less than shift_cost of any plan: a look before a plan is made.
double least_shift_cost(const GramTask& task);

void gram_shift(const GramTask& task, const ShiftPlan& plan, int64_t group, Team& team,
                const Tile& tile);

}  // namespace reapx
