// Refitted weights for given sets of kept inputs.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/context.h"

namespace reapx {

struct SolveTask {
  const double* gram;       // (features, features) float64, row-major, symmetric
  const double* cross;      // (outputs, features) float64, row-major: Y^T X
  const int64_t* kept;      // (kept_count,) int64, indices into features, each at most once
  const double* reference;  // (outputs, features) float64, or null for 0
  double* weight;           // (outputs, kept_count) float64, row-major, overwritten
  double ridge;
  int64_t features, outputs, kept_count;  // 0 is legal for each
  int64_t* failed;  // out (1,) int64: -1, or the first pivot, as a position in kept, that fails
};

// W (G_RR + ridge I) = cross_R + ridge * reference_R for each task, R = kept: the least-squares
// weights on the kept inputs, damped towards the reference. float64 throughout.
//
// One Cholesky factorisation per task; a pivot fails as in basis_compute, and the weight is then
// untouched. weight overlaps no input. Results do not depend on `threads`.
void batch_solve(const std::vector<SolveTask>& tasks, const Context& context);

}  // namespace reapx
