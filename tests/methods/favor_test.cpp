// Random features: unbiased, orthogonal without a preferred sign, and converging to softmax.
#include "methods/engines/favor.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>

#include "tests/methods/method_fixture.h"
#include "tests/reference/softmax_attention.h"

using namespace subquad;
using namespace subquad::testing;

namespace {

struct Estimate {
  double mean, error;  // of the ratio to the true kernel, and its standard error
};

// Mean over draws of W of phi(q).phi(k) / exp(q.k), through the features themselves.
Estimate kernel_ratio(const FavorOptions& options, const std::vector<float>& q,
                      const std::vector<float>& k, int draws) {
  const auto d = static_cast<Index>(q.size());
  double truth = 0, sum = 0, squares = 0;
  for (std::size_t c = 0; c < q.size(); ++c)
    truth += static_cast<double>(q[c]) * static_cast<double>(k[c]);
  for (int draw = 0; draw < draws; ++draw) {
    const auto map = make_favor_map(options, 1);
    map->prepare(d, derive(17, "draw", {static_cast<std::uint64_t>(draw)}), 1, 0);
    const Index features = map->features(d), wide = (features + 15) / 16 * 16;
    std::vector<float> a(static_cast<std::size_t>(wide)), b(a),
        scratch(static_cast<std::size_t>(map->scratch_floats(d, 1)));
    map->apply(FeatureMap::Side::key, 0, q.data(), 1, d, a.data(), wide, scratch.data());
    map->apply(FeatureMap::Side::key, 0, k.data(), 1, d, b.data(), wide, scratch.data());
    double dot = 0;
    for (std::size_t f = 0; f < a.size(); ++f)
      dot += static_cast<double>(a[f]) * static_cast<double>(b[f]);
    dot /= std::exp(truth);
    sum += dot;
    squares += dot * dot;
  }
  const double mean = sum / draws;
  return {mean, std::sqrt(std::max(0.0, squares / draws - mean * mean) / draws)};
}

}  // namespace

TEST_CASE("random features are unbiased within three standard errors over 2000 draws",
          "[methods][favor]") {
  // Along the first axis a QR factor without its signs put right was off by 10 %.
  const std::vector<float> axis{0.7f, 0, 0, 0, 0, 0, 0, 0}, back{-0.7f, 0, 0, 0, 0, 0, 0, 0};
  const std::vector<float> q{0.3f, -0.2f, 0.5f, 0.1f, -0.4f, 0.2f, 0.6f, -0.1f},
      k{-0.1f, 0.4f, 0.3f, 0.2f, 0.1f, -0.3f, 0.2f, 0.5f};
  for (const std::string form : {"positive", "hyperbolic", "trigonometric"})
    for (const bool orthogonal : {true, false}) {
      const FavorOptions options{
          .form = form, .features = 8, .orthogonal = orthogonal, .stabiliser = false};
      for (const auto& [a, b] : {std::pair{axis, axis}, {back, back}, {axis, back}, {q, k}}) {
        const Estimate e = kernel_ratio(options, a, b, 2000);
        INFO(form << (orthogonal ? " orthogonal: " : " independent: ") << e.mean << " +- "
                  << e.error);
        CHECK(std::fabs(e.mean - 1) <= 3 * e.error + 1e-6);
      }
    }
}

TEST_CASE("orthogonal rows are orthogonal, and reduce the variance", "[methods][favor]") {
  const MatrixD w = favor_projection(20, 8, {}, 3);
  for (Index r = 0; r < 20; ++r)
    for (Index s = 0; s < r; ++s)
      if (r / 8 == s / 8) CHECK(std::fabs(w.row(r).dot(w.row(s))) <= 1e-12);
  const MatrixD root = favor_projection(8, 8, {.norms = "sqrt_d"}, 3);
  for (Index r = 0; r < 8; ++r) CHECK(root.row(r).norm() == Approx(std::sqrt(8.0)));
  const std::vector<float> x{0.5f, -0.3f, 0.2f, 0.4f, 0.1f, -0.6f, 0.3f, 0.2f};
  const auto spread = [&](bool orthogonal) {
    return kernel_ratio({.features = 16, .orthogonal = orthogonal, .stabiliser = false}, x, x, 2000)
        .error;
  };
  CHECK(spread(true) < spread(false));
}

