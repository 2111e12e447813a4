// Conv-Basis attention: what the paper claims, and what its building blocks promise.
#include <malloc.h>

#include <catch2/catch.hpp>

#include "harness/core/parallel.h"
#include "methods/engines/conv_attention.h"
#include "methods/engines/conv_segments.h"
#include "tests/methods/conv_data.h"
#include "tests/methods/method_fixture.h"

using namespace subquad;
using namespace subquad::testing;

namespace {

using Starts = std::vector<Index>;

// Recover on an explicit matrix; counts the logits that it asks for.
Starts recover(const MatrixD& h, Index k, Index probe, double threshold, Index* asked = nullptr) {
  std::vector<double> work(static_cast<std::size_t>(3 * probe));
  Starts starts(static_cast<std::size_t>(k));
  Index count = 0;
  const Index found = recover_starts(
      h.rows(), k, probe, threshold,
      [&](Index t, Index j) {
        ++count;
        if (!(j >= 0 && t >= j && t < h.rows())) FAIL("asked for " << t << ", " << j);
        return h(t, j);
      },
      work.data(), starts.data());
  starts.resize(static_cast<std::size_t>(found));
  if (asked != nullptr) *asked = count;
  return starts;
}

// Conv-Basis output from an explicit logit matrix, by the double engines.
MatrixD conv_output(const MatrixD& h, const Starts& starts, const MatrixD& v) {
  const Index n = h.rows();
  ConvKernels<double> w(n, static_cast<Index>(starts.size()), true);
  w.set_starts(starts);
  for (Index i = 0; i < w.count(); ++i)
    for (Index lag = 0; lag <= w.highest(i); ++lag)
      w.profile(i)[lag] = h(w.start(i) + lag, w.start(i));
  ConvProfiles<double> profiles;
  profiles.prepare(n, 1, w.count(), true);
  profiles.exponentiate(&w);
  VectorD sums(n), rounding(n);
  profiles.normalizers(w, sums.data(), rounding.data());
  PartitionedConv<double> conv;
  conv.prepare({n, v.cols(), w.count(), true, 64, false}, Planner::estimate);
  conv.set_kernels(w);
  const VectorD inverse = sums.cwiseInverse();
  MatrixD out(n, v.cols());
  conv.apply(v.data(), v.cols(), inverse.data(), nullptr, out.data());
  return out;
}

MatrixD random_matrix(Random& random, Index rows, Index columns) {
  MatrixD m(rows, columns);
  for (Index e = 0; e < m.size(); ++e) m.data()[e] = random.normal();
  return m;
}

Settings settings(const std::string& segmentation, Index k) {
  return {{"segmentation", segmentation}, {"k", k}};
}

Problem causal_problem(Index n, Index d = 16) {
  return {.batch = 1, .heads = 2, .n = n, .n_kv = n, .d_k = d, .d_v = d, .causal = true};
}

double metric(const Method& method, const std::string& name) {
  for (const Metric& m : method.metrics())
    if (m.name == name) return m.value;
  throw std::runtime_error("no metric " + name);
}

}  // namespace

