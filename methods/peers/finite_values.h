// Causal attention over a library multiplies hidden values by zero, which does not hide a NaN or an
// infinity. Where v holds such values, the call runs on a copy with zeros in their places, and then
// they are added to the rows that see them. Allocates, in that odd case alone.
#pragma once

#include <algorithm>
#include <cmath>

#include "harness/core/problem.h"
#include "harness/core/tensor.h"

namespace subquad::peers {

inline bool all_finite(const ConstTensorView& v) {
  return Eigen::Map<const Eigen::ArrayXf>(v.data(), v.size()).allFinite();
}

// v [batch, heads, n_kv, d_v] with zeros for what is not finite.
inline Tensor finite_copy(const ConstTensorView& v) {
  Tensor copy(v.shape());
  for (Index i = 0; i < v.size(); ++i)
    copy.data()[i] = std::isfinite(v.data()[i]) ? v.data()[i] : 0.f;
  return copy;
}

// out_i += v_j for every v_j that is not finite and that query i sees.
inline void add_not_finite(const Problem& p, const ConstTensorView& v, const TensorView& out) {
  for (Index bh = 0; bh < v.batch() * v.heads(); ++bh) {
    const auto values = v.head(bh);
    auto rows = out.head(bh);
    for (Index j = 0; j < p.n_kv; ++j)
      for (Index c = 0; c < p.d_v; ++c)
        if (!std::isfinite(values(j, c)))
          for (Index i = std::max<Index>(0, j - p.causal_offset()); i < p.n; ++i)
            rows(i, c) += values(j, c);
  }
}

}  // namespace subquad::peers
