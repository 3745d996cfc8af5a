// The two forms in which path_eliminate keeps the weights of one consumer. Not part of the contract:
// see path.h for that.
//
// W is here as it is stored, (outputs, D), and W_u are its columns of unit u. The scores need
// A_u = W_u^T W_u of every unit. A step subtracts v^T L^T from W, where L^T (taps, D) are the new rows
// of the factor and v (taps, outputs) = R^-T W_u^T. One form keeps W itself, the other one K = W^T W. K
// is larger where outputs are few, but a step reads only `taps` rows of it, and all of W. In both forms
// a step computes the rows Z^T = v W - v v^T L^T / 2, with W as it was before. They give A_j <- A_j -
// L_j^T Z_j - Z_j^T L_j for every unit j, and K likewise.
//
// Example: three units of one tap, two outputs.
//
//       P = 4 2 0      W = 2 0 1      K = W^T W = 4 0 2     A = 4, 1, 2, the diagonal of K
//           2 2 0          0 1 1                  0 1 1     scores 4/4 = 1, 1/2 = 0.5, 2/1 = 2
//           0 0 1                                 2 1 2
//
// Unit 1 has the least score and is removed. Its pivot is P_11 = 2, so R = sqrt(2), and L^T is row 1 of
// P over R, (2 2 0) / sqrt(2). Its weights give v = (0 1) / sqrt(2); |v|^2 = 0.5 is its error. Then v W
// = (0 1 1) / sqrt(2), which is row 1 of K over R: so the second form needs no W. With v v^T = 0.5,
//
//   Z^T = (0 1 1) / sqrt(2) - 0.25 (2 2 0) / sqrt(2) = (-0.5 0.5 1) / sqrt(2)
//   A_0 = 4 - 2 * (2 * -0.5) / 2 = 5      A_2 = 2 - 2 * (0 * 1) / 2 = 2      P_00 = 4 - 2 * 2 / 2 = 2
//
// and the scores become 5/2 and 2/1. Indeed W - v^T L^T has the columns (2, -1), (0, 0) and (1, 1).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "linalg/panels.h"
#include "path/path.h"

namespace reapx {

// The order in which columns of features are stored: tap a of the unit in slot u is column a*slots + u,
// so that neighbouring slots lie next to each other and kLanes units are scored at once. Columns that
// belong to no unit follow. Columns of removed units are dropped from time to time.
struct Columns {
  int64_t taps = 0, slots = 0;
  std::vector<int64_t> source;  // the feature of each column, -1 for padding

  int64_t size() const { return static_cast<int64_t>(source.size()); }
};

// The rows of L^T since P was last brought up to date, and what is known of the unit being removed.
struct Gathered {
  Panels rows = Panels(0, 0);  // rows 0 .. count-1 of L^T; the form uses rows from `capacity` on
  int64_t capacity = 0;
  int64_t count = 0;
  std::vector<double> own;   // L[I_u] (count, taps)
  std::vector<double> root;  // R (taps, taps), upper triangular: P_uu = R^T R
};

class PathForm {
 public:
  virtual ~PathForm() = default;

  // How many times its capacity Gathered::rows has to have rows.
  virtual int64_t copies() const = 0;
  // Multiply-adds of `advance` for each row and column.
  virtual int64_t advance_cost(const Gathered& g) const = 0;

  // The first half of a step, once L[I_u] and R are known: computes v. Returns |v|^2, or 0 where
  // `finish` adds it to the errors.
  virtual double pivot(const Tile& tile, const Gathered& g, int64_t slot) = 0;
  // The second half, once the new rows of L^T are computed: the rows of Z^T in one panel of columns.
  virtual void advance(const Tile& tile, Gathered& g, int64_t slot, int64_t panel) = 0;
  virtual UnitPanels cross(const Gathered& g) const = 0;  // where these rows are

  // Computes A_u of the slots first .. last-1 anew. Only to be called right after flush.
  virtual void refresh(const Tile& tile, int64_t first, int64_t last, double* a) = 0;
  // Brings W or K up to date with the gathered rows, before which `emitted` rows came; after the last
  // ones, only outputs are written.
  virtual void flush(const Tile& tile, Team& team, Gathered& g, int64_t emitted, bool last) = 0;
  // Keeps only the columns that `from` lists: indices into the columns until now, or -1 for padding.
  virtual void compact(const std::vector<int64_t>& from) = 0;
  // After the last step, with `count` units removed in `order`: writes the residual and adds
  // scale * |v|^2 to the errors, unless flush and pivot have done so.
  virtual void finish(const Tile& tile, Team& team, const int64_t* order, int64_t count,
                      double* errors) = 0;
};

// The two forms. The consumer and the columns must outlive them.
std::unique_ptr<PathForm> keep_weight(Team& team, const PathConsumer& consumer, const Columns& columns,
                                      int64_t capacity);
std::unique_ptr<PathForm> keep_gram(const Tile& tile, Team& team, const PathConsumer& consumer,
                                    const Columns& columns);

// The form that is expected to be faster for a path of so many steps.
std::unique_ptr<PathForm> make_form(const Tile& tile, Team& team, const PathConsumer& consumer,
                                    const Columns& columns, int64_t capacity, int64_t steps);

}  // namespace reapx