TEST_CASE("recover finds the true starts and the error bound holds on 520 noisy bases",
          "[conv][methods]") {
  Index instances = 0, bases = 0;
  double closest = 0;  // largest error / bound
  for (const double share : {0.0, 0.2, 0.5, 1.0})
    for (Seed seed = 0; seed < 130; ++seed) {
      Random random(seed, "noisy", {static_cast<std::uint64_t>(10 * share)});
      const Index probe = 1 + static_cast<Index>(random.below(12));
      const Index n = 2 * probe + static_cast<Index>(random.below(150));
      const Index k = 1 + static_cast<Index>(random.below(
                              static_cast<std::uint64_t>(std::min<Index>(9, n - probe))));
      const NoisyBasis basis(random, n, k, probe, share);
      Index asked = 0;
      // Two more than there are: the search has to stop by itself.
      const Starts got = recover(basis.logits, k + 2, probe,
                                 basis.delta - 2 * static_cast<double>(probe) * basis.eps, &asked);
      INFO("share " << share << " seed " << seed << " n " << n << " k " << k << " T " << probe);
      CHECK(got == basis.starts);
      CHECK(static_cast<double>(asked) <=
            static_cast<double>((k + 2) * probe) * (std::log2(static_cast<double>(n)) + 1));
      const MatrixD v = random_matrix(random, n, 4);
      const double error = (conv_output(basis.logits, got, v) - causal_softmax(basis.logits, v))
                               .cwiseAbs()
                               .maxCoeff();
      const double bound = 2 * std::expm1(2 * basis.eps) * v.cwiseAbs().maxCoeff();
      CHECK(error <= bound + 1e-12);
      if (share > 0) closest = std::max(closest, error / bound);
      ++instances;
      bases += static_cast<Index>(basis.starts.size());
    }
  CHECK(instances == 520);
  CHECK(bases > 1000);
  CHECK(closest > 0.05);  // the instances are no trivial ones
  CHECK(closest <= 1);
}

TEST_CASE("recover asks for fewer than k (log2 n + 1) T logits", "[conv][methods]") {
  for (const auto& [n, k, probe] : {std::tuple<Index, Index, Index>{4096, 16, 16},
                                    {1000, 5, 7},
                                    {1025, 1025, 1},
                                    {509, 9, 16},
                                    {100000, 64, 8}}) {
    Index asked = 0;
    std::vector<double> work(static_cast<std::size_t>(3 * probe));
    Starts starts(static_cast<std::size_t>(k));
    // Columns with profiles of their own: every probe is adversarial for an early stop.
    const Index length = std::max<Index>(1, n / k);
    const Index found = recover_starts(
        n, k, probe, 0.5,
        [&, columns = length](Index, Index j) {
          ++asked;
          return static_cast<double>(j / columns);
        },
        work.data(), starts.data());
    INFO("n " << n << " k " << k << " T " << probe << " asked " << asked << " found " << found);
    CHECK(found >= std::min<Index>(k, 2));
    CHECK(static_cast<double>(asked) <
          static_cast<double>(k * probe) * (std::log2(static_cast<double>(n)) + 1));
  }
}

TEST_CASE("recover on adversarial lengths", "[conv][methods]") {
  Random random(3, "adversarial");
  const auto logits = [&](Index n, const Starts& starts) {
    ConvKernels<double> u = random_kernels<double>(random, n, starts, true);
    MatrixD h = explicit_matrix(u);
    return h;
  };
  for (const Index n : {257, 509}) {
    // A last run shorter than T cannot be seen; the others are found.
    CHECK(recover(logits(n, {0, 30, n - 3}), 5, 8, 1e-6) == Starts{0, 30});
    CHECK(recover(logits(n, {0, 30, n - 8}), 5, 8, 1e-6) == Starts{0, 30, n - 8});
    CHECK(recover(logits(n, {0, 1, 2, n - 1}), 5, 1, 1e-9) == Starts{0, 1, 2, n - 1});
  }
  // A constant matrix and one Toeplitz matrix have one run, whatever k is.
  CHECK(recover(MatrixD::Constant(64, 64, 2.5), 8, 4, 1e-9) == Starts{0});
  CHECK(recover(logits(100, {0}), 8, 4, 1e-9) == Starts{0});
  // Equal neighbours are one run.
  ConvKernels<double> u = random_kernels<double>(random, 90, {0, 20, 50}, true);
  for (Index lag = 0; lag <= u.highest(1); ++lag) u.profile(1)[lag] = u.profile(0)[lag];
  CHECK(recover(explicit_matrix(u), 6, 4, 1e-9) == Starts{0, 50});
  // Every column its own: all starts, and the output is dense attention.
  const MatrixD h = random_matrix(random, 40, 40);
  Starts all;
  for (Index j = 0; j < 40; ++j) all.push_back(j);
  CHECK(recover(h, 40, 1, 1e-9) == all);
  const MatrixD v = random_matrix(random, 40, 3);
  CHECK((conv_output(h, all, v) - causal_softmax(h, v)).cwiseAbs().maxCoeff() <= 1e-12);
  CHECK(recover(MatrixD::Constant(1, 1, 1), 3, 1, 1e-9) == Starts{0});
  CHECK(recover(logits(2, {0, 1}), 3, 1, 1e-9) == Starts{0, 1});
}

