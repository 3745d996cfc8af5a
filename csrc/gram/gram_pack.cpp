#include <algorithm>
#include <cstring>

#include "gram/gram_work.h"

namespace reapx {

namespace {

// Images packed at a time: what they write lies next to each other.
constexpr int64_t kTogether = 4;
constexpr int64_t kPrefetch = 16;  // floats of a cache line

// One row of a few images, up to kFloatWidth channels of it, with a panel row for each column.
struct PackedRows {
  const float* data[kTogether];
  int64_t images, step;
};

// Channels `channel` and up of row `row` of the images from `image` on.
PackedRows pack_rows(const Tile& tile, const Images& in, int64_t image, int64_t images, int64_t channel,
                     int64_t channels, int64_t row, std::vector<float>& scratch) {
  PackedRows packed{{}, images, kFloatWidth};
  scratch.resize(static_cast<size_t>(kTogether * in.columns * kFloatWidth));
  for (int64_t i = 0; i < images; ++i) {
    const float* from =
        in.floats() + (image + i) * in.image_step + channel * in.channel_step + row * in.row_step;
    float* to = scratch.data() + i * in.columns * kFloatWidth;
    packed.data[i] = to;
    if (in.channel_step == 1) {
      packed.data[i] = from;
      packed.step = in.column_step;
    } else if (in.column_step == 1) {
      // There are more streams than the hardware prefetches: ask for the next row of each channel.
      if (row + 1 < in.rows)
        for (int64_t j = 0; j < channels; ++j)
          for (int64_t t = 0; t < in.columns; t += kPrefetch)
            __builtin_prefetch(from + j * in.channel_step + in.row_step + t);
      tile.transpose(in.columns, channels, from, in.channel_step, to, kFloatWidth);
    } else {
      for (int64_t t = 0; t < in.columns; ++t)
        for (int64_t j = 0; j < channels; ++j)
          to[t * kFloatWidth + j] = from[t * in.column_step + j * in.channel_step];
    }
  }
  return packed;
}

// Columns first, first + step, .. of packed rows into every `pitch`th panel row.
void spread_rows(const PackedRows& packed, int64_t first, int64_t step, int64_t count, int64_t channels,
                 int64_t pitch, float* to) {
  const size_t bytes = static_cast<size_t>(channels) * sizeof(float);
  for (int64_t v = 0; v < count; ++v)
    for (int64_t i = 0; i < packed.images; ++i) {
      const float* from = packed.data[i] + (first + v * step) * packed.step;
      float* panel_row = to + (v * pitch + i) * kFloatWidth;
      if (channels == kFloatWidth) {
        std::memcpy(panel_row, from, kFloatWidth * sizeof(float));  // a size that the compiler knows
      } else {
        std::memcpy(panel_row, from, bytes);
      }
    }
}

// A few images, from `first + image` on, into one panel.
void pack_input(ShiftWork& w, int64_t p, int64_t first, int64_t image) {
  const AxisPlan &rows = w.plan.rows, &columns = w.plan.columns;
  const int64_t channels = w.task.group_channels(), width = width_of(channels, p);
  const int64_t images = std::min(kTogether, w.target.images - image);
  std::vector<float> scratch;
  for (int64_t f = 0; f < rows.phase_count(); ++f)
    for (int64_t v = 0; v < rows.length(f); ++v) {
      const PackedRows packed =
          pack_rows(w.tile, w.task.input, first + image, images, w.group * channels + p * kFloatWidth,
                    width, rows.first(f) + v * rows.axis.stride, scratch);
      for (int64_t c = 0; c < columns.phase_count(); ++c)
        for (int64_t copy = 0; copy < w.plan.copies; ++copy)
          spread_rows(packed, columns.first(c), columns.axis.stride, columns.length(c), width,
                      w.target.images,
                      w.x_panel(p) + copy * channels +
                          (w.grid(f, c).at(v, -copy * columns.unit) + image) * kFloatWidth);
    }
}

void pack_target(ShiftWork& w, int64_t p, int64_t first, int64_t image) {
  const int64_t targets = w.task.group_targets(), width = width_of(targets, p);
  const int64_t images = std::min(kTogether, w.target.images - image);
  std::vector<float> scratch;
  for (int64_t v = 0; v < w.target.rows; ++v)
    spread_rows(pack_rows(w.tile, w.task.target, first + image, images,
                          w.group * targets + p * kFloatWidth, width, v, scratch),
                0, 1, w.target.columns, width, w.target.images,
                w.y_panel(p) + (w.target.at(v, 0) + image) * kFloatWidth);
}

// Writes zeros where packing writes nothing: margins, and panel columns that belong to no channel.
void clear_gaps(ShiftWork& w, Team& team) {
  const bool all = w.plan.margin() > 0;
  team.run(w.x_panels + w.y_panels, [&](int64_t item) {
    if (item < w.x_panels) {
      if (all || width_of(w.task.group_channels(), item) < kFloatWidth)
        std::fill_n(w.x_panel(item), w.x_positions() * kFloatWidth, 0.0f);
    } else {
      const int64_t p = item - w.x_panels;
      if (width_of(w.task.group_targets(), p) < kFloatWidth)
        std::fill_n(w.y_panel(p), w.target.positions() * kFloatWidth, 0.0f);
    }
  });
}

}  // namespace

void pack_images(ShiftWork& w, Team& team, int64_t first) {
  const int64_t parts = (w.target.images + kTogether - 1) / kTogether;
  clear_gaps(w, team);
  team.run((w.x_panels + w.y_panels) * parts, [&](int64_t item) {
    const int64_t p = item / parts, image = item % parts * kTogether;
    if (p < w.x_panels) {
      pack_input(w, p, first, image);
    } else {
      pack_target(w, p - w.x_panels, first, image);
    }
  });
}

}  // namespace reapx
