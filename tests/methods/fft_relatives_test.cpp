// nprf and hrrformer: what their definitions imply.
#include <catch2/catch.hpp>

#include "methods/engines/kernel_features.h"
#include "methods/engines/row_transform.h"
#include "tests/methods/method_fixture.h"

using namespace subquad;
using namespace subquad::testing;

namespace {

Problem problem(Index n, Index d, bool causal) {
  return {.batch = 2, .heads = 2, .n = n, .n_kv = n, .d_k = d, .d_v = d, .causal = causal};
}

double metric(const Method& method, const std::string& name) {
  for (const Metric& m : method.metrics())
    if (m.name == name) return m.value;
  throw std::runtime_error("no metric " + name);
}

}  // namespace

TEST_CASE("nprf: transforms and explicit tiles agree", "[nprf][methods]") {
  for (const bool causal : {true, false})
    for (const Index n : {1, 2, 257, 1500}) {
      const Problem p = problem(n, 10, causal);
      QKV in = random_inputs(p, 3);
      for (const bool padded : {false, true}) {
        if (padded) pad_keys(p, 4, 0.3, &in);
        Settings s{{"bias_std", 0.5}, {"features", Index{12}}, {"engine", std::string("explicit")}};
        const TensorD want = cast<double>(run_method("nprf", s, p, in).out);
        s["engine"] = std::string("fft");
        INFO(p.str() << (padded ? " padded" : ""));
        CHECK(relative_error(run_method("nprf", s, p, in).out, want) <= 1e-5);
      }
    }
}

TEST_CASE("nprf: rows sum to one, a constant on the bias changes nothing", "[nprf][methods]") {
  const Problem p = problem(300, 8, true);
  for (const std::string engine : {"explicit", "fft"}) {
    INFO(engine);
    QKV in = random_inputs(p, 5);
    const Settings s{{"bias_std", 1.0}, {"engine", engine}};
    const auto method = make_method("nprf", s);
    method->prepare(p, {});
    Tensor before(p.batch, p.heads, p.n, p.d_v), after = before;
    method->forward(in.inputs(), before, nullptr);
    Parameter& bias = *method->parameters().at(0);
    CHECK(bias.shape == std::vector<Index>{2, 599});
    for (Index e = 0; e < bias.value.size(); ++e) bias.value[e] += 2;
    method->forward(in.inputs(), after, nullptr);
    CHECK(relative_error(after, cast<double>(before)) <= 1e-5);
    in.v.fill(1);
    method->forward(in.inputs(), after, nullptr);
    for (Index e = 0; e < after.size(); ++e)
      if (!(std::fabs(after.data()[e] - 1) <= 2e-6f)) FAIL(after.data()[e]);
  }
}

TEST_CASE("nprf: causal outputs do not see later values", "[nprf][methods]") {
  const Problem p = problem(400, 8, true);
  for (const std::string engine : {"explicit", "fft"}) {
    QKV in = random_inputs(p, 6);
    const Settings s{{"bias_std", 1.0}, {"engine", engine}};
    const Tensor before = run_method("nprf", s, p, in).out;
    in.v.head(1, 0).bottomRows(100).setConstant(std::nanf(""));
    const Tensor after = run_method("nprf", s, p, in).out;
    INFO(engine);
    CHECK((after.head(1, 0).topRows(300) - before.head(1, 0).topRows(300)).cwiseAbs().maxCoeff() <=
          1e-6f);
    CHECK(std::isnan(after.head(1, 0)(300, 0)));
  }
}

