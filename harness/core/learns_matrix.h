// A side that some methods have: they estimate an attention matrix, and can learn a teacher's.
#pragma once

#include "harness/core/method.h"

namespace subquad {

class LearnsMatrix {
 public:
  virtual ~LearnsMatrix() = default;
  // False where the settings leave nothing to learn.
  virtual bool learns_matrix() const = 0;
  // The method's own loss of its estimate for `in` against exact attention of the teacher's q and k
  // [batch, heads, n, d_k]. Adds `weight` > 0 times its gradient to Parameter::grad and overwrites
  // dq, dk and dv with `weight` times theirs. After a forward with the same inputs, prepared with
  // Env::gradients.
  virtual double matrix_loss(const Inputs& in, ConstTensorView teacher_q, ConstTensorView teacher_k,
                             double weight, const Gradients& grads) = 0;
  // The estimate for head (b, h) -> [n, n], rows that sum to one.
  virtual void estimated_matrix(const Inputs& in, Index b, Index h, Eigen::Ref<Matrix> to) = 0;
};

}  // namespace subquad
