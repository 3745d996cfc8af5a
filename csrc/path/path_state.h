// What path_eliminate keeps for one consumer. Not part of the contract: see path.h for that.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "linalg/panels.h"
#include "path/path.h"
#include "path/path_form.h"

namespace reapx {

// The slots of the units that were alive when the state was last compacted, in ascending order, padded
// to a multiple of kLanes. All consumers of a task share them.
struct Slots {
  explicit Slots(const std::vector<bool>& alive);

  std::vector<int64_t> unit;     // (size,): the unit, or -1 for padding
  std::vector<int64_t> slot_of;  // (units,): or -1
  std::vector<bool> alive;       // (size,): false for padding and for removed units
  int64_t size() const { return static_cast<int64_t>(unit.size()); }
};

class PathState {
 public:
  // `panel_steps` steps come between two calls of flush, `steps` in all.
  PathState(const Tile& tile, Team& team, const PathConsumer& consumer, const Slots& slots,
            int64_t panel_steps, int64_t steps);
  PathState(const PathState&) = delete;
  PathState& operator=(const PathState&) = delete;

  // scores (slots,) += scale * tr(S_u^-1 A_u).
  void add_scores(std::vector<double>& scores) const;

  // The first half of removing the unit in `slot`: computes R and v. Adds scale * |v|^2 to *error,
  // unless `finish` does so. Returns false when the pivot block is not positive definite.
  bool pivot(const Tile& tile, int64_t slot, double* error);

  // The second half: the new rows of L^T and Z^T, and the blocks S and A and the score of every slot.
  void advance(const Tile& tile, Team& team, const Slots& slots, int64_t slot);

  // Writes the gathered rows to the outputs and empties them; brings P and W up to date, unless these
  // rows were the last ones. S and A do not change.
  void flush(const Tile& tile, Team& team, bool last);

  // Drops the columns of removed units. Only to be called right after flush; then refresh is needed.
  void compact(const Slots& before, const Slots& after);

  // Computes S, A and the scores anew from P and W. Only to be called right after flush.
  void refresh(const Tile& tile, Team& team);

  // After the last flush: writes the outputs that are known only when all `count` units in `order` are
  // removed, and zeros in those of the further steps up to `steps`.
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
  std::unique_ptr<PathForm> form_;
  int64_t emitted_ = 0;         // rows of the factor that are written
  std::vector<double> s_, a_;   // blocks of the slots, [taps][taps][slots]
  std::vector<double> scores_;  // tr(S_u^-1 A_u) of the slots
};

// Rows that are gathered before P and W are brought up to date, where a unit has no more taps.
inline constexpr int64_t kPanelRows = 64;

}  // namespace reapx
