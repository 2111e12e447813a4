// The problem of SEA's tests: one sequence, keys as many as queries.
#pragma once

#include "tests/methods/method_fixture.h"

namespace subquad::testing {

inline Problem sea_problem(Index n, bool causal, Index heads = 2, Index d = 16) {
  Problem p{.batch = 1, .heads = heads, .n = n, .n_kv = n, .d_k = d, .d_v = d};
  p.causal = causal;
  return p;
}

}  // namespace subquad::testing
