// The delta rule, chunk by chunk: linear attention whose state replaces what it holds under a key
// instead of adding to it,
//   u_t = beta_t (v_t - S_{t-1}^T k_t),   S_t = S_{t-1} + k_t u_t^T,   out_t = scale S_t^T q_t.
// Source: Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule over Sequence
// Length" (arXiv 2406.06484). In a chunk with the state S before it, all u at once solve
//   (I + tril(diag(beta) K K^T, -1)) U = diag(beta) (V - K S),
// the paper's W and U in one: the state is known here, so that W S need not be formed apart. Then
//   out = scale (Q S + tril(Q K^T) U),   S += K^T U.
// Causal only. Heads in parallel; a chunk waits for the one before it.
#pragma once

#include <memory>

#include "harness/core/method.h"

namespace subquad {

struct DeltaOptions {
  double beta = 0.5;      // where no rates are given
  bool normalize = true;  // q and k divided by their length (square root of |x|^2 + 1e-6)
  Index chunk = 0;        // tokens of a chunk, a multiple of 16; 0: chosen
};

class DeltaScan {
 public:
  void prepare(const Problem& problem, const DeltaOptions& options, bool gradients);
  // Time O(n_kv (d_k d_v + chunk (d_k + d_v))). beta [batch * heads, n_kv], or null for the
  // constant. `states` receives the states before all chunks for backward, unless it is null.
  void forward(const Inputs& in, const float* beta, TensorView out, float* states);
  // dbeta [batch * heads, n_kv] may be null.
  void backward(const Inputs& in, const float* beta, ConstTensorView dout, const float* states,
                const Gradients& grads, float* dbeta);
  // Floats of `states`: d_k d_v of every chunk.
  Index saved_floats() const { return saved_floats(problem_, options_); }
  static Index saved_floats(const Problem& problem, const DeltaOptions& options);

  static double work_bytes(const Problem& problem, const DeltaOptions& options, bool gradients);
  static double flops(const Problem& problem, Pass pass);

 private:
  struct Sizes {
    Index wide_k, wide_v, chunk, chunks, state, work;
  };
  struct Work;
  static Sizes sizes_of(const Problem& problem, const DeltaOptions& options, bool gradients);
  void grow();
  void load(const Inputs& in, const float* beta, Index bh, Index c, const Work& w) const;
  void solve(const float* state, const Work& w) const;
  void forward_head(const Inputs& in, const float* beta, Index bh, int thread, float* out,
                    float* states);
  void backward_head(const Inputs& in, const float* beta, ConstTensorView dout, const float* states,
                     const Gradients& grads, float* dbeta, Index bh, int thread);

  Problem problem_;
  DeltaOptions options_;
  bool gradients_ = false;
  Sizes sizes_{};
  AlignedArray<float> work_;  // [threads, sizes_.work]
  AlignedArray<float>
      states_;  // [batch * heads, chunks, state]: before every chunk; gradients only
};

std::unique_ptr<Decoder> make_delta_decoder(const DecodeConfig& config,
                                            const DeltaOptions& options);
double delta_decoder_bytes(const Problem& problem);

}  // namespace subquad
