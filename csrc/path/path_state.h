// What path_eliminate keeps for one consumer. Not part of the contract: see path.h for that.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "linalg/panels.h"
#include "path/path.h"
#include "path/path_form.h"

namespace reapx {

// Slots of the units: those still alive when the state was last compacted, in ascending order, filled
// up to a multiple of kLanes. Shared by all consumers of a task.
struct Slots {
  explicit Slots(const std::vector<bool>& alive);

  std::vector<int64_t> unit;     // (size,): the unit, or -1 for filling
  std::vector<int64_t> slot_of;  // (units,): or -1
  std::vector<bool> alive;       // (size,): false for filling and for units that left
  int64_t size() const { return static_cast<int64_t>(unit.size()); }
};

class ConsumerState {
 public:
  // `panel_steps` steps come between two calls of flush, `steps` in all.
  ConsumerState(const Tile& tile, Team& team, const PathConsumer& consumer, const Slots& slots,
                int64_t panel_steps, int64_t steps);
  ConsumerState(const ConsumerState&) = delete;
  ConsumerState& operator=(const ConsumerState&) = delete;

  // scores (slots,) += scale * tr(S_u^-1 A_u).
  void add_scores(std::vector<double>& scores) const;

  // First half of removing the unit in `slot`: R and v. Adds scale * |v|^2 to *error, unless that is
  // left to finish. False when the pivot block is not positive definite.
  bool pivot(const Tile& tile, int64_t slot, double* error);

  // Second half: the new rows of L^T and Z^T, and the blocks S and A and the score of every slot.
  void advance(const Tile& tile, Team& team, const Slots& slots, int64_t slot);

  // Writes out the rows gathered so far and empties them; brings P and W up to date unless these were
  // the last. S and A are as they were.
  void flush(const Tile& tile, Team& team, bool last);

  // Drops the columns of units that left. Only right after flush; then S and A need a refresh.
  void compact(const Slots& before, const Slots& after);

  // Reads S and A anew from P and W, and the scores. Only right after flush.
  void refresh(const Tile& tile, Team& team);

  // After the last flush: outputs that are known only when all `count` units in `order` have left, and
  // zeros in those of the steps up to `steps`.
  void finish(const Tile& tile, Team& team, const int64_t* order, int64_t count, int64_t steps,
              double* errors);

 private:
  void list_columns(const Slots& slots);
  void load(Team& team);
  void resize_blocks();
  void find_root(int64_t slot);
  void advance_panel(const Tile& tile, const Slots& slots, int64_t slot, int64_t panel);
  void advance_units(const Tile& tile, int64_t first, int64_t last);
  void score(const Tile& tile, int64_t first, int64_t last);
  void set_known(const Slots& slots, int64_t slot, int64_t panel, double* rows) const;
  void place_features();
  void emit(int64_t row);

  PathConsumer c_;
  Columns columns_;
  std::vector<int64_t> place_;  // (features,): where a feature's column is in gathered_.rows, or -1
  Panels basis_;                // P as of the last flush, upper triangle
  Gathered gathered_;
  std::unique_ptr<Form> form_;
  int64_t emitted_ = 0;         // rows of the factor that are written
  std::vector<double> s_, a_;   // blocks of the slots, [taps][taps][slots]
  std::vector<double> scores_;  // tr(S_u^-1 A_u) of the slots
};

// Rows that are gathered before P and W are brought up to date, where one unit has no more.
inline constexpr int64_t kPanelRows = 64;

}  // namespace reapx
