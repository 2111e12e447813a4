// Any m tokens: a control. The current one stays; of the others one is released at random.

#include "methods/engines/cache_policy.h"

namespace subquad {
namespace {

struct Params {
  Index m = 128;
};

class RandomCacheStream final : public EvictingCache {
 public:
  RandomCacheStream(const StreamConfig& config, Index budget)
      : EvictingCache(config, budget),
        seed_(derive(config.seed, "random_cache", {static_cast<std::uint64_t>(config.first_head)})),
        random_(seed_) {}
  void reset() override {
    EvictingCache::reset();
    random_ = Random(seed_);
  }

 protected:
  Index victim() override {
    const auto slot = static_cast<Index>(random_.below(static_cast<std::uint64_t>(budget())));
    return slot < newest() ? slot : slot + 1;
  }

 private:
  Seed seed_;
  Random random_;
};

MethodInfo info() {
  MethodInfo i = policy_info("random_cache", "control", "cache that releases tokens at random");
  i.random = true;
  return i;
}

const RegisterMethod<BudgetPolicy<RandomCacheStream, Params>, Params> kRegistration{
    info(), {param("m", &Params::m, {1, 1 << 25}, "tokens kept between steps")}};

}  // namespace
}  // namespace subquad
