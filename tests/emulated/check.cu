// Kernels that are right, in both orders of threads, and kernels that are wrong: the emulator must run
// the ones and refuse the others, and say why. Under the thread sanitizer, kernels with and without
// what puts their threads in order: it must report the latter, and nothing else.
#include <cuda_pipeline.h>
#include <fcntl.h>

#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "gram/cuda/tensor_core.h"
#include "runtime/cuda/device_buffer.h"
#include "runtime/cuda/launch.h"

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace {

using reapx::Context;
using reapx::launch;
using reapx::LaunchShape;

constexpr unsigned kAll = 0xffffffff;
int failures = 0;

void expect(bool right, const char* what, bool backward) {
  if (right) return;
  std::printf("%s, %s: wrong\n", what, backward ? "backward" : "forward");
  ++failures;
}

// Sums of what the threads of a block hold, by shared memory of both kinds and by shuffles.
__global__ void sum_block(const int* from, int* to) {
  __shared__ int total;
  int* values = reapx::dynamic_shared<int>();
  const int i = static_cast<int>(threadIdx.x);
  values[i] = from[blockIdx.x * blockDim.x + threadIdx.x];
  if (i == 0) total = 0;
  __syncthreads();
  int sum = values[blockDim.x - 1 - threadIdx.x];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(kAll, sum, step);
  if (i % warpSize == 0) atomicAdd(&total, sum);
  __syncthreads();
  if (i == 0) to[blockIdx.x] = total;
}

__global__ void exchange_lanes(int* to) {
  const int lane = static_cast<int>(threadIdx.x);
  int good = __shfl_xor_sync(kAll, lane, 1) == (lane ^ 1);
  good &= __shfl_sync(kAll, lane, 3, 8) == lane / 8 * 8 + 3;
  good &= __shfl_up_sync(kAll, 2.5 * lane, 2) == 2.5 * (lane < 2 ? lane : lane - 2);
  good &= __ballot_sync(kAll, lane % 2) == 0xaaaaaaaa;
  good &= __reduce_max_sync(kAll, static_cast<unsigned>(lane)) == 31;
  if (lane < 16) good &= __shfl_sync(0xffff, lane, 15) == 15;
  __syncwarp();
  good &= __syncthreads_and(1) && !__syncthreads_or(0) && __syncthreads_count(lane < 5) == 5;
  to[lane] = good;
}

// What was copied is there only after waiting for its batch.
__global__ void copy_in_batches(const int* from, int* to) {
  int* values = reapx::dynamic_shared<int>();
  for (int i = 0; i < 2; ++i) {
    __pipeline_memcpy_async(values + i, from + i, sizeof(int));
    __pipeline_commit();
  }
  __pipeline_wait_prior(1);
  to[0] = values[0];
  to[1] = values[1] == from[1];
  __pipeline_wait_prior(0);
  to[2] = values[1];
}

// Each block adds its neighbour's value of the round before.
__global__ void pass_around(int* values, int rounds) {
  __shared__ int own;
  if (threadIdx.x == 0) own = static_cast<int>(blockIdx.x);
  for (int round = 0; round < rounds; ++round) {
    if (threadIdx.x == 0) values[blockIdx.x] = own;
    reapx::grid_sync();
    if (threadIdx.x == 0) own += values[(blockIdx.x + 1) % gridDim.x];
    reapx::grid_sync();
  }
  if (threadIdx.x == 0) values[blockIdx.x] = own;
}

// c += a b, all of them row by row, as the fragments lie in CUDA's manual.
__global__ void multiply_matrices(const float* a, const float* b, float* c) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  const float left[4] = {a[g * 8 + t], a[(g + 8) * 8 + t], a[g * 8 + t + 4], a[(g + 8) * 8 + t + 4]};
  const float right[1][2] = {{b[t * 8 + g], b[(t + 4) * 8 + g]}};
  float* own[4] = {c + g * 8 + 2 * t, c + g * 8 + 2 * t + 1, c + (g + 8) * 8 + 2 * t,
                   c + (g + 8) * 8 + 2 * t + 1};
  float sum[1][4];
  for (int i = 0; i < 4; ++i) sum[0][i] = *own[i];
  reapx::multiply_add(sum, left, right);
  reapx::finish_products();
  for (int i = 0; i < 4; ++i) *own[i] = sum[0][i];
}

// What becomes of a sum of eight products x*y and of c.
float multiply_same(const Context& context, float x, float y, float c) {
  const reapx::DeviceBuffer<float> a(context, std::vector<float>(128, x));
  const reapx::DeviceBuffer<float> b(context, std::vector<float>(64, y));
  const reapx::DeviceBuffer<float> sums(context, std::vector<float>(128, c));
  launch(context, {"multiply_matrices", dim3(1), dim3(32)}, multiply_matrices, a.data(), b.data(),
         sums.data());
  return sums.data()[77];
}

