// out += weights * values, where a weight of zero hides its value completely: a NaN or infinity in
// a value that nobody may see (a future token, padding) stays without influence, and the result
// has the same bits as if that value were finite.
#pragma once

#include "harness/core/types.h"

namespace subquad {

inline bool all_finite(const Eigen::Ref<const Matrix>& x) {
  return (x.array() * 0.f).sum() == 0.f;  // vectorises, unlike Eigen's allFinite()
}

// weights [r, c], values [c, d], out [r, d]; spare: c * d floats of work space.
template <class Weights>
void add_masked_product(const Weights& weights, const Eigen::Ref<const Matrix>& values,
                        Eigen::Ref<Matrix> out, float* spare) {
  const auto add = [&](const Eigen::Ref<const Matrix>& x) { out.noalias() += weights * x; };
  if (all_finite(values)) return add(values);
  MatrixMap finite(spare, values.rows(), values.cols());
  for (Index j = 0; j < values.rows(); ++j)
    if (all_finite(values.row(j))) {
      finite.row(j) = values.row(j);
    } else {
      finite.row(j).setZero();
    }
  add(finite);
  for (Index j = 0; j < values.rows(); ++j) {
    if (all_finite(values.row(j))) continue;
    for (Index i = 0; i < out.rows(); ++i)
      if (weights(i, j) != 0.f) out.row(i) += weights(i, j) * values.row(j);
  }
}

}  // namespace subquad
