// A stand-alone Google Benchmark of registered methods, apart from the harness's own worker: the
// two must agree on the same kernel (tests/bench/agreement.py compares them in pairs).
//
//   bench_method [--method dense] [--n 1024] [--heads 4] [--d 64] [--causal 0|1] [--threads 1]
//                [--pass forward|backward] [Google Benchmark's own flags]
#include <benchmark/benchmark.h>
#include <fmt/core.h>

#include <cstdio>
#include <map>
#include <string>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"

namespace {

using namespace subquad;

struct Options {
  std::map<std::string, std::string> values = {
      {"method", "dense"}, {"n", "1024"},    {"heads", "4"},     {"d", "64"},
      {"causal", "0"},     {"threads", "1"}, {"pass", "forward"}};

  // Takes --key value pairs out of argv; what is left is for Google Benchmark.
  Options(int* argc, char** argv) {
    int kept = 1;
    for (int i = 1; i < *argc; ++i) {
      const std::string key = std::string(argv[i]).substr(0, 2) == "--" ? argv[i] + 2 : "";
      if (values.contains(key) && i + 1 < *argc) {
        values[key] = argv[++i];
      } else {
        argv[kept++] = argv[i];
      }
    }
    *argc = kept;
  }
  Index number(const std::string& key) const { return std::stoll(values.at(key)); }
};

void measure(benchmark::State& state, const Options& options) {
  Problem problem;
  problem.heads = options.number("heads");
  problem.n = problem.n_kv = options.number("n");
  problem.d_k = problem.d_v = options.number("d");
  problem.causal = options.number("causal") != 0;
  const bool backward = options.values.at("pass") == "backward";
  omp_set_num_threads(static_cast<int>(options.number("threads")));
  QKV data(problem);
  make_task("gaussian")->fill(problem, 1, 0, &data);
  const Inputs in = data.inputs();
  Tensor out(problem.batch, problem.heads, problem.n, problem.d_v), dout = out, dq = data.q,
                                                                    dk = data.k, dv = data.v;
  fill_normal(9, dout.data(), dout.size());
  const auto method = make_method(options.values.at("method"));
  method->prepare(problem, {.seed = 1, .gradients = backward});
  const auto saved = method->make_saved();
  method->forward(in, out, saved.get());
  for (auto _ : state) {
    if (backward) {
      method->backward(in, out, dout, *saved, {.dq = dq, .dk = dk, .dv = dv, .dx = {}});
    } else {
      method->forward(in, out, nullptr);
    }
    benchmark::ClobberMemory();
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options(&argc, argv);
    benchmark::RegisterBenchmark(options.values.at("method").c_str(),
                                 [&](benchmark::State& state) { measure(state, options); })
        ->UseRealTime()
        ->Unit(benchmark::kMicrosecond);
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    benchmark::RunSpecifiedBenchmarks();
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_method: {}\n", error.what());
    return 2;
  }
  return 0;
}
