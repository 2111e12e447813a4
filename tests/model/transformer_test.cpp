// The model's gradients: against central differences in double, and float with a real method
// against double with attention out of single ops.

#include <catch2/catch.hpp>

#include "harness/core/parallel.h"
#include "tests/model/model_fixture.h"

namespace subquad {
namespace {

struct Case {
  const char* name;
  LabelSpec spec;
  std::function<void(TrainSetup&)> change;
  bool padded = false;
};

const std::vector<Case> kCases{
    {"pre-norm, learned positions", kToyTokens, [](TrainSetup&) {}},
    {"post-norm, sinusoidal, relu", kToyTokens,
     [](TrainSetup& s) {
       s.options.norm = "post";
       s.options.positions = "sinusoidal";
       s.options.activation = "relu";
     }},
    {"rotary, convolution, no MLP", kToyTokens,
     [](TrainSetup& s) {
       s.options.positions = "rope";
       s.options.conv = 3;
       s.options.mlp = 0;
     }},
    {"sinusoidal concatenated, gelu_tanh, d_k != d_v", kToyTokens,
     [](TrainSetup& s) {
       s.options.positions = "sinusoidal_concat";
       s.options.activation = "gelu_tanh";
       s.problem.d_k = 6;
     }},
    {"own output layer, width apart from the heads", kToyTokens,
     [](TrainSetup& s) {
       s.options.tied = false;
       s.options.d_model = 20;
     }},
    {"two tokens in a position, side by side", kToyFused, [](TrainSetup&) {}},
    {"two tokens in a position, added", kToyFused, [](TrainSetup& s) { s.options.merge = "sum"; }},
    {"classifier by mean over real tokens", kToyClasses,
     [](TrainSetup& s) { s.problem.causal = false; }, true},
    {"classifier by CLS", kToyClasses,
     [](TrainSetup& s) {
       s.problem.causal = false;
       s.options.pool = "cls";
     },
     true},
    {"classifier by the last token", kToyClasses, [](TrainSetup& s) { s.options.pool = "last"; }},
    {"two towers", kToyPairs, [](TrainSetup& s) { s.problem.causal = false; }, true}};

// Loss and gradients in double, by single ops.
struct Double {
  TrainSetup setup;
  Transformer<double> model;
  TokenBatch batch;
  std::vector<double> weights, grads;

  explicit Double(const TrainSetup& s)
      : setup(s),
        model(s.options, model_sizes(s)),
        batch(s.task->tokens(Split::train, 0, s.problem.batch, s.problem.n, s.seed)),
        weights(static_cast<std::size_t>(model.layout().size())),
        grads(weights.size()) {}

  autodiff::Tape<double> tape;

