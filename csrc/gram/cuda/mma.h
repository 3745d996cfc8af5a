// Products of small matrices by the tensor cores, through CUDA's instruction for them.
//
// The emulated device of the tests has a header of this name that comes first on its include path.
#pragma once

#include <cuda_runtime.h>

namespace reapx {

inline constexpr int kMmaRows = 16, kMmaColumns = 8, kMmaTerms = 8;

// C += A B by all 32 lanes of a warp, for kCount C and B of 16 x 8 and 8 x 8, and one A of 16 x 8. Lane
// 4g + t has
//   a: A's (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)      b: each B's (t, g), (t + 4, g)
//   c: each C's (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
// The sums are cut off and not rounded, so that a long sum in c would come out too small.
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

// c has its sums only after this call, and all operands must stay until then. The instruction does not
// need it; the emulated device does, where the lanes of a warp meet here once for all products.
__device__ inline void finish_products() {}

}  // namespace reapx
