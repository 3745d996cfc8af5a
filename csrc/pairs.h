// Neuro-unification (NU): what it costs to let one unit (channel) emulate another, and the greedy
// merging of units.
#pragma once

#include <cstdint>
#include <vector>

#include "tile.h"

namespace reapx {

// One weight that reads the units. With G = gram, W = weight (in the equations (D, outputs), here
// stored transposed), and I_u the `taps` columns of unit u.
struct PairConsumer {
  const double* gram;      // (features, features) float64, row-major, symmetric
  double* weight;          // (outputs, features) float64, row-major: updated in place by the steps
  const int64_t* columns;  // (units, taps) int64, distinct indices into features; may leave some out
  double scale;            // alpha: this consumer's share in the error, not negative
  double* gains;           // out (steps,) float64: a of the pair of each step
  int64_t features, outputs, taps;
};

struct PairTask {
  std::vector<PairConsumer> consumers;
  int64_t units, steps;  // steps < units, or both are 0
  double* table;         // out (units, units) float64: err(row -> column) before any step; or null
  int64_t* removed;      // out (steps,) int64: the unit that left at each step
  int64_t* partner;      // out (steps,) int64: the unit that emulates it from then on
  double* errors;  // out (steps,) float64: err(removed -> partner) with the weights of that moment
};

// With A_q = W_q W_q^T (taps, taps) and <.,.> the sum of elementwise products, letting p emulate q
// costs
//
//   err(q -> p) = sum_j alpha_j max(0, <A_q, G_qq> - <A_q, G_qp>^2 / <A_q, G_pp>)
//
// at the gain a = <A_q, G_qp> / <A_q, G_pp>, of any sign and one for each consumer. Where
// <A_q, G_pp> <= 0 (p is dead) the gain is 0 and the error <A_q, G_qq>. An error that is not finite
// makes the total +inf, a gain that is not finite becomes 0, and the diagonal of the table is +inf.
// Each step takes the pair of least error among the units still there (ties, +inf too: the lowest q,
// then the lowest p) and, for every consumer,
//
//   W_p <- W_p + a W_q      W_q <- 0
//
// Only A_p changes, so only errors of p are computed anew, from the weights as they are then.
//
// float64 throughout. Outputs are overwritten and overlap nothing; weights overlap no other array.
// Any size may be 0. Tasks run side by side; a large one, or a single one, uses all threads for the
// first look at all pairs; results do not depend on `threads`.
void pair_scan(std::vector<PairTask>& tasks, int64_t threads, const Tile& tile);

}  // namespace reapx
