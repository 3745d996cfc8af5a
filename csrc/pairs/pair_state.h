// What pair_scan keeps for one consumer over the steps: all that the errors of pairs need besides G.
#pragma once

#include <cstdint>
#include <vector>

#include "pairs/pairs.h"
#include "runtime/cpu/buffer.h"
#include "tile/tile.h"

namespace reapx {

// Scratch of one thread. Each function sizes what it uses, and nothing lasts from one call to the next.
struct PairScratch {
  Buffer<double> total, inner, norms, gathered, packed, shares, work;
  std::vector<const double*> rows, blocks;
};

// Functions that take a panel or rows write only what belongs to these, so that calls for different
// ones may run side by side.
class PairState {
 public:
  PairState(const PairConsumer& consumer, int64_t units, int64_t steps);

  // Panels of kDoubleWidth units.
  int64_t panels() const { return panels_; }

  // Computes G_uu and A_u for the units of a panel. To be called for all panels before anything else.
  void read_units(const Tile& tile, int64_t panel, PairScratch& scratch);

  // total[p] += alpha err(q -> p) for all p, with row q of R as add_overlaps last made it. Returns
  // alpha times the error with a gain of 0, which is the same for all p.
  double add_errors(const Tile& tile, int64_t q, PairScratch& scratch, double* total);

  // Takes a step: finds its gain, and updates W, A_p, and row p of R for the new W_p. If another step
  // follows, read_step has to be called for all panels, which computes what changed in Delta; then
  // add_overlaps brings rows of R up to date with it, kTileRows of them at most in a call. It has to be
  // called for all rows after every step, or, where rows may wait, for a row only when it is needed.
  void unify(const Tile& tile, int64_t step, int64_t q, int64_t p, PairScratch& scratch);
  void read_step(const Tile& tile, int64_t panel);
  void add_overlaps(const Tile& tile, const int64_t* units, int64_t count, PairScratch& scratch);

  // Whether rows of R may wait for their update: they may where units have one tap.
  bool waits() const { return c_.taps == 1; }

  // What the last step changes in the errors of rows that wait. An error is the error with a gain of 0,
  // less the square of z = (<A_q, G_qp> - R_qp) / sqrt(<A_q, G_pp>). Adds alpha times the change of the
  // former to bases[q], and alpha times the square of the largest change of z, over all units p with 0
  // in `gone`, to squares[q].
  void add_drifts(const double* gone, double* bases, double* squares) const;

 private:
  struct FormRows {
    const double *inner, *norms;
  };

  const int64_t* columns_of(int64_t unit) const { return c_.columns + unit * c_.taps; }
  double* packed_panel(int64_t panel) {
    return packed_.data() + panel * c_.taps * c_.outputs * kDoubleWidth;
  }
  // Where the numbers of the current step begin in shares_ and moves_.
  int64_t step_at(int64_t panel) const {
    return (panel * slots_ + (waits() ? step_ : 0)) * c_.taps * c_.taps * kDoubleWidth;
  }
  double* overlaps_of(int64_t unit) { return overlaps_.data() + unit * panels_ * kDoubleWidth; }

  // Packs W of a panel's units, as UnitPanels of kDoubleWidth units; lanes without a unit become zero.
  void pack(int64_t panel, double* packed) const;

  // Computes A_u of the units first <= u < last of a panel, whole groups of kLanes, from packed W.
  void read_products(const Tile& tile, int64_t panel, int64_t first, int64_t last, const double* packed,
                     PairScratch& scratch);

  // <A_q, G_qp> and <A_q, G_pp> for all p.
  FormRows forms_of(const Tile& tile, int64_t q, PairScratch& scratch);
  void read_forms(const Tile& tile, int64_t q, PairScratch& scratch, double* inner,
                  double* norms) const;

  // Returns the gain a of one pair, by the same arithmetic as its error; 0 where it is not finite.
  double find_gain(const Tile& tile, int64_t q, int64_t p, PairScratch& scratch);

  // W_p <- W_p + a W_q and W_q <- 0; the old W_q is kept in leaving_.
  void fold();

  // Updates row `unit` of R by all steps that it has missed, in one product.
  void add_late(const Tile& tile, int64_t unit, PairScratch& scratch);

  PairConsumer c_;
  int64_t units_, panels_;
  int64_t slots_;  // steps whose numbers are kept, 1 or all; odd, since even strides share cache sets
  bool follows_;   // whether there is a second step, which needs all of this after the first one
  bool adjacent_ = true;          // whether the columns of all units follow each other
  std::vector<double> products_;  // [unit][tap][tap]: A
  std::vector<double> blocks_;    // [tap][unit][tap]: the diagonal blocks of G

  // The rest is used only where another step follows the first one.
  RawBuffer<double> packed_;  // [panel][tap][output][lane]: W
  Buffer<double> overlaps_;   // [unit][panel][lane]: R; empty before the first step, which means zeros
  RawBuffer<double> forms_;   // [unit][2][unit]: <A_q, G_qp> and <A_q, G_pp>; empty for one tap
  std::vector<char> has_forms_;  // (units,): whether that row of forms_ is computed and up to date

  std::vector<int64_t> seen_;  // (units,): the steps that its row of R includes, where rows wait
  RawBuffer<double> shares_;   // [panel][slot][tap][tap of q][lane]: -W_r W_q^T
  RawBuffer<double> moves_;    // [panel][slot][tap][tap of q][lane]: a G_sp - G_sq

  // The current step.
  int64_t step_ = -1, q_ = 0, p_ = 0;
  double gain_ = 0.0;
  std::vector<double> leaving_;  // [output][tap]: W_q
};

}  // namespace reapx
