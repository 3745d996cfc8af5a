// Greedy backward elimination of units (channels): REAP's order, its exact errors and its factors.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/context.h"

namespace reapx {

// One weight that reads the units. With P = basis, W = weight (in the equations (D, outputs), here
// stored transposed), and I_u the `taps` columns of unit u.
struct PathConsumer {
  const double* basis;     // (features, features) float64, row-major, symmetric
  const double* weight;    // (outputs, features) float64, row-major: the refitted full weights
  const int64_t* columns;  // (units, taps) int64, distinct indices into features; may leave some out
  double scale;            // alpha: this consumer's share in the score
  double* factor;          // out (steps * taps, features) float64: L^T, a row per removed column
  double* residual;        // out (steps * taps, outputs) float64: V
  int64_t features, outputs, taps;
};

struct PathTask {
  std::vector<PathConsumer> consumers;
  const int64_t* forced;  // (forced_count,) int64: units that are removed first, in this order
  int64_t units, steps, forced_count;
  int64_t* order;   // out (steps,) int64: the unit that is removed at each step
  double* errors;   // out (steps,) float64: what its removal adds to sum_j alpha_j error_j
  int64_t* status;  // out (1,) int64: -1, or the step whose pivot block was not positive definite
};

// At each step the alive unit with the least  s_u = sum_j alpha_j tr(W_u^T P_uu^-1 W_u)  is removed
// (ties: the lowest index) and, for every consumer,
//
//   P <- P - P_:u P_uu^-1 P_u:      W <- W - P_:u P_uu^-1 W_u
//
// kept as P - L L^T and W - L V: block-pivoted Cholesky of P. With t removed, the refitted weights are
// weight - residual[:t*taps]^T factor[:t*taps], exactly zero (to rounding) on removed columns.
// Columns of units removed earlier are exactly zero in `factor`.
//
// float64 throughout; steps are gathered into panels, after which P and W (or, for
// many outputs, W^T W, which is cheaper to keep then) are brought up to date, and every few dozen steps
// the blocks that the scores need are read anew from them, so that scores do not drift. The errors come
// from V either way. After a failure (status >= 0) outputs from that step on are zero. Outputs are
// overwritten and overlap nothing. Any size may be 0. Tasks run side by side; a single task uses all
// threads; results do not depend on `threads`.
void path_eliminate(const std::vector<PathTask>& tasks, const Context& context);

// One consumer of a path that was found, and the cuts at which its weights are wanted. Arrays are those
// of PathConsumer and PathTask.
struct CutsTask {
  const double* weight;    // (outputs, features) float64
  const int64_t* columns;  // (units, taps) int64
  const int64_t* order;    // (steps,) int64, distinct
  const double* factor;    // (steps * taps, features) float64
  const double* residual;  // (steps * taps, outputs) float64
  const int64_t* cuts;     // (count,) int64, ascending, 0 .. steps: the number of removed units
  double* weights;         // out (count, outputs, features) float64, row-major
  int64_t features, outputs, taps, units, steps, count;
};

// weights[i] = weight - residual[:cuts[i]*taps]^T factor[:cuts[i]*taps], with exact zeros in the
// columns of removed units. Each row of factor and residual is read once; sums are float64 and
// run in order of the steps, so that weights[i] depends on the cuts before it only by rounding.
//
// weights are overwritten and overlap nothing. Any size may be 0. Results do not depend on `threads`.
void path_weights(const std::vector<CutsTask>& tasks, const Context& context);

}  // namespace reapx
