// Exact softmax attention over a fixed pattern of keys, as a method: everything but the pattern. A
// method derives from it and says which keys its queries see.
#pragma once

#include "methods/engines/tiled_attention.h"

namespace subquad {

// What backward needs from forward.
struct RowLogSumExp final : Saved {
  explicit RowLogSumExp(Index rows) : lse(rows) {}
  AlignedArray<float> lse;  // [batch * heads * n] of the scaled logits
};

class PatternMethod : public Method {
 public:
  // The stripes that queries see; `seed` is that of Env for methods that draw some at random.
  virtual Pattern pattern(const Problem& problem, Seed seed) const = 0;

  void prepare(const Problem& problem, const Env& env) override {
    problem_ = problem;
    seed_ = env.seed;
    attention_.prepare(problem, pattern(problem, env.seed), env.gradients);
  }

  std::unique_ptr<Saved> make_saved() const override {
    return std::make_unique<RowLogSumExp>(problem_.batch * problem_.heads * problem_.n);
  }
  // Time proportional to the entries of the pattern, extra memory O(n).
  void forward(const Inputs& in, TensorView out, Saved* saved) override {
    attention_.forward(in, out,
                       saved == nullptr ? nullptr : static_cast<RowLogSumExp&>(*saved).lse.data());
  }
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved& saved,
                const Gradients& grads) override {
    attention_.backward(in, out, dout, static_cast<const RowLogSumExp&>(saved).lse.data(), grads);
  }

  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    const Pattern seen = pattern(problem_, seed_);
    const auto sees = [&](Index i, Index j) { return seen.sees(h, i, j); };
    masked_attention_rows(in, sees, problem_.logit_scale(), b, h, rows, weights);
    return true;
  }

  double extra_bytes(const Problem& p, Pass pass) const override {
    const bool gradients = pass == Pass::backward || pass == Pass::forward_backward;
    const double lse = gradients ? 4.0 * static_cast<double>(p.batch * p.heads * p.n) : 0;
    return TiledAttention::work_bytes(p, pattern(p, seed_), gradients) + lse;
  }
  double flops(const Problem& p, Pass pass) const override {
    return TiledAttention::flops(p, pattern(p, seed_), pass);
  }

 protected:
  Problem problem_;
  Seed seed_ = 0;

 private:
  TiledAttention attention_;
};

}  // namespace subquad
