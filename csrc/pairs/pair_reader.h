// One consumer of pair_scan: what the errors of pairs need besides G, kept up to date over the steps.
#pragma once

#include <cstdint>
#include <vector>

#include "pairs/pairs.h"
#include "runtime/cpu/buffer.h"
#include "tile/tile.h"

namespace reapx {

// What one thread writes on. Sized by those who use it; what it holds means nothing between calls.
struct PairScratch {
  Buffer<double> total, inner, norms, gathered, packed, shares, work;
  std::vector<const double*> rows, blocks;
};

// What a function that takes a panel or rows writes belongs to these: others may run side by side.
class PairReader {
 public:
  PairReader(const PairConsumer& consumer, int64_t units, int64_t steps);

  // Panels of kDoubleWidth units.
  int64_t panels() const { return panels_; }

  // G_uu and A_u for the units of a panel: before anything else.
  void read_units(const Tile& tile, int64_t panel, PairScratch& scratch);

  // total[p] += alpha err(q -> p) for all p, from row q of R as add_overlaps left it. Returns what that
  // error is with a gain of 0, times alpha.
  double add_errors(const Tile& tile, int64_t q, PairScratch& scratch, double* total);

  // A step: its gain, W, A_p, and row p of R as the new W_p has it. If another is to follow, read_step
  // of all panels takes in what changed in Delta, and add_overlaps brings rows of R up to date with it:
  // the same rows, kTileRows at most, after every step, or, where rows may wait, any row when it is
  // wanted.
  void unify(const Tile& tile, int64_t step, int64_t q, int64_t p, PairScratch& scratch);
  void read_step(const Tile& tile, int64_t panel);
  void add_overlaps(const Tile& tile, const int64_t* units, int64_t count, PairScratch& scratch);

  // Whether rows may wait: units have one tap.
  bool waits() const { return c_.taps == 1; }

  // What the step that was read last did to the errors of a row that waits. An error is what it would
  // be with a gain of 0, less the square of (<A_q, G_qp> - R_qp) / sqrt(<A_q, G_pp>): add the change of
  // the former to bases[q], and to squares[q] the square of the largest change of that root, over all
  // units p with 0 in gone; both times alpha.
  void add_drifts(const double* gone, double* bases, double* squares) const;

 private:
  struct Forms {
    const double *inner, *norms;
  };

  const int64_t* columns_of(int64_t unit) const { return c_.columns + unit * c_.taps; }
  double* packed_panel(int64_t panel) {
    return packed_.data() + panel * c_.taps * c_.outputs * kDoubleWidth;
  }
  // Where the numbers of the step that is being done start, in shares_ and moves_.
  int64_t step_at(int64_t panel) const {
    return (panel * slots_ + (waits() ? step_ : 0)) * c_.taps * c_.taps * kDoubleWidth;
  }
  double* overlaps_of(int64_t unit) { return overlaps_.data() + unit * panels_ * kDoubleWidth; }

  // W of a panel's units, so that it fits UnitPanels of kDoubleWidth units; other lanes are zero.
  void pack(int64_t panel, double* packed) const;

  // A_u for units first <= u < last of a panel, whole groups of kLanes, from what was packed.
  void read_products(const Tile& tile, int64_t panel, int64_t first, int64_t last, const double* packed,
                     PairScratch& scratch);

  // <A_q, G_qp> and <A_q, G_pp> for all p.
  Forms forms_of(const Tile& tile, int64_t q, PairScratch& scratch);
  void read_forms(const Tile& tile, int64_t q, PairScratch& scratch, double* inner,
                  double* norms) const;

  // a of one pair, by the arithmetic of its error; 0 where it is not finite.
  double find_gain(const Tile& tile, int64_t q, int64_t p, PairScratch& scratch);

  // W_p <- W_p + a W_q, W_q <- 0; W_q goes to leaving_.
  void fold();

  // Row `unit` of R with all steps that it has missed, in one product.
  void add_late(const Tile& tile, int64_t unit, PairScratch& scratch);

  PairConsumer c_;
  int64_t units_, panels_;
  int64_t slots_;  // steps that are kept: the last one, or all; odd, as even strides share cache sets
  bool follows_;   // there is more than one step: errors are needed again after the first look
  bool adjacent_ = true;          // the columns of all units follow each other
  std::vector<double> products_;  // [unit][tap][tap]: A
  std::vector<double> blocks_;    // [tap][unit][tap]: the diagonal blocks of G

  // From here on only where another step follows the first one.
  RawBuffer<double> packed_;     // [panel][tap][output][lane]: W
  Buffer<double> overlaps_;      // [unit][panel][lane]: R; empty, for zeros, before the first step
  RawBuffer<double> forms_;      // [unit][2][unit]: <A_q, G_qp> and <A_q, G_pp>; empty for one tap
  std::vector<char> has_forms_;  // (units,): whether that row is there and up to date

  std::vector<int64_t> seen_;  // (units,): steps that its row of R has taken in, where rows wait
  RawBuffer<double> shares_;   // [panel][slot][tap][tap of q][lane]: -W_r W_q^T
  RawBuffer<double> moves_;    // [panel][slot][tap][tap of q][lane]: a G_sp - G_sq

  // The step that is being done.
  int64_t step_ = -1, q_ = 0, p_ = 0;
  double gain_ = 0.0;
  std::vector<double> leaving_;  // [output][tap]: W_q
};

}  // namespace reapx