TEST_CASE("values of one give ones, and a constant on all logits changes nothing",
          "[conv][methods]") {
  for (const std::string engine : {"direct", "shared", "local", "partitioned"})
    for (const bool causal : {true, false}) {
      INFO(engine << (causal ? " causal" : ""));
      Problem p = causal_problem(700, 9);
      p.causal = causal;
      Settings s = settings("uniform", 9);
      s["engine"] = engine;
      QKV in = random_inputs(p, 3, 2);
      in.v.fill(1);
      const Tensor ones = run_method("conv_basis", s, p, in).out;
      for (Index e = 0; e < ones.size(); ++e)
        if (!(std::fabs(ones.data()[e] - 1) <= 3e-6f)) FAIL(ones.data()[e]);
      // The last column of q is 1, that of k the constant: all logits move by 3.
      fill_normal(8, in.v.data(), in.v.size());
      p.scale = 1;
      for (Index h = 0; h < 2; ++h)
        in.q.head(0, h).col(8).setOnes(), in.k.head(0, h).col(8).setZero();
      const TensorD before = cast<double>(run_method("conv_basis", s, p, in).out);
      for (Index h = 0; h < 2; ++h) in.k.head(0, h).col(8).setConstant(3);
      CHECK(relative_error(run_method("conv_basis", s, p, in).out, before) <= 2e-5);
    }
}

// Logits of deviation 12 leave rows with normalisers of 1e-9 of the largest: below what transforms
// in float resolve, but not those in double, for which it takes a deviation of 40.
TEST_CASE("large ranges of logits are right on every engine, by guarded rows", "[conv][methods]") {
  for (const std::string engine : {"direct", "shared", "local", "partitioned"})
    for (const std::string precision : {"double", "float"})
      for (const bool causal : {true, false}) {
        const bool wide = precision == "double" && engine != "direct";
        INFO(engine << " " << precision << (causal ? " causal" : ""));
        Problem p = causal_problem(600, 12);
        p.causal = causal;
        Settings s = settings("uniform", 6);
        s["engine"] = engine;
        s["precision"] = precision;
        const QKV in = random_inputs(p, 4, wide ? 40 : 12);
        const auto method = make_method("conv_basis", s);
        method->prepare(p, {});
        Tensor out(p.batch, p.heads, p.n, p.d_v);
        method->forward(in.inputs(), out, nullptr);
        const TensorD want = reference::references()
                                 .at("conv_basis")
                                 .forward(resolved("conv_basis", s), double_call(p, in));
        // Float: estimated errors up to 1e-4 of a row are let through.
        CHECK(relative_error(out, want) <= (precision == "float" ? 1e-4 : 2e-5));
        if (engine != "direct") CHECK(metric(*method, "guarded_rows") > 0);
      }
  // Ordinary logits in double need no guard.
  const Problem p = causal_problem(3000);
  Settings s = settings("uniform", 6);
  s["engine"] = std::string("partitioned");
  const auto method = make_method("conv_basis", s);
  method->prepare(p, {});
  Tensor out(p.batch, p.heads, p.n, p.d_v);
  method->forward(random_inputs(p, 5).inputs(), out, nullptr);
  CHECK(metric(*method, "guarded_rows") == 0);
  CHECK(metric(*method, "segments") == 6);
}

