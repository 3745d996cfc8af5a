#include <algorithm>
#include <cmath>
#include <cstring>

#include "gram/gram_forms.h"
#include "runtime/cpu/buffer.h"

namespace reapx {

namespace {

// Bytes of patch rows that are packed at a time. More of them leave the caches, and fewer take more
// passes over the Gram matrix. Measured: a byte of the rows costs as much as four entries of a pass.
double buffer_bytes(const GramTask& task) {
  constexpr double least = 4 << 20, most = 16 << 20;
  const double features = static_cast<double>(task.features());
  const double all = static_cast<double>(task.samples()) * features * sizeof(float);
  return std::clamp(std::sqrt(all * features * features / 4), least, most);
}

// One operand: the patches of `images` under a window, columns first_channel*taps and up.
struct Patches {
  Images images;
  Axis rows, columns;
  int64_t first_channel, count;  // count: columns of the matrix
  const int64_t* positions;      // as in GramTask
  int64_t per_image;
};

// Writes what one tap reads for the outputs from .. from+length-1 of one output row.
void copy_strip(const Patches& x, int64_t channel, int64_t row, int64_t tap_column, int64_t image,
                int64_t from, int64_t length, float* to) {
  const Axis& axis = x.columns;
  std::fill(to, to + length, 0.0f);
  if (row < 0 || row >= x.rows.input) return;
  const float* source = x.images.floats() + image * x.images.image_step +
                        channel * x.images.channel_step + row * x.images.row_step;
  const int64_t shift = tap_column * axis.dilation - axis.padding;
  const int64_t step = axis.stride * x.images.column_step;
  int64_t begin = 0, end = length;
  while (begin < end && (from + begin) * axis.stride + shift < 0) ++begin;
  while (begin < end && (from + end - 1) * axis.stride + shift >= axis.input) --end;
  if (begin == end) return;
  source += ((from + begin) * axis.stride + shift) * x.images.column_step;
  if (step == 1) {
    std::copy(source, source + (end - begin), to + begin);
    return;
  }
  for (int64_t t = begin; t < end; ++t, source += step) to[t] = *source;
}

// Writes rows first .. first+count-1 (count <= kFloatTerms) of one panel of the patch matrix. Columns
// are gathered one by one into a scratch block, which is then transposed.
void pack_patches(const Tile& tile, const Patches& x, int64_t panel, int64_t first, int64_t count,
                  float* to) {
  const int64_t width = width_of(x.count, panel);
  const int64_t taps = x.rows.kernel * x.columns.kernel;
  float scratch[kFloatWidth * kFloatTerms];
  for (int64_t j = 0; j < width; ++j) {
    const int64_t column = panel * kFloatWidth + j, tap = column % taps;
    const int64_t channel = x.first_channel + column / taps;
    for (int64_t t = 0; t < count;) {
      const int64_t position = first + t, output_row = position / x.columns.output;
      const int64_t from = position % x.columns.output;
      const int64_t length = std::min(count - t, x.columns.output - from);
      const int64_t row = output_row % x.rows.output * x.rows.stride +
                          tap / x.columns.kernel * x.rows.dilation - x.rows.padding;
      copy_strip(x, channel, row, tap % x.columns.kernel, output_row / x.rows.output, from, length,
                 scratch + j * kFloatTerms + t);
      t += length;
    }
  }
  tile.transpose(count, width, scratch, kFloatTerms, to, kFloatWidth);
}

// The same for chosen positions, where each row names an image and a position.
void pack_sampled(const Patches& x, int64_t panel, int64_t first, int64_t count, float* to) {
  const int64_t width = width_of(x.count, panel), taps = x.rows.kernel * x.columns.kernel;
  const Images& in = x.images;
  for (int64_t t = 0; t < count; ++t) {
    const int64_t position = x.positions[first + t];
    const float* image = in.floats() + (first + t) / x.per_image * in.image_step;
    const int64_t top = position / x.columns.output * x.rows.stride - x.rows.padding;
    const int64_t left = position % x.columns.output * x.columns.stride - x.columns.padding;
    for (int64_t j = 0; j < width; ++j) {
      const int64_t column = panel * kFloatWidth + j, tap = column % taps;
      const int64_t r = top + tap / x.columns.kernel * x.rows.dilation;
      const int64_t c = left + tap % x.columns.kernel * x.columns.dilation;
      const bool inside = r >= 0 && r < x.rows.input && c >= 0 && c < x.columns.input;
      to[t * kFloatWidth + j] = inside ? image[(x.first_channel + column / taps) * in.channel_step +
                                               r * in.row_step + c * in.column_step]
                                       : 0.0f;
    }
  }
}

// The rows of a linear layer are copied: they already lie as the panel needs them.
void pack_vectors(const Patches& x, int64_t panel, int64_t first, int64_t count, float* to) {
  const int64_t width = width_of(x.count, panel);
  const float* from = x.images.floats() + x.first_channel + panel * kFloatWidth;
  for (int64_t t = 0; t < count; ++t)
    std::memcpy(to + t * kFloatWidth, from + (first + t) * x.images.image_step,
                static_cast<size_t>(width) * sizeof(float));
}

void pack(const Tile& tile, const Patches& x, int64_t panel, int64_t first, int64_t count, float* to) {
  const bool vectors = x.rows.kernel * x.columns.kernel == 1 && x.images.channel_step == 1 &&
                       x.rows.padding + x.columns.padding == 0 &&
                       x.rows.output * x.columns.output == 1 && x.images.rows * x.images.columns == 1;
  if (x.positions) {
    pack_sampled(x, panel, first, count, to);
  } else if (vectors) {
    pack_vectors(x, panel, first, count, to);
  } else {
    pack_patches(tile, x, panel, first, count, to);
  }
}

Axis single(int64_t size) { return {1, 1, 0, 1, size, size}; }

struct Operands {
  Patches x, y;
  int64_t x_panels, y_panels;
  int64_t rows;  // rows that the buffer holds
  Buffer<float> buffer;