TEST_CASE("nprf: gradients of the bias equal central differences", "[nprf][methods]") {
  for (const bool causal : {true, false})
    for (const Index range : {0, 4}) {
      const Problem p = problem(40, 6, causal);
      const QKV in = random_inputs(p, 7);
      const auto method = make_method("nprf", {{"bias_std", 0.7}, {"bias_range", range}});
      Env env;
      env.gradients = true;
      method->prepare(p, env);
      Tensor out(p.batch, p.heads, p.n, p.d_v), dout = out, dq = in.q, dk = in.k, dv = in.v;
      fill_normal(8, dout.data(), dout.size());
      const auto saved = method->make_saved();
      method->forward(in.inputs(), out, saved.get());
      for (int twice = 0; twice < 2; ++twice)  // gradients of parameters add up
        method->backward(in.inputs(), out, dout, *saved, {dq, dk, dv, {}});
      Parameter& bias = *method->parameters().at(0);
      for (Index e = 0; e < bias.value.size(); e += range == 0 ? 7 : 1) {
        const auto loss = [&](float step) {
          const float kept = bias.value[e];
          bias.value[e] = kept + step;
          Tensor moved(out.shape());
          method->forward(in.inputs(), moved, nullptr);
          bias.value[e] = kept;
          double sum = 0;
          for (Index i = 0; i < out.size(); ++i)
            sum += static_cast<double>(moved.data()[i]) * static_cast<double>(dout.data()[i]);
          return sum;
        };
        const double numeric = (loss(0.02f) - loss(-0.02f)) / 0.04;
        CHECK(static_cast<double>(bias.grad[e]) / 2 == Approx(numeric).epsilon(5e-3).margin(2e-3));
      }
    }
}

TEST_CASE("nprf: rows that transforms would spoil are computed explicitly", "[nprf][methods]") {
  const Problem p = problem(200, 6, true);
  const QKV in = random_inputs(p, 9);
  Settings s{{"bias_std", 12.0}, {"engine", std::string("fft")}, {"features", Index{8}}};
  const auto method = make_method("nprf", s);
  method->prepare(p, {});
  Tensor out(p.batch, p.heads, p.n, p.d_v);
  method->forward(in.inputs(), out, nullptr);
  CHECK(metric(*method, "guarded_rows") > 0);
  const TensorD want =
      reference::references().at("nprf").forward(resolved("nprf", s), double_call(p, in));
  CHECK(relative_error(out, want) <= 1e-5);
}

// Of independent directions w the product of a pair (x, y) has a known variance. With g = w . (x +
// y) and s = |x + y|^2, prf: exp(g - (|x|^2 + |y|^2) / 2) has mean exp(x . y) and variance exp(2 x
// . y) (exp(s) - 1); with r = |x - y|^2, trf: exp((|x|^2 + |y|^2) / 2) cos(w . (x - y)) has the
// same mean and variance exp(|x|^2 + |y|^2) (1 - exp(-r))^2 / 2. The excess kurtosis of prf is
// exp(4 s) + 2 exp(3 s) + 3 exp(2 s) - 6, so that 400 draws show the spread to 5 % at s = 1/2
// (unit vectors with x . y = -3/4), but not at all at s = 3. Hence the pair below; there 20 % are
// four deviations of the estimate for eight directions.
TEST_CASE("random features are unbiased, with the spread that theory gives", "[nprf][methods]") {
  constexpr Index d = 8;
  constexpr int kDraws = 400;
  float x[d] = {}, y[d] = {};
  Random random(10, "features");
  double xs = 0, along = 0, ys = 0;
  for (Index c = 0; c < d; ++c) {
    x[c] = static_cast<float>(random.normal()), y[c] = static_cast<float>(random.normal());
    xs += static_cast<double>(x[c] * x[c]), along += static_cast<double>(x[c] * y[c]);
  }
  for (Index c = 0; c < d; ++c) {
    y[c] -= static_cast<float>(along / xs) * x[c];
    ys += static_cast<double>(y[c] * y[c]);
  }
  for (Index c = 0; c < d; ++c) {  // y: unit length, product -3/4 with x / |x|
    x[c] /= static_cast<float>(std::sqrt(xs));
    y[c] = -0.75f * x[c] + static_cast<float>(std::sqrt((1 - 0.5625) / ys)) * y[c];
  }
  const double product = -0.75, exact = std::exp(product);
  for (const auto map : {KernelFeatures::Map::prf, KernelFeatures::Map::trf}) {
    const bool prf = map == KernelFeatures::Map::prf;
    const double one = prf ? exact * std::sqrt(std::expm1(2 + 2 * product))
                           : -std::expm1(-(2 - 2 * product)) * std::exp(1.0) / std::sqrt(2.0);
    for (const bool orthogonal : {false, true}) {
      double deviation[2] = {};
      for (const Index m : {8, 128}) {
        double sum = 0, squares = 0;
        for (Seed seed = 0; seed < kDraws; ++seed) {
          const KernelFeatures features(
              {.map = map, .d = d, .directions = m, .orthogonal = orthogonal}, 1, seed);
          double phi_x[256], phi_y[256], raw[d], dot = 0;
          features.log_features(0, x, raw, phi_x);
          features.log_features(0, y, raw, phi_y);
          for (Index a = 0; a < (prf ? m : 2 * m); ++a)
            dot +=
                prf ? std::exp(phi_x[a] + phi_y[a]) / static_cast<double>(m) : phi_x[a] * phi_y[a];
          sum += dot, squares += dot * dot;
        }
        const double mean = sum / kDraws;
        const double spread = std::sqrt(squares / kDraws - mean * mean);
        INFO((prf ? "prf" : "trf")
             << (orthogonal ? " orthogonal" : "") << " m " << m << " mean " << mean << " +- "
             << spread / std::sqrt(kDraws) << ", exact " << exact << ", spread " << spread
             << ", theory " << one / std::sqrt(static_cast<double>(m)));
        CHECK(std::fabs(mean - exact) <= 3.5 * spread / std::sqrt(kDraws));
        if (!orthogonal)
          CHECK(spread * std::sqrt(static_cast<double>(m)) == Approx(one).epsilon(0.2));
        deviation[m == 8 ? 0 : 1] = spread;
      }
      // m^-1/2, also in orthogonal blocks of 8: 128 directions are 16 independent blocks.
      CHECK(deviation[0] / deviation[1] == Approx(4).epsilon(0.25));
    }
  }
}

