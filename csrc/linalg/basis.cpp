#include "linalg/basis.h"

#include <algorithm>
#include <cstring>

#include "linalg/panels.h"
#include "runtime/cpu/context_cpu.h"

namespace reapx {

namespace {

constexpr int64_t kLarge = 384;  // size from which on a matrix uses all threads
constexpr int64_t kBlock = 256;  // rows of P that are computed at a time

// Loads the rows of one diagonal block of the matrix, from the diagonal on, and the identity for Y.
void load_rows(const BasisTask& task, int64_t block, PanelPair& x) {
  const int64_t n = task.size, begin = block * kDoubleWidth, end = std::min(begin + kDoubleWidth, n);
  for (int64_t p = block; p < x.count(); ++p) {
    const int64_t first = p * kDoubleWidth, width = std::min(kDoubleWidth, n - first);
    for (int64_t i = begin; i < end; ++i) {
      double* to = x.upper().at(i, first);
      if (width < kDoubleWidth) std::fill(to, to + kDoubleWidth, 0.0);
      copy_row(task.gram + i * n + first, width, to);
    }
  }
  double* identity = x.lower(block);
  std::fill(identity + begin * kDoubleWidth, identity + n * kDoubleWidth, 0.0);
  for (int64_t i = begin; i < end; ++i) {
    std::fill(x.upper().at(i, begin), x.upper().at(i, i), 0.0);
    *x.upper().at(i, i) += task.ridge;
    identity[i * kDoubleWidth + i - begin] = 1.0;
  }
}

typedef double Two __attribute__((vector_size(2 * sizeof(double))));

// Writes the negative of a square block of kDoubleWidth to both triangles, in squares of two, since
// single elements that are stored would stall the loads that read them as vectors.
void write_block(const double* minus, int64_t n, double* upper, double* lower) {
  for (int64_t i = 0; i < kDoubleWidth; i += 2)
    for (int64_t j = 0; j < kDoubleWidth; j += 2) {
      Two top, bottom;
      std::memcpy(&top, minus + i * kDoubleWidth + j, sizeof top);
      std::memcpy(&bottom, minus + (i + 1) * kDoubleWidth + j, sizeof bottom);
      const Two rows[2] = {-top, -bottom},
                columns[2] = {{rows[0][0], rows[1][0]}, {rows[0][1], rows[1][1]}};
      for (int64_t k = 0; k < 2; ++k) {
        std::memcpy(upper + (i + k) * n + j, &rows[k], sizeof rows[k]);
        std::memcpy(lower + (j + k) * n + i, &columns[k], sizeof columns[k]);
      }
    }
}

// Writes rows top .. bottom-1 of one panel of -P, from the diagonal up, to both triangles of P.
void write_panel(const Panels& minus, int64_t p, int64_t top, int64_t bottom, double* basis) {
  const int64_t n = minus.columns(), begin = p * kDoubleWidth;
  const int64_t width = std::min(kDoubleWidth, n - begin);
  int64_t i = top;
  if (width == kDoubleWidth)
    for (; i < std::min(bottom, begin); i += kDoubleWidth)
      write_block(minus.at(i, begin), n, basis + i * n + begin, basis + begin * n + i);
  for (; i < std::min(bottom, begin + width); ++i)
    for (int64_t j = std::max<int64_t>(0, i - begin); j < width; ++j)
      basis[i * n + begin + j] = basis[(begin + j) * n + i] = -*minus.at(i, begin + j);
}

// P = Y^T Y. R is no longer needed, and -P takes its memory.
void multiply(const Tile& tile, Team& team, PanelPair& x, double* basis) {
  const int64_t n = x.size();
  for (int64_t top = 0; top < n; top += kBlock) {
    const int64_t bottom = std::min(top + kBlock, n), block = top / kDoubleWidth;
    std::vector<Strip> strips;
    for (int64_t p = block; p < x.count(); ++p) {
      const int64_t first = p * kDoubleWidth, last = std::min(first + kDoubleWidth, n);
      strips.push_back({x.lower(p), x.upper().panel(p), first, last});
    }
    team.run(static_cast<int64_t>(strips.size()), [&](int64_t i) {
      const Strip& s = strips[static_cast<size_t>(i)];
      std::fill(s.c + top * kDoubleWidth, s.c + std::min(bottom, s.last) * kDoubleWidth, 0.0);
    });
    subtract_strips(tile, team, x.lower(), top, bottom - top, strips, top, n);
    team.run(static_cast<int64_t>(strips.size()),
             [&](int64_t i) { write_panel(x.upper(), block + i, top, bottom, basis); });
  }
}

}  // namespace

void basis_compute(const std::vector<BasisTask>& tasks, const Context& context) {
  const auto at = [&](int64_t i) -> const BasisTask& { return tasks[static_cast<size_t>(i)]; };
  run_tasks(
      context.threads, static_cast<int64_t>(tasks.size()),
      [&](int64_t i) { return at(i).size >= kLarge; },
      [&](int64_t i, Team& team) {
        const BasisTask& task = at(i);
        PanelPair x(task.size);
        std::vector<Strip> identity;
        for (int64_t p = 0; p < x.count(); ++p)
          identity.push_back({x.lower(p), x.lower(p), p * kDoubleWidth, task.size});
        team.run(x.count(), [&](int64_t block) { load_rows(task, block, x); });
        *task.failed = cholesky_factor(context.tile, team, x.upper(), pivot_floor(x.upper()), identity);
        if (*task.failed < 0) multiply(context.tile, team, x, task.basis);
      });
}

}  // namespace reapx
