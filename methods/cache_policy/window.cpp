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

class Window final : public PolicyMethod {
 public:
  explicit Window(const Params& params) : params_(params) {}

 protected:
  std::unique_ptr<PolicyStream> make_stream(const StreamConfig& config) const override {
    return std::make_unique<WindowCache>(config, params_.m);
  }
  double stream_bytes(const StreamConfig& config) const override {
    return WindowCache::allocated(config, params_.m);
  }
  Index stored() const override { return params_.m; }

 private:
  Params params_;
};

const RegisterMethod<Window, Params> kRegistration{
    policy_info("window", "the usual baseline of cache policies", "cache of the last m tokens"),
    {param("m", &Params::m, {1, 1 << 25}, "tokens kept between steps")}};

}  // namespace
}  // namespace subquad
