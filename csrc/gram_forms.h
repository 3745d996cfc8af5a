// The two ways of computing a patch Gram matrix, and what they share. See gram.h for the result.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "gram.h"
#include "parallel.h"

namespace reapx {

inline constexpr int64_t kBlockSize = kFloatWidth * kFloatWidth;

inline int64_t panels_of(int64_t columns) { return (columns + kFloatWidth - 1) / kFloatWidth; }

// block (kFloatWidth, kFloatWidth) += A^T B over `terms` rows of two panels, read at the given
// distance in rows; the first `rows` columns of A only. Any number of terms.
void add_block(const Tile& tile, int64_t rows, int64_t terms, const float* a, const float* b,
               int64_t step, double* block);

// Writes `columns` (<= kFloatWidth) channels of one image row, from `from`, transposed into panel
// rows: to[t*kFloatWidth + j] = channel j at column t.
void pack_row(const Tile& tile, const Images& images, const float* from, int64_t columns, float* to);

// ---- Form "rows": blocks of patch rows, any stride. ----

void gram_rows(const GramTask& task, int64_t group, Team& team, const Tile& tile);

// ---- Form "shift": stride 1. ----
//
// With taps a, b and the shift d = b - a, G[(c,a),(e,b)] is the sum over outputs o of
// x_c(o + a) x_e(o + b): the correlation of whole maps at shift d, less the outputs o outside the
// map for which both taps still hit the input. Per axis that is "the whole axis" minus single
// points; over two axes the products of these pieces. Pieces are shared by many tap pairs.

struct ShiftProduct {
  int64_t row, column;              // first operand: this input row / column, or -1 for all
  int64_t row_shift, column_shift;  // second operand relative to it, in taps
  bool symmetric;                   // both operands are the same
};

struct ShiftUse {
  int64_t product;
  int64_t copy;  // the result is in columns copy*channels .. of the product (see copies)
  double sign;
};

struct ShiftSum {
  int64_t row, column;  // -1 for all
};

struct ShiftPlan {
  bool possible = false;  // stays so: stride is not 1, or far more points than whole axes
  int64_t copies = 1;     // copies of the channels in one panel, each shifted by one tap column more
  std::vector<ShiftProduct> products;
  std::vector<std::vector<ShiftUse>> pair_uses;  // [tap a * taps + tap b], a <= b
  std::vector<ShiftSum> sums;
  std::vector<std::vector<ShiftUse>> tap_uses;  // [tap a], product = index into sums
};

ShiftPlan plan_shifts(const GramTask& task);

// Estimated multiply-adds of the two forms for one group.
double shift_cost(const GramTask& task, const ShiftPlan& plan);
double rows_cost(const GramTask& task);

void gram_shift(const GramTask& task, const ShiftPlan& plan, int64_t group, Team& team,
                const Tile& tile);

}  // namespace reapx
