// The convolution engines against explicit matrices and against each other.
#include <catch2/catch.hpp>

#include "harness/core/parallel.h"
#include "methods/engines/conv_cost.h"
#include "methods/engines/conv_direct.h"
#include "methods/engines/conv_fft.h"
#include "methods/engines/conv_partitioned.h"
#include "methods/engines/conv_profiles.h"
#include "tests/methods/conv_data.h"

using namespace subquad;
using namespace subquad::testing;

namespace {

constexpr Index kColumns = 5;

template <class T>
using Engine = std::function<void(const ConvKernels<T>&, const T*, T*)>;

template <class T>
std::vector<std::pair<std::string, Engine<T>>> engines() {
  const auto long_transforms = [](bool shared, bool known) {
    return [=](const ConvKernels<T>& w, const T* x, T* y) {
      FftConv<T> conv;
      typename FftConv<T>::Sizes sizes{w.n(),  kColumns, w.count(),     w.causal(),
                                       shared, {},       sizeof(T) == 8};
      if (known) sizes.starts.assign(w.starts().begin(), w.starts().end());
      conv.prepare(sizes, Planner::estimate);
      conv.set_kernels(w);
      conv.apply(x, kColumns, nullptr, nullptr, y);
    };
  };
  const auto partitioned = [](Index block) {
    return [=](const ConvKernels<T>& w, const T* x, T* y) {
      PartitionedConv<T> conv;
      conv.prepare({w.n(), kColumns, w.count(), w.causal(), block, false}, Planner::estimate);
      conv.set_kernels(w);
      conv.apply(x, kColumns, nullptr, nullptr, y);
    };
  };
  return {{"direct",
           [](const ConvKernels<T>& w, const T* x, T* y) {
             DirectConv<T> conv;
             conv.prepare(w.n(), kColumns);
             conv.apply(w, x, kColumns, nullptr, y);
           }},
          {"shared", long_transforms(true, true)},  // the shortest length
          {"shared, longer", long_transforms(true, false)},
          {"local", long_transforms(false, true)},
          {"local, longer", long_transforms(false, false)},
          {"partitioned 64", partitioned(64)},
          {"partitioned 1024", partitioned(1024)}};
}

// Largest difference, relative to the largest value.
template <class A, class B>
double distance(const A& a, const B& b) {
  double difference = 0, largest = 1e-300;
  for (std::size_t e = 0; e < a.size(); ++e) {
    const double d = static_cast<double>(a[e]) - static_cast<double>(b[e]);
    if (!(std::fabs(d) <= difference)) difference = std::fabs(d);
    largest = std::max(largest, std::fabs(static_cast<double>(b[e])));
  }
  return difference / largest;
}

template <class T>
void check_agreement(Index n, Index k, bool causal, double tolerance) {
  Random random(static_cast<Seed>(n), "engines", {static_cast<std::uint64_t>(k), causal ? 1U : 0U});
  const auto starts = random_starts(random, k, n - 1);
  const ConvKernels<T> w = random_kernels<T>(random, n, starts, causal);
  const std::vector<T> x = random_values<T>(random, n * kColumns);
  std::vector<T> want;
  for (const auto& [name, engine] : engines<T>()) {
    if (n > 20000 && name == "direct") continue;
    if (n > 20000 && name == "partitioned 64") continue;
    INFO(name << " n=" << n << " k=" << k << (causal ? " causal" : ""));
    std::vector<T> y(x.size(), static_cast<T>(std::nan("")));
    engine(w, x.data(), y.data());
    if (want.empty()) {
      want = y;
      if (n > 300) continue;
      const MatrixD product =
          explicit_matrix(w) *
          Eigen::Map<const MatrixT<T>>(x.data(), n, kColumns).template cast<double>();
      CHECK(distance(y, std::vector<double>(product.data(), product.data() + product.size())) <=
            tolerance);
    } else {
      CHECK(distance(y, want) <= tolerance);
    }
  }
}

}  // namespace

