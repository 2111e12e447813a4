// Learned projections of ZETA: against a plain transcription, gradients, decoding, a fit.
#include "methods/engines/zeta_projection.h"

#include <catch2/catch.hpp>
#include <cmath>

#include "harness/measure/conformance.h"
#include "tests/methods/method_fixture.h"
#include "tests/reference/zeta.h"

using namespace subquad;
using namespace subquad::testing;

namespace {

constexpr Index kWidth = 6, kKey = 3, kHidden = 5, kHeads = 2;

Problem problem(Index n, bool causal) {
  return {
      .batch = 2, .heads = kHeads, .n = n, .n_kv = n, .d_k = kWidth, .d_v = 5, .causal = causal};
}

Settings settings_of(const std::string& proj) {
  return {{"proj", proj},
          {"proj_hidden", Index{kHidden}},
          {"top_k", Index{5}},
          {"chunk", Index{8}},
          {"bits", Index{12}}};
}

// The parameters of a prepared method in double, as the equations name them.
struct Map {
  bool mlp = false;
  std::vector<double> w1, b1, w2, b2;  // [heads, d, hidden], [heads, hidden], [heads, .., d_key]

  std::vector<std::vector<double>*> all() {
    return mlp ? std::vector{&w1, &b1, &w2, &b2} : std::vector{&w2, &b2};
  }
  TensorD operator()(const Tensor& x) const {
    TensorD y(x.batch(), x.heads(), x.n(), kKey);
    const Index inner = mlp ? kHidden : kWidth;
    for (Index b = 0; b < x.batch(); ++b)
      for (Index h = 0; h < x.heads(); ++h)
        for (Index i = 0; i < x.n(); ++i) {
          std::vector<double> a;
          for (Index j = 0; j < inner; ++j) {
            if (!mlp) {
              a.push_back(static_cast<double>(x.view().head(b, h)(i, j)));
              continue;
            }
            double z = b1[static_cast<std::size_t>(h * kHidden + j)];
            for (Index e = 0; e < kWidth; ++e)
              z += w1[static_cast<std::size_t>((h * kWidth + e) * kHidden + j)] *
                   static_cast<double>(x.view().head(b, h)(i, e));
            a.push_back(z / 2 * std::erfc(-z / std::sqrt(2.0)));
          }
          for (Index c = 0; c < kKey; ++c) {
            double sum = b2[static_cast<std::size_t>(h * kKey + c)];
            for (Index j = 0; j < inner; ++j)
              sum += w2[static_cast<std::size_t>((h * inner + j) * kKey + c)] *
                     a[static_cast<std::size_t>(j)];
            y.data()[((b * x.heads() + h) * x.n() + i) * kKey + c] = sum;
          }
        }
    return y;
  }
};

struct Maps {
  Map q, k;
};

// Random parameters (biases too) put into the method, and the same in double.
Maps randomised(Method& method, bool mlp) {
  Maps maps;
  maps.q.mlp = maps.k.mlp = mlp;
  std::vector<std::vector<double>*> to;
  for (Map* map : {&maps.q, &maps.k})
    for (std::vector<double>* part : map->all()) to.push_back(part);
  const auto parameters = method.parameters();
  REQUIRE(parameters.size() == to.size() + 1);  // theta is the first
  for (std::size_t p = 0; p < to.size(); ++p) {
    Parameter& parameter = *parameters[p + 1];
    fill_normal(derive(9, parameter.name), parameter.value.data(), parameter.value.size());
    for (Index e = 0; e < parameter.value.size(); ++e) {
      parameter.value[e] *= 0.4f;
      to[p]->push_back(static_cast<double>(parameter.value[e]));
    }
  }
  return maps;
}

reference::Call projected_call(const Problem& p, const QKV& in, const Maps& maps) {
  Problem inner = p;
  inner.d_k = kKey;
  reference::Call call = double_call(p, in);
  call.problem = inner;
  call.q = maps.q(in.q);
  call.k = maps.k(in.k);
  return call;
}

}  // namespace