  double loss(bool gradients) {
    tape.clear();
    PlainLayers<double> attention(setup.problem.causal);
    ModelWork work;
    const ModelInput input{setup.problem.batch, batch.tokens, batch.labels,
                           batch.lengths,       false,        0};
    const auto out = model.forward(tape, weights.data(), gradients ? grads.data() : nullptr, input,
                                   0, attention, &work);
    if (gradients) tape.backward(out.loss);
    return *out.loss.data();
  }
};

// Weights of a size at which nothing is negligible.
void randomise(const ParameterLayout& layout, float* weights) {
  for (const ParameterEntry& entry : layout.entries()) {
    fill_normal(derive(5, entry.name), weights + entry.offset, entry.dims.count());
    for (Index i = 0; i < entry.dims.count(); ++i)
      weights[entry.offset + i] =
          static_cast<float>(entry.init_mean) + 0.3f * weights[entry.offset + i];
  }
}

TEST_CASE("gradients of a 2-layer model are those of central differences", "[model]") {
  const Threads threads(1);  // too small for more
  for (const Case& c : kCases) {
    const ToyTask task(c.spec, c.padded);
    TrainSetup setup = toy_setup(task);
    setup.problem.batch = 2;
    setup.problem.n = setup.problem.n_kv = 6;
    c.change(setup);
    Double d(setup);
    std::vector<float> start(d.weights.size());
    randomise(d.model.layout(), start.data());
    std::copy(start.begin(), start.end(), d.weights.begin());
    d.loss(true);
    double whole = 0;
    for (const double g : d.grads) whole += g * g;
    whole = std::sqrt(whole);
    for (const ParameterEntry& entry : d.model.layout().entries()) {
      INFO(c.name << ", " << entry.name);
      // Along a random direction of every tensor.
      std::vector<double> direction(static_cast<std::size_t>(entry.dims.count()));
      Random random(9, entry.name);
      double expected = 0, size = 0;
      for (std::size_t i = 0; i < direction.size(); ++i) {
        direction[i] = random.normal();
        expected += direction[i] * d.grads[static_cast<std::size_t>(entry.offset) + i];
        size += d.grads[static_cast<std::size_t>(entry.offset) + i] *
                d.grads[static_cast<std::size_t>(entry.offset) + i];
      }
      const std::vector<double> kept = d.weights;
      const auto moved = [&](double step) {
        for (std::size_t i = 0; i < direction.size(); ++i)
          d.weights[static_cast<std::size_t>(entry.offset) + i] += step * direction[i];
        const double loss = d.loss(false);
        d.weights = kept;
        return loss;
      };
      const double step = 1e-6, difference = (moved(step) - moved(-step)) / (2 * step);
      INFO("gradient " << expected << ", difference quotient " << difference);
      REQUIRE(std::abs(difference - expected) <= 1e-7 * std::max(whole, std::sqrt(size)));
    }
  }
}

TEST_CASE("training with a method has the gradients of attention out of single ops", "[model]") {
  const Threads threads(1);
  for (const Case& c : kCases)
    for (const char* method : {"dense", "dense_naive"}) {
      const ToyTask task(c.spec, c.padded);
      TrainSetup setup = toy_setup(task, method);
      c.change(setup);
      TrainState state(setup);
      Double d(setup);
      randomise(state.layout(), state.weights());
      std::copy_n(state.weights(), state.layout().size(), d.weights.begin());
      const double exact = d.loss(true), loss = state.gradients(1, d.batch, false);
      INFO(c.name << ", " << method << ": loss " << loss << ", exact " << exact);
      REQUIRE(std::abs(loss - exact) <= 1e-5 * std::abs(exact));
      double whole = 0;
      for (const double g : d.grads) whole += g * g;
      for (const ParameterEntry& entry : state.layout().entries()) {
        double off = 0, size = 0;
        for (Index i = entry.offset; i < entry.offset + entry.dims.count(); ++i) {
          const double g = d.grads[static_cast<std::size_t>(i)];
          off += std::pow(static_cast<double>(state.gradient()[i]) - g, 2);
          size += g * g;
        }
        INFO(entry.name);
        // A gradient that is zero in exact arithmetic (the bias of k) is judged by the whole.
        REQUIRE(std::sqrt(off) <= 2e-5 * std::sqrt(std::max(size, 1e-4 * whole)));
      }
    }
}

TEST_CASE("dropout is the same again, and off in evaluation", "[model]") {
  const ToyTask task(kToyTokens);
  TrainSetup setup = toy_setup(task);
  setup.options.dropout = 0.3;
  TrainState state(setup);
  const TokenBatch batch = task.tokens(Split::train, 0, 8, 12, 3);
  const double first = state.gradients(1, batch, true), again = state.gradients(1, batch, true),
               other = state.gradients(2, batch, true), off = state.gradients(1, batch, false);
  CHECK(first == again);
  CHECK(first != other);
  CHECK(std::abs(off - state.evaluate(batch).loss) <= 1e-6);
}

TEST_CASE("a task that pads needs a method that can leave keys out", "[model]") {
  const ToyTask task(kToyClasses, true);
  TrainSetup setup = toy_setup(task, "linear");
  setup.problem.causal = false;
  const MethodEntry& entry = Registry::instance().method("sliding_window");
  setup.methods = {{"sliding_window", resolve("sliding_window", entry.params, {})},
                   {"sliding_window", resolve("sliding_window", entry.params, {})}};
  if (!entry.info.key_padding) CHECK_THROWS_AS(TrainState(setup), Unsupported);
  setup.problem.n_kv = 24;
  CHECK_THROWS_AS(TrainState(setup), Unsupported);
}

TEST_CASE("queries and keys may begin with a deviation of their own", "[model]") {
  const ToyTask task(kToyTokens);
  TrainSetup setup = toy_setup(task);
  setup.problem.d_k = setup.problem.d_v = 32;
  const auto deviation = [&](const TrainSetup& s, Index from, Index rows) {
    TrainState state(s);
    for (const ParameterEntry& entry : state.layout().entries()) {
      if (entry.name != "layers.1.attn.qkv.weight") continue;
      const Index width = entry.dims[1];
      double square = 0;
      for (Index i = from * width; i < (from + rows) * width; ++i)
        square += std::pow(static_cast<double>(state.weights()[entry.offset + i]), 2);
      return std::sqrt(square / static_cast<double>(rows * width));
    }
    return 0.0;
  };
  CHECK(deviation(setup, 0, 192) == Approx(0.02).epsilon(0.05));
  setup.options.qk_std = 0.3;
  CHECK(deviation(setup, 0, 128) == Approx(0.3).epsilon(0.05));  // 2 heads of q and k
  CHECK(deviation(setup, 128, 64) == Approx(0.02).epsilon(0.05));
}

}  // namespace
}  // namespace subquad
