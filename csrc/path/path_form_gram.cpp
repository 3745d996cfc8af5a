// The form of path_form.h that keeps K = W^T W, and the choice between the two.
#include "path/path_form.h"
#include "path/path_rows.h"

namespace reapx {

namespace {

constexpr int64_t kOutputs = 256;  // outputs whose products are added to K at a time

// After the rows of L^T, Gathered::rows holds those of Z^T and, for the flush, L^T once more. Then
// L Z^T + Z L^T is a single product, of the rows [L^T; Z^T] and [Z^T; L^T].
class GramForm : public PathForm {
 public:
  GramForm(const Tile& tile, Team& team, const PathConsumer& consumer, const Columns& columns)
      : c_(consumer), columns_(columns), gram_(columns.size(), columns.size(), Panels::Raw()) {
    team.run(gram_.count(), [&](int64_t p) { std::fill(gram_.panel(p), end_of(p), 0.0); });
    const std::vector<Pick> picks = picks_of(columns.source);
    for (int64_t first = 0; first < c_.outputs; first += kOutputs) {
      Panels weight(std::min(kOutputs, c_.outputs - first), columns.size(), Panels::Raw());
      team.run(weight.rows(), [&](int64_t m) {
        for (size_t p = 0; p < picks.size(); ++p)
          picks[p].row(c_.weight + (first + m) * c_.features,
                       weight.panel(static_cast<int64_t>(p)) + m * kDoubleWidth);
      });
      subtract_upper(tile, team, weight, weight, weight.rows(), gram_);
    }
    team.run(gram_.count(), [&](int64_t p) {
      for (double* x = gram_.panel(p); x != end_of(p); ++x) *x = -*x;
    });
    const size_t q = static_cast<size_t>(c_.taps);
    block_.resize(q * q);
    half_.resize(q * q);
  }

  int64_t copies() const override { return 3; }
  int64_t advance_cost(const Gathered& g) const override { return 2 * g.count + c_.taps; }
  UnitPanels cross(const Gathered& g) const override {
    return {g.rows.panel(0) + (g.capacity + g.count) * kDoubleWidth, g.rows.rows()};
  }

  // Computes v v^T = R^-T K_uu R^-1; v itself is not needed before the end.
  double pivot(const Tile&, const Gathered& g, int64_t slot) override {
    const int64_t q = c_.taps, slots = columns_.slots;
    own_.resize(static_cast<size_t>(g.count * q));
    double *k = block_.data(), *h = half_.data();
    const double* r = g.root.data();
    for (int64_t a = 0; a < q; ++a)
      for (int64_t b = 0; b < q; ++b)
        k[a * q + b] = *gram_.at(std::min(a, b) * slots + slot, std::max(a, b) * slots + slot);
    for (int64_t row = 0; row < g.count; ++row) {
      const double* l = g.own.data() + row * q;
      double* z = own_.data() + row * q;
      for (int64_t a = 0; a < q; ++a) z[a] = *g.rows.at(g.capacity + row, a * slots + slot);
      for (int64_t a = 0; a < q; ++a)
        for (int64_t b = 0; b < q; ++b) k[a * q + b] -= l[a] * z[b] + z[a] * l[b];
    }
    for (int64_t i = 0; i < q; ++i)
      for (int64_t j = 0; j < q; ++j) {
        for (int64_t row = 0; row < i; ++row) k[i * q + j] -= r[row * q + i] * k[row * q + j];
        k[i * q + j] /= r[i * q + i];
      }
    for (int64_t j = 0; j < q; ++j)
      for (int64_t i = 0; i < q; ++i) {
        double sum = k[i * q + j];
        for (int64_t row = 0; row < j; ++row) sum -= 2.0 * h[i * q + row] * r[row * q + j];
        h[i * q + j] = 0.5 * sum / r[j * q + j];
      }
    return 0.0;
  }

  void advance(const Tile& tile, Gathered& g, int64_t slot, int64_t panel) override {
    const int64_t q = c_.taps;
    const double* l = g.rows.panel(panel);
    double* before = g.rows.panel(panel) + g.capacity * kDoubleWidth;
    double* z = before + g.count * kDoubleWidth;
    for (int64_t a = 0; a < q; ++a)
      gather_row(gram_, a * columns_.slots + slot, panel, z + a * kDoubleWidth);
    subtract_rows(tile, q, g.count, g.own.data(), before, z);
    subtract_rows(tile, q, g.count, own_.data(), l, z);
    tile.solve_rows(q, g.root.data(), q, 1, z, kDoubleWidth);
    subtract_rows(tile, q, q, half_.data(), l + g.count * kDoubleWidth, z);
  }

  void refresh(const Tile&, int64_t first, int64_t last, double* a) override {
    const int64_t q = c_.taps, slots = columns_.slots;
    for (int64_t x = 0; x < q; ++x)
      for (int64_t y = x; y < q; ++y)
        for (int64_t u = first; u < last; ++u)
          a[(x * q + y) * slots + u] = *gram_.at(x * slots + u, y * slots + u);
  }

