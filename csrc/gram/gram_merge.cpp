#include <algorithm>

#include "gram/gram_work.h"

namespace reapx {

namespace {

constexpr int64_t kSliceRows = 16;  // channels of one item
constexpr int64_t kSlice = kSliceRows * kFloatWidth;
// Slices are this far apart, so that neighbouring taps do not fall into one cache set.
constexpr int64_t kSliceStep = kSlice + kLanes;

// The correlation of channel first + c of panel p at tap a with channel e of panel r at tap b. Returns
// where row c, column e of these lie (rows are kFloatWidth apart): in `out`, to which the products of
// the pair of taps are added up, or, where there is only one, in that product itself. Of the pairs
// (a, b) and (b, a), the plan has one; the other is its transpose.
const double* combine(ShiftWork& w, const PairBlocks& blocks, int64_t a, int64_t b, int64_t first,
                      double* out) {
  const int64_t taps = w.task.taps(), channels = w.task.group_channels();
  const bool turned = a > b;
  const auto& uses = w.plan.pair_uses[static_cast<size_t>(turned ? b * taps + a : a * taps + b)];
  const auto block = [&](const ShiftUse& use) {
    return blocks.at(use.product, turned && blocks.r > blocks.p) + use.copy * channels;
  };
  if (!turned && uses.size() == 1) return block(uses[0]) + first * kFloatWidth;
  std::fill(out, out + kSlice, 0.0);
  for (const ShiftUse& use : uses) {
    if (turned) {
      w.tile.add_transposed(kSliceRows, kFloatWidth, use.sign, block(use) + first, kFloatWidth, out,
                            kFloatWidth);
    } else {
      w.tile.add_scaled(kSlice, use.sign, block(use) + first * kFloatWidth, out);
    }
  }
  return out;
}

// Rows of channels first .. first + kSliceRows - 1 of panel p, columns of panel r.
void merge_slice(ShiftWork& w, const PairBlocks& blocks, int64_t first) {
  const int64_t p = blocks.p, r = blocks.r;
  const int64_t taps = w.task.taps(), channels = w.task.group_channels(), d = w.task.features();
  const int64_t rows = std::min(kSliceRows, width_of(channels, p) - first);
  const int64_t columns = width_of(channels, r);
  double* corner =
      w.task.gram + w.group * d * d + (p * kFloatWidth + first) * taps * d + r * kFloatWidth * taps;
  std::vector<double> slices(static_cast<size_t>(taps * kSliceStep));
  std::vector<const double*> from(static_cast<size_t>(taps));
  for (int64_t a = 0; a < taps; ++a) {
    for (int64_t c = 0; c < rows; ++c)
      for (int64_t i = 0; i < columns * taps; i += kLanes)
        __builtin_prefetch(corner + (c * taps + a) * d + i, 1, 2);
    for (int64_t b = 0; b < taps; ++b)
      from[static_cast<size_t>(b)] = combine(w, blocks, a, b, first, slices.data() + b * kSliceStep);
    for (int64_t c = 0; c < rows; ++c) {
      w.tile.add_interleaved(taps, columns, from.data(), corner + (c * taps + a) * d);
      for (const double*& row : from) row += kFloatWidth;
    }
  }
}

}  // namespace

void merge_pair(ShiftWork& w, Team& team, const PairBlocks& blocks) {
  const int64_t slices = (width_of(w.task.group_channels(), blocks.p) + kSliceRows - 1) / kSliceRows;
  team.run(slices, [&](int64_t item) { merge_slice(w, blocks, item * kSliceRows); });
}

void merge_cross(ShiftWork& w, const double* blocks, int64_t p, int64_t m) {
  const int64_t taps = w.task.taps(), kernel = w.task.columns.kernel, d = w.task.features();
  const int64_t channels = w.task.group_channels(), targets = w.task.group_targets();
  double* cross = w.task.cross + (w.group * targets + m * kFloatWidth) * d + p * kFloatWidth * taps;
  std::vector<const double*> from;
  for (int64_t a = 0; a < taps; ++a) {
    const auto [index, copy] = w.plan.find_cross(a / kernel, a % kernel);
    from.push_back(blocks + index * kBlockSize + copy * channels);
  }
  for (int64_t i = 0; i < width_of(targets, m); ++i) {
    w.tile.add_interleaved(taps, width_of(channels, p), from.data(), cross + i * d);
    for (const double*& row : from) row += kFloatWidth;
  }
}

void merge_total(ShiftWork& w, const double* sums, int64_t p) {
  const int64_t taps = w.task.taps();
  double* total = w.task.total + w.group * w.task.features() + p * kFloatWidth * taps;
  for (int64_t c = 0; c < width_of(w.task.group_channels(), p); ++c)
    for (int64_t a = 0; a < taps; ++a)
      for (const ShiftUse& use : w.plan.pair_uses[static_cast<size_t>(a * taps + a)])
        total[c * taps + a] += use.sign * sums[use.product * kFloatWidth + c];
}

}  // namespace reapx
