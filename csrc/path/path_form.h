// How path_eliminate keeps the weights of one consumer. Not part of the contract: see path.h for that.
//
// The scores need A_u = W_u^T W_u of every unit. A step takes v^T L^T from W, where L^T (taps, D) are
// the new rows of the factor and v (taps, outputs) = R^-T W_u^T. Kept is either W itself or
// K = W^T W, which is larger where outputs are few, but of which a step reads taps rows only. In both
// forms the step's rows of Z^T = v W - v v^T L^T / 2, with W as it was, give
// A_j <- A_j - L_j^T Z_j - Z_j^T L_j, and likewise K.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "linalg/panels.h"
#include "path/path.h"

namespace reapx {

// Columns of the features as they are stored, compacted and reordered: tap a of the unit in slot u is
// column a*slots + u, so that neighbouring slots are neighbouring numbers and kLanes units are scored
// at once; columns of no unit follow.
struct Columns {
  int64_t taps = 0, slots = 0;
  std::vector<int64_t> source;  // the feature of each column, -1 for filling

  int64_t size() const { return static_cast<int64_t>(source.size()); }
};

// The rows of L^T since P was last brought up to date, and the unit that is leaving.
struct Gathered {
  Panels rows = Panels(0, 0);  // rows 0 .. count-1 of L^T; from row `capacity` on the form's own
  int64_t capacity = 0;
  int64_t count = 0;
  std::vector<double> own;   // L[I_u] (count, taps)
  std::vector<double> root;  // R (taps, taps), upper triangular: P_uu = R^T R
};

class Form {
 public:
  virtual ~Form() = default;

  // Rows of Gathered::rows for each of its capacity.
  virtual int64_t copies() const = 0;
  // Multiply-adds of `advance` for each of its rows and columns.
  virtual int64_t advance_cost(const Gathered& g) const = 0;

  // First half of a step: v, once L[I_u] and R are known. Returns |v|^2, or 0 where finish adds it.
  virtual double pivot(const Tile& tile, const Gathered& g, int64_t slot) = 0;
  // Second half: the rows of Z^T in one panel of columns, once those of L^T are there.
  virtual void advance(const Tile& tile, Gathered& g, int64_t slot, int64_t panel) = 0;
  virtual UnitPanels cross(const Gathered& g) const = 0;  // where they are

  // A_u of the slots first .. last-1, from scratch. Only right after flush.
  virtual void refresh(const Tile& tile, int64_t first, int64_t last, double* a) = 0;
  // Takes in the gathered rows, before which `emitted` were. After the last ones only outputs matter.
  virtual void flush(const Tile& tile, Team& team, Gathered& g, int64_t emitted, bool last) = 0;
  // The columns have become those that `from` lists: indices into the columns before, or -1.
  virtual void compact(const std::vector<int64_t>& from) = 0;
  // Once `count` units have left, in `order`: writes the residual and adds scale * |v|^2 to their
  // errors, unless flush and pivot did.
  virtual void finish(const Tile& tile, Team& team, const int64_t* order, int64_t count,
                      double* errors) = 0;
};

// The two forms. The consumer and the columns must outlive them.
std::unique_ptr<Form> keep_weight(Team& team, const PathConsumer& consumer, const Columns& columns,
                                  int64_t capacity);
std::unique_ptr<Form> keep_gram(const Tile& tile, Team& team, const PathConsumer& consumer,
                                const Columns& columns);

// The one that is expected to be faster for a path of so many steps.
std::unique_ptr<Form> make_form(const Tile& tile, Team& team, const PathConsumer& consumer,
                                const Columns& columns, int64_t capacity, int64_t steps);

}  // namespace reapx
