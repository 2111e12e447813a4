// What SEA's estimator is taught: the masses of the cells in the exact attention matrix, and the
// approximation loss of a row in O(K_c) from them instead of O(n) keys.
//   loss = w_kl KL(t || p) / rows + w_mse sum (p - t)^2 / entries,   p = softmax of stretched
//   scores
// Source: Lee et al. 2024 (arXiv 2310.01777), section 3.3 and code; the form over cells is ours: p
// is constant within a cell, so with P = n_c p its mass and T the teacher's,
//   KL = sum t ln t - sum_c T_c ln(P_c / n_c),  sum (p - t)^2 = sum_c (P_c - 2 T_c) P_c / n_c + sum
//   t^2.
#pragma once

#include <cmath>

#include "methods/engines/row_attention.h"

namespace subquad::engine {

struct TeacherRow {
  double squares = 0;  // sum_j t_j^2
  double entropy = 0;  // sum_j t_j ln t_j
};

// Exact attention of one query over keys [0, length), k [length, d], summed over the keys
// [first(c), last(c)) of every cell. q is scaled by logit scale times log2(e). row: work space of
// `length` rounded up to whole vectors.
template <class CellKeys>
inline TeacherRow teacher_masses(const RowQuery& q, const float* k, Index d, Index length,
                                 Index cells, const CellKeys& keys, float* row, float* masses) {
  q.score(ContiguousRows{k, d}, length, row);
  const Bounds whole = mask_row(row, {0, length}, nullptr, -kInfinity);
  const float shift = whole_shift(horizontal_max(row_max(row, whole)));
  const double sum = static_cast<double>(horizontal_sum(exponentiate(row, whole, shift)));
  TeacherRow teacher;
  for (Index c = 0; c < cells; ++c) {
    const auto [first, last] = keys(c);
    double mass = 0;
    for (Index j = first; j < last; ++j) {
      const double t = static_cast<double>(row[j]) / sum;
      mass += t;
      teacher.squares += t * t;
      if (t > 0) teacher.entropy += t * std::log(t);
    }
    masses[c] = static_cast<float>(mass);
  }
  return teacher;
}

struct ApproximationWeights {
  double kl = 0.1, mse = 1;  // the paper's code
  double rows = 1, entries = 1;
};

// Adds nothing for cells without keys. Returns the loss of the row; dscores [cells] is overwritten.
template <class T, class Size>
inline double approximation_loss(const T* scores, const T* masses, const TeacherRow& teacher,
                                 Index cells, const Size& size, const ApproximationWeights& w,
                                 T* dscores) {
  double most = -1e300, sum = 0;
  for (Index c = 0; c < cells; ++c)
    if (size(c) > 0) most = std::max(most, static_cast<double>(scores[c]));
  const auto mass = [&](Index c) {
    return static_cast<double>(size(c)) * std::exp(static_cast<double>(scores[c]) - most);
  };
  for (Index c = 0; c < cells; ++c)
    if (size(c) > 0) sum += mass(c);
  double kl = teacher.entropy, mse = teacher.squares, inner = 0;
  for (Index c = 0; c < cells; ++c) {
    if (size(c) == 0) continue;
    const auto n = static_cast<double>(size(c)), p = mass(c) / sum,
               t = static_cast<double>(masses[c]);
    if (t > 0) kl -= t * (static_cast<double>(scores[c]) - most - std::log(sum));
    mse += (p - 2 * t) * p / n;
    inner += p * 2 * (p - t) / n;
  }
  for (Index c = 0; c < cells; ++c) {
    if (size(c) == 0) {
      dscores[c] = 0;
      continue;
    }
    const auto n = static_cast<double>(size(c)), p = mass(c) / sum,
               t = static_cast<double>(masses[c]);
    dscores[c] =
        static_cast<T>(w.kl / w.rows * (p - t) + w.mse / w.entries * p * (2 * (p - t) / n - inner));
  }
  return w.kl / w.rows * kl + w.mse / w.entries * mse;
}

}  // namespace subquad::engine
