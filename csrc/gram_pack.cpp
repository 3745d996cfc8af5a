#include <algorithm>
#include <cstring>

#include "gram_work.h"

namespace reapx {

namespace {

// Up to kFloatWidth channels of one row of one image, a panel row for each column.
struct PackedRow {
  const float* data;
  int64_t step;
};

PackedRow pack_row(const Tile& tile, const Images& images, const float* from, int64_t channels,
                   std::vector<float>& scratch) {
  if (images.channel_step == 1) return {from, images.column_step};
  scratch.resize(static_cast<size_t>(images.columns * kFloatWidth));
  if (images.column_step == 1) {
    tile.transpose(images.columns, channels, from, images.channel_step, scratch.data(), kFloatWidth);
  } else {
    for (int64_t t = 0; t < images.columns; ++t)
      for (int64_t j = 0; j < channels; ++j)
        scratch[static_cast<size_t>(t * kFloatWidth + j)] =
            from[t * images.column_step + j * images.channel_step];
  }
  return {scratch.data(), kFloatWidth};
}

// Columns first, first + step, .. of a packed row into every `images`th panel row.
void spread_row(const PackedRow& row, int64_t first, int64_t step, int64_t count, int64_t channels,
                int64_t images, float* to) {
  const float* from = row.data + first * row.step;
  const size_t bytes = static_cast<size_t>(channels) * sizeof(float);
  for (int64_t v = 0; v < count; ++v, from += step * row.step, to += images * kFloatWidth)
    std::memcpy(to, from, bytes);
}

// One image into one panel: its channels lie next to each other in memory, so it is read in order.
void pack_input(ShiftWork& w, int64_t p, int64_t image, const float* from) {
  const Images& in = w.task.input;
  const AxisPlan &rows = w.plan.rows, &columns = w.plan.columns;
  const int64_t channels = w.task.group_channels(), width = width_of(channels, p);
  std::vector<float> scratch;
  for (int64_t f = 0; f < rows.phase_count(); ++f)
    for (int64_t v = 0; v < rows.length(f); ++v) {
      const int64_t row = rows.first(f) + v * rows.axis.stride;
      const PackedRow packed = pack_row(w.tile, in, from + row * in.row_step, width, scratch);
      for (int64_t c = 0; c < columns.phase_count(); ++c)
        for (int64_t copy = 0; copy < w.plan.copies; ++copy)
          spread_row(packed, columns.first(c), columns.axis.stride, columns.length(c), width,
                     w.target.images,
                     w.x_panel(p) + copy * channels +
                         (w.grid(f, c).at(v, -copy * columns.unit) + image) * kFloatWidth);
    }
}

void pack_target(ShiftWork& w, int64_t p, int64_t image, const float* from) {
  const Images& y = w.task.target;
  const int64_t width = width_of(w.task.group_targets(), p);
  std::vector<float> scratch;
  for (int64_t v = 0; v < y.rows; ++v)
    spread_row(pack_row(w.tile, y, from + v * y.row_step, width, scratch), 0, 1, y.columns, width,
               w.target.images, w.y_panel(p) + (w.target.at(v, 0) + image) * kFloatWidth);
}

// What packing leaves out: margins, and the columns of a panel that belong to no channel.
void clear_gaps(ShiftWork& w, Team& team) {
  const bool all = w.margin > 0;
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

const float* plane(const Images& images, int64_t image, int64_t channel) {
  return images.data + image * images.image_step + channel * images.channel_step;
}

}  // namespace

void pack_images(ShiftWork& w, Team& team, int64_t first) {
  const int64_t count = w.target.images;
  clear_gaps(w, team);
  team.run((w.x_panels + w.y_panels) * count, [&](int64_t item) {
    const int64_t p = item / count, image = item % count;
    if (p < w.x_panels) {
      const int64_t channel = w.group * w.task.group_channels() + p * kFloatWidth;
      pack_input(w, p, image, plane(w.task.input, first + image, channel));
    } else {
      const int64_t own = p - w.x_panels;
      const int64_t channel = w.group * w.task.group_targets() + own * kFloatWidth;
      pack_target(w, own, image, plane(w.task.target, first + image, channel));
    }
  });
}

}  // namespace reapx
