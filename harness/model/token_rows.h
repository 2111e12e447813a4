// The Transformer on single tokens: all of it but attention. What decoding puts around its caches.
// Allocates nothing after construction; the same numbers as transformer.h up to rounding.
#pragma once

#include <span>
#include <vector>

#include "harness/model/transformer.h"

namespace subquad {

class TokenRows {
 public:
  // `weights` [layout.size()] outlive the object. Unsupported where the model does not predict
  // tokens from what is before them.
  TokenRows(const TrainOptions& options, const ModelSizes& sizes, const ParameterLayout& layout,
            const float* weights);

  // The token's row of the embedding, without its position.
  const float* embedding(std::int32_t token) const;
  Index embedding_width() const { return width_; }

  // The last of `history` before the first layer: embedding, position, convolution in front.
  // x [d_model].
  void front(std::span<const std::int32_t> history, float* x);
  // u [d_model] = what the layer attends with; q, k [heads, d_k] with the position turned in,
  // v [heads, d_v].
  void project(Index layer, const float* x, Index position, float* u, float* q, float* k, float* v);
  // attended [heads, d_v] joins x, then the MLP.
  void finish(Index layer, const float* attended, float* x);
  void logits(const float* x, float* out);  // [classes]

 private:
  struct Linear {
    const float *weight = nullptr, *bias = nullptr;  // [out, in], [out] or null
  };
  struct Norm {
    const float *weight = nullptr, *bias = nullptr;
  };
  struct Layer {
    Norm ln1, ln2;
    Linear q, k, v, out, up, down;
  };

  void product(const Linear& l, Index in, Index out, const float* x, float* y);
  void norm(const Norm& n, const float* x, float* y) const;
  void embed(std::int32_t token, Index position, float* x) const;
  void turn(Index position, float* rows) const;  // [heads, d_k]
  void activate(float* x) const;                 // [hidden, rounded up to whole vectors]

  TrainOptions options_;
  ModelSizes sizes_;
  Index width_ = 0;  // of an embedding
  const float *embedding_ = nullptr, *position_ = nullptr, *conv_ = nullptr;
  Norm conv_norm_, final_norm_;
  Linear head_;
  std::vector<Layer> layers_;
  AlignedArray<float> sinusoid_;
  RotationTable<float> rotation_;
  AlignedArray<float> tail_;             // work space of a product
  AlignedArray<float> row_, normed_;     // [d_model]
  AlignedArray<float> branch_, hidden_;  // [d_model], [hidden]
};

}  // namespace subquad
