// What path_eliminate keeps for one consumer. Not part of the contract: see path.h for that.
//
// Columns of the features are stored compacted and reordered: tap a of the unit in slot u is column
// a*slots + u, so that neighbouring slots are neighbouring numbers and kLanes units are scored at
// once; columns of no unit follow. Slots are the units still alive when the state was last compacted,
// in ascending order, filled up to a multiple of kLanes with zero columns.
#pragma once

#include <cstdint>
#include <vector>

#include "panels.h"
#include "path.h"

namespace reapx {

// Slots of the units. Shared by all consumers of a task.
struct Slots {
  explicit Slots(const std::vector<bool>& alive);

  std::vector<int64_t> unit;     // (size,): the unit, or -1 for filling
  std::vector<int64_t> slot_of;  // (units,): or -1
  std::vector<bool> alive;       // (size,): false for filling and for units that left
  int64_t size() const { return static_cast<int64_t>(unit.size()); }
};

class ConsumerState {
 public:
  ConsumerState(const Tile& tile, Team& team, const PathConsumer& consumer, const Slots& slots);

  // scores (slots,) += scale * tr(S_u^-1 A_u).
  void add_scores(const Tile& tile, std::vector<double>& scores);

  // First half of removing the unit in `slot`: R and v. Adds scale * |v|^2 to *error. False when the
  // pivot block is not positive definite.
  bool pivot(const Tile& tile, int64_t slot, double* error);

  // Second half: the new rows of L^T and Z^T, and the blocks S and A of every slot.
  void advance(const Tile& tile, Team& team, const Slots& slots, int64_t slot);

  // Zeroes what `pivot` wrote for a step that is not to be.
  void forget_pivot();

  // Brings P and W up to date with the rows gathered so far, writes those out and empties them.
  // S and A are as of the last refresh until the next.
  void flush(const Tile& tile, Team& team);

  // Drops the columns of units that left. Only right after flush.
  void compact(const Slots& before, const Slots& after);

  // Reads S and A anew from P and W. Only right after flush.
  void refresh(const Tile& tile, Team& team);

 private:
  void list_columns(const Slots& slots);
  void load(Team& team);
  void resize_blocks();
  void find_root(int64_t slot);
  void write_v(int64_t slot);
  void multiply_v(const Tile& tile);
  void advance_panel(const Tile& tile, const Slots& slots, int64_t slot, int64_t panel);
  void gather(int64_t row, int64_t panel, double* to) const;
  void set_known(const Slots& slots, int64_t slot, int64_t panel, double* rows) const;
  void emit(int64_t panel);
  int64_t step_cost() const { return source_size() * c_.taps * (c_.outputs + gathered_ + 1); }
  int64_t source_size() const { return static_cast<int64_t>(source_.size()); }
  double* residual_row(int64_t row) const { return c_.residual + (emitted_ + row) * c_.outputs; }

  PathConsumer c_;
  int64_t slots_;                  // number of slots
  std::vector<int64_t> source_;    // feature of each compacted column, -1 for filling
  Panels basis_;                   // P as of the last flush, upper triangle
  Panels weight_;                  // W^T as of the last flush: row = output
  Panels factor_;                  // rows of L^T gathered since then
  Panels cross_;                   // rows of Z^T of this step, less v v^T L^T / 2
  Panels residual_;                // V^T of the gathered rows: row = output, column = gathered row
  int64_t gathered_ = 0;           // rows of factor_ in use
  int64_t emitted_ = 0;            // rows of the outputs that are written
  std::vector<double> s_, a_;      // blocks of the slots, [taps][taps][slots]
  std::vector<double> work_;       // for the scores
  std::vector<double> root_;       // R (taps, taps): S_u = R^T R
  std::vector<double> own_;        // L[I_u] (gathered rows, taps)
  std::vector<double> own_cross_;  // V v^T (gathered rows, taps), then v v^T / 2 (taps, taps)
  std::vector<double> minus_v_;    // -v^T (outputs, taps)
};

// Rows that are gathered before P and W are brought up to date.
int64_t panel_rows(int64_t taps);

}  // namespace reapx