// What is estimated is the rounding of the transforms alone, so that the same kernels, as floats
// have them, go through transforms in double: logits and exponentials in float differ by more.
// The estimate takes |sum_j w_j v_j| <= ||w|| ||v|| (Cauchy and Schwarz), which is sharp for values
// with a mean under a flat kernel. Values that are noise around zero add up to 1 / sqrt(2 B) of it,
// and so do their rounding errors.
TEST_CASE("the estimate of the rounding error is an upper bound of about the right size",
          "[conv][methods]") {
  const Index n = 3000, d = 16;
  const Problem p = causal_problem(n, d);
  const Starts starts{0, 700, 1400, 2000};
  for (const bool flat : {true, false})
    for (const ConvEngine engine :
         {ConvEngine::partitioned, ConvEngine::shared, ConvEngine::local}) {
      QKV in = random_inputs(p, 6);
      for (Index e = 0; flat && e < in.v.size(); ++e) in.v.data()[e] = 1 + 0.1f * in.v.data()[e];
      ConvAttention<float> attention;
      attention.prepare({n, d, d, 4, true, starts}, {engine, 512, 0}, Planner::estimate);
      Tensor out(1, 1, n, d);
      attention.forward(starts, in.q.data(), in.k.data(), in.v.data(), flat ? 0.01 : 0.5, 1e9,
                        out.data());

      ConvKernels<double> w(n, 4, true);
      w.set_starts(starts);
      for (Index i = 0; i < 4; ++i)
        for (Index lag = 0; lag <= w.highest(i); ++lag)
          w.profile(i)[lag] = static_cast<double>(attention.kernels().profile(i)[lag]);
      PartitionedConv<double> exact;
      exact.prepare({n, d, 4, true, 512, false}, Planner::estimate);
      exact.set_kernels(w);
      const VectorD inverse = Eigen::Map<const VectorD>(attention.normalizers(), n).cwiseInverse();
      const TensorD v = cast<double>(in.v);
      MatrixD want(n, d);
      exact.apply(v.data(), d, inverse.data(), nullptr, want.data());

      double worst = 0, typical = 0;
      for (Index t = 0; t < n; ++t) {
        double error = 0;
        for (Index c = 0; c < d; ++c)
          error += std::pow(static_cast<double>(out.data()[t * d + c]) - want(t, c), 2);
        // 6e-8: the result itself is rounded to float.
        error = std::max(0.0, std::sqrt(error / static_cast<double>(d)) - 6e-8);
        const double ratio = error / attention.errors()[t];
        worst = std::max(worst, ratio);
        typical += ratio / static_cast<double>(n);
      }
      INFO("engine " << static_cast<int>(engine) << (flat ? " flat" : "") << " worst " << worst
                     << " mean " << typical);
      CHECK(worst <= 1);
      if (flat) CHECK(worst >= 0.05);
    }
}

TEST_CASE("a NaN in a value reaches exactly the rows that see it", "[conv][methods]") {
  for (const std::string engine : {"direct", "shared", "local", "partitioned"}) {
    INFO(engine);
    const Problem p = causal_problem(500);
    Settings s = settings("uniform", 4);
    s["engine"] = engine;
    QKV in = random_inputs(p, 7);
    const Tensor before = run_method("conv_basis", s, p, in).out;
    in.v.head(0, 0)(200, 3) = std::nanf("");
    const Tensor after = run_method("conv_basis", s, p, in).out;
    for (Index t = 0; t < p.n; ++t)
      for (Index c = 0; c < p.d_v; ++c) {
        const float got = after.head(0, 0)(t, c);
        if (t >= 200 && c == 3) {
          if (!std::isnan(got)) FAIL("row " << t << ": " << got);
        } else if (!(std::fabs(got - before.head(0, 0)(t, c)) <= 1e-5f)) {
          FAIL("row " << t << " column " << c << ": " << got);
        }
      }
  }
}

