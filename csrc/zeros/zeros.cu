#include <algorithm>

#include "runtime/cuda/device_buffer.h"
#include "runtime/cuda/launch.h"
#include "runtime/cuda/pieces.h"
#include "zeros/zeros.h"

namespace reapx {

namespace {

constexpr int kWarp = 32, kWarps = 8;                   // lanes of a warp, warps of a block
constexpr int kLoads = 4;                               // elements of a row that a lane holds
constexpr int kTogether = 4;                            // rows
constexpr int64_t kStrip = kWarp * kLoads, kRows = 64;  // what a warp reads of a weight
constexpr unsigned kAll = 0xffffffff, kMagnitude = 0x7fffffff;

// A task as the device sees it. Maxima are kept as the bit patterns of magnitudes, which order as the
// magnitudes do, with NaN above infinity; so a maximum of integers, in any order, is exact.
struct Job {
  const unsigned* weight;  // (outputs, width)
  unsigned *rows, *columns;
  int64_t outputs, inputs, taps, width;
  int64_t strips, first;  // strips of a row; this job's first piece, of `kRows` rows of a strip each
};

__global__ void clear_maxima(const Job* jobs) {
  const Job& job = jobs[blockIdx.x];
  for (int64_t i = threadIdx.x; i < job.outputs; i += blockDim.x) job.rows[i] = 0;
  for (int64_t i = threadIdx.x; i < job.inputs; i += blockDim.x) job.columns[i] = 0;
}

__global__ void scan_pieces(const Job* jobs, int64_t count, int64_t pieces) {
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (piece >= pieces) return;
  const Job job = jobs[find_last(jobs, count, &Job::first, piece)];
  const int64_t top = (piece - job.first) / job.strips * kRows;
  const int64_t bottom = min(top + kRows, job.outputs);
  const int64_t left = (piece - job.first) % job.strips * kStrip + threadIdx.x % kWarp;
  unsigned column[kLoads] = {};
  // Small networks fill few warps, so each has several rows on their way before it looks at the first.
  for (int64_t row = top; row < bottom; row += kTogether) {
    unsigned bits[kTogether][kLoads];
#pragma unroll
    for (int r = 0; r < kTogether; ++r)
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const bool inside = row + r < bottom && left + i * kWarp < job.width;
        bits[r][i] = inside ? __ldg(job.weight + (row + r) * job.width + left + i * kWarp) : 0;
      }
#pragma unroll
    for (int r = 0; r < kTogether; ++r) {
      unsigned largest = 0;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        column[i] = max(column[i], bits[r][i] & kMagnitude);
        largest = max(largest, bits[r][i] & kMagnitude);
      }
      largest = __reduce_max_sync(kAll, largest);
      if (threadIdx.x % kWarp == 0 && row + r < bottom) atomicMax(job.rows + row + r, largest);
    }
  }
  for (int i = 0; i < kLoads; ++i)
    if (left + i * kWarp < job.width) atomicMax(job.columns + (left + i * kWarp) / job.taps, column[i]);
}

}  // namespace

void zero_scan(const std::vector<ZeroTask>& tasks, const Context& context) {
  std::vector<Job> jobs;
  int64_t pieces = 0;
  for (const ZeroTask& task : tasks) {
    const int64_t width = task.inputs * task.taps, strips = divide_up(width, kStrip);
    jobs.push_back({reinterpret_cast<const unsigned*>(task.weight),
                    reinterpret_cast<unsigned*>(task.rows), reinterpret_cast<unsigned*>(task.columns),
                    task.outputs, task.inputs, task.taps, width, strips, pieces});
    pieces += divide_up(task.outputs, kRows) * strips;
  }
  const DeviceBuffer<Job> described(context, jobs);
  const int64_t count = static_cast<int64_t>(jobs.size());
  launch(context, {"zero_scan", blocks_of(count), dim3(256)}, clear_maxima, described.data());
  const Shape shape{"zero_scan", blocks_of(divide_up(pieces, kWarps)), dim3(kWarps * kWarp)};
  launch(context, shape, scan_pieces, described.data(), count, pieces);
}

}  // namespace reapx
