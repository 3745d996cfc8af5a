#include <vector>

#include "gram/cuda/gram_device.h"
#include "gram/cuda/gram_limits.h"
#include "gram/gram_plan.h"
#include "runtime/cuda/device_buffer.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/work_items.h"

namespace reapx {

namespace {

constexpr int kThreads = 256;
constexpr int kMergedChannels = 32;                 // channels e of a block of merge_rows
constexpr int64_t kMostDoubles = int64_t{1} << 27;  // 1 GiB of products
constexpr int64_t kLeastChannels = 32;              // with fewer, most of a tile is empty

// The scratch of a group, in doubles: its products, [products][channels][channels]; then those with the
// target, [taps][targets][channels]; then the sums of the products' first operands,
// [products][channels].
struct ProductBlocks {
  int64_t products, taps, channels, targets;

  __host__ __device__ int64_t cross() const { return products * channels * channels; }
  __host__ __device__ int64_t sums() const { return cross() + taps * targets * channels; }
  __host__ __device__ int64_t all() const { return sums() + products * channels; }
};

struct DeviceUse {
  int64_t product, symmetric;  // symmetric: only the upper triangle is there
  double sign;
};

// The products that an entry of the result is made of, for each pair of taps.
struct DeviceUses {
  const DeviceUse* uses;
  const int64_t* first;  // [tap a * taps + tap b], a <= b, and one more
};

__device__ double add_uses(const DeviceUses& uses, const ProductBlocks& size, const double* blocks,
                           int64_t pair, int64_t c, int64_t e) {
  double sum = 0;
  for (int64_t u = uses.first[pair]; u < uses.first[pair + 1]; ++u) {
    const DeviceUse use = uses.uses[u];
    const bool turned = use.symmetric && c > e;
    const int64_t at =
        (use.product * size.channels + (turned ? e : c)) * size.channels + (turned ? c : e);
    sum += use.sign * blocks[at];
  }
  return sum;
}

// Adds the products to the results. A block: kMergedChannels channels e, with all taps b of theirs,
// and, for these, the rows of one channel c with all its taps a, or one row of cross moments, or the
// column sums. A thread: every kThreads-th entry along the rows of the result.
__global__ void __launch_bounds__(kThreads)
    merge_rows(DeviceUses uses, ProductBlocks size, const double* blocks, double* gram, double* cross,
               double* total) {
  const int64_t strips = divide_up(size.channels, kMergedChannels),
                kinds = size.channels + size.targets + 1;
  const int64_t from = blockIdx.x % strips * kMergedChannels, kind = blockIdx.x / strips % kinds;
  const int64_t group = blockIdx.x / strips / kinds, taps = size.taps, d = size.channels * taps;
  const int wide = static_cast<int>(min(int64_t{kMergedChannels}, size.channels - from) * taps);
  blocks += group * size.all();
  if (kind < size.channels) {
    if (from + kMergedChannels <= kind) return;
    double* to = gram + (group * d + kind * taps) * d + from * taps;
    for (int i = static_cast<int>(threadIdx.x); i < wide * taps; i += kThreads) {
      const int64_t a = i / wide, b = i % wide % taps, e = from + i % wide / taps;
      if (kind > e || (kind == e && a > b)) continue;
      const double sum = a > b ? add_uses(uses, size, blocks, b * taps + a, e, kind)
                               : add_uses(uses, size, blocks, a * taps + b, kind, e);
      to[a * d + i % wide] += sum;
    }
    return;
  }
  const int64_t target = kind - size.channels;
  for (int i = static_cast<int>(threadIdx.x); i < wide; i += kThreads) {
    const int64_t b = i % taps, e = from + i / taps;
    if (target < size.targets) {
      cross[(group * size.targets + target) * d + from * taps + i] +=
          blocks[size.cross() + (b * size.targets + target) * size.channels + e];
      continue;
    }
    double sum = 0;
    for (int64_t u = uses.first[b * taps + b]; u < uses.first[b * taps + b + 1]; ++u)
      sum += uses.uses[u].sign * blocks[size.sums() + uses.uses[u].product * size.channels + e];
    total[group * d + from * taps + i] += sum;
  }
}

// The packed rows of one phase of the input, or of the target: from `start` on, [image][row][column].
struct PhaseMap {
  int64_t start, rows, columns;
};

struct DeviceShift {
  const GramTask& task;
  const ShiftPlan& plan;
  const Context& context;
  ProductBlocks size;
  int64_t images = 0;            // packed at a time
  int64_t x_rows = 0;            // packed rows of a group
  std::vector<PhaseMap> maps{};  // [row phase * column phases + column phase]
  float *x = nullptr, *y = nullptr;
  double* blocks = nullptr;

