// Weights, a batch, the loss and all gradients of a small model in one safetensors file, for
// compare_torch.py.
//
//   export_gradients FILE [lm|mqar|post] [method]
//
// lm: causal, pre-norm, 2 layers, learned positions, MLP, labels at most positions. mqar:
// convolution in front, no MLP, no positions. post: post-norm with d_k != d_v and an output layer
// of its own.

#include <fmt/core.h>

#include <cstdio>

#include "harness/core/safetensors.h"
#include "harness/model/trainer.h"

namespace subquad {
namespace {

constexpr Index kVocabulary = 37, kBatch = 6, kLength = 50;

// Random tokens; the label is the token before, at two positions of three.
class Previous final : public Task {
 public:
  void fill(const Problem&, Seed, Index, QKV*) const override {}
  LabelSpec labels(Index) const override {
    return {LabelKind::per_token, kVocabulary, kVocabulary, 1};
  }
  TokenBatch tokens(Split, Index first, Index batch, Index n, Seed seed) const override {
    TokenBatch out;
    out.batch = batch;
    out.n = n;
    for (Index b = 0; b < batch; ++b) {
      Random random(seed, "previous", {static_cast<std::uint64_t>(first + b)});
      for (Index t = 0; t < n; ++t) {
        const std::int32_t before = out.tokens.empty() ? 0 : out.tokens.back();
        out.labels.push_back(t % 3 == 0 ? kIgnore : before);
        out.tokens.push_back(static_cast<std::int32_t>(random.below(kVocabulary)));
      }
    }
    return out;
  }
};

void run(const std::string& path, const std::string& kind, const std::string& method) {
  const Previous task;
  TrainSetup setup;
  setup.methods = {{method, {}}, {method, {}}};
  setup.task = &task;
  setup.problem = {.batch = kBatch,
                   .heads = 4,
                   .n = kLength,
                   .n_kv = kLength,
                   .d_k = 16,
                   .d_v = 16,
                   .causal = true};
  setup.seed = 7;
  setup.options.init_std = 0.1;  // far enough from zero for every gradient to count
  if (kind == "mqar") {
    setup.options.mlp = 0;
    setup.options.positions = "none";
    setup.options.conv = 3;
  } else if (kind == "post") {
    setup.options.norm = "post";
    setup.options.tied = false;
    setup.problem.d_k = 10;
  } else if (kind != "lm") {
    throw UserError(fmt::format("got \"{}\", expected lm, mqar or post", kind));
  }
  TrainState state(setup);
  // Biases and norms start at 0 and 1: move them, so that a missing term shows.
  for (const ParameterEntry& entry : state.layout().entries()) {
    if (entry.init_std > 0) continue;
    Random random(setup.seed, entry.name);
    for (Index i = 0; i < entry.dims.count(); ++i)
      state.weights()[entry.offset + i] += static_cast<float>(0.1 * random.normal());
  }
  const TokenBatch batch = task.tokens(Split::train, 0, kBatch, kLength, setup.seed);
  const float loss = static_cast<float>(state.gradients(1, batch, false));

  std::vector<FileTensor> tensors;
  const auto shape_of = [](const ParameterEntry& entry) {
    std::vector<Index> shape;
    for (int a = 0; a < entry.dims.rank(); ++a) shape.push_back(entry.dims[a]);
    return shape;
  };
  for (const ParameterEntry& entry : state.layout().entries()) {
    tensors.push_back({entry.name, shape_of(entry), "F32", state.weights() + entry.offset});
    tensors.push_back(
        {"grad." + entry.name, shape_of(entry), "F32", state.gradient() + entry.offset});
  }
  const std::int32_t heads = 4, d_k = static_cast<std::int32_t>(setup.problem.d_k),
                     post = kind == "post" ? 1 : 0;
  tensors.push_back({"input.tokens", {kBatch, kLength}, "I32", batch.tokens.data()});
  tensors.push_back({"input.labels", {kBatch, kLength}, "I32", batch.labels.data()});
  tensors.push_back({"config.heads", {1}, "I32", &heads});
  if (post == 1) {
    tensors.push_back({"config.d_k", {1}, "I32", &d_k});
    tensors.push_back({"config.post_norm", {1}, "I32", &post});
  }
  tensors.push_back({"loss", {1}, "F32", &loss});
  write_safetensors(path, tensors, {{"kind", kind}, {"method", method}});
}

}  // namespace
}  // namespace subquad

int main(int argc, char** argv) {
  try {
    if (argc < 2) throw subquad::UserError("usage: export_gradients FILE [lm|mqar|post] [method]");
    subquad::run(argv[1], argc > 2 ? argv[2] : "lm", argc > 3 ? argv[3] : "dense");
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "export_gradients: {}\n", error.what());
    return 2;
  }
}