TEST_CASE("row transforms by matrix and by FFTW agree and invert each other",
          "[hrrformer][methods]") {
  for (const Index d : {2, 3, 7, 16, 64, 130}) {
    Tensor x(1, 1, 70, d), back = x;
    fill_normal(11, x.data(), x.size());
    const RowTransform matrix(d, RowTransform::Kind::matrix), fft(d, RowTransform::Kind::fft);
    Tensor a(1, 1, 70, matrix.width()), b = a;
    AlignedArray<float> scratch(matrix.scratch_floats());
    matrix.forward(x.data(), 70, a.data(), scratch.data());
    fft.forward(x.data(), 70, b.data(), scratch.data());
    INFO("d=" << d);
    CHECK(relative_error(b, cast<double>(a)) <= 1e-6);
    fft.inverse(a.data(), 70, back.data(), scratch.data());
    CHECK(relative_error(back, cast<double>(x)) <= 1e-6);
    matrix.inverse(a.data(), 70, back.data(), scratch.data());
    CHECK(relative_error(back, cast<double>(x)) <= 1e-6);
    double parseval = 0, sum = 0;
    for (Index f = 0; f < matrix.bins(); ++f)
      parseval += static_cast<double>(matrix.weight(f)) *
                  (std::pow(static_cast<double>(a.data()[f]), 2) +
                   std::pow(static_cast<double>(a.data()[matrix.bins() + f]), 2));
    for (Index c = 0; c < d; ++c) sum += std::pow(static_cast<double>(x.data()[c]), 2);
    CHECK(parseval == Approx(sum).epsilon(1e-5));
  }
}

