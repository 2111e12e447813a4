// The random features of Performers (Choromanski et al. 2021, arXiv 2009.14794) for the reference
// of linear attention. The numbers of W come from the same stream as the method's; orthogonal rows
// by Gram-Schmidt, whose triangular factor has a positive diagonal: the uniform distribution.
#pragma once

#include <algorithm>
#include <cmath>

#include "harness/core/random.h"
#include "tests/reference/linear_attention.h"

namespace subquad::reference {

struct PerformerOptions {
  std::string form = "hyperbolic";
  Index features = 0;
  bool orthogonal = true;
  std::string norms = "chi";
  bool stabiliser = true;
  double feature_eps = 0, eps = 1e-6;
};

// W [draws, d].
inline MatrixD performer_projection(const PerformerOptions& o, Index d, Seed seed) {
  const Index features = o.features != 0 ? o.features : 2 * d;
  const Index draws = o.form == "positive" ? features : std::max<Index>(1, features / 2);
  Random random(derive(seed, "performer.projection", {0}), "favor");
  MatrixD w(draws, d);
  const auto gaussian = [&](Index rows) {
    MatrixD g(rows, d);
    for (Index r = 0; r < rows; ++r)
      for (Index c = 0; c < d; ++c) g(r, c) = random.normal();
    return g;
  };
  if (!o.orthogonal) return gaussian(draws);
  for (Index first = 0; first < draws; first += d) {
    const MatrixD g = gaussian(d), lengths = gaussian(d);
    MatrixD q = g;  // columns made orthonormal from left to right, twice for accuracy
    for (Index c = 0; c < d; ++c) {
      for (int again = 0; again < 2; ++again)
        for (Index before = 0; before < c; ++before) {
          double dot = 0;
          for (Index r = 0; r < d; ++r) dot += q(r, before) * q(r, c);
          for (Index r = 0; r < d; ++r) q(r, c) -= dot * q(r, before);
        }
      double norm = 0;
      for (Index r = 0; r < d; ++r) norm += q(r, c) * q(r, c);
      for (Index r = 0; r < d; ++r) q(r, c) /= std::sqrt(norm);
    }
    for (Index r = 0; r < d && first + r < draws; ++r) {
      double norm = 0;
      for (Index c = 0; c < d; ++c) norm += lengths(r, c) * lengths(r, c);
      const double length = o.norms == "chi" ? std::sqrt(norm) : std::sqrt(static_cast<double>(d));
      for (Index c = 0; c < d; ++c) w(first + r, c) = length * q(r, c);
    }
  }
  return w;
}

// phi(x) without a stabiliser: unbiased, E[phi(q).phi(k)] = exp(scale q.k).
inline Features performer_features(const PerformerOptions& o, const MatrixD& w, double scale) {
  const double root = std::sqrt(scale);
  const auto m = static_cast<std::size_t>(w.rows());
  const auto exponents = [w, root](const Features::Row& x, double* half) {
    Features::Row s(static_cast<std::size_t>(w.rows()), 0.0);
    *half = 0;
    for (std::size_t c = 0; c < x.size(); ++c) *half += 0.5 * root * root * x[c] * x[c];
    for (std::size_t r = 0; r < s.size(); ++r)
      for (std::size_t c = 0; c < x.size(); ++c)
        s[r] += w(static_cast<Index>(r), static_cast<Index>(c)) * root * x[c];
    return s;
  };
  const auto value = [o, m, exponents](const Features::Row& x) {
    double half = 0;
    const Features::Row s = exponents(x, &half);
    Features::Row phi;
    if (o.form == "trigonometric") {
      for (const double e : s) phi.push_back(std::cos(e) * std::exp(half));
      for (const double e : s) phi.push_back(std::sin(e) * std::exp(half));
    } else {
      for (const double e : s) phi.push_back(std::exp(e - half));
      if (o.form == "hyperbolic")
        for (const double e : s) phi.push_back(std::exp(-e - half));
    }
    const double count = static_cast<double>(o.form == "hyperbolic" ? 2 * m : m);
    for (double& f : phi) f /= std::sqrt(count);
    return phi;
  };
  // Chain rule through s = root W x and half = root^2 |x|^2 / 2.
  const auto pull_back = [o, m, w, root, value](const Features::Row& x, const Features::Row& dphi) {
    const Features::Row phi = value(x);
    Features::Row ds(m, 0.0), dx(x.size(), 0.0);
    double dhalf = 0;
    for (std::size_t r = 0; r < m; ++r) {
      if (o.form == "trigonometric") {
        ds[r] = -phi[m + r] * dphi[r] + phi[r] * dphi[m + r];
      } else {
        ds[r] = phi[r] * dphi[r] - (o.form == "hyperbolic" ? phi[m + r] * dphi[m + r] : 0);
      }
    }
    for (std::size_t f = 0; f < phi.size(); ++f)
      dhalf += (o.form == "trigonometric" ? 1 : -1) * phi[f] * dphi[f];
    for (std::size_t c = 0; c < x.size(); ++c) {
      dx[c] = dhalf * root * root * x[c];
      for (std::size_t r = 0; r < m; ++r)
        dx[c] += ds[r] * root * w(static_cast<Index>(r), static_cast<Index>(c));
    }
    return dx;
  };
  return {value, pull_back};
}

// The stabiliser's constants cancel in the division, up to eps: the reference has neither.
inline LinearOptions performer_options(const PerformerOptions& o, const Problem& p, Seed seed) {
  const Features phi = performer_features(o, performer_projection(o, p.d_k, seed), p.logit_scale());
  return {phi, phi, true, o.eps, {}};
}

}  // namespace subquad::reference
