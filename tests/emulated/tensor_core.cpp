#include <algorithm>
#include <cmath>

#include "cuda_runtime.h"

namespace emulated {

namespace {

constexpr int kRows = 16, kColumns = 8, kTerms = 8;

// Ignores the 13 bits that TF32 lacks.
constexpr unsigned kRead = ~((1U << 13) - 1);
double read_operand(float value) { return __uint_as_float(__float_as_uint(value) & kRead); }

// Bits that have the order of the magnitudes.
unsigned magnitude(float value) { return __float_as_uint(value) << 1 & kRead << 1; }
constexpr unsigned kInfinite = 0xffU << 24;

// The float next to a sum towards zero, which is where tensor cores put it.
float cut_off(double sum) {
  const float nearest = static_cast<float>(sum);
  const bool further = std::fabs(static_cast<double>(nearest)) > std::fabs(sum);
  return __uint_as_float(__float_as_uint(nearest) - (further && std::isfinite(nearest)));
}

// c += a b. Products of TF32 are exact in double, and their sum has 29 bits more than are kept of it.
void multiply(const double (&a)[kRows][kTerms], const double (&b)[kTerms][kColumns],
              float (&c)[kRows][kColumns]) {
  for (int i = 0; i < kRows; ++i) {
    double sum[kColumns];
    for (int j = 0; j < kColumns; ++j) sum[j] = c[i][j];
    for (int k = 0; k < kTerms; ++k)
      for (int j = 0; j < kColumns; ++j) sum[j] += a[i][k] * b[k][j];
    for (int j = 0; j < kColumns; ++j) c[i][j] = cut_off(sum[j]);
  }
}

// Where one operand is zero throughout, as the small parts of integers are, and the other is finite,
// there is nothing to add.
void multiply_fragments(const Fragments* const (&lanes)[kWarpLanes]) {
  double a[kRows][kTerms], b[kTerms][kColumns];
  float c[kRows][kColumns];
  unsigned most_a = 0;
  for (unsigned lane = 0; lane < kWarpLanes; ++lane)
    for (unsigned i = 0; i < 4; ++i) {
      most_a = std::max(most_a, magnitude(lanes[lane]->a[i]));
      a[lane / 4 + i % 2 * 8][lane % 4 + i / 2 * 4] = read_operand(lanes[lane]->a[i]);
    }
  for (int j = 0; j < lanes[0]->count; ++j) {
    unsigned most_b = 0;
    for (const Fragments* lane : lanes)
      most_b = std::max({most_b, magnitude(lane->b[j][0]), magnitude(lane->b[j][1])});
    if (std::min(most_a, most_b) == 0 && std::max(most_a, most_b) < kInfinite) continue;
    for (unsigned lane = 0; lane < kWarpLanes; ++lane) {
      for (unsigned i = 0; i < 2; ++i)
        b[lane % 4 + i * 4][lane / 4] = read_operand(lanes[lane]->b[j][i]);
      for (unsigned i = 0; i < 4; ++i)
        c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = lanes[lane]->c[j][i];
    }
    multiply(a, b, c);
    for (unsigned lane = 0; lane < kWarpLanes; ++lane)
      for (unsigned i = 0; i < 4; ++i)
        lanes[lane]->c[j][i] = c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
  }
}

}  // namespace

const char* multiply_asked(Fiber* lanes, unsigned count) {
  if (count < kWarpLanes) return "a product of matrices by less than a warp";
  const Fragments* asked[kWarpLanes];
  for (std::size_t i = 0; i < lanes->products.size(); ++i) {
    for (unsigned l = 0; l < kWarpLanes; ++l) {
      if (lanes[l].products.size() != lanes->products.size())
        return "lanes ask for different numbers of products";
      asked[l] = &lanes[l].products[i];
    }
    multiply_fragments(asked);
  }
  for (unsigned l = 0; l < kWarpLanes; ++l) lanes[l].products.clear();
  return nullptr;
}

}  // namespace emulated
