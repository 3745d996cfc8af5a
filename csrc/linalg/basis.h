// The Gram matrix of the biorthogonal (dual) basis: the damped inverse of a Gram matrix.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/context.h"

namespace reapx {

struct BasisTask {
  const double* gram;  // (size, size) float64, row-major; only its upper triangle is read
  double ridge;        // added to the diagonal
  double* basis;       // (size, size) float64, row-major, overwritten; symmetric to the last bit
  int64_t size;        // 0 is legal
  int64_t* failed;     // out (1,) int64: -1, or the first pivot below the rounding floor (basis then
                       // untouched)
};

// basis = (gram + ridge I)^-1 for each task, by Cholesky factorisation in float64.
//
// A pivot fails when it is not above size * eps * max diag(gram + ridge I), or not finite. gram and
// basis must not overlap. Results do not depend on `threads`.
void basis_compute(const std::vector<BasisTask>& tasks, const Context& context);

}  // namespace reapx
