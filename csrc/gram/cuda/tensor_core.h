// Products of small matrices by the tensor cores, and how floats become their operands.
//
// A tensor core reads TF32: floats of 8 bits of exponent and 10 of fraction, whose other 13 bits it
// ignores. A product of floats is made of three: with x = big + small, x*y is
// big*big + big*small + small*big but for small*small, which is 2^-22 of it at most.
#pragma once

#include <cuda_runtime.h>

namespace reapx {

inline constexpr int kMmaRows = 16, kMmaColumns = 8, kMmaTerms = 8;

// x as big, rounded to TF32, and small, what is left of it: up to 12 bits, of which the tensor core
// takes 11 or more. Rounding small would not help: a 12th bit is half a unit, as far from either
// neighbour. Since big is rounded and not cut off, small has either sign, and sums of positive numbers
// lose nothing on average. By hand, because cvt.rna.tf32 becomes four instructions.
//
// Where x is not finite, small is NaN: also where adding to the bits of a NaN makes big a number.
__device__ inline void split(float x, float& big, float& small) {
  constexpr unsigned half = 1U << 12, kept = ~((1U << 13) - 1);
  big = __uint_as_float((__float_as_uint(x) + half) & kept);
  small = x - big;
}

// C += A B by all 32 lanes of a warp, for kCount C and B of 16 x 8 and 8 x 8, and one A of 16 x 8. Lane
// 4g + t has
//   a: A's (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)      b: each B's (t, g), (t + 4, g)
//   c: each C's (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
// The sums are cut off and not rounded: a long one, in c, would be too small. They are in c after
// finish_products, until which all operands must stay; a device does not need it, but the emulator
// does: there, warps meet in it, and one meeting is for all products asked for.
#if defined(__CUDACC__)
template <int kCount>
__device__ inline void multiply_add(float (&c)[kCount][4], const float (&a)[4],
                                    const float (&b)[kCount][2]) {
#pragma unroll
  for (int j = 0; j < kCount; ++j)
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[j][0])), "r"(__float_as_uint(b[j][1])));
}
__device__ inline void finish_products() {}
#else
template <int kCount>
void multiply_add(float (&c)[kCount][4], const float (&a)[4], const float (&b)[kCount][2]) {
  emulated::fiber->products.push_back({a, b, c, kCount});
}
inline void finish_products(EMULATED_HERE) { emulated::multiply_warp({file, line}); }
#endif

}  // namespace reapx
