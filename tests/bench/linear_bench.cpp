// Linear attention's forms beside each other and on several threads, one head, d = 64, causal:
//
//   linear_bench forms [N ...]    form=sequential and the chunked form beside plain loops of the
//                                 paper's recurrence, one thread; the share of the multiply-add
//                                 peak that the chunked form's own products reach
//   linear_bench threads [N ...]  one head and two on two threads over one thread
//   linear_bench exponent         chunked form over n = 2^11 .. 2^17: log-log slope, one thread
//
// All that is compared runs in turn, so that a drift of the clock falls on all alike: times are
// medians over rounds, ratios medians of the rounds' ratios.
#include <fmt/core.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "harness/core/random.h"
#include "harness/core/registry.h"
#include "harness/measure/limits.h"
#include "harness/sweep/process.h"
#include "tests/bench/timing.h"

using namespace subquad;
using bench::median;

namespace {

constexpr Index kWidth = 64;
constexpr int kRounds = 7;

double median_ratio(const std::vector<double>& x, const std::vector<double>& y) {
  std::vector<double> ratios;
  for (std::size_t r = 0; r < x.size(); ++r) ratios.push_back(x[r] / y[r]);
  return median(ratios);
}

// A prepared method on some threads, with inputs of its own.
class Call {
 public:
  Call(Index n, Index heads, int threads, const Settings& settings)
      : problem_{.heads = heads, .n = n, .n_kv = n, .d_k = kWidth, .d_v = kWidth, .causal = true},
        threads_(threads),
        in_(problem_),
        out_(1, heads, n, kWidth),
        method_(make_method("linear", settings)) {
    fill_normal(1, in_.q.data(), in_.q.size());
    fill_normal(2, in_.k.data(), in_.k.size());
    fill_normal(3, in_.v.data(), in_.v.size());
    omp_set_num_threads(threads_);
    method_->prepare(problem_, {});
  }
  double time() {
    omp_set_num_threads(threads_);
    return bench::time_of([&] { method_->forward(in_.inputs(), out_, nullptr); });
  }
  const QKV& inputs() const { return in_; }
  const Tensor& out() const { return out_; }

