// A toy task, attention out of single ops, and a model around them.
#pragma once

#include <deque>
#include <vector>

#include "harness/autodiff/attention.h"
#include "harness/core/parallel.h"
#include "harness/core/random.h"
#include "harness/model/trainer.h"

namespace subquad {

// Random tokens. per_token: the label is the token two positions back (some positions unlabelled);
// per_sequence: whether the first token of the last sequence is even. With `padded` sequences have
// different lengths.
class ToyTask final : public Task {
 public:
  explicit ToyTask(LabelSpec spec, bool padded = false) : spec_(spec), padded_(padded) {}
  void fill(const Problem&, Seed, Index, QKV*) const override {}
  LabelSpec labels(Index) const override { return spec_; }
  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    TokenBatch out;
    out.batch = batch;
    out.inputs = spec_.inputs;
    out.n = n;
    out.tokens_per_position = spec_.tokens_per_position;
    const Index each = spec_.tokens_per_position;
    for (Index b = 0; b < batch; ++b) {
      Random random(seed, "toy",
                    {static_cast<std::uint64_t>(split), static_cast<std::uint64_t>(first + b)});
      for (Index i = 0; i < spec_.inputs; ++i) {
        const auto start = out.tokens.size();
        for (Index t = 0; t < n * each; ++t)
          out.tokens.push_back(static_cast<std::int32_t>(
              random.below(static_cast<std::uint64_t>(spec_.vocabulary))));
        if (padded_)
          out.lengths.push_back(static_cast<std::int32_t>(
              n - static_cast<Index>(random.below(static_cast<std::uint64_t>(n / 2 + 1)))));
        if (spec_.kind == LabelKind::per_token) {
          for (Index t = 0; t < n; ++t)
            out.labels.push_back(
                t % 3 == 0 || t < 2 ? kIgnore
                                    : out.tokens[start + static_cast<std::size_t>(each * (t - 2))]);
        } else if (i + 1 == spec_.inputs) {
          out.labels.push_back(out.tokens[start] % 2);
        }
      }
    }
    return out;
  }

 private:
  LabelSpec spec_;
  bool padded_;
};

// softmax attention out of matmul, masked_fill and softmax.
template <class T>
class PlainLayers final : public LayerAttention<T> {
 public:
  explicit PlainLayers(bool causal) : causal_(causal) {}
  autodiff::Var<T> attend(Index, autodiff::Var<T> q, autodiff::Var<T> k, autodiff::Var<T> v,
                          autodiff::Var<T>, std::span<const std::uint8_t> key_mask) override {
    const Index batch = q.dims()[0], heads = q.dims()[1], n = q.dims()[2];
    masks_.emplace_back(static_cast<std::size_t>(batch * heads * n * n));
    std::vector<std::uint8_t>& mask = masks_.back();
    for (Index b = 0; b < batch; ++b)
      for (Index h = 0; h < heads; ++h)
        for (Index i = 0; i < n; ++i)
          for (Index j = 0; j < n; ++j)
            mask[static_cast<std::size_t>(((b * heads + h) * n + i) * n + j)] =
                (!causal_ || j <= i) &&
                (key_mask.empty() || key_mask[static_cast<std::size_t>(b * n + j)] != 0);
    return autodiff::plain_attention(q, k, v, 1 / std::sqrt(static_cast<double>(q.dims()[3])),
                                     std::span<const std::uint8_t>(mask));
  }

 private:
  bool causal_;
  std::deque<std::vector<std::uint8_t>> masks_;  // read on the way back
};

inline TrainSetup toy_setup(const Task& task, const std::string& method = "dense") {
  TrainSetup setup;
  setup.options.layers = 2;
  setup.options.steps = 40;
  setup.options.warmup = 5;
  setup.options.eval_every = 10;
  setup.options.eval_examples = 16;
  setup.options.learning_rate = 3e-3;
  setup.options.shards = 4;
  setup.methods = {{method, {}}, {method, {}}};
  setup.task = &task;
  setup.problem = {.batch = 8, .heads = 2, .n = 12, .n_kv = 12, .d_k = 8, .d_v = 8, .causal = true};
  setup.seed = 3;
  setup.identity = "toy";
  return setup;
}

struct Threads {
  int before = omp_get_max_threads();
  explicit Threads(int count) { omp_set_num_threads(count); }
  ~Threads() { omp_set_num_threads(before); }
};

inline const LabelSpec kToyTokens{LabelKind::per_token, 11, 11, 1};
inline const LabelSpec kToyFused{LabelKind::per_token, 11, 11, 1, 2};
inline const LabelSpec kToyClasses{LabelKind::per_sequence, 11, 2, 1};
inline const LabelSpec kToyPairs{LabelKind::per_sequence, 11, 2, 2};

}  // namespace subquad
