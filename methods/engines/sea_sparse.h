// Attention over given keys in the formats that SEA's paper compares: flat CSR (one row per query,
// columns head * n + key), coordinates (COO), and runs of neighbouring keys.
// Source: Lee et al. 2024 (arXiv 2310.01777), section 3.2 and table 3. The method itself expands
// runs of one query at a time and stores nothing; these stand-alone forms are for comparison.
#pragma once

#include <vector>

#include "harness/core/tensor.h"
#include "methods/engines/integer_sort.h"
#include "methods/engines/row_attention.h"

namespace subquad {

struct SeaCsr {
  std::vector<Index> row_ptr;         // [n + 1]
  std::vector<std::int32_t> columns;  // [nnz], ascending in a row
};
struct SeaCoo {
  std::vector<std::int64_t> rows, columns;  // [nnz]; 64 bit, as PyTorch keeps them
};
struct SeaRuns {
  std::vector<Index> row_ptr;                // [n + 1]
  std::vector<std::int32_t> first, lengths;  // [runs]
};

SeaCoo coo_of(const SeaCsr& csr);
SeaRuns runs_of(const SeaCsr& csr, Index n);

// out [1, heads, n, d_v] = softmax over the listed keys of scale q k^T, times v, head by head;
// zero for a query without keys. One thread, O(nnz (d_k + d_v)).
class SeaSparse {
 public:
  SeaSparse() = default;
  SeaSparse(ConstTensorView queries, ConstTensorView keys, ConstTensorView values, double factor)
      : q(queries), k(keys), v(values), scale(factor) {}

  ConstTensorView q, k, v;  // [1, heads, n, d]
  double scale = 1;

  // Makes the work space, so that no call allocates: entries of one sequence, `sorting`: sort()
  // too.
  void reserve(Index heads, Index n, Index d_k, Index entries, bool csr, bool coo, bool sorting);
  // All scores, then row by row softmax and weighted sum.
  void csr(const SeaCsr& rows, TensorView out);
  // Entry by entry, in whatever order; products, softmax, second products one after another.
  void coo(const SeaCoo& entries, TensorView out);
  // All in one, without values in memory.
  void runs(const SeaRuns& rows, TensorView out);
  // The entries by query, then by column ("coalescing"): O(nnz), a radix sort.
  void sort(const SeaCoo& entries, SeaCoo* sorted);

 private:
  engine::RowQuery scaled_query(Index h, Index t);

  // Work space, kept between calls.
  std::vector<float> values_;                 // [nnz] of CSR: scores, of COO: the probabilities
  std::vector<float> most_, sum_;             // [heads * n] of COO
  std::vector<std::int32_t> expanded_;        // keys of a row
  std::vector<float> query_, tail_, row_;     // [d_k], one vector, [n]: scores of one query
  std::vector<engine::CodeAt> codes_, more_;  // [nnz]
};

}  // namespace subquad
