#include <algorithm>

#include "gram/cuda/gram_limits.h"
#include "gram/cuda/gram_tile.h"
#include "runtime/cuda/device_buffer.h"

namespace reapx {

namespace {

// The number of tiles of a product. One without columns of B still has tiles, for the sums of A's
// columns.
template <class Config>
int64_t count_tiles(int64_t rows, int64_t columns, int64_t square) {
  const int64_t across = std::max<int64_t>(1, divide_up(columns, Config::kSide)),
                full = square / Config::kSide;
  return divide_up(rows, Config::kSide) * across - full * (full - 1) / 2;
}

// What a multiply-add of a tile costs, where those of the largest tile are the unit. Estimates, not
// measured: smaller tiles read more for each product.
template <class Config>
constexpr double kEntryCost = Config::kSide == 128  ? 1.0
                              : Config::kSide == 64 ? 1.25
                                                    : 2.0;

template <class Config>
double tile_cost(int64_t rows, int64_t columns, int64_t square, int64_t terms) {
  return kEntryCost<Config> * Config::kSide * Config::kSide *
         static_cast<double>(count_tiles<Config>(rows, columns, square)) * static_cast<double>(terms);
}

template <class Config>
double total_cost(const std::vector<Product>& products) {
  double cost = 0;
  for (const Product& p : products)
    cost += tile_cost<Config>(p.a.columns, p.b.columns, p.square, p.walk.count());
  return cost;
}

template <class Config>
void run(const std::vector<Product>& products, const Context& context) {
  std::vector<DeviceProduct> tiled;
  int64_t work = 0, blocks = 0, tiles = 0, slots = 0;
  for (const Product& p : products) {
    if (p.walk.count() == 0 || p.a.columns == 0) continue;
    const int64_t count = count_tiles<Config>(p.a.columns, p.b.columns, p.square);
    const int64_t across = std::max<int64_t>(1, divide_up(p.b.columns, Config::kSide));
    tiled.push_back({p, {p, Config::kDepth}, across, p.square / Config::kSide, count, 0, 0, 0, 0, 0});
    work += count * p.walk.count();
  }
  // Products with long parts come first, so that short ones fill the end.
  std::stable_sort(tiled.begin(), tiled.end(), [](const DeviceProduct& a, const DeviceProduct& b) {
    return a.product.walk.count() > b.product.walk.count();
  });
  const int64_t length = (work / split_blocks(Config::kSide) / kSumTerms + 1) * kSumTerms;
  for (DeviceProduct& own : tiled) {
    own.length = length;
    own.splits = divide_up(own.product.walk.count(), length);
    own.first_block = blocks;
    own.first_tile = tiles;
    own.first_slot = slots;
    blocks += own.tiles * own.splits;
    tiles += own.tiles;
    if (own.splits > 1) slots += own.tiles * own.splits;
  }
  const DeviceBuffer<DeviceProduct> described(context, tiled);
  const DeviceBuffer<double> parts(context, slots * Config::kSlot);
  const int64_t count = static_cast<int64_t>(tiled.size());
  const std::size_t shared = Config::kStages * Config::kStage * sizeof(float) + sizeof(DeviceProduct);
  launch(context, {"gram_accumulate", blocks_of(blocks), dim3(Config::kThreads), shared},
         multiply_tiles<Config>, described.data(), count, parts.data());
  LaunchShape shape{"gram_accumulate", blocks_of(slots > 0 ? tiles : 0), dim3(Config::kThreads)};
  shape.grid.y = static_cast<unsigned>(Config::kSide / 8);
  launch(context, shape, add_parts<Config>, described.data(), count, parts.data());
}

}  // namespace

double product_cost(int64_t rows, int64_t columns, int64_t square, int64_t terms) {
  return std::min({tile_cost<SmallTile>(rows, columns, square, terms),
                   tile_cost<MiddleTile>(rows, columns, square, terms),
                   tile_cost<LargeTile>(rows, columns, square, terms)});
}

void multiply(const std::vector<Product>& products, const Context& context) {
  const double small = total_cost<SmallTile>(products), middle = total_cost<MiddleTile>(products);
  const double large = total_cost<LargeTile>(products);
  if (small < middle && small < large) {
    run<SmallTile>(products, context);
  } else if (middle < large) {
    run<MiddleTile>(products, context);
  } else {
    run<LargeTile>(products, context);
  }
}

}  // namespace reapx
