// H2O: the tokens that have collected most attention, and the last ones.
// Source: Zhang et al. 2023 (arXiv 2306.14048); rules of its code, h2o_hf/utils_real_drop:
//   score_j += w_nj for every cached j, new ones start with their own weight; over budget, the last
//   `recent` tokens stay and of the others the m - recent of the largest score. Per head; scores of
//   released tokens are lost.
// Not followed: the masking simulation (utils_hh), which loses the token that leaves the window for
// one step, and the sum over a batch. Old tokens collect more; normalise_by_age (ours) divides by
// the steps lived.

#include "methods/engines/scored_cache.h"

namespace subquad {
namespace {

struct Params {
  Index m = 128;
  Index recent = -1;
  bool normalise_by_age = false;
  std::string prefill = "stream";

  ScoredCacheOptions options() const {
    return {.m = m,
            .recent = std::min(recent < 0 ? m / 2 : recent, m),
            .prompt = prefill == "prompt",
            .normalise_by_age = normalise_by_age};
  }
};

class H2oCache final : public ScoredCache {
 public:
  H2oCache(const StreamConfig& config, const Params& params)
      : ScoredCache(config, params.options()) {}

 protected:
  void contributions(Index, const float* weights, const std::int32_t*, Index count,
                     double* added) override {
    for (Index j = 0; j < count; ++j) added[j] = static_cast<double>(weights[j]);
  }
};

MethodInfo info() {
  MethodInfo i = policy_info("h2o", "H2O, arXiv 2306.14048",
                             "cache of the tokens with most attention so far and the last ones");
  i.notes.push_back(kScoredPrefillNote);
  return i;
}

const RegisterMethod<BudgetPolicy<H2oCache, Params>, Params> kRegistration{
    info(),
    {param("m", &Params::m, {1, 1 << 25}, "tokens kept between steps"),
     param("recent", &Params::recent, {-1, 1 << 24},
           "of them: the last tokens, at most m; -1 = half of m"),
     param("normalise_by_age", &Params::normalise_by_age, "score / steps lived"),
     choice("prefill", &Params::prefill, {"stream", "prompt"}, "how a history comes in")}};

}  // namespace
}  // namespace subquad