TEST_CASE("segmentations that do not look ahead keep earlier outputs when later tokens change",
          "[conv][methods]") {
  const Problem p = causal_problem(400);
  for (Settings s :
       {settings("scan_causal", 12), settings("first_k", 12),
        Settings{{"segmentation", std::string("fixed")}, {"starts", std::string("0,50,120,300")}}})
    for (const std::string engine : {"direct", "partitioned", "shared"}) {
      s["engine"] = engine;
      INFO(to_string(s));
      QKV in = random_inputs(p, 8);
      const Tensor before = run_method("conv_basis", s, p, in).out;
      const QKV other = random_inputs(p, 9);
      for (Index h = 0; h < 2; ++h) {
        in.q.head(0, h).bottomRows(150) = other.q.head(0, h).bottomRows(150);
        in.k.head(0, h).bottomRows(150) = other.k.head(0, h).bottomRows(150);
        in.v.head(0, h).bottomRows(150) = other.v.head(0, h).bottomRows(150);
      }
      const Tensor after = run_method("conv_basis", s, p, in).out;
      for (Index h = 0; h < 2; ++h) {
        const Matrix a = after.head(0, h).topRows(250), b = before.head(0, h).topRows(250);
        CHECK((a - b).cwiseAbs().maxCoeff() <= 2e-6f);  // rounding: the global shift has changed
        CHECK(after.head(0, h).bottomRows(100) != before.head(0, h).bottomRows(100));
      }
    }
}

TEST_CASE("decoding equals the causal form", "[conv][methods]") {
  for (const Settings& s :
       {settings("scan_causal", 5), settings("first_k", 7),
        Settings{{"segmentation", std::string("fixed")}, {"starts", std::string("0,3,40,90")}}}) {
    INFO(to_string(s));
    const Problem p{
        .batch = 2, .heads = 2, .n = 80, .n_kv = 80, .d_k = 6, .d_v = 5, .causal = true};
    const QKV in = random_inputs(p, 11, 2);
    const TensorD want = cast<double>(run_method("conv_basis", s, p, in).out);
    const auto method = make_method("conv_basis", s);
    const auto decoder =
        method->make_decoder({.batch = 2, .heads = 2, .capacity = 80, .d_k = 6, .d_v = 5});
    for (int repeat = 0; repeat < 2; ++repeat) {
      Tensor got(want.shape());
      for (Index t = 0; t < 80; ++t) {
        std::vector<float> q, k, v, out(20);
        for (Index bh = 0; bh < 4; ++bh)
          for (Index c = 0; c < 6; ++c) {
            q.push_back(in.q.view().head(bh)(t, c));
            k.push_back(in.k.view().head(bh)(t, c));
            if (c < 5) v.push_back(in.v.view().head(bh)(t, c));
          }
        decoder->step({q.data(), k.data(), v.data()}, out.data());
        for (Index bh = 0; bh < 4; ++bh)
          for (Index c = 0; c < 5; ++c)
            got.view().head(bh)(t, c) = out[static_cast<std::size_t>(5 * bh + c)];
        double sum = 0;
        for (const VisibleKey& key : decoder->visible(1, 1)) sum += static_cast<double>(key.weight);
        CHECK(sum == Approx(1).epsilon(1e-5));
      }
      CHECK(relative_error(got, want) <= 1e-5);
      CHECK(decoder->bytes().kv >= 4.0 * 4 * 80 * 5);
      decoder->reset();
    }
  }
  Problem p = causal_problem(10);
  const MethodEntry& entry = Registry::instance().method("conv_basis");
  CHECK(unsupported_reason(entry, *make_method("conv_basis"), p, Pass::decode) ==
        "segmentation recover looks ahead; scan_causal, first_k and fixed can decode");
}

