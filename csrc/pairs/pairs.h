// Neuro-unification (NU): what it costs to let one unit (channel) emulate another, and the greedy
// merging of units.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/context.h"

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
  int64_t* removed;      // out (steps,) int64: the unit that is removed at each step
  int64_t* partner;      // out (steps,) int64: the unit that emulates it from then on
  double* errors;        // out (steps,) float64: by how much each step raised the total error
};

// The total error is that of the weights, against those before the first step: with Delta = W - W0,
// sum_j alpha_j tr(Delta^T G Delta). With T = G Delta, A_q = W_q W_q^T (taps, taps), <.,.> the sum of
// elementwise products and R_qp = <W_q, T_p>, letting p emulate q raises it by
//
//   err(q -> p) = sum_j alpha_j (<A_q, G_qq> - 2 R_qq - (<A_q, G_qp> - R_qp)^2 / <A_q, G_pp>)
//
// at the gain a = (<A_q, G_qp> - R_qp) / <A_q, G_pp> that is best for it, of any sign and one for each
// consumer. It may lower the total. Where <A_q, G_pp> <= 0 (p is dead) the gain is 0 and so is the
// square. Before any step R is 0: a consumer's error is then that of the pair by itself, and where it
// comes out below 0, which is rounding, it counts as 0. An error that is not finite makes the sum +inf,
// a gain that is not finite becomes 0, and the diagonal of the table is +inf.
// Each step takes the pair of least error among the units still there (ties, +inf too: the lowest q,
// then the lowest p) and, for every consumer,
//
//   R_rs <- R_rs + <W_r W_q^T, a G_sp - G_sq>      W_p <- W_p + a W_q      W_q <- 0
//
// for all r and s, the former with W_p as it becomes. So errors add up to that of the weights at the
// end, to rounding. A step takes units^2 taps^2 + units taps^2 outputs multiply-adds for each consumer.
// With one tap in all consumers, the CPU brings a row of R up to date only when a lower bound of its
// errors is the least of all; until then it keeps what the steps changed. On CUDA all tasks take their
// steps together, in one launch, whose scratch for each consumer is units x (3 units + taps x outputs +
// 5 taps^2) doubles, without the 3 units where there are no steps.
//
// float64 throughout. Outputs are overwritten and overlap nothing; weights overlap no other array.
// Any size may be 0. Tasks run side by side; a large one, or a single one, uses all threads; results do
// not depend on `threads`.
void pair_scan(const std::vector<PairTask>& tasks, const Context& context);

}  // namespace reapx
