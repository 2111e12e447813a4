// Rows of the exact attention matrix in double precision, for oracles and for showing a matrix.
// Clear rather than fast, but without an allocation, and no hidden key is read.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "harness/core/method.h"
#include "methods/engines/band.h"

namespace subquad {

// row[0, n_kv) = softmax over the visible keys of scale q_i . k_j of head bh; zero where key j is
// hidden or padding, and everywhere when no key is seen. O(n_kv d_k).
inline void exact_attention_row(const Inputs& in, const Problem& p, Index bh, Index i,
                                double* row) {
  const auto real = keys_of_batch(in, bh / p.heads);
  const float* q = in.q.head(bh).row(i).data();
  const float* keys = in.k.head(bh).data();
  const double scale = p.logit_scale();
  const Index visible = p.visible(i);
  const auto seen = [&](Index j) { return real.empty() || real[static_cast<std::size_t>(j)] != 0; };
  double max = -std::numeric_limits<double>::infinity(), sum = 0;
  for (Index j = 0; j < visible; ++j) {
    if (!seen(j)) continue;
    const float* k = keys + j * p.d_k;
    double dot = 0;
    for (Index c = 0; c < p.d_k; ++c) dot += static_cast<double>(q[c]) * static_cast<double>(k[c]);
    row[j] = scale * dot;
    max = std::max(max, row[j]);
  }
  for (Index j = 0; j < visible; ++j) {
    row[j] = seen(j) ? std::exp(row[j] - max) : 0;
    sum += row[j];
  }
  std::fill(row + visible, row + p.n_kv, 0.0);
  for (Index j = 0; j < visible && sum > 0; ++j) row[j] /= sum;
}

// The whole matrix of head bh -> a [n, n_kv].
inline void exact_attention_matrix(const Inputs& in, const Problem& p, Index bh, MatrixD& a) {
  for (Index i = 0; i < p.n; ++i) exact_attention_row(in, p, bh, i, a.row(i).data());
}

// The values of head bh in double -> v [n_kv, d_v]; those of padded keys are zero, whatever they
// hold, so that a product over all keys cannot meet their NaN.
inline void values_of_real_keys(const Inputs& in, const Problem& p, Index bh, MatrixD& v) {
  const auto real = keys_of_batch(in, bh / p.heads);
  v = in.v.head(bh).cast<double>();
  for (Index j = 0; j < p.n_kv && !real.empty(); ++j)
    if (real[static_cast<std::size_t>(j)] == 0) v.row(j).setZero();
}

// An approximation of a whole matrix may round to something where there is nothing: rows that see
// no key, and padded keys, get weight zero.
inline std::vector<bool> rows_without_keys(const MatrixD& a) {
  std::vector<bool> hidden(static_cast<std::size_t>(a.rows()));
  for (Index i = 0; i < a.rows(); ++i) hidden[static_cast<std::size_t>(i)] = a.row(i).isZero(0);
  return hidden;
}
inline void clear_hidden(const Inputs& in, const Problem& p, Index bh,
                         const std::vector<bool>& rows, MatrixD& a) {
  const auto real = keys_of_batch(in, bh / p.heads);
  for (Index j = 0; j < p.n_kv && !real.empty(); ++j)
    if (real[static_cast<std::size_t>(j)] == 0) a.col(j).setZero();
  for (Index i = 0; i < p.n; ++i)
    if (rows[static_cast<std::size_t>(i)]) a.row(i).setZero();
}

}  // namespace subquad