 private:
  Problem problem_;
  int threads_;
  QKV in_;
  Tensor out_;
  std::unique_ptr<Method> method_;
};

// Equations 18 to 20 of 2006.16236 with elu(x) + 1 as they stand: S += phi(k) v^T, z += phi(k),
// out = phi(q)^T S / phi(q)^T z.
void plain_recurrence(const QKV& in, Tensor* out) {
  const Index n = in.q.n(), d = kWidth;
  std::vector<float> state(kWidth * kWidth), z(kWidth), phi_q(kWidth), phi_k(kWidth);
  const auto phi = [](float x) { return x > 0 ? x + 1 : std::exp(x); };
  for (Index i = 0; i < n; ++i) {
    const float *const q = in.q.data() + i * d, *const k = in.k.data() + i * d,
                       *const v = in.v.data() + i * d;
    float* const to = out->data() + i * d;
    float norm = 0;
    for (std::size_t a = 0; a < kWidth; ++a) {
      phi_q[a] = phi(q[a]);
      phi_k[a] = phi(k[a]);
      z[a] += phi_k[a];
      norm += phi_q[a] * z[a];
    }
    for (std::size_t a = 0; a < kWidth; ++a)
      for (std::size_t b = 0; b < kWidth; ++b) state[a * kWidth + b] += phi_k[a] * v[b];
    std::fill_n(to, kWidth, 0.0f);
    for (std::size_t a = 0; a < kWidth; ++a)
      for (std::size_t b = 0; b < kWidth; ++b) to[b] += phi_q[a] * state[a * kWidth + b];
    for (std::size_t b = 0; b < kWidth; ++b) to[b] /= norm;
  }
}

// Two products with the state [64, 64], and two inside a chunk of 16 tokens, of which a query sees
// 8.5.
double own_flops(Index n) { return 2.0 * static_cast<double>(n) * kWidth * (2 * kWidth + 2 * 8.5); }

void forms(const std::vector<Index>& lengths) {
  fmt::print("{:>8} {:>12} {:>12} {:>12} {:>12} {:>12} {:>6}\n", "n", "plain", "sequential",
             "chunked", "plain/chunk", "seq/chunk", "peak");
  for (const Index n : lengths) {
    Call sequential(n, 1, 1, {{"form", std::string("sequential")}}), chunked(n, 1, 1, {});
    Tensor out(1, 1, n, kWidth);
    std::vector<double> plain, seq, chunk, share;
    for (int r = 0; r < kRounds; ++r) {
      plain.push_back(bench::time_of([&] { plain_recurrence(chunked.inputs(), &out); }));
      seq.push_back(sequential.time());
      const double before = fma_burst_gflops();
      chunk.push_back(chunked.time());
      share.push_back(own_flops(n) / chunk.back() / 1e9 / std::max(before, fma_burst_gflops()));
    }
    double worst = 0;
    for (Index e = 0; e < out.size(); ++e)
      worst =
          std::max(worst, std::fabs(static_cast<double>(out.data()[e] - chunked.out().data()[e])));
    if (!(worst < 1e-2)) throw std::runtime_error(fmt::format("forms differ by {}", worst));
    fmt::print("{:>8} {:>9.1f} us {:>9.1f} us {:>9.1f} us {:>12.2f} {:>12.2f} {:>6.2f}\n", n,
               median(plain) * 1e6, median(seq) * 1e6, median(chunk) * 1e6,
               median_ratio(plain, chunk), median_ratio(seq, chunk), median(share));
  }
}

void threads(const std::vector<Index>& lengths) {
  fmt::print("{:>8} {:>12} {:>12} {:>9} {:>9}\n", "n", "1 thread", "2 threads", "one head", "two");
  for (const Index n : lengths) {
    Call one(n, 1, 1, {}), team(n, 1, 2, {}), both(n, 2, 1, {}), shared(n, 2, 2, {});
    std::vector<double> t_one, t_team, t_both, t_shared;
    for (int r = 0; r < kRounds; ++r) {
      t_one.push_back(one.time());
      t_team.push_back(team.time());
      t_both.push_back(both.time());
      t_shared.push_back(shared.time());
    }
    fmt::print("{:>8} {:>9.1f} us {:>9.1f} us {:>9.2f} {:>9.2f}\n", n, median(t_one) * 1e6,
               median(t_team) * 1e6, median_ratio(t_one, t_team), median_ratio(t_both, t_shared));
  }
}

void exponent() {
  std::vector<Call> calls;
  std::vector<double> x, slopes;
  for (Index n = 2048; n <= 131'072; n *= 2) {
    calls.emplace_back(n, 1, 1, Settings{});
    x.push_back(std::log(static_cast<double>(n)));
  }
  const double middle = std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
  for (int r = 0; r < kRounds; ++r) {
    double products = 0, squares = 0;
    for (std::size_t i = 0; i < calls.size(); ++i) {
      products += (x[i] - middle) * std::log(calls[i].time());
      squares += (x[i] - middle) * (x[i] - middle);
    }
    slopes.push_back(products / squares);
  }
  const auto [least, most] = std::minmax_element(slopes.begin(), slopes.end());
  fmt::print("exponent {:.3f} ({:.3f} to {:.3f} in {} rounds)\n", median(slopes), *least, *most,
             kRounds);
}

}  // namespace

int main(int argc, char** argv) try {
  restart_with(allocator_environment(), argv);  // as the runner starts its workers
  const std::string mode = argc > 1 ? argv[1] : "";
  std::vector<Index> lengths;
  for (int i = 2; i < argc; ++i) {
    lengths.push_back(std::strtoll(argv[i], nullptr, 10));
    if (lengths.back() < 1)
      throw std::runtime_error(fmt::format("got \"{}\", expected a length", argv[i]));
  }
  omp_set_num_threads(1);
  if (mode == "forms")
    forms(lengths.empty() ? std::vector<Index>{4096, 16'384, 65'536} : lengths);
  else if (mode == "threads")
    threads(lengths.empty() ? std::vector<Index>{4096, 16'384, 65'536} : lengths);
  else if (mode == "exponent")
    exponent();
  else
    throw std::runtime_error("usage: linear_bench forms|threads [N ...], linear_bench exponent");
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "linear_bench: {}\n", error.what());
  return 2;
}
