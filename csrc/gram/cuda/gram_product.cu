#include <algorithm>

#include "gram/cuda/gram_tile.h"
#include "runtime/cuda/device_buffer.h"

namespace reapx {

namespace {

// Tiles of a product; one without columns of B has the sums of A's.
template <class F>
int64_t count_tiles(int64_t rows, int64_t columns, int64_t square) {
  const int64_t across = std::max<int64_t>(1, divide_up(columns, F::kSide)), full = square / F::kSide;
  return divide_up(rows, F::kSide) * across - full * (full - 1) / 2;
}

// Estimates, not measured: small tiles read more for each product, and a split needs blocks for all
// processors a few times over, but each block writes its tile down, to be read again: two or three
// times what 132 processors run at once, which is 8, 3 and 1 of a processor. Fixed numbers: results
// must not depend on the device. The emulator's tests want parts with several float32 sums of what they
// can afford.
template <class F>
constexpr double kEntryCost = F::kSide == 128  ? 1.0
                              : F::kSide == 64 ? 1.25
                                               : 2.0;
#if defined(REAPX_GRAM_BLOCKS)
template <class F>
constexpr int64_t kBlocks = REAPX_GRAM_BLOCKS;
#else
template <class F>
constexpr int64_t kBlocks = F::kSide == 128  ? 396
                            : F::kSide == 64 ? 792
                                             : 2112;
#endif

template <class F>
double tile_cost(int64_t rows, int64_t columns, int64_t square, int64_t terms) {
  return kEntryCost<F> * F::kSide * F::kSide *
         static_cast<double>(count_tiles<F>(rows, columns, square)) * static_cast<double>(terms);
}

template <class F>
double total_cost(const std::vector<Product>& products) {
  double cost = 0;
  for (const Product& p : products)
    cost += tile_cost<F>(p.a.columns, p.b.columns, p.square, p.walk.count());
  return cost;
}

template <class F>
void run(const std::vector<Product>& products, const Context& context) {
  std::vector<Job> jobs;
  int64_t work = 0, blocks = 0, tiles = 0, slots = 0;
  for (const Product& p : products) {
    if (p.walk.count() == 0 || p.a.columns == 0) continue;
    const int64_t count = count_tiles<F>(p.a.columns, p.b.columns, p.square);
    const int64_t across = std::max<int64_t>(1, divide_up(p.b.columns, F::kSide));
    jobs.push_back({p, {p, F::kDepth}, across, p.square / F::kSide, count, 0, 0, 0, 0, 0});
    work += count * p.walk.count();
  }
  // Long parts first, so that short ones fill the end.
  std::stable_sort(jobs.begin(), jobs.end(), [](const Job& a, const Job& b) {
    return a.product.walk.count() > b.product.walk.count();
  });
  const int64_t length = (work / kBlocks<F> / kFloatTerms + 1) * kFloatTerms;
  for (Job& job : jobs) {
    job.length = length;
    job.splits = divide_up(job.product.walk.count(), length);
    job.first_block = blocks;
    job.first_tile = tiles;
    job.first_slot = slots;
    blocks += job.tiles * job.splits;
    tiles += job.tiles;
    if (job.splits > 1) slots += job.tiles * job.splits;
  }
  const DeviceBuffer<Job> described(context, jobs);
  const DeviceBuffer<double> parts(context, slots * F::kSlot);
  const int64_t count = static_cast<int64_t>(jobs.size());
  const std::size_t shared = F::kStages * F::kStage * sizeof(float) + sizeof(Job);
  launch(context, {"gram_accumulate", blocks_of(blocks), dim3(F::kThreads), shared}, multiply_tiles<F>,
         described.data(), count, parts.data());
  Shape shape{"gram_accumulate", blocks_of(slots > 0 ? tiles : 0), dim3(F::kThreads)};
  shape.grid.y = static_cast<unsigned>(F::kSide / 8);
  launch(context, shape, add_parts<F>, described.data(), count, parts.data());
}

}  // namespace

double product_cost(int64_t rows, int64_t columns, int64_t square, int64_t terms) {
  return std::min({tile_cost<SmallForm>(rows, columns, square, terms),
                   tile_cost<MiddleForm>(rows, columns, square, terms),
                   tile_cost<LargeForm>(rows, columns, square, terms)});
}

void multiply(const std::vector<Product>& products, const Context& context) {
  const double small = total_cost<SmallForm>(products), middle = total_cost<MiddleForm>(products);
  const double large = total_cost<LargeForm>(products);
  if (small < middle && small < large) {
    run<SmallForm>(products, context);
  } else if (middle < large) {
    run<MiddleForm>(products, context);
  } else {
    run<LargeForm>(products, context);
  }
}

}  // namespace reapx
