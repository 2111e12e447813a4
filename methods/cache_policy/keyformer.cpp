// Keyformer: key tokens by accumulated Gumbel softmax, and the last tokens.
// Source: Adnan et al. 2024 (arXiv 2403.09054); d-matrix-ai/keyformer-llm, mpt-keyformer-lib:
//   f_j = softmax_j((l_j + g_j) / tau),  g_j = -log(-log U_j) fresh for every step,  score_j +=
//   f_j, tau = tau_init + t (tau_end - tau_init) / T for the t-th of T generated tokens (prompt: t
//   = 0).
// The output uses the plain softmax. Our reading is the described rule: any token outside the
// window may be a key token. In its code a token that leaves the window is in neither set for one
// step and so is lost (reference_mask). Our choice: without a prompt every token counts as
// generated.

#include "methods/engines/scored_cache.h"

namespace subquad {
namespace {

struct Params {
  Index m = 128;
  Index recent = -1;
  double tau_init = 1;
  double tau_end = 2;
  bool noise = true;
  bool reference_mask = false;
  std::string prefill = "stream";

  ScoredCacheOptions options() const {
    // recent = 30 % of the cache in its scripts
    return {.m = m,
            .recent = std::min(recent < 0 ? 3 * m / 10 : recent, m),
            .prompt = prefill == "prompt",
            .normalise_by_age = false};
  }
};

class KeyformerCache final : public ScoredCache {
 public:
  KeyformerCache(const StreamConfig& config, const Params& params)
      : ScoredCache(config, params.options()), params_(params) {
    const Seed seed =
        derive(config.seed, "keyformer", {static_cast<std::uint64_t>(config.first_head)});
    key_ = {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
  }

 protected:
  // exp((l + g) / tau) is proportional to (w / -log U)^(1 / tau).
  void contributions(Index t, const float* weights, const std::int32_t* positions, Index count,
                     double* added) override {
    const Index generated = std::max<Index>(0, t - prompt_length());
    const auto planned =
        static_cast<double>(std::max<Index>(1, config_.capacity - prompt_length()));
    const double tau = params_.tau_init + static_cast<double>(generated) *
                                              (params_.tau_end - params_.tau_init) / planned;
    double sum = 0;
    for (Index j = 0; j < count; ++j) {
      double x = static_cast<double>(weights[j]);
      if (params_.noise) x /= -std::log(uniform(t, positions[j]));
      added[j] = tau == 1 ? x : std::pow(x, 1 / tau);
      sum += added[j];
    }
    for (Index j = 0; j < count; ++j) added[j] /= sum;
  }

  Index victim() override {
    if (!params_.reference_mask) return ScoredCache::victim();
    for (Index s = 0; s < count(); ++s)
      if (s != newest() && position(s) == length_ - 1 - options().recent) return s;
    return ScoredCache::victim();
  }

 private:
  // U of query t and the token at `position`: a function of both alone, whatever the slot.
  double uniform(Index t, Index position) const {
    const auto block = philox4x32(
        {static_cast<std::uint32_t>(t), static_cast<std::uint32_t>(position), 0, 0}, key_);
    return (static_cast<double>(block[0]) + 0.5) / 4294967296.0;
  }

  Params params_;
  std::array<std::uint32_t, 2> key_{};
};

MethodInfo info() {
  MethodInfo i = policy_info("keyformer", "Keyformer, arXiv 2403.09054",
                             "cache of the tokens with most noisy attention and the last ones");
  i.random = true;
  i.notes.push_back(kScoredPrefillNote);
  i.notes.push_back(
      "the temperature rises over the capacity of the decoder, or what follows a "
      "prompt");
  return i;
}

const RegisterMethod<BudgetPolicy<KeyformerCache, Params>, Params> kRegistration{
    info(),
    {param("m", &Params::m, {1, 1 << 25}, "tokens kept between steps"),
     param("recent", &Params::recent, {-1, 1 << 24},
           "of them: the last tokens, at most m; -1 = 30 % of m"),
     param("tau_init", &Params::tau_init, {0.01, 100}, "temperature of the first generated token"),
     param("tau_end", &Params::tau_end, {0.01, 100}, "temperature of the last one"),
     param("noise", &Params::noise, "add Gumbel noise"),
     param("reference_mask", &Params::reference_mask,
           "a token that leaves the window is lost, as in the authors' code"),
     choice("prefill", &Params::prefill, {"stream", "prompt"}, "how a history comes in")}};

}  // namespace
}  // namespace subquad