  void flush(const Tile& tile, Team& team, Gathered& g, int64_t, bool last) override {
    if (last) return;
    // Z^T is moved up to follow L^T without a gap, and a copy of L^T follows it.
    for (int64_t p = 0; p < g.rows.count(); ++p) {
      double* l = g.rows.panel(p);
      const int64_t size = g.count * kDoubleWidth, gap = g.capacity * kDoubleWidth;
      if (g.count != g.capacity) std::copy(l + gap, l + gap + size, l + size);
      std::copy(l, l + size, l + 2 * size);
    }
    const PanelView all = g.rows;
    subtract_upper(tile, team, all, {all.data + g.count * kDoubleWidth, all.rows}, 2 * g.count, gram_);
  }

  void compact(const std::vector<int64_t>& from) override { compact_panels(gram_, from, true); }

  // L_S^T V = W_S^T with the rows and columns of L that were removed: forward substitution.
  void finish(const Tile& tile, Team& team, const int64_t* order, int64_t count,
              double* errors) override {
    gram_ = Panels(0, 0);
    std::vector<int64_t> removed;
    for (int64_t t = 0; t < count; ++t)
      for (int64_t a = 0; a < c_.taps; ++a) removed.push_back(c_.columns[order[t] * c_.taps + a]);
    const int64_t n = static_cast<int64_t>(removed.size());
    Panels r(n, n, Panels::Raw()), v(n, c_.outputs);
    const std::vector<Pick> picks = picks_of(removed);
    team.run(n, [&](int64_t i) {
      for (int64_t p = i / kDoubleWidth; p < r.count(); ++p)
        picks[static_cast<size_t>(p)].row(c_.factor + i * c_.features, r.panel(p) + i * kDoubleWidth);
    });
    team.run((n + kDoubleWidth - 1) / kDoubleWidth, [&](int64_t block) {
      const int64_t first = block * kDoubleWidth, last = std::min(first + kDoubleWidth, n);
      for (int64_t m = 0; m < c_.outputs; ++m)
        for (int64_t i = first; i < last; ++i)
          *v.at(i, m) = c_.weight[m * c_.features + removed[static_cast<size_t>(i)]];
    });
    solve_forward(tile, team, r, n, whole_strips(v));
    team.run(count, [&](int64_t t) {
      double sum = 0.0;
      for (int64_t i = t * c_.taps; i < (t + 1) * c_.taps; ++i)
        for (int64_t begin = 0; begin < c_.outputs; begin += kDoubleWidth) {
          const double* from = v.at(i, begin);
          for (int64_t j = 0; j < std::min(kDoubleWidth, c_.outputs - begin); ++j) {
            c_.residual[i * c_.outputs + begin + j] = from[j];
            sum += from[j] * from[j];
          }
        }
      errors[t] += c_.scale * sum;
    });
  }

 private:
  double* end_of(int64_t p) {
    return gram_.panel(p) + std::min((p + 1) * kDoubleWidth, gram_.columns()) * kDoubleWidth;
  }

  const PathConsumer& c_;
  const Columns& columns_;
  Panels gram_;                // K as of the last flush, upper triangle
  std::vector<double> own_;    // Z[I_u] (gathered rows, taps)
  std::vector<double> block_;  // K_uu, then R^-T K_uu
  std::vector<double> half_;   // v v^T / 2
};

// Compares multiply-adds, in units of those of a product of large matrices. In the form that keeps W, a
// step reads all of W for `taps` rows of Z^T. Measured: that costs 1 + 6 / taps times as much as the
// same operations in a large product.
bool gram_is_cheaper(const PathConsumer& c, const Columns& columns, int64_t capacity, int64_t steps) {
  const double n = static_cast<double>(columns.size()), outputs = static_cast<double>(c.outputs);
  const double q = static_cast<double>(c.taps), removed = static_cast<double>(steps) * q;
  const double kept = std::max(n - removed, 0.0), mean = (n + kept) / 2;
  const double weight = (2.0 + 6.0 / std::max(q, 1.0)) * outputs * mean * removed;
  const double gram = outputs * n * n / 2 + (n * n * n - kept * kept * kept) / 3 +
                      outputs * removed * removed / 2 +
                      3.0 * static_cast<double>(capacity) * mean * removed;
  return gram < weight;
}

}  // namespace

std::unique_ptr<PathForm> keep_gram(const Tile& tile, Team& team, const PathConsumer& consumer,
                                    const Columns& columns) {
  return std::make_unique<GramForm>(tile, team, consumer, columns);
}

std::unique_ptr<PathForm> make_form(const Tile& tile, Team& team, const PathConsumer& consumer,
                                    const Columns& columns, int64_t capacity, int64_t steps) {
  return gram_is_cheaper(consumer, columns, capacity, steps)
             ? keep_gram(tile, team, consumer, columns)
             : keep_weight(team, consumer, columns, capacity);
}

}  // namespace reapx
