#include "methods/engines/gram_spectrum.h"

#include "harness/core/error.h"

namespace subquad {

void GramSpectrum::compute(const ConstBlock& a, bool vectors) {
  if (a.rows() < a.cols()) {
    gram_.noalias() = a * a.transpose();
  } else {
    gram_.noalias() = a.transpose() * a;
  }
  solver_.compute(gram_, vectors ? Eigen::ComputeEigenvectors : Eigen::EigenvaluesOnly);
  SUBQUAD_CHECK(solver_.info() == Eigen::Success, "no singular values of a {} x {} matrix",
                a.rows(), a.cols());
}

double GramSpectrum::tail(Index rank) const {
  const Index dropped = squares().size() - rank;
  return dropped > 0 ? squares().head(dropped).cwiseMax(0).sum() : 0;
}

void GramSpectrum::truncate(Block a, Index rank) const {
  if (rank >= squares().size()) return;
  const auto basis = solver_.eigenvectors().rightCols(rank);
  MatrixD factor;
  if (a.rows() < a.cols()) {
    factor.noalias() = basis.transpose() * a;
    a.noalias() = basis * factor;
  } else {
    factor.noalias() = a * basis;
    a.noalias() = factor * basis.transpose();
  }
}

}  // namespace subquad