  const float* panel(int64_t index) const { return buffer.data() + index * rows * kFloatWidth; }
};

Operands prepare(const GramTask& task, int64_t group) {
  Operands o{};
  o.x = {task.input,      task.rows,      task.columns,  group * task.group_channels(),
         task.features(), task.positions, task.per_image};
  o.y = {task.target,
         single(task.rows.output),
         single(task.columns.output),
         group * task.group_targets(),
         task.group_targets(),
         task.positions,
         task.per_image};
  o.x_panels = panels_of(o.x.count);
  o.y_panels = panels_of(o.y.count);
  const double row_bytes = static_cast<double>((o.x_panels + o.y_panels) * kFloatWidth) * sizeof(float);
  const int64_t blocks = static_cast<int64_t>(buffer_bytes(task) / row_bytes) / kFloatTerms;
  const int64_t wanted = std::max<int64_t>(1, blocks) * kFloatTerms;
  o.rows = std::min(wanted, task.samples());
  o.buffer.resize(static_cast<size_t>((o.x_panels + o.y_panels) * o.rows * kFloatWidth));
  return o;
}

void fill(const Tile& tile, Team& team, Operands& o, int64_t first, int64_t count) {
  const int64_t chunks = (count + kFloatTerms - 1) / kFloatTerms;
  team.run((o.x_panels + o.y_panels) * chunks, [&](int64_t item) {
    const int64_t panel = item / chunks, offset = item % chunks * kFloatTerms;
    float* to = o.buffer.data() + (panel * o.rows + offset) * kFloatWidth;
    const int64_t rows = std::min(kFloatTerms, count - offset);
    if (panel < o.x_panels) {
      pack(tile, o.x, panel, first + offset, rows, to);
    } else {
      pack(tile, o.y, panel - o.x_panels, first + offset, rows, to);
    }
  });
}

// Adds one block of a product to its place in `out`, whose rows are `stride` long.
void add_product(const Tile& tile, const Operands& o, int64_t a, int64_t b, int64_t rows,
                 int64_t columns, int64_t count, double* out, int64_t stride) {
  double block[kBlockSize] = {};
  add_block(tile, rows, 1, count, {o.panel(a), kFloatWidth, 0}, {o.panel(b), kFloatWidth, 0}, block);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) out[i * stride + j] += block[i * kFloatWidth + j];
}

void multiply(const GramTask& task, int64_t group, Team& team, const Tile& tile, const Operands& o,
              int64_t count) {
  const int64_t features = task.features(), p = o.x_panels;
  double* gram = task.gram + group * features * features;
  double* cross = task.cross + group * o.y.count * features;
  // Item (a, b) with b >= a is a block of the Gram matrix, and items with b < a are skipped. The items
  // whose a is beyond the panels of X are blocks of the cross moments.
  team.run((p + o.y_panels) * p, [&](int64_t item) {
    const int64_t a = item / p, b = item % p, columns = width_of(features, b);
    if (a >= p) {
      const int64_t m = a - p;
      add_product(tile, o, a, b, width_of(o.y.count, m), columns, count,
                  cross + m * kFloatWidth * features + b * kFloatWidth, features);
      return;
    }
    if (b < a) return;
    add_product(tile, o, a, b, width_of(features, a), columns, count,
                gram + a * kFloatWidth * features + b * kFloatWidth, features);
    if (a != b) return;
    double sums[kFloatWidth] = {};
    tile.add_sums(count, o.panel(b), kFloatWidth, sums);
    double* total = task.total + group * features + b * kFloatWidth;
    for (int64_t j = 0; j < columns; ++j) total[j] += sums[j];
  });
}

}  // namespace

double rows_cost(const GramTask& task) {
  const double padded = static_cast<double>(panels_of(task.features()) * kFloatWidth);
  const double targets = static_cast<double>(task.group_targets());
  const double per_row = padded * (padded + kFloatWidth) / 2 + padded * targets;
  const double passes =
      std::ceil(static_cast<double>(task.samples()) * padded * sizeof(float) / buffer_bytes(task));
  // Measured: packing a value costs as much as a row of a panel product, and every pass over the Gram
  // matrix as much as 100 products for each of its entries.
  return static_cast<double>(task.samples()) * (per_row + padded * kFloatWidth) +
         100.0 * passes * padded * padded;
}

void gram_rows(const GramTask& task, int64_t group, Team& team, const Tile& tile) {
  Operands o = prepare(task, group);
  const int64_t samples = task.samples();
  for (int64_t first = 0; first < samples; first += o.rows) {
    const int64_t count = std::min(o.rows, samples - first);
    fill(tile, team, o, first, count);
    multiply(task, group, team, tile, o, count);
  }
}

}  // namespace reapx
