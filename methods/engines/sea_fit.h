// Fitting SEA's learned tensors to dense attention.
// Source: Lee et al. 2024 (arXiv 2310.01777), section 3.3: the estimator learns the teacher's
// attention matrix (L_approx), the gates its output (L_context). That one comes before the other is
// our choice; "joint" does both at once, as the paper does inside a model.
#pragma once

#include "harness/core/method.h"
#include "methods/engines/sea_attention.h"

namespace subquad {

struct SeaFitOptions {
  enum class Stages { estimator_then_gates, estimator, gates, joint };
  Stages stages = Stages::estimator_then_gates;
  double kl = 0.1, mse = 1;       // weights inside L_approx: the paper's code
  double decay = 0.01, clip = 1;  // AdamW's weight decay; largest norm of a gradient
};

// `attention` is prepared with gradients. AdamW with a cosine schedule; the report's losses are
// means over the first and the last tenth of the steps of the first stage.
FitReport fit_sea(SeaAttention& attention, SeaWeights& weights, FitData& data,
                  const FitOptions& options, const SeaFitOptions& sea);

// The matrix losses of a call inside a model: L_approx of the estimate and L_prob of the exact
// attention of this call's q and k, both against that of a teacher's q and k.
// Time O(n^2 d), memory O(n d) beyond a block of rows.
class SeaMatrixLoss {
 public:
  SeaMatrixLoss(SeaAttention& attention, SeaWeights& weights, double kl, double mse);
  ~SeaMatrixLoss();
  // Adds `weight` times the gradient to the learned tensors' and overwrites dq, dk, dv with it.
  // Returns the loss.
  double run(const Inputs& in, ConstTensorView teacher_q, ConstTensorView teacher_k, double weight,
             const Gradients& grads);

 private:
  class Work;
  std::unique_ptr<Work> work_;
};

}  // namespace subquad
