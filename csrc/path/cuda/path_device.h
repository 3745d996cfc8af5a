// What path_eliminate keeps on the device, and its launches. Not part of the contract: see path.h for
// that.
//
// On the device there is one form: K = W^T W is kept instead of W, and a step reads no more of it than
// of P. Columns are the features in their own order, so that rows of L^T are rows of the output from
// the start. All tasks of a batch take a step together, in three launches; nothing is read back.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "runtime/cuda/context_cuda.h"
#include "runtime/cuda/work_items.h"

namespace reapx {

// Rows of L^T that are gathered before P and K are brought up to date, where a unit has no more taps.
inline constexpr int64_t kGatheredRows = 128;
inline constexpr int64_t kTileFeatures = 32;  // of a tile of advance_rows
inline constexpr int64_t kUnitThreads = 128;  // of a block of score_units
inline constexpr int64_t kSharedTaps = 49;    // taps up to which two blocks of a unit fit shared memory

// A consumer as the device sees it, with what it needs of its task.
struct DevicePathConsumer {
  const double* weight;
  const int64_t *columns, *forced;
  double scale;
  double *factor, *residual, *errors;
  int64_t *order, *status;
  int64_t features, outputs, taps, units, steps, forced_count;
  int64_t panel_steps;  // steps between two updates of P and K, which depend on the task alone
  int64_t first, last;  // the consumers of the same task

  // P and K (features, features) as of the last update; only their upper triangles have a meaning.
  // `basis` is `updated`, or, where a path is too short for an update, the caller's matrix.
  const double* basis;
  double *updated, *gram;

  // More scratch.
  double* cross;              // (panel_steps * taps, features): Z^T of the steps since
  double *blocks, *products;  // S and A of each unit, (units, taps, taps)
  double* scores;             // (units,)
  double *root, *half;        // of the unit that is removed: R, and v v^T / 2
  double* work;               // (units, 2, taps, taps) where they exceed shared memory
  int64_t* gone;              // (units,): whether it is removed
  int64_t* unit_tap;          // (features,): unit * taps + tap, or -1
  int64_t* chosen;            // (1,): the unit that is removed in this step
  int64_t* failed;            // (1,): whether its pivot block was not positive definite

  int64_t first_tile, tiles;    // of advance_rows, among those of all consumers
  int64_t first_group, groups;  // of score_units, likewise
};

// The consumers of a batch, on the host and on the device.
struct Batch {
  const DevicePathConsumer *own, *device;
  int64_t count;
};

__device__ inline double read_upper(const double* matrix, int64_t size, int64_t i, int64_t j) {
  return i <= j ? matrix[i * size + j] : matrix[j * size + i];
}

// path_steps.cu: one step of all tasks of a batch; and S, A and the scores of one consumer, anew from P
// and K.
void run_step(const Context& context, const Batch& batch, int64_t step, bool last);
void refresh_blocks(const Context& context, const Batch& batch, int64_t consumer);

// path_advance.cu: the rows of L^T and Z^T of a step, once its unit is chosen and R and v v^T are
// known.
void advance(const Context& context, const Batch& batch, int64_t step);

// path_panels.cu: K; the update of P and K after `step` steps; and, after the last one, V, the errors,
// which follow from it, and zeros behind a failure.
void make_gram(const Context& context, const DevicePathConsumer& consumer);
void update_panel(const Context& context, const DevicePathConsumer& consumer, int64_t step);
void finish_consumer(const Context& context, const DevicePathConsumer& consumer);

}  // namespace reapx
