// The form of path_form.h that keeps W.
#include "path/path_form.h"
#include "path/path_rows.h"

namespace reapx {

namespace {

class WeightForm : public PathForm {
 public:
  WeightForm(Team& team, const PathConsumer& consumer, const Columns& columns, int64_t capacity)
      : c_(consumer),
        columns_(columns),
        weight_(c_.outputs, columns.size(), Panels::Raw()),
        cross_(c_.taps, columns.size(), Panels::Raw()),
        rows_(capacity, c_.outputs),
        turned_(c_.outputs, capacity),
        products_(static_cast<size_t>((capacity + c_.taps) * c_.taps)),
        minus_v_(static_cast<size_t>(c_.outputs * c_.taps)) {
    const std::vector<Pick> picks = picks_of(columns.source);
    team.run(c_.outputs, [&](int64_t m) {
      for (size_t p = 0; p < picks.size(); ++p)
        picks[p].row(c_.weight + m * c_.features,
                     weight_.panel(static_cast<int64_t>(p)) + m * kDoubleWidth);
    });
  }

  int64_t copies() const override { return 1; }
  int64_t advance_cost(const Gathered& g) const override { return c_.outputs + g.count; }
  UnitPanels cross(const Gathered&) const override { return {cross_.panel(0), cross_.rows()}; }

  double pivot(const Tile& tile, const Gathered& g, int64_t slot) override {
    for (int64_t p = 0; p < rows_.count(); ++p) write_v(tile, g, slot, p);
    multiply_v(tile, g);
    double sum = 0.0;
    for (int64_t i = 0; i < c_.taps; ++i)
      sum += products_[static_cast<size_t>((g.count + i) * c_.taps + i)];
    return 2.0 * sum;
  }

  void advance(const Tile& tile, Gathered& g, int64_t, int64_t panel) override {
    double* z = cross_.panel(panel);
    std::fill(z, z + c_.taps * kDoubleWidth, 0.0);
    subtract_rows(tile, c_.taps, c_.outputs, minus_v_.data(), weight_.panel(panel), z);
    // The last rows of the products are v v^T / 2, which are multiplied by the new rows of L^T.
    subtract_rows(tile, c_.taps, g.count + c_.taps, products_.data(), g.rows.panel(panel), z);
  }

  void refresh(const Tile& tile, int64_t first, int64_t last, double* a) override {
    tile.unit_gram(c_.taps, columns_.slots, first, last, {weight_.panel(0), weight_.rows()}, c_.outputs,
                   a);
  }

  void flush(const Tile& tile, Team& team, Gathered& g, int64_t emitted, bool last) override {
    for (int64_t k = 0; k < g.count; ++k)
      for (int64_t m = 0; m < c_.outputs; ++m)
        c_.residual[(emitted + k) * c_.outputs + m] = *rows_.at(k, m);
    if (last) return;
    std::vector<Strip> strips;
    for (int64_t p = 0; p < weight_.count(); ++p)
      strips.push_back({g.rows.panel(p), weight_.panel(p), 0, c_.outputs});
    subtract_all(tile, team, rows_, c_.outputs, strips, g.count);
  }

  void compact(const std::vector<int64_t>& from) override {
    compact_panels(weight_, from, false);
    cross_.reshape(cross_.rows(), columns_.size());
  }

  void finish(const Tile&, Team&, const int64_t*, int64_t, double*) override {}

 private:
  // Computes v at kDoubleWidth outputs and writes it in the three layouts that the products read.
  void write_v(const Tile& tile, const Gathered& g, int64_t slot, int64_t panel) {
    const int64_t q = c_.taps, begin = panel * kDoubleWidth;
    double* v = rows_.panel(panel) + g.count * kDoubleWidth;
    for (int64_t m = begin; m < std::min(begin + kDoubleWidth, c_.outputs); ++m)
      for (int64_t i = 0; i < q; ++i)
        v[i * kDoubleWidth + m - begin] = *weight_.at(m, i * columns_.slots + slot);
    subtract_rows(tile, q, g.count, g.own.data(), rows_.panel(panel), v);
    tile.solve_rows(q, g.root.data(), q, 1, v, kDoubleWidth);
    for (int64_t m = begin; m < std::min(begin + kDoubleWidth, c_.outputs); ++m)
      for (int64_t i = 0; i < q; ++i) {
        const double value = v[i * kDoubleWidth + m - begin];
        *turned_.at(m, g.count + i) = value;
        minus_v_[static_cast<size_t>(m * q + i)] = -value;
      }
  }

  // Computes V v^T and v v^T / 2 in one product over the outputs.
  void multiply_v(const Tile& tile, const Gathered& g) {
    const int64_t q = c_.taps, rows = g.count + q;
    std::vector<double> block(static_cast<size_t>(q * kDoubleWidth));
    for (int64_t p = 0; p * kDoubleWidth < rows; ++p) {
      std::fill(block.begin(), block.end(), 0.0);
      subtract_rows(tile, q, c_.outputs, minus_v_.data(), turned_.panel(p), block.data());
      for (int64_t k = p * kDoubleWidth; k < std::min(rows, (p + 1) * kDoubleWidth); ++k)
        for (int64_t i = 0; i < q; ++i)
          products_[static_cast<size_t>(k * q + i)] =
              (k < g.count ? 1.0 : 0.5) *
              block[static_cast<size_t>(i * kDoubleWidth + k % kDoubleWidth)];
    }
  }

  const PathConsumer& c_;
  const Columns& columns_;
  Panels weight_;                 // W^T as of the last flush: row = output
  Panels cross_;                  // Z^T of this step
  Panels rows_;                   // V of the gathered rows
  Panels turned_;                 // V^T: row = output, column = gathered row
  std::vector<double> products_;  // V v^T (gathered rows, taps), then v v^T / 2 (taps, taps)
  std::vector<double> minus_v_;   // -v^T (outputs, taps)
};

}  // namespace

std::unique_ptr<PathForm> keep_weight(Team& team, const PathConsumer& consumer, const Columns& columns,
                                      int64_t capacity) {
  return std::make_unique<WeightForm>(team, consumer, columns, capacity);
}

}  // namespace reapx
