#include <algorithm>

#include "buffer.h"
#include "gram_forms.h"

namespace reapx {

namespace {

constexpr int64_t kPanelBytes = 256 << 10;  // of one panel: two of them stay in L2
constexpr int64_t kBufferBytes = 4 << 20;   // of all panels

// Where an input value lies in a panel: images side by side, row by row, with columns of zeros
// between the images and rows of zeros before the first and after the last row, so that a shifted
// operand is the same panel read from another row.
struct Grid {
  int64_t images;      // in one batch
  int64_t pitch;       // columns of an image with the zeros that follow it
  int64_t front, top;  // zeros before the first position; rows of zeros
  int64_t positions;

  int64_t at(int64_t row, int64_t image, int64_t column) const {
    return front + ((row + top) * images + image) * pitch + column;
  }
};

struct Work {
  const GramTask& task;
  const ShiftPlan& plan;
  int64_t group, x_panels, y_panels, tap_groups;  // tap_groups: of `copies` taps, per kernel row
  Grid grid;
  Buffer<float> x, y;
  Buffer<double> products, crosses, sums;

  const float* x_panel(int64_t p) const { return x.data() + p * grid.positions * kFloatWidth; }
  int64_t y_positions() const { return task.rows.output * grid.images * grid.pitch; }
  const float* y_panel(int64_t p) const { return y.data() + p * y_positions() * kFloatWidth; }
  double* product(int64_t index, int64_t a, int64_t b) {
    return products.data() + ((index * x_panels + a) * x_panels + b) * kBlockSize;
  }
  double* cross(int64_t index, int64_t m, int64_t b) {
    return crosses.data() + ((index * y_panels + m) * x_panels + b) * kBlockSize;
  }
};

int64_t max_of(std::initializer_list<int64_t> values) { return std::max(values); }

Grid make_grid(const GramTask& task, const ShiftPlan& plan, int64_t images) {
  const Axis &r = task.rows, &c = task.columns;
  const int64_t row_span = (r.kernel - 1) * r.dilation, column_span = (c.kernel - 1) * c.dilation;
  const int64_t last_row = r.output - 1 + row_span - r.padding;
  const int64_t last_column = c.output - 1 + column_span - c.padding;
  Grid grid{};
  grid.images = images;
  grid.pitch =
      c.input + max_of({column_span, c.padding, last_column - (c.input - 1), c.output - c.input});
  grid.front = (c.kernel + plan.copies) * c.dilation + c.padding;
  grid.top = r.padding;
  const int64_t bottom = max_of({row_span, last_row - (r.input - 1), r.output - r.input, 0});
  grid.positions = 2 * grid.front + (grid.top + r.input + bottom) * images * grid.pitch;
  return grid;
}

// Images whose panels fit the caches; at least one.
int64_t batch_images(const GramTask& task, const ShiftPlan& plan) {
  const int64_t bytes = (make_grid(task, plan, 2).positions - make_grid(task, plan, 1).positions) *
                        kFloatWidth * int64_t{sizeof(float)};
  const int64_t panels = panels_of(task.group_channels()) + panels_of(task.group_targets());
  const int64_t fitting = std::min(kPanelBytes / bytes, kBufferBytes / (bytes * panels));
  return std::min(task.input.images, std::max<int64_t>(1, fitting));
}

void pack_input(Work& w, Team& team, const Tile& tile, int64_t first, int64_t count) {
  const Images& in = w.task.input;
  const int64_t channels = w.task.group_channels(), dilation = w.task.columns.dilation;
  team.run(w.x_panels * count, [&](int64_t item) {
    const int64_t p = item / count, image = item % count;
    const int64_t width = std::min(kFloatWidth, channels - p * kFloatWidth);
    const float* from = in.data + (first + image) * in.image_step +
                        (w.group * channels + p * kFloatWidth) * in.channel_step;
    float* panel = w.x.data() + p * w.grid.positions * kFloatWidth;
    for (int64_t row = 0; row < in.rows; ++row)
      for (int64_t copy = 0; copy < w.plan.copies; ++copy)
        pack_row(tile, in, from + row * in.row_step, width,
                 panel + (w.grid.at(row, image, 0) - copy * dilation) * kFloatWidth + copy * channels);
  });
}

void pack_target(Work& w, Team& team, const Tile& tile, int64_t first, int64_t count) {
  const Images& y = w.task.target;
  const int64_t targets = w.task.group_targets();
  team.run(w.y_panels * count, [&](int64_t item) {
    const int64_t p = item / count, image = item % count;
    const int64_t width = std::min(kFloatWidth, targets - p * kFloatWidth);
    const float* from = y.data + (first + image) * y.image_step +
                        (w.group * targets + p * kFloatWidth) * y.channel_step;
    float* panel = w.y.data() + p * w.y_positions() * kFloatWidth;
    for (int64_t row = 0; row < y.rows; ++row)
      pack_row(tile, y, from + row * y.row_step, width,
               panel + (row * w.grid.images + image) * w.grid.pitch * kFloatWidth);
  });
}

// The positions of a piece: evenly spaced, because images lie side by side.
struct Range {
  int64_t begin, terms, step;
};

Range positions_of(const Work& w, int64_t row, int64_t column) {
  const Grid& g = w.grid;
  const int64_t rows = row < 0 ? w.task.rows.input : 1;
  const int64_t begin = g.at(std::max<int64_t>(row, 0), 0, std::max<int64_t>(column, 0));
  if (column < 0) return {begin, rows * g.images * g.pitch, 1};
  return {begin, rows * g.images, g.pitch};
}

void add_shift_product(Work& w, const Tile& tile, int64_t index, int64_t a, int64_t b) {
  const ShiftProduct& p = w.plan.products[static_cast<size_t>(index)];
  if (p.symmetric && b < a) return;
  const Range range = positions_of(w, p.row, p.column);
  const int64_t shift = p.row_shift * w.task.rows.dilation * w.grid.images * w.grid.pitch +
                        p.column_shift * w.task.columns.dilation;
  const int64_t rows = std::min(kFloatWidth, w.task.group_channels() - a * kFloatWidth);
  add_block(tile, rows, range.terms, w.x_panel(a) + range.begin * kFloatWidth,
            w.x_panel(b) + (range.begin + shift) * kFloatWidth, range.step, w.product(index, a, b));
}

void add_cross_product(Work& w, const Tile& tile, int64_t index, int64_t m, int64_t b) {
  const Axis &r = w.task.rows, &c = w.task.columns;
  const int64_t row = index / w.tap_groups * r.dilation - r.padding;
  const int64_t column = index % w.tap_groups * w.plan.copies * c.dilation - c.padding;
  const int64_t rows = std::min(kFloatWidth, w.task.group_targets() - m * kFloatWidth);
  add_block(tile, rows, w.y_positions(), w.y_panel(m),
            w.x_panel(b) + w.grid.at(row, 0, column) * kFloatWidth, 1, w.cross(index, m, b));
}

void multiply(Work& w, Team& team, const Tile& tile) {
  const int64_t products = static_cast<int64_t>(w.plan.products.size());
  const int64_t gram_items = products * w.x_panels * w.x_panels;
  const int64_t cross_items = w.task.rows.kernel * w.tap_groups * w.y_panels * w.x_panels;
  const int64_t sum_items = static_cast<int64_t>(w.plan.sums.size()) * w.x_panels;
  team.run(gram_items + cross_items + sum_items, [&](int64_t item) {
    const int64_t b = item % w.x_panels, rest = item / w.x_panels;
    if (item < gram_items) return add_shift_product(w, tile, rest / w.x_panels, rest % w.x_panels, b);
    if (item < gram_items + cross_items) {
      const int64_t own = rest - products * w.x_panels;
      return add_cross_product(w, tile, own / w.y_panels, own % w.y_panels, b);
    }
    const int64_t index = (item - gram_items - cross_items) / w.x_panels;
    const ShiftSum& sum = w.plan.sums[static_cast<size_t>(index)];
    const Range range = positions_of(w, sum.row, sum.column);
    tile.add_sums(range.terms, w.x_panel(b) + range.begin * kFloatWidth, range.step * kFloatWidth,
                  w.sums.data() + (index * w.x_panels + b) * kFloatWidth, nullptr);
  });
}

// Sums of blocks are this far apart, so that neighbouring taps do not fall into one cache set.
constexpr int64_t kBlockStep = kBlockSize + kLanes;

int64_t width_of(int64_t channels, int64_t panel) {
  return std::min(kFloatWidth, channels - panel * kFloatWidth);
}

// out[c][e] = correlation of channel c of panel p at tap a with channel e of panel r at tap b, a <= b,
// put together from its pieces.
void combine(Work& w, int64_t a, int64_t b, int64_t p, int64_t r, double* out) {
  const int64_t channels = w.task.group_channels();
  const int64_t rows = width_of(channels, p), columns = width_of(channels, r);
  std::fill(out, out + kBlockSize, 0.0);
  for (const ShiftUse& use : w.plan.pair_uses[static_cast<size_t>(a * w.task.taps() + b)]) {
    const double* block = w.product(use.product, p, r) + use.copy * channels;
    for (int64_t c = 0; c < rows; ++c)
      for (int64_t e = 0; e < columns; ++e)
        out[c * kFloatWidth + e] += use.sign * block[c * kFloatWidth + e];
  }
}

// The same for any a and b: only one of (a, b) and (b, a) has products of its own.
void combine_any(Work& w, int64_t a, int64_t b, int64_t p, int64_t r, double* out) {
  if (a < b || (a == b && p <= r)) return combine(w, a, b, p, r, out);
  double turned[kBlockSize];
  combine(w, b, a, r, p, turned);
  for (int64_t c = 0; c < kFloatWidth; ++c)
    for (int64_t e = 0; e < kFloatWidth; ++e) out[c * kFloatWidth + e] = turned[e * kFloatWidth + c];
}

// Rows of tap a of the channels of panel p, columns of all taps of the channels of panel r.
void write_gram_block(Work& w, int64_t a, int64_t p, int64_t r, double* gram) {
  const int64_t taps = w.task.taps(), channels = w.task.group_channels();
  std::vector<double> blocks(static_cast<size_t>(taps * kBlockStep));
  for (int64_t b = 0; b < taps; ++b) combine_any(w, a, b, p, r, blocks.data() + b * kBlockStep);
  for (int64_t c = 0; c < width_of(channels, p); ++c) {
    double* to = gram + ((p * kFloatWidth + c) * taps + a) * w.task.features() + r * kFloatWidth * taps;
    const double* from = blocks.data() + c * kFloatWidth;
    for (int64_t e = 0; e < width_of(channels, r); ++e)
      for (int64_t b = 0; b < taps; ++b) to[e * taps + b] += from[b * kBlockStep + e];
  }
}

void write_cross_row(Work& w, int64_t m, double* row) {
  const int64_t taps = w.task.taps(), kernel = w.task.columns.kernel;
  const int64_t channels = w.task.group_channels();
  for (int64_t a = 0; a < taps; ++a) {
    const int64_t index = a / kernel * w.tap_groups + a % kernel / w.plan.copies;
    const int64_t shift = a % kernel % w.plan.copies * channels;
    for (int64_t p = 0; p < w.x_panels; ++p) {
      const double* from = w.cross(index, m / kFloatWidth, p) + m % kFloatWidth * kFloatWidth + shift;
      double* to = row + p * kFloatWidth * taps + a;
      for (int64_t c = 0; c < width_of(channels, p); ++c) to[c * taps] += from[c];
    }
  }
}

void write_results(Work& w, Team& team) {
  const int64_t taps = w.task.taps(), features = w.task.features(), panels = w.x_panels;
  const int64_t targets = w.task.group_targets();
  double* gram = w.task.gram + w.group * features * features;
  double* total = w.task.total + w.group * features;
  double* cross = w.task.cross + w.group * targets * features;
  team.run(panels * taps * panels, [&](int64_t item) {
    write_gram_block(w, item / panels % taps, item / panels / taps, item % panels, gram);
  });
  for (int64_t row = 0; row < features; ++row)
    for (const ShiftUse& use : w.plan.tap_uses[static_cast<size_t>(row % taps)])
      total[row] +=
          use.sign * w.sums[static_cast<size_t>(use.product * panels * kFloatWidth + row / taps)];
  team.run(targets, [&](int64_t m) { write_cross_row(w, m, cross + m * features); });
}

}  // namespace

void gram_shift(const GramTask& task, const ShiftPlan& plan, int64_t group, Team& team,
                const Tile& tile) {
  Work w{task,
         plan,
         group,
         panels_of(task.group_channels()),
         panels_of(task.group_targets()),
         (task.columns.kernel + plan.copies - 1) / plan.copies,
         {},
         {},
         {},
         {},
         {},
         {}};
  const size_t pairs = static_cast<size_t>(w.x_panels * w.x_panels * kBlockSize);
  w.products.resize(plan.products.size() * pairs);
  w.crosses.resize(
      static_cast<size_t>(task.rows.kernel * w.tap_groups * w.y_panels * w.x_panels * kBlockSize));
  w.sums.resize(plan.sums.size() * static_cast<size_t>(w.x_panels * kFloatWidth));
  const int64_t batch = batch_images(task, plan);
  for (int64_t first = 0; first < task.input.images; first += batch) {
    const int64_t count = std::min(batch, task.input.images - first);
    if (count != w.grid.images) {  // the last batch may be smaller: its zeros lie elsewhere
      w.grid = make_grid(task, plan, count);
      w.x.assign(static_cast<size_t>(w.x_panels * w.grid.positions * kFloatWidth), 0.0f);
      w.y.assign(static_cast<size_t>(w.y_panels * w.y_positions() * kFloatWidth), 0.0f);
    }
    pack_input(w, team, tile, first, count);
    if (task.target.data) pack_target(w, team, tile, first, count);
    multiply(w, team, tile);
  }
  write_results(w, team);
}

}  // namespace reapx
