// Exact softmax attention in double precision: what every method is judged against.
//
//   out_i = sum_j p_ij v_j,  p_ij = exp(scale q_i.k_j) / sum over visible j of the same,
//   dv_j = sum_i p_ij dout_i,  ds_ij = p_ij (dout_i.v_j - dout_i.out_i),
//   dq_i = scale sum_j ds_ij k_j,  dk_j = scale sum_i ds_ij q_i.
//
// Bounded memory: blocks of rows (for dk and dv: of keys), parallel over heads and blocks, in an
// order that does not depend on the number of threads: the same bits for any of them.
#pragma once

#include <span>
#include <vector>

#include "harness/core/problem.h"
#include "harness/core/task.h"
#include "harness/core/tensor.h"

namespace subquad {

struct ReferenceOptions {
  bool gradients = false;
  double max_gflop = 20;  // above this cost only sampled rows are computed
  Index rows = 256;       // query rows per (batch, head) sampled then
};

// Sampled rows have dq but neither dk nor dv, which need every row.
struct Reference {
  Problem problem;
  std::uint64_t inputs_hash = 0;  // see inputs_hash()
  // Per (batch, head) the query rows that were computed, sorted; empty when all were.
  std::vector<std::vector<Index>> rows;
  TensorD out;     // [batch, heads, R, d_v], R = rows per head
  TensorD dq;      // [batch, heads, R, d_k], or empty
  TensorD dk, dv;  // [batch, heads, n_kv, d], or empty

  bool all_rows() const { return rows.empty(); }
};

// Cost of the whole reference in GFLOP: 2 (d_k + d_v) flops per visible entry of every head's
// attention matrix, four times that with gradients (two passes over the matrix of twice the work).
double reference_gflop(const Problem& problem, bool gradients);

// The cotangent of the output: standard normal, derived from the seed. [batch, heads, n, d_v]
Tensor make_dout(const Problem& problem, Seed seed, Index set);

// Checksum over q, k, v and the key mask: a reference belongs to these inputs alone.
std::uint64_t inputs_hash(const Inputs& inputs);

// Exact attention of one set of inputs; dout is null without gradients. The sample of rows, where
// one is taken, depends on seed and (batch, head).
Reference exact_reference(const Inputs& inputs, const Tensor* dout, const Problem& problem,
                          Seed seed, const ReferenceOptions& options);

// The same for input set 0 of a task.
Reference task_reference(const Task& task, const Problem& problem, Seed seed,
                         const ReferenceOptions& options);

// Exact output of the given rows of every head (rows sorted, the same for all): [batch, heads,
// rows, d_v].
TensorD exact_rows(const Inputs& inputs, const Problem& problem, std::span<const Index> rows);

// Rows of the exact attention matrix of head (b, h): [rows, n_kv]. A query that sees no key has a
// zero row.
MatrixD exact_attention_rows(const Inputs& inputs, const Problem& problem, Index b, Index h,
                             std::span<const Index> rows);

}  // namespace subquad