TEST_CASE("convolution engines agree", "[conv][methods]") {
  for (const bool causal : {true, false})
    for (const auto& [n, k] : {std::pair<Index, Index>{1, 1},
                               {2, 1},
                               {2, 2},
                               {64, 64},
                               {257, 1},
                               {257, 9},
                               {257, 257},
                               {4096, 7}}) {
      check_agreement<double>(n, k, causal, 1e-10);
      check_agreement<float>(n, k, causal, 1e-4);
    }
}

TEST_CASE("convolution engines agree at 100000", "[conv][methods][slow]") {
  for (const bool causal : {true, false}) {
    check_agreement<double>(100000, 5, causal, 1e-10);
    check_agreement<float>(100000, 5, causal, 1e-4);
  }
}

TEST_CASE("the transposed product and the correlations equal explicit sums", "[conv][methods]") {
  for (const bool causal : {true, false})
    for (const auto& [n, k] :
         {std::pair<Index, Index>{1, 1}, {2, 2}, {100, 100}, {257, 6}, {509, 3}}) {
      INFO("n=" << n << " k=" << k << (causal ? " causal" : ""));
      Random random(5, "transposed", {static_cast<std::uint64_t>(n)});
      const auto starts = random_starts(random, k, n - 1);
      const auto w = random_kernels<double>(random, n, starts, causal);
      const auto x = random_values<double>(random, n * kColumns);
      const auto g = random_values<double>(random, n * kColumns);
      const MatrixD product =
          explicit_matrix(w).transpose() * Eigen::Map<const MatrixD>(x.data(), n, kColumns);
      const std::vector<double> want(product.data(), product.data() + product.size());
      ConvKernels<double> sums(n, k, causal), fft(n, k, causal), direct(n, k, causal);
      for (auto* to : {&sums, &fft, &direct}) to->set_starts(starts);
      for (Index i = 0; i < sums.count(); ++i)
        for (Index lag = sums.lowest(i); lag <= sums.highest(i); ++lag) {
          sums.profile(i)[lag] = 0;
          for (Index j = sums.start(i); j < sums.end(i); ++j)
            for (Index c = 0; c < kColumns && j + lag >= 0 && j + lag < n; ++c)
              sums.profile(i)[lag] += g[static_cast<std::size_t>((j + lag) * kColumns + c)] *
                                      x[static_cast<std::size_t>(j * kColumns + c)];
        }
      PartitionedConv<double> conv;
      conv.prepare({n, kColumns, k, causal, 32, true}, Planner::estimate);
      conv.set_kernels(w);
      std::vector<double> got(x.size());
      conv.apply_transposed(x.data(), kColumns, got.data());
      CHECK(distance(got, want) <= 1e-10);
      direct_transposed(w, x.data(), kColumns, got.data());
      CHECK(distance(got, want) <= 1e-12);
      conv.correlate(g.data(), x.data(), kColumns, &fft);
      direct_correlate(g.data(), x.data(), kColumns, &direct);
      for (Index i = 0; i < sums.count(); ++i)
        for (Index lag = sums.lowest(i); lag <= sums.highest(i); ++lag) {
          const double value = sums.profile(i)[lag];
          if (!(std::fabs(fft.profile(i)[lag] - value) <= 1e-10)) FAIL(i << " " << lag);
          if (!(std::fabs(direct.profile(i)[lag] - value) <= 1e-11)) FAIL(i << " " << lag);
        }
    }
}

