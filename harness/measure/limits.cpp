#include "harness/measure/limits.h"

#include <fmt/core.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "harness/core/error.h"
#include "harness/core/parallel.h"
#include "harness/measure/memory.h"
#include "harness/measure/statistics.h"
#include "methods/engines/simd.h"

namespace subquad {
namespace {

using engine::kLanes;
using engine::load;
using engine::Vec;

// Independent sums: more than latency times throughput of every core known to us (4 cycles x 4 per
// cycle), and no more than there are registers beside two operands.
constexpr int kChains = engine::kRegisters == 32 ? 24 : 12;
constexpr Index kRounds = 400'000 / kChains;  // about 0.1 ms with two multiply-adds a cycle
constexpr int kChunks = 4;
constexpr int kPasses = 5;

volatile float g_sink;  // results go here, so that no loop can be left out

// kChains * kLanes * rounds multiply-adds. The sums settle at addend / (1 - factor).
[[gnu::noinline]] float fma_chains(Index rounds, float factor, float addend) {
  Vec sum[kChains];
#pragma GCC unroll 32
  for (int i = 0; i < kChains; ++i) sum[i] = engine::broadcast(static_cast<float>(i));
  const Vec f = engine::broadcast(factor), a = engine::broadcast(addend);
  for (Index t = 0; t < rounds; ++t) {
#pragma GCC unroll 32
    for (int i = 0; i < kChains; ++i) sum[i] = sum[i] * f + a;
  }
  Vec all{};
#pragma GCC unroll 32
  for (int i = 0; i < kChains; ++i) all += sum[i];
  return engine::horizontal_sum(all);
}

// Sum of count floats (a multiple of 8 vectors), read as two streams: one alone does not keep
// every prefetcher busy.
[[gnu::noinline]] float read_sum(const float* from, Index count) {
  constexpr int kUnroll = 4;
  const Index half = count / 2;
  Vec sum[2 * kUnroll] = {};
  for (Index i = 0; i < half; i += kUnroll * kLanes) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) {
      sum[u] += load(from + i + u * kLanes);
      sum[kUnroll + u] += load(from + half + i + u * kLanes);
    }
  }
  Vec all{};
  for (const Vec& s : sum) all += s;
  return engine::horizontal_sum(all);
}

// Anonymous memory with huge pages where the system grants them, given back at the end.
class Buffer {
 public:
  explicit Buffer(std::size_t bytes) : bytes_(bytes) {
    void* const memory =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    madvise(memory, bytes, MADV_HUGEPAGE);
    data_ = static_cast<float*>(memory);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { munmap(data_, bytes_); }
  float* data() const { return data_; }

 private:
  std::size_t bytes_;
  float* data_ = nullptr;
};

// Seconds that body(thread) takes on all threads together.
template <class Body>
double team_seconds(int threads, Body&& body) {
  double start = 0, end = 0;
#pragma omp parallel num_threads(threads)
  {
#pragma omp barrier
#pragma omp master
    start = monotonic_seconds();
    body(omp_get_thread_num());
#pragma omp barrier
#pragma omp master
    end = monotonic_seconds();
  }
  return end - start;
}

}  // namespace

double fma_burst_gflops() {
  const int threads = thread_count();
  double least = 0;
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    const double s =
        team_seconds(threads, [](int) { g_sink = fma_chains(kRounds, 0.999f, 1e-3f); });
    if (chunk == 0 || s < least) least = s;
  }
  SUBQUAD_CHECK(least > 0, "the clock stood still");
  return 2e-9 * kChains * kLanes * static_cast<double>(kRounds) * threads / least;
}

void PeakMeter::sample() {
  if (!bursts_.empty() && monotonic_seconds() - last_ < kInterval) return;
  bursts_.push_back(fma_burst_gflops());
  last_ = monotonic_seconds();
}

double PeakMeter::gflops() const { return bursts_.empty() ? 0 : median(bursts_); }

std::size_t bandwidth_buffer_bytes() {
  const double free =
      static_cast<double>(sysconf(_SC_AVPHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  return static_cast<std::size_t>(std::clamp(free / 8, 16e6, 268435456.0));
}

Bandwidth memory_bandwidth(std::size_t bytes) {
  const int threads = thread_count();
  // Every thread has a part of its own, and touches it first: on its own memory node.
  constexpr Index kUnit = 1024;  // floats; a part is a whole number of these, twice
  const Index part = static_cast<Index>(bytes / sizeof(float)) / (threads * 2 * kUnit) * 2 * kUnit;
  SUBQUAD_CHECK(part > 0, "{} bytes are too few for {} threads", bytes, threads);
  const double used = static_cast<double>(part) * threads * sizeof(float);
  const Buffer buffer(static_cast<std::size_t>(used));
  const auto part_of = [&](int thread) { return buffer.data() + thread * part; };
  team_seconds(threads, [&](int t) {
    std::memset(part_of(t), 0, static_cast<std::size_t>(part) * sizeof(float));
  });
  std::vector<double> reads, copies;
  for (int pass = 0; pass < kPasses; ++pass) {
    const double read = team_seconds(threads, [&](int t) { g_sink = read_sum(part_of(t), part); });
    // memcpy goes round the caches where that pays.
    const double copy = team_seconds(threads, [&](int t) {
      std::memcpy(part_of(t) + part / 2, part_of(t),
                  static_cast<std::size_t>(part / 2) * sizeof(float));
    });
    reads.push_back(1e-9 * used / read);
    copies.push_back(1e-9 * used / copy);
  }
  return {.read = median(reads), .copy = median(copies)};
}

}  // namespace subquad