TEST_CASE("learned projections are those of their equations, forward and backward",
          "[methods][zeta]") {
  for (const std::string proj : {"linear", "mlp"})
    for (const bool causal : {false, true}) {
      INFO(proj << " causal=" << causal);
      const Problem p = problem(50, causal);
      const QKV in = random_inputs(p, 21);
      const auto method = make_method("zeta", settings_of(proj));
      method->prepare(p, {.seed = 4, .gradients = true});
      Maps maps = randomised(*method, proj == "mlp");
      const auto rule = reference::ZetaRule::from("zeta", resolved("zeta", settings_of(proj)));
      Tensor out(p.batch, p.heads, p.n, p.d_v), dout = out;
      fill_normal(22, dout.data(), dout.size());
      const TensorD d = cast<double>(dout);
      const auto loss = [&](reference::ZetaGradient* gradient) {
        const TensorD o =
            reference::zeta_attention(rule, projected_call(p, in, maps), &d, gradient);
        double sum = 0;
        for (Index e = 0; e < o.size(); ++e) sum += o.data()[e] * d.data()[e];
        return sum;
      };
      const auto saved = method->make_saved();
      method->forward(in.inputs(), out, saved.get());
      CHECK(relative_error(out, reference::zeta_attention(rule, projected_call(p, in, maps))) <=
            1e-5);

      Tensor dq(in.q.shape()), dk(in.k.shape()), dv(in.v.shape());
      for (Parameter* parameter : method->parameters())
        std::fill_n(parameter->grad.data(), parameter->grad.size(), 0.0f);
      method->backward(in.inputs(), out, dout, *saved, {dq, dk, dv, {}});
      // Central differences in double, of every parameter and of some inputs.
      const auto parameters = method->parameters();
      std::size_t number = 1;
      constexpr double kStep = 1e-6;
      for (Map* map : {&maps.q, &maps.k})
        for (std::vector<double>* part : map->all()) {
          const Parameter& parameter = *parameters[number++];
          REQUIRE(part->size() == static_cast<std::size_t>(parameter.value.size()));
          double scale = 0;
          for (Index e = 0; e < parameter.grad.size(); ++e)
            scale = std::max(scale, std::fabs(static_cast<double>(parameter.grad[e])));
          REQUIRE(scale > 0);
          for (std::size_t e = 0; e < part->size(); ++e) {
            const double kept = (*part)[e];
            (*part)[e] = kept + kStep;
            const double up = loss(nullptr);
            (*part)[e] = kept - kStep;
            const double down = loss(nullptr);
            (*part)[e] = kept;
            const double numeric = (up - down) / (2 * kStep);
            const double got = static_cast<double>(parameter.grad[static_cast<Index>(e)]);
            INFO(parameter.name << "[" << e << "]: " << got << ", differences " << numeric);
            CHECK(std::fabs(got - numeric) <= 1e-4 * scale);
          }
        }
      // dq through the map: dx = J^T dy, from differences of the map alone.
      reference::ZetaGradient gradient;
      loss(&gradient);
      for (const auto& [x, map, dx, dy] : {std::tuple{&in.q, &maps.q, &dq, &gradient.qkv.dq},
                                           std::tuple{&in.k, &maps.k, &dk, &gradient.qkv.dk}})
        for (const Index e : {Index{0}, Index{7}, x->size() / 2, x->size() - 1}) {
          Tensor up = *x, down = *x;
          up.data()[e] += 1e-2f;
          down.data()[e] -= 1e-2f;
          const double step =
              static_cast<double>(up.data()[e]) - static_cast<double>(down.data()[e]);
          const TensorD yu = (*map)(up), yd = (*map)(down);
          double numeric = 0;
          for (Index i = 0; i < yu.size(); ++i)
            numeric += dy->data()[i] * (yu.data()[i] - yd.data()[i]) / step;
          CHECK(static_cast<double>(dx->data()[e]) == Approx(numeric).epsilon(1e-3).margin(1e-4));
        }
    }
}

TEST_CASE("queries and keys begin with one map, which depends on the seed", "[methods][zeta]") {
  const Problem p = problem(20, true);
  for (const std::string proj : {"linear", "mlp"}) {
    const auto values = [&](Seed seed) {
      const auto method = make_method("zeta", settings_of(proj));
      method->prepare(p, {.seed = seed, .gradients = true});
      std::vector<std::vector<float>> all;
      for (const Parameter* parameter : method->parameters())
        all.emplace_back(parameter->value.data(),
                         parameter->value.data() + parameter->value.size());
      return all;
    };
    const auto one = values(1);
    const std::size_t each = (one.size() - 1) / 2;
    for (std::size_t e = 1; e <= each; ++e) CHECK(one[e] == one[e + each]);
    CHECK(values(1) == one);
    CHECK(values(2) != one);
  }
}