  PhaseMap target() const { return {0, task.rows.output, task.columns.output}; }
  int64_t y_rows() const { return images * task.rows.output * task.columns.output; }
  int64_t x_width() const { return align_width(size.channels); }
  int64_t y_width() const { return align_width(size.targets); }
  const PhaseMap& map(int64_t row, int64_t column) const {
    return maps[static_cast<size_t>(row * plan.columns.phase_count() + column)];
  }
};

// Lays out the phases of the input. Returns the number of packed rows of one image.
int64_t lay_out(DeviceShift& w) {
  int64_t rows = 0;
  w.maps.clear();
  for (int64_t r = 0; r < w.plan.rows.phase_count(); ++r)
    for (int64_t c = 0; c < w.plan.columns.phase_count(); ++c) {
      w.maps.push_back({rows * w.images, w.plan.rows.length(r), w.plan.columns.length(c)});
      rows += w.maps.back().rows * w.maps.back().columns;
    }
  w.x_rows = rows * w.images;
  return rows;
}

// A phase as a window of one tap, so that pack_rows reads its inputs, which are `stride` apart.
Axis phase_axis(const AxisPlan& plan, int64_t phase) {
  return {1, plan.axis.stride, -plan.first(phase), 1, plan.axis.input, plan.length(phase)};
}

void pack_images(const DeviceShift& w, int64_t first, int64_t count) {
  const auto pack = [&](const Images& images, const Axis& rows, const Axis& columns, float* to,
                        int64_t group_rows, int64_t width) {
    const int64_t positions = rows.output * columns.output;
    pack_rows({images, rows, columns, w.task.groups, nullptr, positions, first * positions,
               count * positions, to, group_rows, width, width},
              w.context);
  };
  for (int64_t r = 0; r < w.plan.rows.phase_count(); ++r)
    for (int64_t c = 0; c < w.plan.columns.phase_count(); ++c)
      pack(w.task.input, phase_axis(w.plan.rows, r), phase_axis(w.plan.columns, c),
           w.x + w.map(r, c).start * w.x_width(), w.x_rows, w.x_width());
  pack(w.task.target, {1, 1, 0, 1, w.task.rows.output, w.task.rows.output},
       {1, 1, 0, 1, w.task.columns.output, w.task.columns.output}, w.y, w.y_rows(), w.y_width());
}

// A product over spans of two maps; the second one is read `down` rows and `right` columns further.
struct Overlap {
  PhaseMap a, b;
  Span rows, columns;
  int64_t down, right;

  Operand operand(const PhaseMap& map, const float* data, int64_t channels, int64_t row,
                  int64_t column) const {
    const int64_t width = align_width(channels);
    return {data + (map.start + row * map.columns + column) * width, width, channels,
            map.columns - (columns.end - columns.begin),
            (map.rows - (rows.end - rows.begin)) * map.columns};
  }

