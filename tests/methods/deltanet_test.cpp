// The delta rule: its chunked form against the recurrence, rates of their own, and what it stores.
#include "tests/reference/deltanet.h"

#include <catch2/catch.hpp>

#include "methods/engines/delta_scan.h"
#include "tests/methods/method_fixture.h"

using namespace subquad;
using namespace subquad::testing;

namespace {

Problem problem(Index n, Index d_k, Index d_v, double scale = 0) {
  Problem p{.batch = 1, .heads = 2, .n = n, .n_kv = n, .d_k = d_k, .d_v = d_v, .causal = true};
  p.scale = scale;
  return p;
}

}  // namespace

TEST_CASE("rates of their own per token, and their gradients", "[methods][deltanet]") {
  const Problem p = problem(90, 6, 5);
  const QKV in = random_inputs(p, 1);
  std::vector<float> beta(static_cast<std::size_t>(p.heads * p.n));
  fill_uniform(2, beta.data(), p.heads * p.n);
  Tensor dout(1, 2, p.n, p.d_v), out(dout.shape()), dq(in.q.shape()), dk(in.k.shape()),
      dv(in.v.shape());
  fill_normal(3, dout.data(), dout.size());
  for (const bool normalize : {true, false})
    for (const Index chunk : {16, 32, 96}) {
      std::vector<float> rates = beta, dbeta(beta.size());
      if (!normalize)
        for (float& b : rates) b *= 0.1f;  // beta |k|^2 < 2
      DeltaScan scan;
      scan.prepare(p, {.normalize = normalize, .chunk = chunk}, true);
      AlignedArray<float> states(scan.saved_floats());
      scan.forward(in.inputs(), rates.data(), out, states.data());
      scan.backward(in.inputs(), rates.data(), dout, states.data(), {dq, dk, dv, {}}, dbeta.data());
      const reference::DeltaOptions options{{rates.begin(), rates.end()}, normalize};
      const TensorD weights = cast<double>(dout);
      reference::DeltaGradient want;
      const TensorD exact = reference::delta_rule(double_call(p, in), options, &weights, &want);
      INFO("chunk " << chunk << " normalize " << normalize);
      CHECK(relative_error(out, exact) <= 1e-5);
      CHECK(relative_error(dq, want.qkv.dq) <= 1e-5);
      CHECK(relative_error(dk, want.qkv.dk) <= 1e-5);
      CHECK(relative_error(dv, want.qkv.dv) <= 1e-5);
      double difference = 0, size = 0;
      for (std::size_t j = 0; j < dbeta.size(); ++j) {
        difference += std::pow(static_cast<double>(dbeta[j]) - want.dbeta[j], 2);
        size += want.dbeta[j] * want.dbeta[j];
      }
      CHECK(std::sqrt(difference / size) <= 1e-5);
    }
}

TEST_CASE("the reference's gradient of the rates equals central differences",
          "[methods][deltanet]") {
  const Problem p = problem(6, 3, 4);
  const auto call = double_call(p, random_inputs(p, 4));
  reference::DeltaOptions options{{}, true};
  for (Index j = 0; j < 12; ++j) options.beta.push_back(0.1 + 0.07 * static_cast<double>(j));
  TensorD dout(1, 2, p.n, p.d_v);
  for (Index e = 0; e < dout.size(); ++e) dout.data()[e] = std::sin(static_cast<double>(e));
  reference::DeltaGradient gradient;
  reference::delta_rule(call, options, &dout, &gradient);
  for (std::size_t j = 0; j < 12; ++j) {
    const auto loss = [&](double step) {
      reference::DeltaOptions moved = options;
      moved.beta[j] += step;
      const TensorD out = reference::delta_rule(call, moved);
      double sum = 0;
      for (Index e = 0; e < out.size(); ++e) sum += out.data()[e] * dout.data()[e];
      return sum;
    };
    CHECK(gradient.dbeta[j] == Approx((loss(1e-5) - loss(-1e-5)) / 2e-5).epsilon(1e-6));
  }
}

TEST_CASE("with rate one and orthonormal keys the last value under a key is retrieved exactly",
          "[methods][deltanet]") {
  const Index n = 70, d = 8;
  Problem p = problem(n, d, 5, 1);
  p.heads = 1;
  QKV in = random_inputs(p, 5);
  in.k.fill(0);
  in.q.fill(0);
  std::vector<Index> last(static_cast<std::size_t>(d), -1);
  Random random(6);
  Tensor want(1, 1, n, 5);
  for (Index t = 0; t < n; ++t) {
    const auto written = static_cast<Index>(random.below(8)), asked = written * 3 % d;
    in.k.data()[t * d + written] = 1;
    in.q.data()[t * d + asked] = 1;
    last[static_cast<std::size_t>(written)] = t;
    const Index from = last[static_cast<std::size_t>(asked)];
    for (Index c = 0; c < 5 && from >= 0; ++c) want.data()[t * 5 + c] = in.v.data()[from * 5 + c];
  }
  const Settings settings{{"beta", 1.0}, {"normalize", false}};
  CHECK(relative_error(run_method("deltanet", settings, p, in).out, cast<double>(want)) <= 1e-6);
  const Settings none{{"beta", 0.0}};
  CHECK(run_method("deltanet", none, p, in).out.head(0, 0).isZero(0));
}
