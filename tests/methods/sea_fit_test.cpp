// SEA: fitting its tensors, and keeping them.
#include "methods/engines/sea_fit.h"

#include <unistd.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "harness/core/method_weights.h"
#include "tests/methods/method_fixture.h"

using namespace subquad;
using namespace subquad::testing;

namespace {

// The same three calls in turn.
class FewSets final : public FitData {
 public:
  FewSets(const Problem& p, Index sets) {
    for (Index i = 0; i < sets; ++i) {
      inputs_.push_back(random_inputs(p, static_cast<Seed>(30 + i), 3));
      outputs_.push_back(cast<float>(
          reference::references().at("dense").forward({}, double_call(p, inputs_.back()))));
    }
  }
  void next(Inputs* inputs, ConstTensorView* dense) override {
    *inputs = inputs_[at_].inputs();
    *dense = outputs_[at_];
    at_ = (at_ + 1) % inputs_.size();
  }

 private:
  std::vector<QKV> inputs_;
  std::vector<Tensor> outputs_;
  std::size_t at_ = 0;
};

Problem sea_problem(Index n, bool causal) {
  return {.batch = 1, .heads = 2, .n = n, .n_kv = n, .d_k = 8, .d_v = 8, .causal = causal};
}

// Every token of the only batch item, one after another.
Tensor decode(const Method& method, const Problem& p, const QKV& in) {
  const auto decoder =
      method.make_decoder({.heads = p.heads, .capacity = p.n, .d_k = p.d_k, .d_v = p.d_v});
  Tensor out(1, p.heads, p.n, p.d_v);
  std::vector<float> q(static_cast<std::size_t>(p.heads * p.d_k)),
      k = q, v(static_cast<std::size_t>(p.heads * p.d_v)), o = v;
  for (Index t = 0; t < p.n; ++t) {
    for (Index h = 0; h < p.heads; ++h) {
      std::copy_n(in.q.data() + (h * p.n + t) * p.d_k, p.d_k, q.data() + h * p.d_k);
      std::copy_n(in.k.data() + (h * p.n + t) * p.d_k, p.d_k, k.data() + h * p.d_k);
      std::copy_n(in.v.data() + (h * p.n + t) * p.d_v, p.d_v, v.data() + h * p.d_v);
    }
    decoder->step({q.data(), k.data(), v.data()}, o.data());
    for (Index h = 0; h < p.heads; ++h)
      std::copy_n(o.data() + h * p.d_v, p.d_v, out.data() + (h * p.n + t) * p.d_v);
  }
  return out;
}

}  // namespace

TEST_CASE("sea: a fit lowers its loss, and what it learned survives in a file", "[sea]") {
  const std::string path =
      (std::filesystem::temp_directory_path() / fmt::format("sea_{}.safetensors", getpid()))
          .string();
  for (const bool causal : {false, true})
    for (const std::string stages : {"estimator_then_gates", "joint", "gates"}) {
      INFO(stages << " causal " << causal);
      const Problem p = sea_problem(48, causal);
      Settings settings{
          {"cells", Index{8}}, {"top_k", Index{12}}, {"input_norm", std::string("block_ln")}};
      settings["fit_stages"] = stages;
      FewSets data(p, 3);
      const auto method = make_method("sea", settings);
      method->prepare(p, {});
      FitOptions options;
      options.steps = 140;
      options.learning_rate = 3e-3;
      const FitReport report = method->fit(data, options);
      CHECK(report.steps == 140);
      CHECK(report.last_loss < report.first_loss);
      save_method_weights(path, "sea", settings, *method);
      const QKV in = random_inputs(p, 31, 3);
      Tensor fitted(1, 2, p.n, 8), loaded = fitted, initial = fitted;
      method->forward(in.inputs(), fitted, nullptr);
      const auto again = make_method("sea", settings);
      again->prepare(p, {});
      load_method_weights(path, "sea", *again);
      again->forward(in.inputs(), loaded, nullptr);
      CHECK(std::memcmp(fitted.data(), loaded.data(),
                        static_cast<std::size_t>(fitted.size()) * sizeof(float)) == 0);
      // Decoding uses the tensors that were loaded, not those that the seed gives.
      if (causal) CHECK(relative_error(decode(*again, p, in), cast<double>(fitted)) <= 1e-4);
      // Other sizes do not fit the file.
      const auto other = make_method("sea", {{"cells", Index{16}}});
      other->prepare(p, {});
      CHECK_THROWS_AS(load_method_weights(path, "sea", *other), UserError);
    }
  std::filesystem::remove(path);
}

TEST_CASE("sea: the matrix losses are those of whole attention matrices", "[sea]") {
  const double kl = 0.1, mse = 1;
  for (const bool causal : {false, true}) {
    INFO("causal " << causal);
    const Index n = 70, heads = 2;  // more than one block of rows
    const Problem p = sea_problem(n, causal);
    SeaOptions options;
    options.cells = 8;
    options.top_k = 12;
    options.relu = causal;
    options.position = causal ? SeaOptions::Position::learned : SeaOptions::Position::identity;
    options.channels = causal ? 2 : 4;
    options.stretch = causal ? 4 : 2;
    SeaWeights weights;
    weights.make(SeaAttention::shape_of(p, options), 1, true);
    SeaAttention attention;
    attention.prepare(p, options, &weights, 1, true);
    const QKV mine = random_inputs(p, 41, 3), teacher = random_inputs(p, 42, 3);
    const Inputs in = mine.inputs();
    Tensor dq(1, heads, n, 8), dk = dq, dv = dq;
    SeaMatrixLoss loss(attention, weights, kl, mse);
    const double got = loss.run(in, teacher.q, teacher.k, 0.5, {dq, dk, dv, {}});
    const auto exact = [&](const QKV& x, Index h, Index t) {
      std::vector<double> row(static_cast<std::size_t>(n));
      double sum = 0;
      for (Index j = 0; j < (causal ? t + 1 : n); ++j) {
        double dot = 0;
        for (Index c = 0; c < 8; ++c)
          dot += static_cast<double>(x.q.data()[(h * n + t) * 8 + c]) *
                 static_cast<double>(x.k.data()[(h * n + j) * 8 + c]);
        sum += row[static_cast<std::size_t>(j)] = std::exp(dot * p.logit_scale());
      }
      for (double& e : row) e /= sum;
      return row;
    };
    double want = 0;
    std::vector<float> estimate(static_cast<std::size_t>(n));
    for (Index h = 0; h < heads; ++h)
      for (Index t = 0; t < n; ++t) {
        attention.estimated_row(in, 0, h, t, estimate.data());
        const std::vector<double> target = exact(teacher, h, t), own = exact(mine, h, t);
        for (std::size_t j = 0; j < target.size(); ++j)
          for (const double guess : {static_cast<double>(estimate[j]), own[j]}) {
            if (target[j] > 0)
              want += kl * target[j] * std::log(target[j] / guess) / static_cast<double>(heads * n);
            want += mse * (target[j] - guess) * (target[j] - guess) /
                    static_cast<double>(heads * n * n);
          }
      }
    CHECK(std::abs(got - want) <= 1e-5 * want);
  }
}
