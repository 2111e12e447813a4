#include "methods/engines/conv_decoder.h"

#include <limits>

#include "harness/core/parallel.h"

namespace subquad {
namespace {

class ConvDecoder final : public Decoder {
 public:
  ConvDecoder(const DecodeConfig& config, const SegmentRule& rule)
      : config_(config),
        rule_(rule),
        heads_(config.batch * config.heads),
        segments_(std::min(rule.k, config.capacity)),
        values_(heads_ * config.capacity * config.d_v),
        keys_(heads_ * segments_ * config.d_k),
        profiles_(heads_ * segments_ * config.capacity),
        weights_(heads_ * config.capacity),
        starts_(heads_ * segments_),
        count_(heads_) {
    SUBQUAD_CHECK(rule.kind == Segmentation::fixed || rule.kind == Segmentation::first_k ||
                      rule.kind == Segmentation::scan_causal,
                  "a segmentation that looks ahead cannot decode");
  }

  void reset() override {
    length_ = 0;
    std::fill_n(count_.data(), heads_, Index{0});
  }

  void step(const DecodeStep& in, float* out) override {
    SUBQUAD_CHECK(length_ < config_.capacity, "more than {} tokens were fed", config_.capacity);
    parallel_for(heads_, [&](Index bh, int) {
      step_head(bh, in.q + bh * config_.d_k, in.k + bh * config_.d_k, in.v + bh * config_.d_v,
                out + bh * config_.d_v);
    });
    ++length_;
  }

  CacheBytes bytes() const override {
    const auto heads = static_cast<double>(heads_), n = static_cast<double>(length_);
    double segments = 0;
    for (Index bh = 0; bh < heads_; ++bh) segments += static_cast<double>(count_[bh]);
    return {.kv = 4 * (heads * n * static_cast<double>(config_.d_v) +
                       segments * static_cast<double>(config_.d_k)),
            .aux = segments * (4 * n + 8),
            .scratch = 4 * heads * n};
  }

  std::vector<VisibleKey> visible(Index b, Index h) const override {
    std::vector<VisibleKey> keys;
    const float* weights = weights_.data() + (b * config_.heads + h) * config_.capacity;
    float sum = 0;
    for (Index j = 0; j < length_; ++j) sum += weights[j];
    for (Index j = 0; j < length_; ++j) keys.push_back({j, weights[j] / sum});
    return keys;
  }

 private:
  double logit(const float* q, const float* k) const {
    double sum = 0;
    for (Index c = 0; c < config_.d_k; ++c)
      sum += static_cast<double>(q[c]) * static_cast<double>(k[c]);
    return config_.logit_scale() * sum;
  }

  bool starts_here(Index bh, const float* q, const float* k) const {
    const Index count = count_[bh];
    if (count == 0) return true;
    if (count == segments_) return false;
    if (rule_.kind == Segmentation::first_k) return true;
    if (rule_.kind == Segmentation::fixed)
      return rule_.fixed[static_cast<std::size_t>(count)] == length_;
    const double threshold = (rule_.delta > 0 ? rule_.delta : 1) - 2 * rule_.eps;
    const double current =
        static_cast<double>(profiles_[(bh * segments_ + count - 1) * config_.capacity]);
    return !(std::fabs(logit(q, k) - current) < threshold);
  }

  void step_head(Index bh, const float* q, const float* k, const float* v, float* out) {
    const Index d_k = config_.d_k, d_v = config_.d_v, capacity = config_.capacity;
    std::copy_n(v, d_v, values_.data() + (bh * capacity + length_) * d_v);
    Index* starts = starts_.data() + bh * segments_;
    if (starts_here(bh, q, k)) {
      starts[count_[bh]] = length_;
      std::copy_n(k, d_k, keys_.data() + (bh * segments_ + count_[bh]) * d_k);
      ++count_[bh];
    }
    const Index count = count_[bh];
    float* weights = weights_.data() + bh * capacity;
    float largest = -std::numeric_limits<float>::infinity();
    for (Index i = 0; i < count; ++i) {
      float* profile = profiles_.data() + (bh * segments_ + i) * capacity;
      profile[length_ - starts[i]] =
          static_cast<float>(logit(q, keys_.data() + (bh * segments_ + i) * d_k));
      const Index end = i + 1 < count ? starts[i + 1] : length_ + 1;
      for (Index j = starts[i]; j < end; ++j) {
        weights[j] = profile[length_ - j];
        largest = weights[j] > largest ? weights[j] : largest;
      }
    }
    Eigen::Map<Eigen::ArrayXf> w(weights, length_ + 1);
    w = (w - largest).exp();
    Eigen::Map<RowVector> o(out, d_v);
    o.setZero();
    const float* values = values_.data() + bh * capacity * d_v;
    for (Index j = 0; j <= length_; ++j)
      o += weights[j] * Eigen::Map<const RowVector>(values + j * d_v, d_v);
    double total = 0;
    for (Index j = 0; j <= length_; ++j) total += static_cast<double>(weights[j]);
    o *= static_cast<float>(1 / total);
  }

  DecodeConfig config_;
  SegmentRule rule_;
  Index heads_, segments_;
  Index length_ = 0;
  AlignedArray<float> values_;    // [heads, capacity, d_v]
  AlignedArray<float> keys_;      // [heads, segments, d_k] of the starts
  AlignedArray<float> profiles_;  // [heads, segments, capacity] logits by lag
  AlignedArray<float> weights_;   // [heads, capacity] of the last step
  AlignedArray<Index> starts_;    // [heads, segments]
  AlignedArray<Index> count_;     // [heads]
};

}  // namespace

std::unique_ptr<Decoder> make_conv_decoder(const DecodeConfig& config, const SegmentRule& rule) {
  return std::make_unique<ConvDecoder>(config, rule);
}

double conv_decoder_bytes(const Problem& p, const SegmentRule& rule) {
  const auto n = static_cast<double>(p.n), k = static_cast<double>(std::min(rule.k, p.n));
  return static_cast<double>(p.batch * p.heads) *
         (4 * (n * static_cast<double>(p.d_v) + k * static_cast<double>(p.d_k) + k * n + n) +
          8 * (k + 1));
}

}  // namespace subquad
