// What the steps of form "shift" share: packed panels and their products.
#pragma once

#include "gram/gram_forms.h"
#include "runtime/cpu/buffer.h"

namespace reapx {

// One phase of the input in a panel: positions [row][margin columns, columns][image]. The images of one
// position lie next to each other. A shift is then a pointer offset, and positions that it moves out of
// the map are left out instead of being multiplied by zeros. The margin holds the columns before the
// first one that the shifted copies of the channels reach.
struct Grid {
  int64_t start, margin, rows, columns, images;

  int64_t pitch() const { return (margin + columns) * images; }
  int64_t positions() const { return rows * pitch(); }
  int64_t at(int64_t row, int64_t column) const {
    return start + row * pitch() + (margin + column) * images;
  }
};

struct ShiftWork {
  const GramTask& task;
  const ShiftPlan& plan;
  const Tile& tile;
  int64_t group, x_panels, y_panels;
  std::vector<Grid> grids{};  // [row phase * column phases + column phase]
  Grid target{};
  RawBuffer<float> x{}, y{};

  const Grid& grid(int64_t row, int64_t column) const {
    return grids[static_cast<size_t>(row * plan.columns.phase_count() + column)];
  }
  int64_t x_positions() const { return grids.back().start + grids.back().positions(); }
  float* x_panel(int64_t p) { return x.data() + p * x_positions() * kFloatWidth; }
  float* y_panel(int64_t p) { return y.data() + p * target.positions() * kFloatWidth; }
};

// The products of panels p and r >= p, blocks (kFloatWidth, kFloatWidth), as [product][turned]: those
// of (p, r), and, turned, those of (r, p).
struct PairBlocks {
  int64_t p, r;
  double* data;

  double* at(int64_t product, bool turned) const { return data + (2 * product + turned) * kBlockSize; }
};

// Packs the next images into the panels.
void pack_images(ShiftWork& work, Team& team, int64_t first);

// Add to the results: the products of two panels; those of a panel and a target panel, one block for
// each cross product; and the sums of a panel, [product][kFloatWidth], of products on the diagonal.
void merge_pair(ShiftWork& work, Team& team, const PairBlocks& blocks);
void merge_cross(ShiftWork& work, const double* blocks, int64_t p, int64_t m);
void merge_total(ShiftWork& work, const double* sums, int64_t p);

}  // namespace reapx