TEST_CASE("hrrformer: permuted tokens permute the outputs, scaled queries change nothing",
          "[hrrformer][methods]") {
  const Problem p = problem(300, 16, false);
  QKV in = random_inputs(p, 12);
  const Tensor before = run_method("hrrformer", {}, p, in).out;
  QKV moved = in;
  for (Index bh = 0; bh < 4; ++bh)
    for (Index t = 0; t < p.n; ++t) {
      const Index from = (7 * t + 3) % p.n;
      moved.q.view().head(bh).row(t) = 2.5f * in.q.view().head(bh).row(from);
      moved.k.view().head(bh).row(t) = 4 * in.k.view().head(bh).row(from);
      moved.v.view().head(bh).row(t) = in.v.view().head(bh).row(from);
    }
  const Tensor after = run_method("hrrformer", {}, p, moved).out;
  Tensor want = before;
  for (Index bh = 0; bh < 4; ++bh)
    for (Index t = 0; t < p.n; ++t)
      want.view().head(bh).row(t) = before.view().head(bh).row((7 * t + 3) % p.n);
  CHECK(relative_error(after, cast<double>(want)) <= 1e-5);
}

TEST_CASE("hrrformer: weights sum to one and differ by e^2 at most", "[hrrformer][methods]") {
  const Problem p = problem(500, 32, false);
  const QKV in = random_inputs(p, 13);
  const Tensor out = run_method("hrrformer", {}, p, in).out;
  for (Index bh = 0; bh < 4; ++bh) {
    double sum = 0, low = 1e9, high = 0;
    for (Index t = 0; t < p.n; ++t) {
      const double w = static_cast<double>(out.view().head(bh)(t, 0) / in.v.view().head(bh)(t, 0));
      sum += w, low = std::min(low, w), high = std::max(high, w);
    }
    CHECK(sum == Approx(1).epsilon(1e-4));
    CHECK(low > 0);
    CHECK(high / low <= std::exp(2.0) + 1e-3);
  }
}

TEST_CASE("hrrformer: one token with a unit spectrum unbinds its own value",
          "[hrrformer][methods]") {
  // q = k = a shifted impulse: |F(q)| = 1, so vhat = v, a = 1, w = 1 and out = v.
  const Problem p{.n = 1, .n_kv = 1, .d_k = 16, .d_v = 16, .causal = false};
  QKV in = random_inputs(p, 14);
  in.q.fill(0);
  in.k.fill(0);
  in.q.data()[5] = in.k.data()[5] = 1;
  for (const std::string inverse : {"conj", "exact"}) {
    const auto method = make_method("hrrformer", {{"inverse", inverse}});
    method->prepare(p, {});
    Tensor out(1, 1, 1, 16);
    method->forward(in.inputs(), out, nullptr);
    CHECK(relative_error(out, cast<double>(in.v)) <= 1e-6);
  }
}

TEST_CASE("hrrformer: padding is without influence, unless it is let into the sum",
          "[hrrformer][methods]") {
  const Problem p = problem(90, 16, false), shorter = problem(60, 16, false);
  QKV in = random_inputs(p, 15), cut(shorter);
  in.key_mask.assign(180, 1);
  for (std::size_t b = 0; b < 2; ++b)
    std::fill_n(in.key_mask.begin() + static_cast<std::ptrdiff_t>(90 * b + 60), 30,
                std::uint8_t{0});
  for (Index bh = 0; bh < 4; ++bh) {
    cut.q.view().head(bh) = in.q.view().head(bh).topRows(60);
    cut.k.view().head(bh) = in.k.view().head(bh).topRows(60);
    cut.v.view().head(bh) = in.v.view().head(bh).topRows(60);
  }
  for (const bool mask_in_sum : {true, false}) {
    const Settings s{{"mask_in_sum", mask_in_sum}};
    const Tensor padded = run_method("hrrformer", s, p, in).out;
    const Tensor alone = run_method("hrrformer", s, shorter, cut).out;
    float largest = 0;
    for (Index bh = 0; bh < 4; ++bh) {
      largest = std::max(
          largest,
          (padded.view().head(bh).topRows(60) - alone.view().head(bh)).cwiseAbs().maxCoeff());
      CHECK(padded.view().head(bh).bottomRows(30).isZero(0));
    }
    CHECK((largest <= 1e-7f) == mask_in_sum);
  }
}
