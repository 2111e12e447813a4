// StreamingLLM: the first tokens, which collect the attention that nothing else claims, and the
// last ones. Source: Xiao et al. 2023 (arXiv 2309.17453); rules of its code,
// streaming_llm/kv_cache.py. Its cache drops a token before the new one comes, so start_size +
// recent_size = m + 1 there. Rotary angles by place in the cache have no counterpart here: keys
// come as they are.

#include "methods/engines/cache_policy.h"

namespace subquad {
namespace {

struct Params {
  Index m = 128;
  Index sinks = 4;  // start_size of its code
};

class StreamingCache final : public EvictingCache {
 public:
  StreamingCache(const StreamConfig& config, const Params& params)
      : EvictingCache(config, params.m), sinks_(std::min(params.sinks, params.m - 1)) {}

 protected:
  // The sinks stay in the first slots; behind them a ring.
  Index victim() override { return newest() == budget() ? sinks_ : newest() + 1; }

 private:
  Index sinks_;
};

MethodInfo info() {
  MethodInfo i = policy_info("streaming_llm", "StreamingLLM, arXiv 2309.17453",
                             "cache of the first tokens and the last ones");
  i.notes.push_back("at most m - 1 sinks: one place is the newest token's");
  i.notes.push_back("keys keep their positions: no rotary angles by place in the cache");
  return i;
}

const RegisterMethod<BudgetPolicy<StreamingCache, Params>, Params> kRegistration{
    info(),
    {param("m", &Params::m, {1, 1 << 25}, "tokens kept between steps, sinks included"),
     param("sinks", &Params::sinks, {0, 1 << 24}, "of them: the first tokens")}};

}  // namespace
}  // namespace subquad
