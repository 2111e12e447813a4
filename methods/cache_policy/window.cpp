// The last m tokens: the plainest cache of constant size.

#include "methods/engines/cache_policy.h"

namespace subquad {
namespace {

struct Params {
  Index m = 128;
};

class WindowCache final : public EvictingCache {
 public:
  using EvictingCache::EvictingCache;

 protected:
  // Slots are filled and written over in order, so the oldest token is in the next one.
  Index victim() override { return newest() == budget() ? 0 : newest() + 1; }
};

const RegisterMethod<BudgetPolicy<WindowCache, Params>, Params> kRegistration{
    policy_info("window", "the usual baseline of cache policies", "cache of the last m tokens"),
    {param("m", &Params::m, {1, 1 << 25}, "tokens kept between steps")}};

}  // namespace
}  // namespace subquad
