// Learned maps of queries and keys into the few dimensions in which ZETA searches, one per head:
//   linear  y = W x + b                       W [d, d_key]
//   mlp     y = W2 gelu(W1 x + b1) + b2       W1 [d, hidden], W2 [hidden, d_key]
// f_q and f_k are apart (Zeng et al. 2025, arXiv 2501.14577: two-layer MLPs). Behind the linear
// projections of a model, a model's own W_q x followed by mlp is linear, GELU, linear and so on.
// Our choice: queries and keys begin with the same weights, so that what was near stays near;
// the initial variance of y is that of x. Sums are in double: a code must not depend on their
// order.
#pragma once

#include <string>
#include <vector>

#include "harness/core/method.h"

namespace subquad {

class ZetaProjection {
 public:
  struct Options {
    bool mlp = false;
    Index hidden = 0;  // of the MLP; 0 = d
    Index d_key = 3;
  };
  static constexpr Index kMaxHidden = 1024, kMaxKey = 32;
  static Index hidden_size(const Options& options, Index d) {
    return !options.mlp ? 0 : options.hidden > 0 ? options.hidden : d;
  }

  // `prefix` names the parameters: "q_proj." gives q_proj.weight and q_proj.bias, or q_proj.up.*
  // and q_proj.down.* of the MLP. Initial values depend on the seed alone, not on the prefix.
  void prepare(const Options& options, const std::string& prefix, Index heads, Index d, Seed seed,
               bool gradients);
  std::vector<Parameter*> parameters();
  ZetaProjection copy() const;  // of the values alone
  Index d() const { return d_; }

  // One row of head h: x [d] -> y [d_key]. O(d d_key), or O(d hidden + hidden d_key).
  void map_row(Index h, const float* x, float* y) const;
  // x [batch, heads, n, d] -> y [batch, heads, n, d_key]
  void forward(ConstTensorView x, TensorView y) const;
  // dx is overwritten, gradients of the parameters are added to: per head from the first row to the
  // last, the same for any number of threads. Rows whose dy is zero (padding) count for nothing,
  // whatever x holds there.
  void backward(ConstTensorView x, ConstTensorView dy, TensorView dx);

  // Bytes of values, and of gradients where wanted.
  static double bytes(const Options& options, Index heads, Index d, bool gradients);
  // Multiply-adds count two.
  static double flops(const Options& options, double rows, Index d);

 private:
  void hidden_row(Index h, const float* x, double* z) const;
  void backward_up(Index h, const float* x, const double* dz, float* dx);

  Options options_;
  Index heads_ = 0, d_ = 0, hidden_ = 0;
  Parameter up_, up_bias_;                  // [heads, d, hidden], [heads, hidden]; mlp
  Parameter down_, down_bias_;              // [heads, hidden or d, d_key], [heads, d_key]
  std::vector<AlignedArray<double>> sums_;  // gradients of one call, as parameters() has them
};

}  // namespace subquad