TEST_CASE("gradients by transforms equal the reference, also of rows with tiny normalisers",
          "[conv][methods]") {
  const auto& reference = reference::references().at("conv_basis");
  for (const std::string gradient : {"exact", "plug_in"})
    for (const bool causal : {true, false})
      for (const float spread : {1.f, 6.f}) {
        Settings s = settings("uniform", 5);
        s["gradient"] = gradient;
        Problem p = causal_problem(300, 7);  // long enough for the partitioned engine
        p.causal = causal;
        INFO(gradient << (causal ? " causal" : "") << " spread " << spread);
        const QKV in = random_inputs(p, 12, spread);
        Tensor dout(p.batch, p.heads, p.n, p.d_v);
        fill_normal(13, dout.data(), dout.size());
        const Outcome got = run_method("conv_basis", s, p, in, &dout);
        const auto want =
            reference.gradient(resolved("conv_basis", s), double_call(p, in), cast<double>(dout));
        CHECK(relative_error(got.dq, want.dq) <= 1e-5);
        CHECK(relative_error(got.dk, want.dk) <= 1e-5);
        CHECK(relative_error(got.dv, want.dv) <= 1e-5);
      }
  // With every column its own run both equal the gradient of dense attention.
  const Problem p = causal_problem(40);
  const QKV in = random_inputs(p, 14);
  Tensor dout(p.batch, p.heads, p.n, p.d_v);
  fill_normal(15, dout.data(), dout.size());
  const auto dense =
      reference::references().at("dense").gradient({}, double_call(p, in), cast<double>(dout));
  for (const std::string gradient : {"exact", "plug_in"}) {
    Settings s = settings("first_k", 40);
    s["gradient"] = gradient;
    const Outcome got = run_method("conv_basis", s, p, in, &dout);
    CHECK(relative_error(got.dq, dense.dq) <= 1e-5);
    CHECK(relative_error(got.dk, dense.dk) <= 1e-5);
    CHECK(relative_error(got.dv, dense.dv) <= 1e-5);
  }
}

// The tables of transforms are part of what a method needs, but are kept from one instance to the
// next: every case has to make its own. The planner itself (0.2 MB) belongs to the process.
TEST_CASE("memory is O(k n + n d) and what the formula says, on every engine", "[conv][methods]") {
  const auto allocated = [] {
    const auto info = mallinfo2();
    return static_cast<double>(info.uordblks) + static_cast<double>(info.hblkhd);
  };
  const double before_probe = allocated();
  const auto probe = std::make_unique<Tensor>(1, 1, 1000, 1000);
  if (allocated() - before_probe < 4e6) return;  // a sanitizer's allocator does not tell
  forget_fft_plans();
  const RealFft<double> planner(2048, Planner::estimate);
  for (const std::string engine : {"auto", "direct", "shared", "local", "partitioned"})
    for (const std::string segmentation : {"uniform", "recover", "band_merge"})
      for (const Index n : {5000, 20000}) {
        Settings s = settings(segmentation, 8);
        s["engine"] = engine;
        INFO(engine << " " << segmentation << " n=" << n);
        Problem p = causal_problem(n, 64);
        const auto method = make_method("conv_basis", s);
        forget_fft_plans();
        const double before = allocated();
        method->prepare(p, {});
        const double used = allocated() - before, declared = method->extra_bytes(p, Pass::forward);
        CHECK(declared == Approx(used).epsilon(0.1));
        CHECK(used <= 400.0 * static_cast<double>(n * (8 + 64)));
        if (segmentation != "uniform") continue;
        // The formulas in words at the head of conv_basis.cpp.
        const auto length = static_cast<double>(n),
                   f = static_cast<double>(good_fft_size(n + n / 8));
        const double k = 8, d = 64, threads = thread_count(), b = metric(*method, "block");
        if (engine == "shared")
          CHECK(used == Approx(8 * (k * length + (k + 11 * threads) * f + length * d / 2 + 1.6 * f +
                                    5.1 * length))
                            .epsilon(0.1));
        if (engine == "partitioned")
          CHECK(used == Approx(8 * (3 * k * length +
                                    threads * (8 * (2 * b + 16) + 32 * length + 16 * k * b) +
                                    3.2 * b + 5.1 * length))
                            .epsilon(0.1));
      }
}

TEST_CASE("malformed starts are refused with what is expected", "[conv][methods]") {
  for (const std::string text : {"", "1,5", "0,5,5", "0,7,3", "0,x", "0,", "0 5", "0,-3"})
    CHECK_THROWS_AS(make_method("conv_basis", {{"starts", text}}), UserError);
  CHECK_NOTHROW(make_method("conv_basis", {{"starts", std::string("0,5,17")}}));
}
