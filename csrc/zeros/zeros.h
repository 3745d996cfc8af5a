// Which inputs and outputs of a layer have only zero weights.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/context.h"

namespace reapx {

struct ZeroTask {
  const float* weight;            // (outputs, inputs, taps) float32, row-major
  float* rows;                    // (outputs,) float32, overwritten
  float* columns;                 // (inputs,) float32, overwritten
  int64_t outputs, inputs, taps;  // 0 is legal for each
};

// For each task, in one pass over all weights,
//
//   rows[m] = max_{c,k} |weight[m][c][k]|      columns[c] = max_{m,k} |weight[m][c][k]|
//
// exactly; 0 where there is nothing to look at. A NaN is larger than all else and comes out as a NaN.
// rows and columns overlap no weight. Results do not depend on `threads`.
void zero_scan(const std::vector<ZeroTask>& tasks, const Context& context);

}  // namespace reapx
