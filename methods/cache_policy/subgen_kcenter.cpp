// The last tokens, and keys that are far from each other: what the experiments of SubGen ran.
// Source: Zandieh et al. 2024 (arXiv 2402.06082): greedy k-centre over the keys of the prompt, with
// the values of the centres, plain softmax, and the last tokens exactly.
// prefill: prompt does that. Our choice elsewhere: a token that leaves the window joins the
// centres, and when they are too many, the closest two are found and the later one is released.

#include <limits>
#include <numeric>

#include "methods/engines/cache_policy.h"

namespace subquad {
namespace {

struct Params {
  Index m = 128;
  Index recent = -1;
  std::string prefill = "stream";
  // At least the current token, which cannot be released.
  Index last() const { return std::clamp<Index>(recent < 0 ? m / 2 : recent, 1, m); }
};

class CentreCache final : public EvictingCache {
 public:
  CentreCache(const StreamConfig& config, const Params& params)
      : EvictingCache(config, params.m),
        recent_(params.last()),
        prompt_(params.prefill == "prompt"),
        centre_(std::min(params.m + 1, config.capacity)),
        nearest_(centre_.size()),
        distance_(centre_.size()),
        to_centres_(prompt_ ? config.capacity : 0) {}

  void reset() override {
    EvictingCache::reset();
    centres_ = 0;
  }

  // With `prompt`: greedy k-centre over the tokens before the window, beginning with the first.
  // O(length m d_k).
  void prefill(const StreamTokens& tokens) override {
    if (!prompt_ || length_ > 0 || tokens.length <= budget()) return PolicyStream::prefill(tokens);
    check_room(tokens.length);
    const Index older = tokens.length - recent_, wanted = budget() - recent_;
    std::vector<Index> kept;
    std::fill_n(to_centres_.data(), older, std::numeric_limits<double>::infinity());
    for (Index next = 0; static_cast<Index>(kept.size()) < wanted;) {
      kept.push_back(next);
      Index farthest = 0;
      for (Index j = 0; j < older; ++j) {
        to_centres_[j] = std::min(
            to_centres_[j], between(tokens.k + next * config_.d_k, tokens.k + j * config_.d_k));
        if (to_centres_[j] > to_centres_[farthest]) farthest = j;
      }
      next = farthest;
      if (!(to_centres_[farthest] > 0)) break;  // the others are copies
    }
    std::sort(kept.begin(), kept.end());
    const Index found = static_cast<Index>(kept.size());
    for (Index t = older; t < tokens.length; ++t) kept.push_back(t);
    fill(tokens, kept, tokens.length);
    for (Index s = 0; s < found; ++s) add_centre(s);
  }

  static double allocated(const StreamConfig& c, const Params& p) {
    const Index slots = std::min(p.m + 1, c.capacity);
    return EvictingCache::allocated(c, p.m) + 16.0 * static_cast<double>(slots) +
           (p.prefill == "prompt" ? 8.0 * static_cast<double>(c.capacity) : 0.0);
  }

 protected:
  void observe() override {
    for (Index s = 0; s < count(); ++s)
      if (position(s) == length_ - 1 - recent_ && s != newest()) add_centre(s);
  }

  // O(m), and O(m d_k) for every centre whose nearest neighbour goes.
  Index victim() override {
    if (centres_ == 0) return lowest(0, [](Index) { return 0; });
    Index best = 0;
    for (Index c = 1; c < centres_; ++c)
      if (distance_[c] < distance_[best]) best = c;
    Index gone = best;
    if (centres_ > 1) {
      const Index other = nearest_[best];
      if (position(centre_[other]) > position(centre_[best])) gone = other;
    }
    const Index slot = centre_[gone];
    --centres_;
    // The last centre takes its place; who pointed to either is told.
    centre_[gone] = centre_[centres_];
    nearest_[gone] = nearest_[centres_];
    distance_[gone] = distance_[centres_];
    for (Index c = 0; c < centres_; ++c) {
      if (nearest_[c] == gone) {
        find_nearest(c);
      } else if (nearest_[c] == centres_) {
        nearest_[c] = static_cast<std::int32_t>(gone);
      }
    }
    return slot;
  }
  double aux_bytes() const override { return 16.0 * static_cast<double>(centres_); }

 private:
  double between(const float* a, const float* b) const {
    double sum = 0;
    for (Index c = 0; c < config_.d_k; ++c) {
      const double x = static_cast<double>(a[c]) - static_cast<double>(b[c]);
      sum += x * x;
    }
    return sum;
  }
  double apart(Index a, Index b) const { return between(key(centre_[a]), key(centre_[b])); }

  void find_nearest(Index c) {
    nearest_[c] = -1;
    distance_[c] = std::numeric_limits<double>::infinity();
    for (Index other = 0; other < centres_; ++other) {
      if (other == c) continue;
      const double d = apart(c, other);
      if (d < distance_[c]) distance_[c] = d, nearest_[c] = static_cast<std::int32_t>(other);
    }
  }

  void add_centre(Index slot) {
    const Index c = centres_++;
    centre_[c] = static_cast<std::int32_t>(slot);
    nearest_[c] = -1;
    distance_[c] = std::numeric_limits<double>::infinity();
    for (Index other = 0; other < c; ++other) {
      const double d = apart(c, other);
      if (d < distance_[c]) distance_[c] = d, nearest_[c] = static_cast<std::int32_t>(other);
      if (d < distance_[other]) {
        distance_[other] = d;
        nearest_[other] = static_cast<std::int32_t>(c);
      }
    }
  }

  Index recent_;
  bool prompt_;
  // Of every centre its slot, the centre nearest to it, and their squared distance.
  AlignedArray<std::int32_t> centre_, nearest_;
  AlignedArray<double> distance_;
  AlignedArray<double> to_centres_;  // of a prompt
  Index centres_ = 0;
};

const RegisterMethod<BudgetPolicy<CentreCache, Params>, Params> kRegistration{
    policy_info("subgen_kcenter", "SubGen, arXiv 2402.06082, as in its experiments",
                "cache of the last tokens and of keys that are far from each other"),
    {param("m", &Params::m, {1, 1 << 25}, "tokens kept between steps"),
     param("recent", &Params::recent, {-1, 1 << 24},
           "of them: the last tokens, from 1 to m; -1 = half of m"),
     choice("prefill", &Params::prefill, {"stream", "prompt"}, "how a history comes in")}};

}  // namespace
}  // namespace subquad