void check_products(bool backward) {
  const Context context({0, backward ? 1 : 0});
  std::vector<float> a(128), b(64), c(128);
  for (size_t i = 0; i < 128; ++i) {
    a[i] = static_cast<float>(i * 37 % 101) - 50;
    b[i % 64] = static_cast<float>(i * 29 % 83) - 41;
    c[i] = static_cast<float>(i);
  }
  const reapx::DeviceBuffer<float> left(context, a), right(context, b), sums(context, c);
  launch(context, {"multiply_matrices", dim3(1), dim3(32)}, multiply_matrices, left.data(),
         right.data(), sums.data());
  for (size_t i = 0; i < 128; ++i) {
    float sum = c[i];
    for (size_t k = 0; k < 8; ++k) sum += a[i / 8 * 8 + k] * b[k * 8 + i % 8];
    expect(sums.data()[i] == sum, "multiply_matrices", backward);
  }
  const float bit = 0x1p-10F, less = 0x1p-11F;  // the last that TF32 has, and one that it lacks
  expect(multiply_same(context, 1 + bit + less, 1, 0) == 8 + 8 * bit, "operands", backward);
  const float last = 0x1p-20F;  // of the fraction of 8
  expect(multiply_same(context, 1, 1, 0.9F * last) == 8, "cutting off", backward);
  expect(multiply_same(context, -1, 1, -0.9F * last) == -8, "cutting off", backward);
  expect(multiply_same(context, 1, 1, -0.1F * last) == 8 - last / 2, "cutting off", backward);
  expect(std::isinf(multiply_same(context, INFINITY, 1, 0)), "infinity", backward);
  expect(std::isnan(multiply_same(context, NAN, 1, 0)), "NaN", backward);
}

// Whether a number is the sum of its parts, as far as a tensor core reads them.
void check_split(float x) {
  float big = 0, small = 0;
  reapx::split(x, big, small);
  const auto read = [](float value) {
    return __uint_as_float(__float_as_uint(value) & ~((1U << 13) - 1));
  };
  const float left = x - big - read(small);
  expect(big == read(big) && std::fabs(small) <= 0x1p-11F * std::fabs(x), "split", false);
  expect(std::fabs(left) <= 0x1p-23F * std::fabs(x), "split", false);
}

void check_splits() {
  for (unsigned bits = 0x3f800000; bits < 0x40000000; bits += 77) {
    check_split(__uint_as_float(bits));
    check_split(-__uint_as_float(bits));
  }
  for (const unsigned bits : {0x7f800000U, 0xff800000U, 0x7f800001U, 0x7fffffffU, 0xffffffffU}) {
    float big = 0, small = 0;
    reapx::split(__uint_as_float(bits), big, small);
    expect(std::isnan(small), "split of what is not finite", false);
  }
}

void check_right(bool backward) {
  const Context context({0, backward ? 1 : 0});
  std::vector<int> values(3 * 96);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int>(i);
  const reapx::DeviceBuffer<int> from(context, values), to(context, 96);
  launch(context, {"sum_block", dim3(3), dim3(96), 96 * sizeof(int)}, sum_block, from.data(),
         to.data());
  for (int b = 0; b < 3; ++b)
    expect(to.data()[b] == (b * 96 + b * 96 + 95) * 48, "sum_block", backward);
  launch(context, {"exchange_lanes", dim3(1), dim3(32)}, exchange_lanes, to.data());
  for (int i = 0; i < 32; ++i) expect(to.data()[i], "exchange_lanes", backward);
  launch(context, {"copy_in_batches", dim3(1), dim3(1), 2 * sizeof(int)}, copy_in_batches,
         from.data() + 1, to.data());
  expect(to.data()[0] == 1 && to.data()[1] == 0 && to.data()[2] == 2, "copy_in_batches", backward);
  LaunchShape shape{"pass_around", dim3(1), dim3(64), 0, true};
  shape.grid = reapx::blocks_of(reapx::blocks_at_once(context, shape, pass_around));
  launch(context, shape, pass_around, to.data(), 2);
  expect(to.data()[0] + to.data()[1] + to.data()[2] == 12, "pass_around", backward);
  launch(context, {"empty", dim3(0), dim3(32)}, exchange_lanes, static_cast<int*>(nullptr));
}

