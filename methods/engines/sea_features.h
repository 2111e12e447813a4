// The random features of SEA's kernel attention, as its authors compute them.
//   relu   phi(x)_m = max(w_m.x', 0) + 1e-3                                   (causal default)
//   favor  phi(x)_m = M^-1/2 (exp(w_m.x' - |x'|^2/2 - shift) + 1e-4)          (bidirectional)
// x' = d^-1/4 x; shift is the largest w_m.x' of a query, or of all keys of a head; it counts as
// constant. Rows w_m: blocks of d orthogonal rows with the lengths of Gaussian rows.
// Source: Lee et al. 2024 (arXiv 2310.01777), code; the formulas are those of performer-pytorch.
#pragma once

#include <memory>

#include "methods/engines/feature_map.h"

namespace subquad {

// M for rows of width d: `features`, or with 0 the code's d ln(d) / 8, at least one.
Index sea_feature_count(Index features, Index d);

std::unique_ptr<FeatureMap> make_sea_features(bool relu, Index features);

}  // namespace subquad
