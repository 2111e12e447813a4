// The small Transformer in which any method can stand as the attention layer.
//
//   x = embed[token] (+ positions);  x += conv(LN x)                     front
//   x += W_o attention(W_q u, W_k u, W_v u), u = LN1 x;  x += MLP(LN2 x) block, pre-norm
//   x = LN1(x + ...); x = LN2(x + ...)                                   block, post-norm
//   logits = LN_f(x) E^T at the labelled positions                       token model
//   logits = W2 relu(W1 pool(LN_f x))                                    classifier
// Several tokens of one position: their embeddings side by side, or their sum.
// With two inputs (retrieval) both go through the same tower, and the classifier reads
// [e1, e2, e1 e2, e1 - e2].
//
// Weights are [out, in]; rows of attn.qkv.weight: all heads of q, then of k, then of v. The names
// are those of the checkpoint (README.md).
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "harness/autodiff/ops.h"
#include "harness/core/task.h"
#include "harness/model/options.h"
#include "harness/model/parameters.h"
#include "harness/model/positions.h"

namespace subquad {

struct ModelSizes {
  Index layers = 0, d_model = 0, heads = 0, d_k = 0, d_v = 0, hidden = 0;
  Index n = 0;  // tokens of a sequence as the task gives it
  bool causal = false;
  double scale = 0;  // of the logits; 0 = 1 / sqrt(d_k)
  LabelSpec labels;

  // Length that the attention sees: one more with a CLS token.
  Index attention_n(const TrainOptions& options) const {
    return labels.kind == LabelKind::per_sequence && options.pool == "cls" ? n + 1 : n;
  }
};

// A part of a batch.
struct ModelInput {
  Index batch = 0;
  std::span<const std::int32_t> tokens;   // [batch, inputs, n, tokens_per_position]
  std::span<const std::int32_t> labels;   // [batch, n] or [batch]
  std::span<const std::int32_t> lengths;  // [batch, inputs] or empty
  bool training = false;
  Seed dropout_seed = 0;  // another for every step and part
};

// The attention of one layer: q, k [batch, heads, n, d_k], v [batch, heads, n, d_v] ->
// [batch, heads, n, d_v]. x [batch, n, d_model] is what q, k and v were projected from. key_mask
// [batch, n] is empty when every token is real.
template <class T>
class LayerAttention {
 public:
  virtual ~LayerAttention() = default;
  virtual autodiff::Var<T> attend(Index layer, autodiff::Var<T> q, autodiff::Var<T> k,
                                  autodiff::Var<T> v, autodiff::Var<T> x,
                                  std::span<const std::uint8_t> key_mask) = 0;
};

// Buffers that one forward and backward read; one for every part that is alive.
struct ModelWork {
  std::vector<std::int32_t> tokens, rows, labels;
  std::vector<std::uint8_t> key_mask;
  std::vector<double> pool_double;
  std::vector<float> pool_float;
};

template <class T>
struct ModelOutput {
  autodiff::Var<T> logits;               // [scored, classes]
  std::span<const std::int32_t> labels;  // [scored], in ModelWork
  autodiff::Var<T> loss;                 // sum over scored labels / denominator
};

template <class T>
class Transformer {
 public:
  Transformer(const TrainOptions& options, const ModelSizes& sizes);

  const ModelSizes& sizes() const { return sizes_; }
  // Parameters of methods are added by the caller, before anything else is done.
  ParameterLayout& layout() { return layout_; }
  const ParameterLayout& layout() const { return layout_; }

  // weights, grads [layout().size()]; grads null: no gradients. The loss is divided by
  // `denominator` (the scored labels of the whole batch).
  ModelOutput<T> forward(autodiff::Tape<T>& tape, const T* weights, T* grads,
                         const ModelInput& input, double denominator, LayerAttention<T>& attention,
                         ModelWork* work) const;

 private:
  struct Norm {
    std::size_t weight, bias;
  };
  struct Linear {
    std::size_t weight, bias;
  };
  struct Layer {
    Norm ln1, ln2;
    std::size_t qkv_weight, qkv_bias;
    Linear out, up, down;
  };
  struct Pass;  // one forward

  Norm add_norm(const std::string& name, Index width);
  Linear add_linear(const std::string& name, Index out, Index in, double std);

  TrainOptions options_;
  ModelSizes sizes_;
  ParameterLayout layout_;
  std::size_t embed_ = 0, position_ = 0, conv_ = 0;
  Norm conv_norm_{}, final_norm_{};
  Linear head_{}, head_hidden_{};
  std::vector<Layer> blocks_;
  AlignedArray<T> sinusoid_;   // [n, width]
  RotationTable<T> rotation_;  // [n, d_k / 2]
};

extern template class Transformer<float>;
extern template class Transformer<double>;

// Initial weights: normal with each entry's deviation and mean.
void initialise(const ParameterLayout& layout, Seed seed, float* weights);

}  // namespace subquad