__global__ void return_before_barrier() {
  if (threadIdx.x == 7) return;
  __syncthreads();
}
__global__ void part_at_barriers() {
  if (threadIdx.x < 8) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void part_in_warp() {
  if (threadIdx.x < 8) __shfl_sync(kAll, 1, 0);
}
__global__ void read_from_outside() {
  __shfl_sync(1U << threadIdx.x, 1, static_cast<int>(threadIdx.x) ^ 1);
}
__global__ void part_in_product() {
  if (threadIdx.x < 8) reapx::finish_products();
}
__global__ void less_in_a_lane() {
  float sum[1][4] = {};
  const float left[4] = {}, right[1][2] = {};
  if (threadIdx.x != 5) reapx::multiply_add(sum, left, right);
  reapx::finish_products();
}
__global__ void half_a_warp() { reapx::finish_products(); }
__global__ void copy_unaligned() {
  char* values = reapx::dynamic_shared<char>();
  __pipeline_memcpy_async(values + 1, values, 4);
}
[[maybe_unused]] __global__ void write_behind() { reapx::dynamic_shared<char>()[64] = 1; }
__global__ void sync_grid() { reapx::grid_sync(); }
__global__ void leave_grid() {
  if (blockIdx.x == 0) reapx::grid_sync();
}

void check_wrong(const char* expected, const LaunchShape& shape, void (*kernel)()) {
  try {
    launch(Context({0, 0}), shape, kernel);
  } catch (const std::exception& error) {
    if (std::string(error.what()).find(expected) != std::string::npos) return;
    std::printf("%s: it says '%s'\n", shape.name, error.what());
    ++failures;
    return;
  }
  std::printf("%s: not noticed\n", shape.name);
  ++failures;
}

#if defined(__SANITIZE_THREAD__)

int reports = 0;

// Each of these lets a thread read what another has written; `right`: after what CUDA asks for.
template <bool right>
__global__ void over_block(int* to) {
  int* values = reapx::dynamic_shared<int>();
  values[threadIdx.x] = 1;
  if (right) __syncthreads();
  to[blockIdx.x * blockDim.x + threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}
template <bool right>
__global__ void over_warp(int* to) {
  __shared__ int values[64];
  values[threadIdx.x] = 1;
  __ballot_sync(kAll, 1);  // orders nothing
  if (right) __syncwarp();
  to[threadIdx.x] = values[threadIdx.x ^ 31];
}
template <bool right>
__global__ void over_half_a_warp(int* to) {
  __shared__ int values[32];
  values[threadIdx.x] = 1;
  __syncwarp(threadIdx.x < 16 ? 0xffff : 0xffff0000);
  to[threadIdx.x] = values[threadIdx.x ^ (right ? 15 : 31)];
}
template <bool right>
__global__ void over_grid(int* to) {
  for (int round = 0; round < 3; ++round) {
    if (threadIdx.x == 0) to[blockIdx.x] = round;
    if (right || round != 1) reapx::grid_sync();
    to[100 + blockIdx.x * blockDim.x + threadIdx.x] = to[(blockIdx.x + 1) % gridDim.x];
    reapx::grid_sync();
  }
}
// Before and after barriers of their own, which say nothing of other blocks.
template <bool right>
__global__ void one_place_for_blocks(int* to) {
  __syncthreads();
  if (threadIdx.x == 0) to[right ? blockIdx.x : blockIdx.x / 2] = 1;
  __syncthreads();
}
template <bool right>
__global__ void last_block(int* to) {
  if (threadIdx.x != 0) return;
  to[1 + blockIdx.x] = 1;
  if (right) __threadfence();
  if (atomicAdd(to, 1) % static_cast<int>(gridDim.x) != static_cast<int>(gridDim.x) - 1) return;
  if (right) __threadfence();
  for (unsigned b = 0; b < gridDim.x; ++b) to[100] += to[1 + b];
}
// Two stages of copies by all threads; the others may read after a barrier that follows the wait...
template <bool right>
__global__ void read_of_stage(const int* from, int* to) {
  int* values = reapx::dynamic_shared<int>();
  const unsigned i = threadIdx.x, n = blockDim.x;
  for (unsigned stage = 0; stage < 2; ++stage) {
    __pipeline_memcpy_async(values + stage * n + i, from + i, sizeof(int));
    __pipeline_commit();
  }
  if (!right) __syncthreads();  // too early
  __pipeline_wait_prior(1);
  if (right) __syncthreads();
  to[i] = values[n - 1 - i];
}
// ... and copies may begin after one that follows what is read.
template <bool right>
__global__ void reuse_of_stage(const int* from, int* to) {
  int* values = reapx::dynamic_shared<int>();
  const unsigned i = threadIdx.x, n = blockDim.x;
  values[i] = 1;
  __syncthreads();
  to[i] = values[n - 1 - i];
  if (right) __syncthreads();
  __pipeline_memcpy_async(values + i, from + i, sizeof(int));
  __pipeline_commit();
  __syncthreads();
  __pipeline_wait_prior(0);
}

template <class... Formal, class... Actual>
void check_races(bool expected, const LaunchShape& shape, void (*kernel)(Formal...), Actual... args) {
  for (const bool backward : {false, true}) {
    reports = 0;
    static const intptr_t nowhere = open("/dev/null", O_WRONLY), error = 2;
    __sanitizer_set_report_fd(reinterpret_cast<void*>(expected ? nowhere : error));
    launch(Context({0, backward ? 1 : 0}), shape, kernel, args...);
    __sanitizer_set_report_fd(reinterpret_cast<void*>(error));
    expect((reports > 0) == expected, shape.name, backward);
  }
}

void check_races() {
  expect(reports == 0, "right and refused kernels", false);
  const Context context({0, 0});
  const reapx::DeviceBuffer<int> from(context, std::vector<int>(96)),
      to(context, std::vector<int>(300, 0));
  const reapx::DeviceBuffer<int> counted(context, std::vector<int>(101));
  const dim3 one(1), three(3), five(5), warp(32), threads(96);
  constexpr std::size_t room = 2 * 96 * sizeof(int);
  int* at = to.data();
  const int* of = from.data();
  const auto both = [](auto right, auto wrong, const LaunchShape& shape, auto... args) {
    check_races(false, shape, right, args...);
    check_races(true, shape, wrong, args...);
  };
  both(over_block<true>, over_block<false>, {"over_block", three, threads, room}, at);
  both(over_warp<true>, over_warp<false>, {"over_warp", one, dim3(64)}, at);
  both(over_half_a_warp<true>, over_half_a_warp<false>, {"over_half_a_warp", one, warp}, at);
  both(over_grid<true>, over_grid<false>, {"over_grid", three, warp, 0, true}, at);
  both(one_place_for_blocks<true>, one_place_for_blocks<false>, {"one_place_for_blocks", five, warp},
       at);
  both(last_block<true>, last_block<false>, {"last_block", five, warp}, counted.data());
  both(read_of_stage<true>, read_of_stage<false>, {"read_of_stage", one, threads, room}, of, at);
  both(reuse_of_stage<true>, reuse_of_stage<false>, {"reuse_of_stage", one, threads, room}, of, at);
}

#endif

}  // namespace

#if defined(__SANITIZE_THREAD__)
// Called by the sanitizer, which must not watch this.
extern "C" __attribute__((no_sanitize("thread"))) void __tsan_on_report(void*) { ++reports; }
extern "C" const char* __tsan_default_options() {
  return "exitcode=0:suppress_equal_stacks=0:suppress_equal_addresses=0";
}
#endif

int main() {
  for (const bool backward : {false, true}) {
    check_right(backward);
    check_products(backward);
  }
  check_splits();
  const dim3 one(1), many(32);
  check_wrong("thread 7 has returned", {"return_before_barrier", one, many}, return_before_barrier);
  check_wrong("thread 8 waits at", {"part_at_barriers", one, many}, part_at_barriers);
  check_wrong("thread 8 has returned", {"part_in_warp", one, many}, part_in_warp);
  check_wrong("thread 8 has returned", {"part_in_product", one, many}, part_in_product);
  check_wrong("different numbers of products", {"less_in_a_lane", one, many}, less_in_a_lane);
  check_wrong("less than a warp", {"half_a_warp", one, dim3(16)}, half_a_warp);
  check_wrong("takes no part", {"read_from_outside", one, many}, read_from_outside);
  check_wrong("aligned to as many", {"copy_unaligned", one, one, 64}, copy_unaligned);
#if !defined(__SANITIZE_ADDRESS__)  // it ends the process by itself
  check_wrong("64 bytes of shared memory", {"write_behind", one, one, 64}, write_behind);
#endif
  check_wrong("needs LaunchShape::together", {"sync_grid", one, many}, sync_grid);
  check_wrong("not all blocks", {"leave_grid", dim3(2), many, 0, true}, leave_grid);
  check_wrong("more blocks than run at once", {"sync_grid", dim3(9), many, 0, true}, sync_grid);
  check_wrong("too many threads", {"sync_grid", one, dim3(1025)}, sync_grid);
  check_wrong("invalid argument", {"sync_grid", one, many, 300 << 10}, sync_grid);
#if defined(__SANITIZE_THREAD__)
  check_races();
#endif
  std::printf(failures ? "the emulator is wrong\n"
                       : "the emulator runs right kernels and refuses wrong ones\n");
  return failures != 0;
}
