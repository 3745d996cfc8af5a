// How floats become operands of the tensor cores.
//
// A tensor core reads TF32: floats with 8 bits of exponent and 10 of fraction; it ignores the other 13
// bits. A product of floats is therefore made of three products. With x = big + small and y alike,
// x*y is big*big + big*small + small*big, but for small*small, which is 2^-22 of it at most.
#pragma once

#include "gram/cuda/mma.h"

namespace reapx {

// x as big, which is rounded to TF32, and small, the rest: up to 12 bits, of which the tensor core
// reads at least 11. Rounding small would not help: a 12th bit is half a unit, as far from one
// neighbour as from the other. Since big is rounded and not cut off, small has either sign, and sums of
// positive numbers lose nothing on average. Written out because cvt.rna.tf32 becomes four instructions.
//
// Where x is not finite, small is NaN, even where adding to the bits of a NaN makes big a number.
__device__ inline void split(float x, float& big, float& small) {
  constexpr unsigned half = 1U << 12, kept = ~((1U << 13) - 1);
  big = __uint_as_float((__float_as_uint(x) + half) & kept);
  small = x - big;
}

}  // namespace reapx
