// Body of the tile core. Include it from a tile_*.cpp that defines
//   TILE_NAME   the name of the core, a string
//   TILE_TABLE  the name of the `const Tile` to define
//   TILE_BYTES  bytes in a vector register
//   TILE_ROWS   rows of the register tile (1, 2, 4 or 8)
//
// Everything is in an unnamed namespace and no standard template is used: a function with external
// linkage compiled here for one instruction set could replace its twin compiled for another.
#include "tile/tile.h"
#include "tile/tile_scans.h"
#include "tile/tile_vector.h"

namespace reapx {
namespace {

constexpr int kVectors = 2;  // vectors side by side in the register tile
constexpr int64_t kRowBytes = 128;
constexpr int64_t kWorthPrefetch = 32;  // terms
// From kLongSum terms on B may come from memory, and the hardware does not prefetch fast enough: the
// rows kRowsAhead of the current one are prefetched.
constexpr int64_t kLongSum = 128, kRowsAhead = 64;
constexpr int64_t kStrips = kRowBytes / (kVectors * TILE_BYTES);
static_assert(kFloatWidth * sizeof(float) == kRowBytes && kDoubleWidth * sizeof(double) == kRowBytes);

template <class T, int Rows, int64_t Ahead = 0>
inline void accumulate(int64_t terms, const T* a, int64_t a_stride, const T* b, int64_t b_stride,
                       Vector<T> (&sum)[Rows][kVectors]) {
  for (int64_t k = 0; k < terms; ++k, a += a_stride, b += b_stride) {
    Vector<T> right[kVectors];
    for (int v = 0; v < kVectors; ++v) right[v] = load(b + v * kLength<T>);
    if constexpr (Ahead > 0)
      for (int v = 0; v < kVectors; ++v) __builtin_prefetch(b + Ahead * b_stride + v * kLength<T>);
    for (int i = 0; i < Rows; ++i)
      for (int v = 0; v < kVectors; ++v) sum[i][v] += a[i] * right[v];
  }
}

template <int Rows>
void add_tile(int64_t runs, int64_t terms, Runs a, Runs b, double* c) {
  for (int64_t strip = 0; strip < kStrips; ++strip) {
    const int64_t column = strip * kVectors * kLength<float>;
    Vector<float> sum[Rows][kVectors];
    for (int i = 0; i < Rows; ++i)
      for (int v = 0; v < kVectors; ++v) sum[i][v] = Vector<float>{};
    for (int64_t r = 0; r < runs; ++r)
      accumulate<float, Rows>(terms, a.data + r * a.run, a.step, b.data + r * b.run + column, b.step,
                              sum);
    for (int i = 0; i < Rows; ++i)
      for (int v = 0; v < kVectors; ++v) {
        double* to = c + i * kFloatWidth + column + v * kLength<float>;
        store(to, load(to) + low_half(sum[i][v]));
        store(to + kStep, load(to + kStep) + high_half(sum[i][v]));
      }
  }
}

template <int Rows>
void subtract_tile(int64_t terms, const double* a, int64_t a_stride, const double* b, double* c) {
  for (int64_t strip = 0; strip < kStrips; ++strip) {
    const int64_t column = strip * kVectors * kLength<double>;
    // Targets are visited once and are out of the cache: this one and the next are prefetched.
    if (terms >= kWorthPrefetch)
      for (int i = 0; i < 2 * Rows; ++i)
        for (int v = 0; v < kVectors; ++v)
          __builtin_prefetch(c + i * kDoubleWidth + column + v * kLength<double>, 1);
    Vector<double> sum[Rows][kVectors];
    for (int i = 0; i < Rows; ++i)
      for (int v = 0; v < kVectors; ++v) sum[i][v] = Vector<double>{};
    if (terms > kLongSum) {
      accumulate<double, Rows, kRowsAhead>(terms, a, a_stride, b + column, kDoubleWidth, sum);
    } else {
      accumulate<double, Rows>(terms, a, a_stride, b + column, kDoubleWidth, sum);
    }
    for (int i = 0; i < Rows; ++i)
      for (int v = 0; v < kVectors; ++v) {
        double* to = c + i * kDoubleWidth + column + v * kLength<double>;
        store(to, load(to) - sum[i][v]);
      }
  }
}

void add_products(int64_t rows, int64_t runs, int64_t terms, Runs a, Runs b, double* c) {
  int64_t i = 0;
  const auto rest = [&] { return Runs{a.data + i, a.step, a.run}; };
  for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
    add_tile<TILE_ROWS>(runs, terms, rest(), b, c + i * kFloatWidth);
  for (; i + 2 <= rows; i += 2) add_tile<2>(runs, terms, rest(), b, c + i * kFloatWidth);
  if (i < rows) add_tile<1>(runs, terms, rest(), b, c + i * kFloatWidth);
}

template <int Rows>
void subtract_rest(int64_t rows, int64_t terms, const double* a, int64_t a_stride, const double* b,
                   double* c) {
  if constexpr (Rows > 0) {
    if (rows == Rows) return subtract_tile<Rows>(terms, a, a_stride, b, c);
    subtract_rest<Rows - 1>(rows, terms, a, a_stride, b, c);
  }
}

void subtract_products(int64_t rows, int64_t terms, const double* a, int64_t a_stride, const double* b,
                       double* c) {
  int64_t i = 0;
  for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
    subtract_tile<TILE_ROWS>(terms, a + i, a_stride, b, c + i * kDoubleWidth);
  subtract_rest<TILE_ROWS - 1>(rows - i, terms, a + i, a_stride, b, c + i * kDoubleWidth);
}

void solve_rows(int64_t rows, const double* t, int64_t k_step, int64_t i_step, double* c,
                int64_t c_step) {
  constexpr int64_t vectors = kDoubleWidth / kLength<double>;
  for (int64_t i = 0; i < rows; ++i) {
    Lanes sum[vectors];
    for (int64_t v = 0; v < vectors; ++v) sum[v] = load(c + i * c_step + v * kStep);
    for (int64_t k = 0; k < i; ++k) {
      const double factor = t[k * k_step + i * i_step];
      for (int64_t v = 0; v < vectors; ++v) sum[v] -= factor * load(c + k * c_step + v * kStep);
    }
    const double inverse = 1.0 / t[i * (k_step + i_step)];
    for (int64_t v = 0; v < vectors; ++v) store(c + i * c_step + v * kStep, sum[v] * inverse);
  }
}

void add_sums(int64_t terms, const float* a, int64_t stride, double* sums) {
  for (int64_t first = 0; first < terms; first += kFloatTerms) {
    const int64_t last = first + kFloatTerms < terms ? first + kFloatTerms : terms;
    float sum[kFloatWidth] = {};
    for (int64_t k = first; k < last; ++k)
      for (int64_t j = 0; j < kFloatWidth; ++j) sum[j] += a[k * stride + j];
    for (int64_t j = 0; j < kFloatWidth; ++j) sums[j] += static_cast<double>(sum[j]);
  }
}

// Butterflies on a square of registers: at distance h, rows r and r + h swap their off-diagonal
// halves, so that log2(n) passes transpose n x n.
template <class T, int H>
inline void exchange(Vector<T> (&x)[kLength<T>]) {
  typedef decltype(Vector<T>{} == Vector<T>{}) Mask;
  constexpr int n = kLength<T>;
  Mask low, high;
  for (int i = 0; i < n; ++i) {
    low[i] = (i & H) ? n + i - H : i;
    high[i] = (i & H) ? n + i : i + H;
  }
  for (int r = 0; r < n; ++r) {
    if (r & H) continue;
    const Vector<T> top = x[r], bottom = x[r + H];
    x[r] = __builtin_shuffle(top, bottom, low);
    x[r + H] = __builtin_shuffle(top, bottom, high);
  }
  if constexpr (H > 1) exchange<T, H / 2>(x);
}

// put(to, value) for every element or vector of elements of the transposed matrix, whose rows are at
// row(0), row(1), ..
template <class T, class Row, class Put>
inline void transpose_into(int64_t rows, int64_t columns, Row row, T* to, int64_t to_stride, Put put) {
  constexpr int64_t n = kLength<T>;
  const int64_t full_rows = rows / n * n, full_columns = columns / n * n;
  for (int64_t j = 0; j < full_columns; j += n)
    for (int64_t t = 0; t < full_rows; t += n) {
      Vector<T> x[n];
      for (int64_t i = 0; i < n; ++i) x[i] = load(row(j + i) + t);
      exchange<T, n / 2>(x);
      for (int64_t i = 0; i < n; ++i) put(to + (t + i) * to_stride + j, x[i]);
    }
  for (int64_t j = 0; j < columns; ++j)
    for (int64_t t = j < full_columns ? full_rows : 0; t < rows; ++t)
      put(to + t * to_stride + j, row(j)[t]);
}

template <class T>
void transpose(int64_t rows, int64_t columns, const T* from, int64_t from_stride, T* to,
               int64_t to_stride) {
  transpose_into(
      rows, columns, [=](int64_t j) { return from + j * from_stride; }, to, to_stride,
      [](T* at, auto value) { __builtin_memcpy(at, &value, sizeof value); });
}

// at[0 .. ] += value, a number or a vector.
template <class V>
inline void add_to(double* at, V value) {
  V sum;
  __builtin_memcpy(&sum, at, sizeof sum);
  sum += value;
  __builtin_memcpy(at, &sum, sizeof sum);
}

void add_transposed(int64_t rows, int64_t columns, double scale, const double* from,
                    int64_t from_stride, double* to, int64_t to_stride) {
  transpose_into(
      rows, columns, [=](int64_t j) { return from + j * from_stride; }, to, to_stride,
      [scale](double* at, auto value) { add_to(at, scale * value); });
}

void add_interleaved(int64_t count, int64_t columns, const double* const* from, double* to) {
  transpose_into(
      columns, count, [from](int64_t j) { return from[j]; }, to, count,
      [](double* at, auto value) { add_to(at, value); });
}

void add_scaled(int64_t count, double scale, const double* from, double* to) {
  for (int64_t i = 0; i < count; ++i) to[i] += scale * from[i];
}

inline Lanes column(UnitPanels x, int64_t row, int64_t index) {
  return load(x.data + (index / kDoubleWidth * x.capacity + row) * kDoubleWidth + index % kDoubleWidth);
}

// S = N D N^T with N unit lower triangular. On return n holds N^-1 (below the diagonal) and d is
// D^-1. Returns a mask of the lanes in which every pivot was positive.
auto factor_lanes(int64_t q, int64_t units, const double* s, double* n, double* d) {
  auto positive = Lanes{} == Lanes{};
  const auto entry = [&](int64_t i, int64_t j) { return n + (i * q + j) * kStep; };
  for (int64_t i = 0; i < q; ++i) {
    Lanes pivot = load(s + (i * q + i) * units);
    for (int64_t j = 0; j < i; ++j) {
      // Until it is divided, entry (i, j) is N[i][j] * D[j].
      Lanes sum = load(s + (j * q + i) * units);
      for (int64_t k = 0; k < j; ++k) sum -= load(entry(i, k)) * load(entry(j, k));
      store(entry(i, j), sum);
    }
    for (int64_t j = 0; j < i; ++j) {
      const Lanes scaled = load(entry(i, j)), value = scaled * load(d + j * kStep);
      pivot -= scaled * value;
      store(entry(i, j), value);
    }
    positive &= pivot > Lanes{};
    store(d + i * kStep, 1.0 / pivot);
  }
  for (int64_t i = 1; i < q; ++i)
    for (int64_t j = 0; j < i; ++j) {
      Lanes sum = -load(entry(i, j));
      for (int64_t k = j + 1; k < i; ++k) sum -= load(entry(i, k)) * load(entry(k, j));
      store(entry(i, j), sum);
    }
  return positive;
}

void unit_scores(int64_t q, int64_t units, int64_t first, int64_t last, const double* s,
                 const double* a, double* scores, double* work) {
  double* n = work;
  double* d = work + q * q * kStep;
  const double infinity = __builtin_inf();
  for (int64_t u = first; u < last; u += kStep) {
    const auto positive = factor_lanes(q, units, s + u, n, d);
    Lanes score{};
    for (int64_t i = 0; i < q; ++i) {
      Lanes form{};
      for (int64_t x = 0; x <= i; ++x) {
        const auto weight = [&](int64_t k) {
          return k == i ? Lanes{} + 1.0 : load(n + (i * q + k) * kStep);
        };
        Lanes sum{};
        for (int64_t y = x + 1; y <= i; ++y) sum += load(a + (x * q + y) * units + u) * weight(y);
        form += weight(x) * (load(a + (x * q + x) * units + u) * weight(x) + 2.0 * sum);
      }
      score += form * load(d + i * kStep);
    }
    store(scores + u, positive ? score : Lanes{} + infinity);
  }
}

void unit_update(int64_t q, int64_t units, int64_t first, int64_t last, UnitPanels l, int64_t row,
                 UnitPanels z, double* s, double* a) {
  for (int64_t u = first; u < last; u += kStep)
    for (int64_t x = 0; x < q; ++x)
      for (int64_t y = x; y < q; ++y) {
        double* to_s = s + (x * q + y) * units + u;
        double* to_a = a + (x * q + y) * units + u;
        Lanes sum_s = load(to_s), sum_a = load(to_a);
        for (int64_t k = 0; k < q; ++k) {
          const Lanes lx = column(l, row + k, x * units + u), ly = column(l, row + k, y * units + u);
          sum_s -= lx * ly;
          sum_a -= lx * column(z, k, y * units + u);
          sum_a -= column(z, k, x * units + u) * ly;
        }
        store(to_s, sum_s);
        store(to_a, sum_a);
      }
}

void unit_gram(int64_t q, int64_t units, int64_t first, int64_t last, UnitPanels w, int64_t rows,
               double* a) {
  constexpr int64_t wide = 4;
  for (int64_t u = first; u < last; u += kStep)
    for (int64_t x = 0; x < q; ++x)
      for (int64_t y = x; y < q; y += wide) {
        const int64_t count = q - y < wide ? q - y : wide;
        Lanes sum[wide] = {};
        for (int64_t m = 0; m < rows; ++m) {
          const Lanes left = column(w, m, x * units + u);
          for (int64_t i = 0; i < count; ++i) sum[i] += left * column(w, m, (y + i) * units + u);
        }
        for (int64_t i = 0; i < count; ++i) store(a + (x * q + y + i) * units + u, sum[i]);
      }
}

}  // namespace

extern const Tile TILE_TABLE;
const Tile TILE_TABLE = {
    TILE_NAME,         add_products,   subtract_products, solve_rows, add_sums,      transpose<float>,
    transpose<double>, add_transposed, add_interleaved,   add_scaled, unit_scores,   unit_update,
    unit_gram,         pair_products,  add_pair_errors,   find_least, max_magnitudes};

}  // namespace reapx