  Product product(const float* from, int64_t from_channels, const float* to, int64_t to_channels,
                  int64_t images) const {
    Product p{};
    p.a = operand(a, from, from_channels, rows.begin, columns.begin);
    p.b = operand(b, to, to_channels, rows.begin + down, columns.begin + right);
    p.walk = {columns.end - columns.begin, rows.end - rows.begin, images};
    return p;
  }
};

Overlap overlap_of(const DeviceShift& w, const ShiftProduct& product) {
  return {w.map(product.row.a_phase, product.column.a_phase),
          w.map(product.row.b_phase, product.column.b_phase),
          span_of(w.plan.rows, product.row, 0),
          span_of(w.plan.columns, product.column, 0),
          product.row.shift,
          product.column.shift};
}

// The product of the target and what a tap reads.
Overlap overlap_of(const DeviceShift& w, int64_t tap) {
  const PhaseTap& row = w.plan.rows.tap(tap / w.task.columns.kernel);
  const PhaseTap& column = w.plan.columns.tap(tap % w.task.columns.kernel);
  const PhaseMap &from = w.target(), &to = w.map(row.phase, column.phase);
  return {from,
          to,
          overlap(from.rows, to.rows, row.offset, 0),
          overlap(from.columns, to.columns, column.offset, 0),
          row.offset,
          column.offset};
}

void add_products(const DeviceShift& w, int64_t group, int64_t images, std::vector<Product>& products) {
  const ProductBlocks& size = w.size;
  const int64_t c = size.channels, m = size.targets;
  const float* x = w.x + group * w.x_rows * w.x_width();
  const float* y = w.y + group * w.y_rows() * w.y_width();
  double* blocks = w.blocks + group * size.all();
  for (int64_t i = 0; i < size.products; ++i) {
    const ShiftProduct& product = w.plan.products[static_cast<size_t>(i)];
    products.push_back(overlap_of(w, product).product(x, c, x, c, images));
    products.back().result = products.back().below = blocks + i * c * c;
    if (!product.diagonal) continue;
    products.back().square = c;
    products.back().total = blocks + size.sums() + i * c;
  }
  if (m == 0) return;
  for (int64_t tap = 0; tap < size.taps; ++tap) {
    products.push_back(overlap_of(w, tap).product(y, m, x, c, images));
    products.back().below = blocks + size.cross() + tap * m * c;
  }
  const PhaseMap whole = w.target();
  const Overlap all{whole, whole, {0, whole.rows}, {0, whole.columns}, 0, 0};
  products.push_back(all.product(y, m, y, 0, images));
  products.back().below_total = w.task.target_total + group * m;
  products.back().below_square = w.task.target_square + group * m;
}

void merge(const DeviceShift& w) {
  std::vector<DeviceUse> uses;
  std::vector<int64_t> first{0};
  for (const auto& pair : w.plan.pair_uses) {
    for (const ShiftUse& use : pair)
      uses.push_back(
          {use.product, w.plan.products[static_cast<size_t>(use.product)].diagonal, use.sign});
    first.push_back(static_cast<int64_t>(uses.size()));
  }
  const DeviceBuffer<DeviceUse> all_uses(w.context, uses);
  const DeviceBuffer<int64_t> firsts(w.context, first);
  const int64_t strips = divide_up(w.size.channels, kMergedChannels),
                kinds = w.size.channels + w.size.targets + 1;
  launch(w.context, {"gram_accumulate", blocks_of(w.task.groups * kinds * strips), dim3(kThreads)},
         merge_rows, DeviceUses{all_uses.data(), firsts.data()}, w.size, w.blocks, w.task.gram,
         w.task.cross, w.task.total);
}

// Estimated multiply-adds of both forms for one group. The factors are estimates, not measured: packing
// a value costs as much as 100 products, and adding up an entry of the result as much as 300.
double rows_work(const GramTask& task) {
  const int64_t d = task.features(), m = task.group_targets();
  return product_cost(d + m, d, d, task.samples()) +
         100.0 * static_cast<double>(task.samples()) * static_cast<double>(d + m);
}
double shift_work(const DeviceShift& w) {
  std::vector<Product> products;
  add_products(w, 0, w.task.input.images, products);
  double work = 0;
  for (const Product& p : products)
    work +=
        product_cost(p.a.columns, p.b.columns, p.square, p.walk.terms * p.walk.rows * p.walk.images);
  const double d = static_cast<double>(w.task.features());
  const double packed =
      static_cast<double>(w.task.rows.input * w.task.columns.input * w.size.channels +
                          w.task.rows.output * w.task.columns.output * w.size.targets);
  return work + 100.0 * packed * static_cast<double>(w.task.input.images) + 300.0 * d * d;
}

}  // namespace

bool accumulate_shift(const GramTask& task, const std::string& form, const Context& context) {
  const int64_t channels = task.group_channels(), targets = task.group_targets(), taps = task.taps();
  if (form == "rows" || task.positions || taps == 1 || channels == 0) return false;
  if (form == "" && channels < kLeastChannels) return false;
  const ShiftPlan plan(task, 1);
  if (!plan.possible) return false;
  DeviceShift w{.task = task,
                .plan = plan,
                .context = context,
                .size = {static_cast<int64_t>(plan.products.size()), taps, channels, targets}};
  const int64_t doubles = task.groups * w.size.all();
  const int64_t image = lay_out(w) * w.x_width() + task.rows.output * task.columns.output * w.y_width();
  if (doubles > kMostDoubles || (form == "" && shift_work(w) >= rows_work(task))) return false;
  w.images = std::clamp<int64_t>(kShiftChunk / std::max<int64_t>(1, task.groups * image), 1,
                                 task.input.images);
  lay_out(w);
  const DeviceBuffer<float> x(context, task.groups * w.x_rows * w.x_width());
  const DeviceBuffer<float> y(context, task.groups * w.y_rows() * w.y_width());
  const DeviceBuffer<double> blocks(context, doubles);
  w.x = x.data();
  w.y = y.data();
  w.blocks = blocks.data();
  fill_bytes(context, w.blocks, 0, doubles);
  for (int64_t first = 0; first < task.input.images; first += w.images) {
    const int64_t count = std::min(w.images, task.input.images - first);
    pack_images(w, first, count);
    std::vector<Product> products;
    for (int64_t g = 0; g < task.groups; ++g) add_products(w, g, count, products);
    multiply(products, context);
  }
  merge(w);
  return true;
}

}  // namespace reapx
