// The problem of SEA's tests: one sequence, keys as many as queries. Without Catch2: benchmarks use
// it too.
#pragma once

#include <vector>

#include "methods/engines/sea_attention.h"
#include "methods/engines/sea_sparse.h"

namespace subquad::testing {

inline Problem sea_problem(Index n, bool causal, Index heads = 2, Index d = 16) {
  Problem p{.batch = 1, .heads = heads, .n = n, .n_kv = n, .d_k = d, .d_v = d};
  p.causal = causal;
  return p;
}

// The keys that a prepared `attention` keeps for the queries of its one sequence, as flat CSR.
inline SeaCsr kept_keys(SeaAttention& attention, const Inputs& in, const Problem& p) {
  std::vector<std::vector<std::int32_t>> rows(static_cast<std::size_t>(p.n));
  attention.show(
      in, 0, 0, p.n,
      [&](Index h, Index t, const std::int32_t* keys, Index count, const float*, float, float) {
        for (Index i = 0; i < count; ++i)
          rows[static_cast<std::size_t>(t)].push_back(static_cast<std::int32_t>(h * p.n) + keys[i]);
      });
  SeaCsr csr;
  csr.row_ptr.push_back(0);
  for (const auto& row : rows) {
    csr.columns.insert(csr.columns.end(), row.begin(), row.end());
    csr.row_ptr.push_back(static_cast<Index>(csr.columns.size()));
  }
  return csr;
}

}  // namespace subquad::testing
