// FAVOR+: random features whose product is an unbiased estimate of the softmax kernel,
//   E[phi(q).phi(k)] = exp(scale q.k).
// Source: Choromanski et al. 2021, "Rethinking attention with Performers" (arXiv 2009.14794),
// lemmas 1-2 and section 3. With x scaled by sqrt(scale) and rows w_r of W [draws, d]:
//   positive       phi(x) = m^-1/2 exp(W x - |x|^2/2)
//   hyperbolic     phi(x) = (2m)^-1/2 exp(-|x|^2/2) [exp(W x), exp(-W x)]
//   trigonometric  phi(x) = m^-1/2 exp(|x|^2/2) [cos W x, sin W x]        (may be negative)
#pragma once

#include <memory>
#include <string>

#include "methods/engines/feature_map.h"

namespace subquad {

struct FavorOptions {
  std::string form = "hyperbolic";  // positive, hyperbolic, trigonometric
  Index features = 0;               // width of phi; 0: 2 d
  bool orthogonal = true;           // blocks of d orthogonal rows
  std::string norms = "chi";        // of orthogonal rows: chi (of a Gaussian row) or sqrt_d
  bool stabiliser = true;           // see Favor below
  double feature_eps = 0;           // added to every feature
};

// Rows of W [draws, d]: independent Gaussian, or blocks of d orthogonal rows. Uniformly
// distributed: the Q of a Householder QR is not (its R has signs of its own), so that columns are
// multiplied by the signs of R's diagonal.
MatrixD favor_projection(Index draws, Index d, const FavorOptions& options, Seed seed);

// The map, with `scale` the factor on the logits. prepare() draws W.
//
// Stabiliser. Queries: the largest exponent of each query is subtracted; it cancels in the division
// by the normaliser. Keys: the largest exponent of a head, where begin() was told of the keys and
// attention is not causal; a constant that looks at all keys would look at the future, so that
// causal attention and decoding have none.
std::unique_ptr<FeatureMap> make_favor_map(const FavorOptions& options, double scale);

}  // namespace subquad
