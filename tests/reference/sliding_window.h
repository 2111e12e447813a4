// Keys inside a window, or among the first `sinks`. Causal: p - window < j <= p with p = i + n_kv -
// n. Bidirectional: i - floor(window/2) <= j < i - floor(window/2) + window.
#pragma once

#include "tests/reference/softmax_attention.h"

namespace subquad::reference {

inline Sees sees_window(const Call& call, Index window, Index sinks) {
  return [&call, window, sinks](Index b, Index i, Index j) {
    const Problem& p = call.problem;
    if (!allowed(call, b, i, j)) return false;
    if (j < sinks) return true;
    const Index first = p.causal ? i + p.n_kv - p.n - window + 1 : i - window / 2;
    return first <= j && j < first + window;
  };
}

}  // namespace subquad::reference
