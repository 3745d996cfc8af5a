// Prints what this machine can do, as JSON: fused multiply-adds in float32 and float64 (GFLOP/s, two
// operations each), a large memcpy (GB/s, bytes read plus bytes written) and a large sum (GB/s, bytes
// read), with argv[1] threads. The best of several rounds each.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

double best_seconds(int threads, const std::function<void(int)>& work) {
  double best = 1e9;
  for (int round = 0; round < 8; ++round) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> team;
    for (int i = 1; i < threads; ++i) team.emplace_back(work, i);
    work(0);
    for (std::thread& thread : team) thread.join();
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

// Independent chains, enough to hide the latency of an FMA, all in registers.
template <class T>
double multiply_adds(int threads) {
  typedef T Vector __attribute__((vector_size(kBytes)));
  constexpr int chains = 12;
  constexpr long steps = 10'000'000;
  std::vector<T> kept(static_cast<size_t>(threads));
  const double seconds = best_seconds(threads, [&](int thread) {
    volatile T factor = T(0.9999), term = T(0.0001);
    const Vector a = Vector{} + factor, b = Vector{} + term;
    Vector sum[chains];
    for (int i = 0; i < chains; ++i) sum[i] = Vector{} + static_cast<T>(i);
    for (long step = 0; step < steps; ++step)
      for (int i = 0; i < chains; ++i) sum[i] = sum[i] * a + b;
    T total = 0;
    for (const Vector& value : sum)
      for (int j = 0; j < kBytes / static_cast<int>(sizeof(T)); ++j) total += value[j];
    kept[static_cast<size_t>(thread)] = total;
  });
  return 2.0 * chains * steps * threads * (kBytes / static_cast<double>(sizeof(T))) / seconds / 1e9;
}

double copied_bytes(int threads) {
  const size_t bytes = size_t{512} << 20, part = bytes / static_cast<size_t>(threads);
  std::vector<char> from(bytes, 1), to(bytes, 2);
  const double seconds = best_seconds(threads, [&](int thread) {
    const size_t at = part * static_cast<size_t>(thread);
    std::memcpy(to.data() + at, from.data() + at, part);
  });
  return 2.0 * static_cast<double>(part) * threads / seconds / 1e9;
}

double read_bytes(int threads) {
  typedef unsigned Vector __attribute__((vector_size(kBytes)));
  const size_t size = (size_t{512} << 20) / kBytes, part = size / static_cast<size_t>(threads);
  const std::vector<Vector> from(size, Vector{} + 1);
  std::vector<unsigned> kept(static_cast<size_t>(threads));
  const double seconds = best_seconds(threads, [&](int thread) {
    const Vector* at = from.data() + part * static_cast<size_t>(thread);
    Vector sum[8] = {};
    for (size_t i = 0; i + 8 <= part; i += 8)
      for (size_t j = 0; j < 8; ++j) sum[j] += at[i + j];
    for (const Vector& value : sum) kept[static_cast<size_t>(thread)] += value[0];
  });
  return static_cast<double>(part) * kBytes * threads / seconds / 1e9;
}

int main(int count, char** words) {
  const int threads = count > 1 ? std::atoi(words[1]) : 1;
  std::printf("{\"float32\": %.1f, \"float64\": %.1f, \"copy\": %.2f, \"read\": %.2f}\n",
              multiply_adds<float>(threads), multiply_adds<double>(threads), copied_bytes(threads),
              read_bytes(threads));
}
