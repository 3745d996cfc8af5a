// The two ways in which the CPU computes a patch Gram matrix, and what they share. See gram.h for the
// result, and gram_plan.h for what form "shift" computes.
#pragma once

#include <cstdint>

#include "gram/gram_plan.h"
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

// block (kFloatWidth, kFloatWidth) += A^T B over `runs` runs of `terms` panel rows, for the first
// `rows` columns of A only. Any number of runs and terms will do.
void add_block(const Tile& tile, int64_t rows, int64_t runs, int64_t terms, Runs a, Runs b,
               double* block);

// Form "rows": blocks of patch rows.
void gram_rows(const GramTask& task, int64_t group, Team& team, const Tile& tile);

// Form "shift": the products of a plan, and what they add up to.
void gram_shift(const GramTask& task, const ShiftPlan& plan, int64_t group, Team& team,
                const Tile& tile);

// Copies of the channels that fit into one panel: what the CPU's plans are made with.
inline int64_t panel_copies(const GramTask& task) {
  return kFloatWidth / (task.group_channels() > 1 ? task.group_channels() : 1);
}

// Estimated multiply-adds of the two forms for one group.
double shift_cost(const GramTask& task, const ShiftPlan& plan);
double rows_cost(const GramTask& task);
// Less than shift_cost of any plan, and known before a plan is made.
double least_shift_cost(const GramTask& task);

}  // namespace reapx
