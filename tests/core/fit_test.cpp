// Fitting by a method's own gradients, and parameters in files.
#include "harness/core/fit.h"

#include <unistd.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>

#include "harness/core/error.h"
#include "harness/core/method_weights.h"
#include "harness/core/safetensors.h"

namespace subquad {
namespace {

namespace fs = std::filesystem;

// out = a v + b q, with learned a and b; shapes [1, 1, n, d].
class Mix final : public Method {
 public:
  void prepare(const Problem& problem, const Env& env) override {
    for (Parameter* p : {&a_, &b_}) {
      *p = Parameter{};
      p->shape = {1};
      p->value = AlignedArray<float>(1);
      p->grad = AlignedArray<float>(env.gradients ? 1 : 0);
      p->value[0] = 1;
      p->decay = false;
    }
    a_.name = "a";
    b_.name = "b";
    problem_ = problem;
  }
  std::vector<Parameter*> parameters() override { return {&a_, &b_}; }
  void forward(const Inputs& in, TensorView out, Saved*) override {
    training_steps += in.training && in.step > 0 ? 1 : 0;
    for (Index i = 0; i < out.size(); ++i)
      out.data()[i] = a_.value[0] * in.v.data()[i] + b_.value[0] * in.q.data()[i];
  }
  void backward(const Inputs& in, ConstTensorView, ConstTensorView dout, const Saved&,
                const Gradients&) override {
    for (Index i = 0; i < dout.size(); ++i) {
      a_.grad[0] += dout.data()[i] * in.v.data()[i];
      b_.grad[0] += dout.data()[i] * in.q.data()[i];
    }
  }
  double a() const { return static_cast<double>(a_.value[0]); }
  double b() const { return static_cast<double>(b_.value[0]); }
  Index training_steps = 0;

 private:
  Parameter a_, b_;
  Problem problem_;
};

// Random q and v; the "dense" output is 0.3 v - 0.2 q.
class MixData final : public FitData {
 public:
  MixData() : q_(1, 1, 16, 4), k_(1, 1, 16, 4), v_(1, 1, 16, 4), out_(1, 1, 16, 4) {}
  void next(Inputs* inputs, ConstTensorView* dense_out) override {
    fill_normal(derive(1, "q", {count_}), q_.data(), q_.size());
    fill_normal(derive(1, "v", {count_++}), v_.data(), v_.size());
    for (Index i = 0; i < out_.size(); ++i)
      out_.data()[i] = 0.3f * v_.data()[i] - 0.2f * q_.data()[i];
    *inputs = {};
    inputs->q = q_;
    inputs->k = k_;
    inputs->v = v_;
    *dense_out = out_;
  }

 private:
  Tensor q_, k_, v_, out_;
  std::uint64_t count_ = 0;
};

const Problem kProblem{.n = 16, .n_kv = 16, .d_k = 4, .d_v = 4};

TEST_CASE("a fit by gradients finds the parameters that give the dense output", "[fit]") {
  Mix method;
  method.prepare(kProblem, {.gradients = true});
  MixData data;
  Index calls = 0;
  double seen_first = 0;
  FitOptions options;
  options.steps = 300;
  options.learning_rate = 0.05;
  options.progress = [&](Index step, double loss) {
    CHECK(step == ++calls);
    if (step == 1) seen_first = loss;
  };
  const FitReport report = method.fit(data, options);  // what a method does by itself
  CHECK(report.steps == 300);
  CHECK(calls == 300);
  CHECK(method.training_steps == 300);
  CHECK(report.first_loss == seen_first);
  // |0.7 v + 1.2 q|^2 / |0.3 v - 0.2 q|^2 of independent q and v
  CHECK(report.first_loss == Approx((0.49 + 1.44) / (0.09 + 0.04)).epsilon(0.3));
  CHECK(report.last_loss < 1e-4);
  CHECK(method.a() == Approx(0.3).margin(0.01));
  CHECK(method.b() == Approx(-0.2).margin(0.01));

  Mix again;
  again.prepare(kProblem, {.gradients = true});
  MixData same;
  options.progress = {};
  CHECK(again.fit(same, options).last_loss == report.last_loss);
  CHECK(again.a() == method.a());
}

TEST_CASE("no step moves a parameter by much more than the learning rate", "[fit]") {
  Mix method;
  method.prepare(kProblem, {.gradients = true});
  MixData data;
  FitOptions options;
  options.steps = 1;
  options.learning_rate = 0.01;
  fit_by_gradient(method, data, options);
  CHECK(std::abs(method.b() - 1) <= 0.0101);
  CHECK(std::abs(method.b() - 1) >= 0.0099);  // Adam's first step
  options.steps = 0;
  CHECK(fit_by_gradient(method, data, options).steps == 0);
}

TEST_CASE("a fit that diverges stops and says so", "[fit]") {
  Mix method;
  method.prepare(kProblem, {.gradients = true});
  MixData data;
  FitOptions options;
  options.steps = 50;
  options.learning_rate = 1e39;  // beyond float
  const FitReport report = fit_by_gradient(method, data, options);
  CHECK(report.steps < 50);
  CHECK_FALSE(std::isfinite(report.last_loss));
}

struct Nothing final : Method {
  void prepare(const Problem&, const Env&) override {}
  void forward(const Inputs&, TensorView, Saved*) override {}
};

TEST_CASE("a method without parameters cannot be fitted", "[fit]") {
  Nothing method;
  MixData data;
  CHECK_THROWS_AS(method.fit(data, {}), Unsupported);
}

TEST_CASE("parameters go to a file and come back to the bit, or say why not", "[fit]") {
  const std::string path =
      (fs::temp_directory_path() / fmt::format("subquad_weights_{}", getpid())).string();
  Mix method;
  method.prepare(kProblem, {.gradients = true});
  MixData data;
  FitOptions options;
  options.steps = 20;
  method.fit(data, options);
  save_method_weights(path, "mix", {{"width", Index{3}}}, method);
  Mix other;
  other.prepare(kProblem, {});
  REQUIRE(other.a() != method.a());
  load_method_weights(path, "mix", other);
  CHECK(other.a() == method.a());
  CHECK(other.b() == method.b());
  CHECK_THROWS_WITH(load_method_weights(path, "mux", other),
                    Catch::Contains("of the method mix, expected mux"));
  CHECK_THROWS_WITH(load_method_weights(path + "x", "mix", other), Catch::Contains("no such file"));
  Nothing nothing;
  CHECK_THROWS_AS(load_method_weights(path, "mix", nothing), Unsupported);

  // A layer of a trained model: the names of its checkpoint.
  const float a[1] = {7}, b[2] = {8, 9};
  write_safetensors(path,
                    {{"layers.1.method.a", {1}, "F32", a},
                     {"layers.1.method.b", {1}, "F32", b},
                     {"layers.2.method.a", {1}, "F32", a},
                     {"layers.2.method.b", {2}, "F32", b}},
                    {});
  load_method_weights(path + ":1", "mix", other);
  CHECK(other.a() == 7);
  CHECK(other.b() == 8);
  CHECK_THROWS_WITH(load_method_weights(path + ":2", "mix", other),
                    Catch::Contains("layers.2.method.b"));
  CHECK_THROWS_WITH(load_method_weights(path + ":0", "mix", other),
                    Catch::Contains("layers.0.method.a"));
  CHECK_THROWS_AS(load_method_weights(path, "mix", other), UserError);
  fs::remove(path);
}

}  // namespace
}  // namespace subquad
