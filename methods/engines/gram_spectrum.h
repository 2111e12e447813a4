// Singular values of a matrix and its nearest matrix of lower rank, for the rank oracles.
#pragma once

#include <Eigen/Eigenvalues>

#include "harness/core/types.h"

namespace subquad {

// Works on the Gram matrix of the shorter side, in double: singular values below 1e-8 s_1 drown in
// its rounding, but the projection is orthogonal all the same, so the nearest matrix is within
// 1e-8 ||A||_F of the optimum, which is less than the rounding of a float32 output.
class GramSpectrum {
 public:
  using Block = Eigen::Ref<MatrixD, 0, Eigen::OuterStride<>>;
  using ConstBlock = Eigen::Ref<const MatrixD, 0, Eigen::OuterStride<>>;

  // `widest`: the longest shorter side of the matrices to come. Eigen's solver and the products
  // take scratch space of their own in every call.
  explicit GramSpectrum(Index widest) : gram_(widest, widest), solver_(widest) {}

  // Squared singular values of a, ascending, and what truncate() needs when `vectors` is set.
  // O(rows cols m + m^3), m the shorter side. Throws Error when they do not converge.
  void compute(const ConstBlock& a, bool vectors);
  const Eigen::VectorXd& squares() const { return solver_.eigenvalues(); }

  // The sum of the squares beyond the `rank` largest: the squared Frobenius error of truncate().
  double tail(Index rank) const;

  // Replaces a, which compute(a, true) has seen, by the nearest matrix of that rank (Eckart and
  // Young 1936).
  void truncate(Block a, Index rank) const;

 private:
  Eigen::MatrixXd gram_;
  Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver_;
};

}  // namespace subquad
