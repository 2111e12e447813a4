// Inputs for the tests of convolutional attention: kernels, matrices with a known k-conv basis.
#pragma once

#include <cmath>

#include "harness/core/random.h"
#include "methods/engines/conv_kernels.h"

namespace subquad::testing {

// k starts, the first one 0, the others drawn from [1, last].
inline std::vector<Index> random_starts(Random& random, Index k, Index last) {
  std::vector<Index> starts{0};
  for (const Index s : random.sample_without_replacement(last, std::min(last, k - 1)))
    starts.push_back(s + 1);
  std::sort(starts.begin(), starts.end());
  return starts;
}

// Positive kernels exp(normal).
template <class T>
ConvKernels<T> random_kernels(Random& random, Index n, const std::vector<Index>& starts,
                              bool causal) {
  ConvKernels<T> w(n, static_cast<Index>(starts.size()), causal);
  w.set_starts(starts);
  for (Index i = 0; i < w.count(); ++i)
    for (Index lag = w.lowest(i); lag <= w.highest(i); ++lag)
      w.profile(i)[lag] = static_cast<T>(std::exp(random.normal()));
  return w;
}

template <class T>
std::vector<T> random_values(Random& random, Index count) {
  std::vector<T> x;
  for (Index e = 0; e < count; ++e) x.push_back(static_cast<T>(random.normal()));
  return x;
}

// W as an explicit matrix.
template <class T>
MatrixD explicit_matrix(const ConvKernels<T>& w) {
  MatrixD m = MatrixD::Zero(w.n(), w.n());
  for (Index i = 0; i < w.count(); ++i)
    for (Index j = w.start(i); j < w.end(i); ++j)
      for (Index t = w.causal() ? j : 0; t < w.n(); ++t)
        m(t, j) = static_cast<double>(w.profile(i)[t - j]);
  return m;
}

// A causal logit matrix with noise: H(t, j) = u_i(t - j) + R(t, j), |R| <= eps.
struct NoisyBasis {
  std::vector<Index> starts;
  ConvKernels<double> clean;  // u
  double delta = 0, eps = 0;
  MatrixD logits;  // lower triangle

  // Profiles uniform in [-1, 1]; eps = share * delta / (5 T), delta as the definition has it for
  // the given profiles.
  NoisyBasis(Random& random, Index n, Index k, Index probe, double share)
      : starts(random_starts(random, k, n - probe)),
        clean(n, static_cast<Index>(starts.size()), true),
        logits(MatrixD::Zero(n, n)) {
    clean.set_starts(starts);
    for (Index i = 0; i < clean.count(); ++i)
      for (Index lag = 0; lag <= clean.highest(i); ++lag)
        clean.profile(i)[lag] = random.uniform(-1, 1);
    delta = 1e300;
    for (Index a = 0; a < clean.count(); ++a)
      for (Index b = 0; b < a; ++b) {
        double distance = 0;
        for (Index l = 0; l < probe; ++l)
          distance += std::fabs(clean.profile(a)[l] - clean.profile(b)[l]);
        delta = std::min(delta, distance);
      }
    if (clean.count() == 1) delta = 1;
    eps = share * delta / (5 * static_cast<double>(probe));
    for (Index i = 0; i < clean.count(); ++i)
      for (Index j = clean.start(i); j < clean.end(i); ++j)
        for (Index t = j; t < n; ++t)
          logits(t, j) = clean.profile(i)[t - j] + (eps > 0 ? random.uniform(-eps, eps) : 0);
  }
};

// Causal softmax of the lower triangle, times v [n, d].
inline MatrixD causal_softmax(const MatrixD& logits, const MatrixD& v) {
  MatrixD p = MatrixD::Zero(logits.rows(), logits.cols());
  for (Index t = 0; t < p.rows(); ++t) {
    const double top = logits.row(t).head(t + 1).maxCoeff();
    p.row(t).head(t + 1) = (logits.row(t).head(t + 1).array() - top).exp();
    p.row(t) /= p.row(t).sum();
  }
  return p * v;
}

}  // namespace subquad::testing