TEST_CASE("row sums from sliding windows equal explicit row sums", "[conv][methods]") {
  for (const bool causal : {true, false})
    for (const Index n : {1, 2, 1024, 2500}) {
      Random random(6, "sums", {static_cast<std::uint64_t>(n)});
      const auto starts = random_starts(random, std::min<Index>(n, 7), n - 1);
      const auto w = random_kernels<double>(random, n, starts, causal);
      ConvProfiles<double> profiles;
      profiles.prepare(n, 1, w.count(), causal);
      std::vector<double> sums(static_cast<std::size_t>(n)), rounding(sums);
      profiles.normalizers(w, sums.data(), rounding.data());
      const MatrixD matrix = explicit_matrix(w);
      for (Index t = 0; t < n; ++t) {
        // In double the explicit sum would itself be off by more than the bound.
        long double want = 0;
        for (Index j = 0; j < n; ++j) want += static_cast<long double>(matrix(t, j));
        const auto row = static_cast<std::size_t>(t);
        const auto error =
            static_cast<double>(std::fabs(static_cast<long double>(sums[row]) - want));
        if (!(error <= rounding[row] && rounding[row] <= 1e-13 * sums[row]))
          FAIL("n=" << n << " row " << t << ": " << error << " " << rounding[row]);
      }
    }
}

TEST_CASE("the segment form equals sums of sub-convolutions and their exponentials",
          "[conv][methods]") {
  // H = sum_i conv(b_i, m_i) with b_i = u_i - u_{i-1}; exp(H) below the diagonal is the sum of
  // conv(bt_i, m_i) with bt_1 = exp(b_1), bt_i = exp(u_i) - exp(u_{i-1}).
  Random random(7, "forms");
  const Index n = 61;
  const auto starts = random_starts(random, 6, n - 1);
  auto u = random_kernels<double>(random, n, starts, true);
  const auto sub_convolutions = [&](const std::function<double(double)>& f) {
    MatrixD h = MatrixD::Zero(n, n);
    for (Index i = 0; i < u.count(); ++i)
      for (Index j = u.start(i); j < n; ++j)
        for (Index t = j; t < n; ++t)
          h(t, j) += f(u.profile(i)[t - j]) - (i > 0 ? f(u.profile(i - 1)[t - j]) : 0);
    return h;
  };
  CHECK((sub_convolutions([](double x) { return x; }) - explicit_matrix(u)).norm() <= 1e-10);
  const MatrixD transformed = sub_convolutions([](double x) { return std::exp(x); });
  for (Index i = 0; i < u.count(); ++i)
    for (Index lag = 0; lag <= u.highest(i); ++lag) u.profile(i)[lag] = std::exp(u.profile(i)[lag]);
  CHECK((transformed - explicit_matrix(u)).norm() <= 1e-10 * transformed.norm());
}

TEST_CASE("transform lengths are even, smooth and not shorter than asked", "[conv][methods]") {
  CHECK(good_fft_size(1) == 2);
  CHECK(good_fft_size(17) == 18);
  CHECK(good_fft_size(1024) == 1024);
  CHECK(good_fft_size(1025) == 1050);
  for (Index n = 1; n < 3000; ++n) {
    const Index size = good_fft_size(n);
    if (!(size >= n && size % 2 == 0 && size <= n + n / 8 + 6)) FAIL(n << " " << size);
  }
  CHECK_THROWS_AS(RealFft<double>(7, Planner::estimate), InternalError);
}

TEST_CASE("the cost model finds an engine for every size, and only the one that is named",
          "[conv][methods]") {
  for (const Index n : {1, 2, 257, 4096, 65536})
    for (const Index k : {1, 16, 256}) {
      const ConvSizes sizes{n, 64, 64, std::min(n, k), true, false};
      const ConvPlan best = choose_conv_plan(sizes, "auto");
      for (const std::string name : {"direct", "shared", "local", "partitioned"}) {
        const ConvPlan plan = choose_conv_plan(sizes, name);
        CHECK(best.seconds <= plan.seconds);
        CHECK((plan.block > 0) == (name == "partitioned"));
        CHECK(conv_operations(sizes, plan.engine, plan.block) > 0);
      }
    }
  CHECK(choose_conv_plan({128, 64, 64, 16, true, false}, "auto").engine == ConvEngine::direct);
  CHECK(choose_conv_plan({65536, 64, 64, 16, true, false}, "auto").engine ==
        ConvEngine::partitioned);
  CHECK_THROWS_AS(choose_conv_plan({1, 1, 1, 1, true, false}, "fastest"), InternalError);
}
