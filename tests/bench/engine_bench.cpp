// Google Benchmarks of the machine's limits, of the engines' primitives one by one, and of dense
// attention in all passes. Every line has two counters: GFLOPs (useful operations a second; a
// multiply-add is two, an exponential 15: its adds, multiply-adds and the sum) and peak, the share
// of the multiply-add peak that bursts before and after the loop reached on the same threads.
// Copies count GBs instead, and their share of the bandwidth measured at the start.
//
//   engine_bench [--benchmark_filter=REGEX] [Google Benchmark's own flags]
#include <benchmark/benchmark.h>
#include <fmt/core.h>

#include <chrono>
#include <cstdlib>
#include <cstring>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "harness/measure/limits.h"
#include "harness/measure/pass_run.h"
#include "harness/measure/processors.h"
#include "harness/sweep/process.h"
#include "methods/engines/pack.h"
#include "methods/engines/score_tile.h"

namespace {

using namespace subquad;
using engine::Bounds;
using engine::kPanel;

// A tile as the dense engine uses it: 24 queries, up to 768 keys in whole panels.
constexpr Index kTileRows = engine::kRowUnit;
constexpr Index kTileKeys = 768 / kPanel * kPanel;

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Runs the loop of a benchmark and sets its counters; `flops` are those of one call.
template <class Body>
void measure(benchmark::State& state, double flops, Body&& body) {
  double peak = fma_burst_gflops();
  const double start = seconds();
  for (auto _ : state) {
    body();
    benchmark::ClobberMemory();
  }
  const double rate = 1e-9 * flops * static_cast<double>(state.iterations()) / (seconds() - start);
  peak = 0.5 * (peak + fma_burst_gflops());
  state.counters["GFLOPs"] = rate;
  state.counters["peak"] = rate / peak;
}

template <class Body>
void measure_bytes(benchmark::State& state, double bytes, Body&& body) {
  static const double bandwidth =
      (set_threads(1), memory_bandwidth(bandwidth_buffer_bytes()).best());
  const double start = seconds();
  for (auto _ : state) {
    body();
    benchmark::ClobberMemory();
  }
  const double rate = 1e-9 * bytes * static_cast<double>(state.iterations()) / (seconds() - start);
  state.counters["GBs"] = rate;
  state.counters["bandwidth"] = rate / bandwidth;
}

Tensor filled(Index rows, Index d, Seed seed) {
  Tensor t(1, 1, rows, d);
  fill_normal(seed, t.data(), t.size());
  return t;
}

// ---- limits ----

void fma_peak(benchmark::State& state) {
  set_threads(static_cast<int>(state.range(0)));
  double sum = 0;
  for (auto _ : state) sum += fma_burst_gflops();
  state.counters["GFLOPs"] = sum / static_cast<double>(state.iterations());
  state.counters["peak"] = 1;
}
BENCHMARK(fma_peak)->ArgName("threads")->Arg(1)->Arg(2)->UseRealTime();

void bandwidth(benchmark::State& state) {
  set_threads(static_cast<int>(state.range(0)));
  Bandwidth best;
  for (auto _ : state) {
    const Bandwidth b = memory_bandwidth(bandwidth_buffer_bytes());
    best.read = std::max(best.read, b.read);
    best.copy = std::max(best.copy, b.copy);
  }
  state.counters["read_GBs"] = best.read;
  state.counters["copy_GBs"] = best.copy;
}
BENCHMARK(bandwidth)->ArgName("threads")->Arg(1)->Arg(2)->UseRealTime()->Iterations(2)->Unit(
    benchmark::kMillisecond);

void copy_in_cache(benchmark::State& state) {
  const auto bytes = static_cast<std::size_t>(state.range(0)) << 10;
  const Index floats = static_cast<Index>(bytes / sizeof(float));
  const Tensor from = filled(1, floats, 1);
  Tensor to(1, 1, 1, floats);
  measure_bytes(state, 2.0 * static_cast<double>(bytes),
                [&] { std::memcpy(to.data(), from.data(), bytes); });
}
BENCHMARK(copy_in_cache)->ArgName("KiB")->Arg(16)->Arg(256)->Arg(8192);

// ---- primitives, one thread, data in cache ----

void score_product(benchmark::State& state) {
  set_threads(1);
  const Index depth = state.range(0);
  const Tensor q = filled(kTileRows, depth, 1), panels = filled(kTileKeys, depth, 2);
  Tensor scores(1, 1, kTileRows, kTileKeys);
  const std::vector<Bounds> bounds(kTileRows, Bounds{0, kTileKeys});
  measure(state, 2.0 * kTileRows * kTileKeys * static_cast<double>(depth), [&] {
    engine::score_product(q.data(), depth, depth, panels.data(), bounds.data(), kTileRows,
                          scores.data(), kTileKeys);
  });
}
BENCHMARK(score_product)->ArgName("d")->Arg(32)->Arg(64)->Arg(96)->Arg(128);

void weighted_rows(benchmark::State& state) {
  set_threads(1);
  const Index width = state.range(0);
  const Tensor weights = filled(kTileRows, kTileKeys, 1), values = filled(kTileKeys, width, 2);
  Tensor out(1, 1, kTileRows, width);
  const std::vector<Bounds> bounds(kTileRows, Bounds{0, kTileKeys});
  measure(state, 2.0 * kTileRows * kTileKeys * static_cast<double>(width), [&] {
    engine::weighted_rows(weights.data(), kTileKeys, bounds.data(), kTileRows, values.data(), width,
                          out.data());
  });
}
BENCHMARK(weighted_rows)->ArgName("d")->Arg(32)->Arg(64)->Arg(96)->Arg(128);

void row_max(benchmark::State& state) {
  set_threads(1);
  const Tensor row = filled(1, kTileKeys, 1);
  measure(state, static_cast<double>(kTileKeys), [&] {
    engine::Vec max = engine::row_max(row.data(), {0, kTileKeys});
    benchmark::DoNotOptimize(max);
  });
}
BENCHMARK(row_max);

void exponentiate(benchmark::State& state) {
  set_threads(1);
  Tensor row(1, 1, 1, kTileKeys);
  // In place: 2^(x - 1) of values in [0, 1] stays there, so that every call does the same work.
  row.fill(0.5f);
  measure(state, 15.0 * kTileKeys, [&] {
    engine::Vec sum = engine::exponentiate(row.data(), {0, kTileKeys}, 1.0f, engine::Vec{});
    benchmark::DoNotOptimize(sum);
  });
}
BENCHMARK(exponentiate);

void pack_panels(benchmark::State& state) {
  set_threads(1);
  const Index d = state.range(0), panels = kTileKeys / kPanel;
  const Tensor k = filled(kTileKeys, d, 1);
  Tensor packed(1, 1, kTileKeys, d);
  measure_bytes(state, 8.0 * kTileKeys * static_cast<double>(d), [&] {
    for (Index p = 0; p < panels; ++p)
      engine::pack_panel(k.data(), kTileKeys, d, p, 0.125f, nullptr,
                         packed.data() + p * kPanel * d);
  });
}
BENCHMARK(pack_panels)->ArgName("d")->Arg(64)->Arg(128);

// ---- dense attention ----

void dense(benchmark::State& state, Pass pass, bool causal) {
  const int threads = static_cast<int>(state.range(2));
  set_threads(threads);
  Problem p{.batch = 1, .heads = state.range(1), .n = state.range(0), .n_kv = state.range(0)};
  p.causal = causal;
  const MethodEntry& entry = Registry::instance().method("dense");
  const auto task = make_task("gaussian");
  const auto method = make_method("dense");
  const auto run = make_pass_run(*method, entry.info, *task,
                                 {.problem = p, .pass = pass, .seed = 1, .input_sets = 1});
  run->prepare();
  run->prepare_state();
  run->ready(0);
  run->call(0);
  if (pass == Pass::decode) {
    // The history grows with every token; it is fed again outside the clock.
    double spent = 0;
    for (auto _ : state) {
      run->ready(0);
      const double start = seconds();
      run->call(0);
      state.SetIterationTime((seconds() - start) / static_cast<double>(run->steps()));
      spent += (seconds() - start) / static_cast<double>(run->steps());
    }
    static double bandwidth[2] = {};
    double& best = bandwidth[threads > 1];
    if (best == 0) best = memory_bandwidth(bandwidth_buffer_bytes()).best();
    const double rate =
        1e-9 * method->budget(p).state_bytes * static_cast<double>(state.iterations()) / spent;
    state.counters["GBs"] = rate;
    state.counters["bandwidth"] = rate / best;
    return;
  }
  measure(state, method->flops(p, pass), [&] { run->call(0); });
}

void dense_sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"n", "heads", "threads"})->UseRealTime()->Unit(benchmark::kMicrosecond);
  for (const int threads : {1, 2})
    for (const int n : {256, 1000, 2048, 4096}) b->Args({n, 1, threads});
  b->Args({1024, 8, 2});
}
BENCHMARK_CAPTURE(dense, forward, Pass::forward, false)->Apply(dense_sizes);
BENCHMARK_CAPTURE(dense, forward_causal, Pass::forward, true)->Apply(dense_sizes);
BENCHMARK_CAPTURE(dense, backward, Pass::backward, false)->Apply(dense_sizes);
BENCHMARK_CAPTURE(dense, backward_causal, Pass::backward, true)->Apply(dense_sizes);
BENCHMARK_CAPTURE(dense, forward_backward, Pass::forward_backward, false)->Apply(dense_sizes);
BENCHMARK_CAPTURE(dense, decode, Pass::decode, true)
    ->ArgNames({"n", "heads", "threads"})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond)
    ->Args({1024, 8, 1})
    ->Args({16384, 8, 1})
    ->Args({16384, 8, 2});

}  // namespace

int main(int argc, char** argv) {
  try {
    restart_with(allocator_environment(), argv);
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    benchmark::RunSpecifiedBenchmarks();
  } catch (const std::exception& error) {
    fmt::print(stderr, "engine_bench: {}\n", error.what());
    return 2;
  }
  return 0;
}
