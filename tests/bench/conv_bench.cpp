// Conv-Basis against what it is made of, one thread, one head, d = 64, causal, evenly cut segments:
//
//   conv_bench overhead [N K ...]  the whole forward with engine shared over a bare FFTW loop of
//   the
//                                  same transforms (k kernels, 64 k columns, 64 inverses)
//   conv_bench engines [N K ...]   every engine by name beside auto, and auto over the best of them
//   conv_bench dense [N ...]       dense over auto for growing k, and the k at which both are equal
//   conv_bench exponent [K]        times of auto over n = 1024 .. 65536 and their log-log slope
//
// All that is compared runs in turn, so that a drift of the clock falls on all alike; times are the
// least of the rounds, ratios the median over rounds.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <vector>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "harness/measure/processors.h"
#include "methods/engines/conv_fft.h"
#include "tests/bench/timing.h"

namespace {

using namespace subquad;
using bench::median;

constexpr Index kWidth = 64;  // d_k and d_v

template <class Body>
double seconds(Body&& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// A prepared method with inputs of its own.
class Call {
 public:
  Call(Index n, const std::string& name, const Settings& settings)
      : problem_{.n = n, .n_kv = n, .d_k = kWidth, .d_v = kWidth, .causal = true},
        in_(problem_),
        out_(1, 1, n, kWidth),
        method_(make_method(name, settings)) {
    fill_normal(1, in_.q.data(), in_.q.size());
    fill_normal(2, in_.k.data(), in_.k.size());
    fill_normal(3, in_.v.data(), in_.v.size());
    method_->prepare(problem_, {});
    run();
  }
  double run() {
    return seconds([&] { method_->forward(in_.inputs(), out_, nullptr); });
  }
  double metric(const std::string& name) const {
    for (const Metric& m : method_->metrics())
      if (m.name == name) return m.value;
    return 0;
  }

 private:
  Problem problem_;
  QKV in_;
  Tensor out_;
  std::unique_ptr<Method> method_;
};

Settings conv(Index k, const std::string& engine) {
  return {{"segmentation", std::string("uniform")}, {"k", k}, {"engine", engine}};
}

// Rounds that take about a second together, at least 3.
int rounds(double once) { return static_cast<int>(std::clamp(1 / once, 3.0, 200.0)); }

void overhead(Index n, Index k) {
  std::vector<Index> starts;
  for (Index i = 0; i < k; ++i) starts.push_back(i * n / k);
  const Index length =
      FftConv<double>::lengths({n, kWidth, k, true, true, std::move(starts)}).back();
  const RealFft<double> fft(length, Planner::estimate);
  const Index stride = (length + 2 + 15) / 16 * 16;
  AlignedArray<double> x(kWidth * stride), spectra(kWidth * stride), y(kWidth * stride);
  for (Index t = 0; t < x.size(); ++t) x[t] = std::sin(static_cast<double>(t));
  const auto bare = [&](Index step) {
    return seconds([&] {
      for (Index i = 0; i < k; ++i) fft.forward(x.data(), spectra.data());
      for (Index i = 0; i < k; ++i)
        for (Index c = 0; c < kWidth; ++c)
          fft.forward(x.data() + c * step, spectra.data() + c * step);
      for (Index c = 0; c < kWidth; ++c) {
        if (step == 0) fft.forward(x.data(), spectra.data());  // an inverse destroys its input
        fft.inverse(spectra.data() + c * step, y.data() + c * step);
      }
    });
  };
  const auto refill = [&] {
    return seconds([&] {
      for (Index c = 0; c < kWidth; ++c) fft.forward(x.data(), spectra.data());
    });
  };
  Call call(n, "conv_basis", conv(k, "shared"));
  bare(stride);
  std::vector<double> whole, batch, hot, over_batch, over_hot;
  for (int round = 0, all = rounds(3 * call.run()); round < all; ++round) {
    whole.push_back(call.run());
    batch.push_back(bare(stride));
    hot.push_back(bare(0) - refill());
    over_batch.push_back(whole.back() / batch.back());
    over_hot.push_back(whole.back() / hot.back());
  }
  const auto least = [](const std::vector<double>& t) {
    return 1e3 * *std::min_element(t.begin(), t.end());
  };
  fmt::print(
      "n {:6} k {:4} F {:6}: forward {:9.3f} ms, transforms {:9.3f} ms: {:.3f}, in cache "
      "{:9.3f} ms: {:.3f}\n",
      n, k, length, least(whole), least(batch), median(over_batch), least(hot), median(over_hot));
}

void engines(Index n, Index k) {
  const std::vector<std::string> names{"auto", "direct", "shared", "local", "partitioned"};
  std::map<std::string, std::vector<double>> times;
  std::map<std::string, std::unique_ptr<Call>> calls;
  double best = 1e300;
  for (const std::string& name : names) {
    calls[name] = std::make_unique<Call>(n, "conv_basis", conv(k, name));
    times[name].push_back(calls[name]->run());
    if (name == "auto") continue;
    best = std::min(best, times[name].back());
  }
  const double metric = calls["auto"]->metric("engine"), block = calls["auto"]->metric("block");
  for (const std::string& name : names)  // hopeless ones are timed once
    if (name != "auto" && times[name].back() > 2 * best) calls.erase(name);
  for (int round = 0, all = std::min(20, rounds(4 * best)); round < all; ++round)
    for (auto& [name, call] : calls) times[name].push_back(call->run());
  fmt::print("n {:6} k {:4}: ", n, k);
  std::string winner;
  best = 1e300;
  for (const std::string& name : names) {
    const double least = *std::min_element(times[name].begin(), times[name].end());
    fmt::print("{} {:.3f} ms  ", name, 1e3 * least);
    if (name != "auto" && least < best) best = least, winner = name;
  }
  fmt::print("auto took {} (block {}), best {}: {:.3f}\n",
             names[1 + static_cast<std::size_t>(metric)], block, winner,
             *std::min_element(times["auto"].begin(), times["auto"].end()) / best);
}

void against_dense(Index n) {
  Call dense(n, "dense", {});
  double last_k = 0, last_ratio = 0;
  std::vector<double> opponent;
  for (Index k = 1; k <= n; k *= 4) {
    Call call(n, "conv_basis", conv(k, "auto"));
    std::vector<double> times{call.run()};
    const bool slow = !opponent.empty() && opponent[0] > 1;  // measured with the first k
    if (!slow) opponent = {dense.run()};
    const int all = static_cast<int>(std::clamp(1 / (times[0] + opponent[0]), 1.0, 9.0));
    for (int round = 0; round < all; ++round) {
      times.push_back(call.run());
      if (!slow) opponent.push_back(dense.run());
    }
    const double a = *std::min_element(times.begin(), times.end());
    const double b = *std::min_element(opponent.begin(), opponent.end());
    fmt::print("n {:6} k {:5}: dense {:9.3f} ms, auto {:9.3f} ms, {:.2f} times\n", n, k, 1e3 * b,
               1e3 * a, b / a);
    std::fflush(stdout);
    if (b < a) {
      if (k > 1) {
        const double share = std::log(last_ratio) / (std::log(last_ratio) - std::log(b / a));
        fmt::print("n {:6}: equal at k = {:.0f}\n", n,
                   last_k * std::pow(static_cast<double>(k) / last_k, share));
      }
      return;
    }
    last_k = static_cast<double>(k), last_ratio = b / a;
  }
  fmt::print("n {:6}: faster than dense at every k\n", n);
}

void exponent(Index k) {
  std::vector<double> x, y;
  for (Index n = 1024; n <= 65536; n *= 2) {
    Call call(n, "conv_basis", conv(k, "auto"));
    double best = call.run();
    for (int round = 0, all = rounds(2 * best); round < all; ++round)
      best = std::min(best, call.run());
    fmt::print("n {:6} k {:4}: {:.3f} ms\n", n, k, 1e3 * best);
    x.push_back(std::log(static_cast<double>(n)));
    y.push_back(std::log(best));
  }
  for (const std::size_t first : {std::size_t{0}, std::size_t{2}}) {
    double mean_x = 0, mean_y = 0, xy = 0, xx = 0;
    const auto count = static_cast<double>(x.size() - first);
    for (std::size_t i = first; i < x.size(); ++i) mean_x += x[i] / count, mean_y += y[i] / count;
    for (std::size_t i = first; i < x.size(); ++i)
      xy += (x[i] - mean_x) * (y[i] - mean_y), xx += (x[i] - mean_x) * (x[i] - mean_x);
    fmt::print("slope from n = {:.0f} on: {:.3f}\n", std::exp(x[first]), xy / xx);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    set_threads(1);
    const std::string mode = argc > 1 ? argv[1] : "";
    std::vector<Index> numbers;
    for (int i = 2; i < argc; ++i) numbers.push_back(std::stoll(argv[i]));
    if (mode == "overhead" || mode == "engines") {
      if (numbers.empty())
        for (const Index n : {1024, 4096, 16384, 65536})
          for (const Index k : {1, 4, 16, 64, 256}) {
            if (mode == "overhead" && (k > 64 || n * k > 65536 * 16)) continue;
            numbers.push_back(n), numbers.push_back(k);
          }
      for (std::size_t i = 0; i + 1 < numbers.size(); i += 2) {
        if (mode == "overhead") overhead(numbers[i], numbers[i + 1]);
        if (mode == "engines") engines(numbers[i], numbers[i + 1]);
        std::fflush(stdout);
      }
    } else if (mode == "dense") {
      if (numbers.empty()) numbers = {4096, 16384, 65536};
      for (const Index n : numbers) against_dense(n);
    } else if (mode == "exponent") {
      exponent(numbers.empty() ? 16 : numbers[0]);
    } else {
      fmt::print(stderr, "conv_bench overhead|engines|dense|exponent [numbers]\n");
      return 2;
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "conv_bench: {}\n", error.what());
    return 2;
  }
  return 0;
}