TEST_CASE("a NaN behind the mask or in the future stays out of learned projections",
          "[methods][zeta]") {
  const Problem p = problem(40, true);
  QKV in = random_inputs(p, 23);
  in.key_mask.assign(80, 1);
  in.key_mask[5] = in.key_mask[47] = 0;
  for (const Index h : {0, 1}) {
    in.k.head(0, h).row(5).setConstant(std::nanf(""));
    in.k.head(1, h).row(7).setConstant(std::nanf(""));
  }
  for (const std::string proj : {"linear", "mlp"}) {
    const auto method = make_method("zeta", settings_of(proj));
    method->prepare(p, {.seed = 4, .gradients = true});
    Tensor out(p.batch, p.heads, p.n, p.d_v), dout = out;
    fill_normal(24, dout.data(), dout.size());
    const auto saved = method->make_saved();
    for (Parameter* parameter : method->parameters())
      std::fill_n(parameter->grad.data(), parameter->grad.size(), 0.0f);
    method->forward(in.inputs(), out, saved.get());
    Tensor dq(in.q.shape()), dk(in.k.shape()), dv(in.v.shape());
    method->backward(in.inputs(), out, dout, *saved, {dq, dk, dv, {}});
    for (const Parameter* parameter : method->parameters())
      for (Index e = 0; e < parameter->grad.size(); ++e) {
        INFO(proj << " " << parameter->name << "[" << e << "]");
        REQUIRE(std::isfinite(parameter->grad[e]));
      }
    for (Index e = 0; e < dk.size(); ++e) REQUIRE(std::isfinite(dk.data()[e]));
  }
}

TEST_CASE("decoding goes through the learned projections of the method", "[methods][zeta]") {
  const Problem p = problem(60, true);
  const QKV in = random_inputs(p, 25);
  for (const std::string proj : {"linear", "mlp"})
    for (const bool changed : {false, true}) {
      INFO(proj << " changed=" << changed);
      const auto method = make_method("zeta", settings_of(proj));
      method->prepare(p, {.seed = 4, .gradients = true});
      if (changed) randomised(*method, proj == "mlp");
      Tensor want(p.batch, p.heads, p.n, p.d_v), got = want;
      method->forward(in.inputs(), want, nullptr);
      const DecodeConfig config{
          .batch = 2, .heads = kHeads, .capacity = 60, .d_k = kWidth, .d_v = 5, .seed = 4};
      // A method that was not prepared decodes with what prepare() would begin with.
      const auto fresh = make_method("zeta", settings_of(proj));
      const auto decoder = (changed ? *method : *fresh).make_decoder(config);
      std::vector<float> q(4 * kWidth), k(q), v(4 * 5), out(4 * 5);
      for (Index t = 0; t < p.n; ++t) {
        for (Index bh = 0; bh < 4; ++bh) {
          std::copy_n(in.q.view().head(bh).row(t).data(), kWidth, q.data() + bh * kWidth);
          std::copy_n(in.k.view().head(bh).row(t).data(), kWidth, k.data() + bh * kWidth);
          std::copy_n(in.v.view().head(bh).row(t).data(), 5, v.data() + bh * 5);
        }
        decoder->step({q.data(), k.data(), v.data()}, out.data());
        for (Index bh = 0; bh < 4; ++bh)
          std::copy_n(out.data() + bh * 5, 5, got.data() + (bh * p.n + t) * 5);
      }
      CHECK(relative_error(got, cast<double>(want)) <= 1e-5);
    }
}

TEST_CASE("projections wider than the work space are refused", "[methods][zeta]") {
  Problem p = problem(8, true);
  p.d_k = 2048;
  CHECK(make_method("zeta", {{"proj", std::string("mlp")}})->unsupported(p, Pass::forward) != "");
  CHECK(make_method("zeta", {{"proj", std::string("mlp")}, {"proj_hidden", Index{64}}})
            ->unsupported(p, Pass::forward) == "");
  CHECK(make_method("zeta", {{"proj", std::string("linear")}})->unsupported(p, Pass::forward) ==
        "");
}

TEST_CASE("the generated checks hold with learned projections too", "[methods][zeta][slow]") {
  for (const std::string proj : {"linear", "mlp"})
    for (const std::string name : {"zeta", "cauchy_dense"}) {
      MethodEntry entry = Registry::instance().method(name);
      for (ParamSpec& spec : entry.params)
        if (spec.name == "proj") spec.default_value = proj;
      // Along a weight of the map nearly every query of zeta changes its choice: differences are
      // checked where nothing is chosen, and above in double for a fixed choice.
      ConformanceOptions options;
      if (name == "zeta") options.skip = {"central differences"};
      for (const CheckResult& result : check_method(entry, options)) {
        INFO(name << " proj=" << proj << ": " << result.check << ": " << result.detail);
        CHECK(result.outcome != CheckOutcome::failed);
      }
    }
}
