// The cache of one layer that ADORE's plan (rebuilding_plan.h) keeps, whose heads share one set of
// tokens. Released tokens are fetched from a cold store of keys and values, or computed from a
// store of the layer's inputs.
#pragma once

#include "methods/engines/rebuilding_plan.h"

namespace subquad {

class RebuildingCache final : public PolicyStream {
 public:
  RebuildingCache(const StreamConfig& config, const RebuildOptions& options,
                  std::unique_ptr<TokenScorer> scorer);

  void reset() override;
  // Time O((m + r) H (d_k + d_v)), and with r > 0 scoring and looking through all n tokens.
  void step(const StreamTokens& token, float* out, Index out_stride) override;
  void prefill(const StreamTokens& tokens) override;
  CacheBytes bytes() const override;
  std::vector<VisibleKey> visible(Index head) const override;

  // What the constructor allocates, without the scorer.
  static double allocated(const StreamConfig& config, const RebuildOptions& options);

 private:
  void store_cold(const StreamTokens& token, Index n);
  void fetch(Index position, Index slot);

  RebuildOptions options_;
  RebuildingPlan plan_;
  CacheSlots cache_;
  AlignedArray<float> cold_k_, cold_v_;  // [heads, capacity, d], copied
  AlignedArray<float> cold_x_;           // [capacity, d_e], projected
  AlignedArray<std::int32_t> seen_;      // [slots] positions of the last step
  AlignedArray<float> mean_;             // [slots] head mean of the weights
  Index seen_count_ = 0;
};

}  // namespace subquad
