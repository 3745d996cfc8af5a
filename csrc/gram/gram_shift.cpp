#include <algorithm>
#include <cmath>
#include <utility>

#include "gram/gram_work.h"

namespace reapx {

namespace {

constexpr double kUseCost = 20;  // multiply-adds for each entry of a product that is added to a result
constexpr double kLeastBytes = 2 << 20, kMostBytes = 64 << 20;  // of all panels

// Lays out the phases of `images` images.
void lay_out(ShiftWork& w, int64_t images) {
  int64_t start = 0;
  w.grids.clear();
  for (int64_t r = 0; r < w.plan.rows.phase_count(); ++r)
    for (int64_t c = 0; c < w.plan.columns.phase_count(); ++c) {
      w.grids.push_back(
          {start, w.plan.margin(), w.plan.rows.length(r), w.plan.columns.length(c), images});
      start += w.grids.back().positions();
    }
  w.target = {0, 0, w.task.rows.output, w.task.columns.output, images};
  w.x.resize(static_cast<size_t>(w.x_panels * start * kFloatWidth));
  w.y.resize(static_cast<size_t>(w.y_panels * w.target.positions() * kFloatWidth));
}

// Images of one batch, when all are split into batches of about equal size. A larger batch leaves the
// caches, a smaller one adds to the results more often. Measured: a byte of a batch costs a quarter of
// what adding to an entry of the results costs.
int64_t batch_images(const ShiftWork& w) {
  const GramTask& task = w.task;
  const double input = static_cast<double>(w.x_panels * task.rows.input * task.columns.input);
  const double target = static_cast<double>(w.y_panels * task.rows.output * task.columns.output);
  const double bytes = (input + target) * kFloatWidth * sizeof(float);  // of an image
  const double images = static_cast<double>(task.input.images);
  const double entries = static_cast<double>(task.features()) *
                         static_cast<double>(task.features() + task.group_targets());
  const double best = std::sqrt(4.0 * images * bytes * entries);
  const double fitting = std::clamp(best, kLeastBytes, kMostBytes) / std::max(bytes, 1.0);
  const int64_t batches = static_cast<int64_t>(std::ceil(images / std::max(1.0, std::floor(fitting))));
  return (task.input.images + batches - 1) / batches;
}

Runs runs_at(const float* panel, const Grid& grid, int64_t row, int64_t column) {
  return {panel + grid.at(row, column) * kFloatWidth, kFloatWidth, grid.pitch() * kFloatWidth};
}

void multiply_pair(ShiftWork& w, const PairBlocks& blocks, int64_t index, bool turned) {
  const ShiftProduct& product = w.plan.products[static_cast<size_t>(index)];
  if (turned && w.plan.symmetric(product)) return;
  const int64_t a = turned ? blocks.r : blocks.p, b = turned ? blocks.p : blocks.r;
  const Span rows = span_of(w.plan.rows, product.row, 0);
  const Span columns = span_of(w.plan.columns, product.column, w.plan.margin());
  const Grid& from = w.grid(product.row.a_phase, product.column.a_phase);
  const Grid& to = w.grid(product.row.b_phase, product.column.b_phase);
  double* block = blocks.at(index, turned);
  std::fill_n(block, kBlockSize, 0.0);
  add_block(
      w.tile, width_of(w.task.group_channels(), a), rows.end - rows.begin,
      (columns.end - columns.begin) * from.images,
      runs_at(w.x_panel(a), from, rows.begin, columns.begin),
      runs_at(w.x_panel(b), to, rows.begin + product.row.shift, columns.begin + product.column.shift),
      block);
}

void multiply_cross(ShiftWork& w, int64_t p, int64_t m, int64_t index, double* block) {
  const AxisPlan& plan = w.plan.columns;
  const PhaseTap& row_tap = w.plan.rows.tap(index / w.plan.column_groups());
  const int64_t column_group = index % w.plan.column_groups();
  const int64_t phase = column_group / w.plan.groups_of_phase();
  const int64_t column_offset =
      plan.origin(phase) + column_group % w.plan.groups_of_phase() * w.plan.copies * plan.unit;
  const Grid& from = w.grid(row_tap.phase, phase);
  const Span rows = overlap(w.task.rows.output, from.rows, row_tap.offset, 0);
  const Span columns = overlap(w.task.columns.output, from.columns, column_offset, w.plan.margin());
  std::fill_n(block, kBlockSize, 0.0);
  add_block(w.tile, width_of(w.task.group_targets(), m), rows.end - rows.begin,
            (columns.end - columns.begin) * from.images,
            runs_at(w.y_panel(m), w.target, rows.begin, columns.begin),
            runs_at(w.x_panel(p), from, rows.begin + row_tap.offset, columns.begin + column_offset),
            block);
}

void add_pair(ShiftWork& w, Team& team, Pool<double>& pool, int64_t p, int64_t r) {
  RawBuffer<double> scratch = pool.take();
  const PairBlocks blocks{p, r, scratch.data()};
  const int64_t turns = r > p ? 2 : 1;
  team.run(static_cast<int64_t>(w.plan.products.size()) * turns,
           [&](int64_t item) { multiply_pair(w, blocks, item / turns, item % turns); });
  merge_pair(w, team, blocks);
  pool.give(std::move(scratch));
}

void add_cross(ShiftWork& w, Team& team, Pool<double>& pool, int64_t p, int64_t m) {
  RawBuffer<double> scratch = pool.take();
  double* blocks = scratch.data();
  team.run(w.plan.cross_products(),
           [&](int64_t index) { multiply_cross(w, p, m, index, blocks + index * kBlockSize); });
  merge_cross(w, blocks, p, m);
  pool.give(std::move(scratch));
}

void add_total(ShiftWork& w, int64_t p) {
  std::vector<double> sums(w.plan.products.size() * kFloatWidth);
  for (size_t index = 0; index < w.plan.products.size(); ++index) {
    const ShiftProduct& product = w.plan.products[index];
    if (!product.diagonal) continue;
    const Span rows = span_of(w.plan.rows, product.row, 0);
    const Span columns = span_of(w.plan.columns, product.column, w.plan.margin());
    const Grid& grid = w.grid(product.row.a_phase, product.column.a_phase);
    for (int64_t v = rows.begin; v < rows.end; ++v)
      w.tile.add_sums((columns.end - columns.begin) * grid.images,
                      w.x_panel(p) + grid.at(v, columns.begin) * kFloatWidth, kFloatWidth,
                      sums.data() + index * kFloatWidth);
  }
  merge_total(w, sums.data(), p);
}

// The work items are pairs of panels, and pairs of a panel and a target panel. Many items run side by
// side, each with its blocks in the cache of one core. A few run one after another, each split over the
// team.
void add_products(ShiftWork& w, Team& team) {
  const size_t blocks =
      std::max(2 * w.plan.products.size(), static_cast<size_t>(w.plan.cross_products()));
  Pool<double> pool((blocks + 1) * kBlockSize);  // a copy may be read up to one block beyond the last
  std::vector<std::pair<int64_t, int64_t>> items;
  for (int64_t p = 0; p < w.x_panels; ++p)
    for (int64_t r = p + 1; r < w.x_panels; ++r) items.emplace_back(p, r);
  for (int64_t p = 0; p < w.x_panels; ++p) items.emplace_back(p, p);  // half the work: last
  for (int64_t p = 0; p < w.x_panels; ++p)
    for (int64_t m = 0; m < w.y_panels; ++m) items.emplace_back(p, w.x_panels + m);
  const auto run = [&](int64_t item, Team& helpers) {
    const auto [p, r] = items[static_cast<size_t>(item)];
    if (r < w.x_panels) {
      add_pair(w, helpers, pool, p, r);
    } else {
      add_cross(w, helpers, pool, p, r - w.x_panels);
    }
  };
  const int64_t count = static_cast<int64_t>(items.size());
  const bool many = count >= kManyItems * team.threads();
  run_tasks(team, count, [&](int64_t) { return !many; }, run);
  team.run(w.x_panels, [&](int64_t p) { add_total(w, p); });
}

}  // namespace

double least_shift_cost(const GramTask& task) {
  const double taps = static_cast<double>(task.taps());
  return kUseCost * static_cast<double>(kBlockSize) * taps * (taps + 1) / 2;
}

double shift_cost(const GramTask& task, const ShiftPlan& plan) {
  const auto count = [](const AxisPlan& axis, const AxisTerm& term, int64_t margin) {
    const Span span = span_of(axis, term, margin);
    return static_cast<double>(span.end - span.begin);
  };
  const double panels = static_cast<double>(panels_of(task.group_channels()));
  const double width = panels * kFloatWidth;
  // Measured: a tile of few rows waits for its loads and costs as much as two full ones.
  const int64_t tiles = (task.group_channels() + kTileRows - 1) / kTileRows;
  const int64_t waiting = task.group_channels() < kTileRows ? 2 : 1;
  const double channels = static_cast<double>(tiles * waiting * kTileRows);
  double cost = static_cast<double>(task.rows.input * task.columns.input) * width * kFloatWidth;
  for (const ShiftProduct& p : plan.products)
    cost += count(plan.rows, p.row, 0) * count(plan.columns, p.column, plan.margin()) * channels *
            width * (plan.symmetric(p) ? 0.5 * (1 + 1 / panels) : 1.0);
  cost += static_cast<double>(task.rows.output * task.columns.output) *
          static_cast<double>(task.rows.kernel * plan.column_groups()) * width *
          static_cast<double>((task.group_targets() + 7) / 8 * 8);
  double uses = static_cast<double>(plan.products.size());
  for (const auto& pair : plan.pair_uses) uses += 2 * static_cast<double>(pair.size());
  // Measured: putting the products together costs as much as 300 products for each entry of the result.
  const double entries = static_cast<double>(task.features()) * static_cast<double>(task.features());
  return cost * static_cast<double>(task.input.images) +
         kUseCost * uses * static_cast<double>(kBlockSize) + 300.0 * entries;
}

void gram_shift(const GramTask& task, const ShiftPlan& plan, int64_t group, Team& team,
                const Tile& tile) {
  ShiftWork w{.task = task,
              .plan = plan,
              .tile = tile,
              .group = group,
              .x_panels = panels_of(task.group_channels()),
              .y_panels = panels_of(task.group_targets())};
  const int64_t batch = batch_images(w);
  for (int64_t first = 0; first < task.input.images; first += batch) {
    const int64_t count = std::min(batch, task.input.images - first);
    if (count != w.target.images) lay_out(w, count);  // the last batch may be smaller
    pack_images(w, team, first);
    add_products(w, team);
  }
}

}  // namespace reapx
