// The last tokens, and every stride-th one before them: the strided pattern of Child et al. 2019
// (arXiv 1904.10509) as a cache.
// Our choice: the tokens of the stride are those whose position it divides, for a token that was
// released cannot come back; of them the newest m - recent stay.

#include "methods/engines/cache_policy.h"

namespace subquad {
namespace {

struct Params {
  Index m = 128;
  Index recent = -1;
  Index stride = 16;
  Index last() const { return std::min(recent < 0 ? m / 2 : recent, m); }
};

class StridedCache final : public EvictingCache {
 public:
  StridedCache(const StreamConfig& config, const Params& params)
      : EvictingCache(config, params.m), recent_(params.last()), stride_(params.stride) {}

 protected:
  // The oldest token off the stride, else the oldest on it. O(m).
  Index victim() override {
    return lowest(recent_, [&](Index s) { return position(s) % stride_ == 0 ? 1 : 0; });
  }

 private:
  Index recent_, stride_;
};

const RegisterMethod<BudgetPolicy<StridedCache, Params>, Params> kRegistration{
    policy_info("strided", "Child et al. 2019, arXiv 1904.10509",
                "cache of the last tokens and every stride-th one before them"),
    {param("m", &Params::m, {1, 1 << 25}, "tokens kept between steps"),
     param("recent", &Params::recent, {-1, 1 << 24},
           "of them: the last tokens, at most m; -1 = half of m"),
     param("stride", &Params::stride, {1, 1 << 24}, "distance of the others")}};

}  // namespace
}  // namespace subquad