// One over the square root holds where weights are off by little, and a mean over draws shows it
// where it does not hang on rare draws. With logits of deviation T and d = 16, s = q + k as the
// features see it has entries of variance T / 2. A direction's product has the relative variance
// exp(|s|^2) - 1, whose mean over tokens is (1 - T)^-8 - 1, and the squares of the errors have a
// variance of their own only where E exp(4 |s|^2), so for T < 1/4. At T = 1/10 the relative
// deviation is 1.15 per direction, 0.14 to 0.02 over the sweep; at T = 0.36, by contrast, 5.9 per
// direction, with a mean square that single draws make up.
TEST_CASE("the error of random features falls as one over the square root of their number",
          "[methods][favor]") {
  const Problem p{.batch = 1, .heads = 1, .n = 128, .n_kv = 128, .d_k = 16, .d_v = 16};
  QKV in(p);
  make_task("gaussian", {{"temperature", 0.1}})->fill(p, 20, 0, &in);
  const auto call = double_call(p, in);
  const TensorD want = reference::softmax_attention(call, reference::sees_everything(call));
  for (const std::string form : {"positive", "hyperbolic"}) {
    std::vector<double> x, y;
    for (Index features = 64; features <= 4096; features *= 4) {
      double squares = 0;
      constexpr int kDraws = 12;
      for (Seed seed = 0; seed < kDraws; ++seed) {
        const auto method = make_method("performer", {{"features", features}, {"form", form}});
        method->prepare(p, {.seed = seed});
        Tensor out(1, 1, p.n, p.d_v);
        method->forward(in.inputs(), out, nullptr);
        squares += std::pow(relative_error(out, want), 2);
      }
      x.push_back(std::log(static_cast<double>(features)));
      y.push_back(0.5 * std::log(squares / kDraws));
    }
    double mean_x = 0, mean_y = 0, xy = 0, xx = 0;
    for (std::size_t i = 0; i < x.size(); ++i) mean_x += x[i] / 4, mean_y += y[i] / 4;
    for (std::size_t i = 0; i < x.size(); ++i)
      xy += (x[i] - mean_x) * (y[i] - mean_y), xx += (x[i] - mean_x) * (x[i] - mean_x);
    INFO(form << ": slope " << xy / xx << ", errors " << std::exp(y[0]) << " to "
              << std::exp(y[3]));
    CHECK(std::fabs(xy / xx + 0.5) <= 0.08);
  }
}

TEST_CASE("the stabiliser changes nothing but the range", "[methods][favor]") {
  for (const bool causal : {false, true}) {
    const Problem p{
        .batch = 1, .heads = 2, .n = 70, .n_kv = 70, .d_k = 8, .d_v = 4, .causal = causal};
    const QKV in = random_inputs(p, 21);
    const auto run = [&](const char* form, bool stabiliser) {
      return run_method("performer", {{"form", form}, {"eps", 0.0}, {"stabiliser", stabiliser}}, p,
                        in)
          .out;
    };
    for (const char* form : {"positive", "hyperbolic"})
      CHECK(relative_error(run(form, true), cast<double>(run(form, false))) <= 1e-5);
  }
  // Without it these queries and keys underflow; with it they stay finite and not all zero.
  const Problem p{.batch = 1, .heads = 1, .n = 40, .n_kv = 40, .d_k = 16, .d_v = 4};
  const QKV in = random_inputs(p, 22, 30);
  const Tensor out = run_method("performer", {}, p, in).out;
  double size = 0;
  for (Index e = 0; e < out.size(); ++e) size += std::fabs(static_cast<double>(out.data()[e]));
  CHECK((std::isfinite(size) && size > 0.1));
}

TEST_CASE("projections are redrawn in training, by seed", "[methods][favor]") {
  const Problem p{.batch = 1, .heads = 1, .n = 20, .n_kv = 20, .d_k = 8, .d_v = 4};
  const QKV in = random_inputs(p, 23);
  const auto method = make_method("performer", {{"redraw", Index{10}}});
  method->prepare(p, {.seed = 5});
  const auto run = [&](bool training, std::uint64_t step) {
    Inputs inputs = in.inputs();
    inputs.training = training;
    inputs.step = step;
    Tensor out(1, 1, p.n, p.d_v);
    method->forward(inputs, out, nullptr);
    return out;
  };
  const TensorD first = cast<double>(run(true, 0));
  CHECK(relative_error(run(true, 9), first) == 0);
  CHECK(relative_error(run(true, 10), first) > 1e-3);
  CHECK(relative_error(run(true, 3), first) == 0);
  CHECK(relative_error(run(false, 12), first) == 0);
}
