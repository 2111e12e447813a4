// Releases the token that the current query weighs least, without rebuilding: what a policy that
// only releases can do at best if it looks no further than now.
// It needs nothing but the weights of its own cache; "oracle" is the name that its comparison gave
// it.

#include "methods/engines/cache_policy.h"

namespace subquad {
namespace {

struct Params {
  Index m = 128;
};

class ReleaseCache final : public EvictingCache {
 public:
  using EvictingCache::EvictingCache;

 protected:
  Index victim() override {
    return lowest(0, [&](Index s) { return weights()[s]; });
  }
};

MethodInfo info() {
  MethodInfo i = policy_info("release_oracle", "control of ADORE, arXiv 2407.02328",
                             "cache that releases the token of least weight now");
  i.notes.push_back("no bound: it is greedy, and needs no more than the weights of its cache");
  return i;
}

const RegisterMethod<BudgetPolicy<ReleaseCache, Params>, Params> kRegistration{
    info(), {param("m", &Params::m, {1, 1 << 25}, "tokens kept between steps")}};

}  // namespace
}  // namespace subquad
