// The matrix-tile core that every CPU kernel shares.
//
// All heavy work is one shape of product over *panels*. A panel holds `rows` rows of 128 bytes:
// kFloatWidth float32 or kDoubleWidth float64 columns, row after row. A matrix with more columns is
// a list of panels, [ceil(columns / width)][rows][width], the last one padded with zeros.
//
// The same source (tile_core.h) is compiled once for each instruction set; `tile_pick` takes the
// best one this machine can run. Pointers need the alignment of their element only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace reapx {

inline constexpr int64_t kFloatWidth = 32;
inline constexpr int64_t kDoubleWidth = 16;
inline constexpr int64_t kTileRows = 8;
inline constexpr int64_t kLanes = 8;         // units are processed in groups of this many
inline constexpr int64_t kFloatTerms = 256;  // longest sum kept in float32

// Columns of a unit-major panel matrix: column a*units + u is tap `a` of unit `u`; row k of it is at
// data[((a*units + u) / kDoubleWidth * capacity + k) * kDoubleWidth + (a*units + u) % kDoubleWidth].
struct UnitPanels {
  const double* data;
  int64_t capacity;  // rows a panel has room for
};

// Rows of a float32 panel that a sum runs over: column j of row k of run r is
// data[r*run + k*step + j].
struct Runs {
  const float* data;
  int64_t step, run;
};

struct Tile {
  const char* name;

  // c[i][j] += sum over r < runs, k < terms of a(r, k, i) * b(r, k, j)
  // i < rows (0..kTileRows), j < kFloatWidth; c float64 with kFloatWidth columns, added to.
  // The sum is float32: runs * terms <= kFloatTerms.
  void (*add_products)(int64_t rows, int64_t runs, int64_t terms, Runs a, Runs b, double* c);

  // c[i][j] -= sum_k a[k*a_stride + i] * b[k*kDoubleWidth + j]
  // i < rows (0..kTileRows), j < kDoubleWidth; c float64 with kDoubleWidth columns. c may be rows of
  // the panel b, as long as they are not among the `terms` rows that are read.
  void (*subtract_products)(int64_t rows, int64_t terms, const double* a, int64_t a_stride,
                            const double* b, double* c);

  // Forward substitution with a triangle T(k, i) = t[k*k_step + i*i_step], k <= i < rows:
  // c_i = (c_i - sum_{k<i} T(k, i) c_k) / T(i, i), where c_i are the kDoubleWidth float64 at
  // c + i*c_step, overwritten. Negative steps run it backwards.
  void (*solve_rows)(int64_t rows, const double* t, int64_t k_step, int64_t i_step, double* c,
                     int64_t c_step);

  // sums[j] += sum_k a[k*stride + j], j < kFloatWidth. Sums of at most kFloatTerms terms in float32,
  // then float64.
  void (*add_sums)(int64_t terms, const float* a, int64_t stride, double* sums);

  // to[t*to_stride + j] = from[j*from_stride + t] for t < rows, j < columns (a transposed copy).
  void (*transpose)(int64_t rows, int64_t columns, const float* from, int64_t from_stride, float* to,
                    int64_t to_stride);
  void (*transpose_doubles)(int64_t rows, int64_t columns, const double* from, int64_t from_stride,
                            double* to, int64_t to_stride);

  // to[t*to_stride + j] += scale * from[j*from_stride + t] for t < rows, j < columns.
  void (*add_transposed)(int64_t rows, int64_t columns, double scale, const double* from,
                         int64_t from_stride, double* to, int64_t to_stride);

  // to[t*count + j] += from[j][t] for t < columns, j < count: rows interleaved into one.
  void (*add_interleaved)(int64_t count, int64_t columns, const double* const* from, double* to);

  // to[i] += scale * from[i] for i < count.
  void (*add_scaled)(int64_t count, double scale, const double* from, double* to);

  // The next three work on q x q blocks of `units` units (a multiple of kLanes), stored as
  // [q][q][units]; only entries a <= b are read and written.

  // scores[u] = tr(S_u^-1 A_u), +inf where S_u is not positive definite, for units first <= u < last
  // (multiples of kLanes). work: (q + 1)*q*kLanes doubles.
  void (*unit_scores)(int64_t q, int64_t units, int64_t first, int64_t last, const double* s,
                      const double* a, double* scores, double* work);

  // Over the q rows k = row .. row+q-1 of L, and rows 0 .. q-1 of Z:
  // S_u -= L_u^T L_u;  A_u -= L_u^T Z_u + Z_u^T L_u, for units first <= u < last.
  void (*unit_update)(int64_t q, int64_t units, int64_t first, int64_t last, UnitPanels l, int64_t row,
                      UnitPanels z, double* s, double* a);

  // A_u = W_u^T W_u over rows 0 .. rows-1 of W, for units first <= u < last.
  void (*unit_gram)(int64_t q, int64_t units, int64_t first, int64_t last, UnitPanels w, int64_t rows,
                    double* a);

  // inner[u] = sum_b sum_a product[a*q + b] * rows[a][u*q + b] and norms[u] = the same over blocks,
  // for u < units, a < q, b < q. The sums of a unit do not depend on its index, and norms are the same
  // as inner where blocks are the same as rows. work: q*(q+2)*kLanes doubles.
  void (*pair_products)(int64_t q, int64_t units, const double* const* rows,
                        const double* const* blocks, const double* product, double* inner,
                        double* norms, double* work);

  // sums[u] += scale * (own - gain * left), left = inner[u] - overlaps[u], gain = left / norms[u], or
  // 0 where that norm is not positive. An error that is not finite makes the sum +inf. Without
  // overlaps (null) an error below 0 is rounding and counts as 0.
  void (*add_pair_errors)(int64_t units, double own, double scale, const double* inner,
                          const double* overlaps, const double* norms, double* sums);

  // The index of the least element, the lowest one of several; -1 where none is below +inf.
  int64_t (*find_least)(int64_t count, const double* from);

  // row_max[i] = max(row_max[i], max_j |from[i*stride + j]|), column_max[j] the same over i, for
  // i < rows, j < columns. Bit patterns without the sign are compared, so a NaN is the largest. The
  // maxima must not be negative before.
  void (*max_magnitudes)(int64_t rows, int64_t columns, const float* from, int64_t stride,
                         float* row_max, float* column_max);
};

// Names of the cores this machine can run, best first.
std::vector<std::string> tile_names();

// The core called `name`, or the best one for "". Throws std::invalid_argument for a name that is
// not in tile_names().
const Tile& tile_pick(const std::string& name);

}  // namespace reapx
