// Takes the place of csrc/gram/cuda/mma.h on the emulated device, which says what these functions do.
#pragma once

#include "cuda_runtime.h"

namespace reapx {

inline constexpr int kMmaRows = 16, kMmaColumns = 8, kMmaTerms = 8;

template <int kCount>
void multiply_add(float (&c)[kCount][4], const float (&a)[4], const float (&b)[kCount][2]) {
  emulated::fiber->products.push_back({a, b, c, kCount});
}

inline void finish_products(EMULATED_HERE) { emulated::multiply_warp({file, line}); }

}  // namespace reapx
