// Second moments of the patches that a convolution reads.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/context.h"

namespace reapx {

// The type of a tensor's elements. Every value of half precision is one of float32 too: a kernel that
// reads half precision computes with that, and gets what a float32 copy would give, to the bit.
enum class Element { kFloat32, kFloat16, kBfloat16 };

// A tensor (images, channels, rows, columns) with strides in elements: any layout whose channels or
// columns lie next to each other is read at full speed. The CPU's definition takes float32 only.
struct Images {
  const void* data;
  Element element;
  int64_t images, channels, rows, columns;
  int64_t image_step, channel_step, row_step, column_step;

  const float* floats() const { return static_cast<const float*>(data); }  // of kFloat32
};

// Geometry of one axis of a convolution: output o, tap a read input o*stride + a*dilation - padding;
// reading outside the input gives 0.
struct Axis {
  int64_t kernel, stride, padding, dilation, input, output;
};

// For each group g, with X_g the (images * output positions, D) matrix of patches, whose columns are
// (channel of the group, kernel row, kernel column), D = channels / groups * kernel rows * columns,
// and Y_g the (images * output positions, targets / groups) matrix of target values:
//
//   gram[g]  += X_g^T X_g    total[g]        += column sums of X_g
//   cross[g] += Y_g^T X_g    target_total    += column sums of Y    target_square += those of Y^2
//
// gram (groups, D, D): float64, row-major. Only its upper triangle (row <= column) has a meaning: after
// all batches, gram_mirror makes it symmetric.
// total (groups, D); cross (groups, targets / groups, D); target_total, target_square (targets,):
// float64, row-major. All are added to and overlap nothing. The last three are not used when
// target.data is null. Sums of at most kFloatTerms products in float32, added up in float64, or as
// good by other means (gram_entries.h).
//
// With `positions`, only those: row s of X and Y is output position positions[s] = row * columns.output
// + column of image s / per_image.
struct GramTask {
  Images input;
  Images target;  // data null, or (images, targets, rows.output, columns.output)
  Axis rows, columns;
  int64_t groups;
  double *gram, *total, *cross, *target_total, *target_square;
  const int64_t* positions;  // (images, per_image) int64, or null for all
  int64_t per_image;

  int64_t group_channels() const { return input.channels / groups; }
  int64_t group_targets() const { return target.data ? target.channels / groups : 0; }
  int64_t taps() const { return rows.kernel * columns.kernel; }
  int64_t features() const { return group_channels() * taps(); }
  int64_t samples() const {
    return input.images * (positions ? per_image : rows.output * columns.output);
  }
};

// The sums above. The patch matrix is never built: the kernel holds a few thousand rows of it, or a
// copy of a few images. Results do not depend on `threads`. Any size may be 0.
// `form`: "" picks the faster of "rows" and "shift" (falls back to "rows" where "shift" cannot be
// used); the two agree to rounding.
void gram_accumulate(const GramTask& task, const std::string& form, const Context& context);

// Copies the upper triangle of each of `count` matrices (size, size), float64, row-major, to the lower.
// Any size may be 0.
void gram_mirror(double* gram, int64_t count, int64_t size, const Context& context);

}  // namespace reapx
