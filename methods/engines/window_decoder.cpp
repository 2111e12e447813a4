#include "methods/engines/window_decoder.h"

#include <algorithm>
#include <cstring>

#include "harness/core/parallel.h"

namespace subquad {
namespace {

class WindowDecoder final : public Decoder {
 public:
  WindowDecoder(const DecodeConfig& config, Index window, Index sinks)
      : config_(config),
        heads_(config.batch * config.heads),
        sinks_(std::min(sinks, config.capacity)),
        ring_(std::min(window, config.capacity - sinks_)),
        keys_(heads_, 1, slots(), config.d_k),
        values_(heads_, 1, slots(), config.d_v),
        weights_(heads_ * slots()),
        query_(heads_ * config.d_k) {}

  void reset() override { length_ = 0; }

  void prefill(ConstTensorView, ConstTensorView k, ConstTensorView v, ConstTensorView) override {
    const Index length = k.n();
    check_room(length);
    for (Index h = 0; h < heads_; ++h)
      for (Index t = 0; t < length; ++t)
        if (length_ + t < sinks_ || t >= length - ring_)  // the others would be overwritten
          store(h, slot(length_ + t), k.data() + (h * length + t) * config_.d_k,
                v.data() + (h * length + t) * config_.d_v);
    length_ += length;
  }

  void step(const DecodeStep& in, float* out) override {
    check_room(1);
    const Index slot_now = slot(length_);
    ++length_;
    const auto scale = static_cast<float>(config_.logit_scale());
    parallel_for(heads_, [&](Index h, int) {
      store(h, slot_now, in.k + h * config_.d_k, in.v + h * config_.d_v);
      Eigen::Map<Vector> q(query_.data() + h * config_.d_k, config_.d_k);
      q = scale * Eigen::Map<const Vector>(in.q + h * config_.d_k, config_.d_k);
      Eigen::Map<Vector> w(weights_.data() + h * slots(), filled());
      w.noalias() = keys_.view().head(h).topRows(filled()) * q;
      w.array() = (w.array() - w.maxCoeff()).exp();
      w /= w.sum();
      Eigen::Map<Vector> o(out + h * config_.d_v, config_.d_v);
      o.noalias() = values_.view().head(h).topRows(filled()).transpose() * w;
    });
  }

  CacheBytes bytes() const override {
    const auto bytes = [](Index floats) { return 4.0 * static_cast<double>(floats); };
    return {.kv = bytes(heads_ * filled() * (config_.d_k + config_.d_v)),
            .scratch = bytes(weights_.size() + query_.size())};
  }

  std::vector<VisibleKey> visible(Index b, Index h) const override {
    std::vector<VisibleKey> keys;
    const float* weights = weights_.data() + (b * config_.heads + h) * slots();
    for (Index position = 0; position < length_; ++position)
      if (position < sinks_ || position >= length_ - ring_)
        keys.push_back({position, weights[slot(position)]});
    return keys;
  }

 private:
  Index slots() const { return sinks_ + ring_; }
  Index filled() const { return std::min(length_, slots()); }
  // The first `sinks` tokens stay; the others go round in the ring behind them.
  Index slot(Index position) const {
    return position < sinks_ ? position : sinks_ + (position - sinks_) % ring_;
  }
  void check_room(Index more) const {
    SUBQUAD_CHECK(length_ + more <= config_.capacity, "{} tokens are cached, {} more exceed {}",
                  length_, more, config_.capacity);
  }
  void store(Index h, Index to, const float* k, const float* v) {
    std::copy_n(k, config_.d_k, keys_.view().head_data(h, 0) + to * config_.d_k);
    std::copy_n(v, config_.d_v, values_.view().head_data(h, 0) + to * config_.d_v);
  }

  DecodeConfig config_;
  Index heads_;                  // batch * heads
  Index sinks_, ring_;           // slots of the two parts of the cache
  Tensor keys_, values_;         // [batch * heads, 1, slots, d]
  AlignedArray<float> weights_;  // [batch * heads, slots] of the last step
  AlignedArray<float> query_;    // [batch * heads, d_k], scaled
  Index length_ = 0;             // tokens seen
};

}  // namespace

std::unique_ptr<Decoder> make_window_decoder(const DecodeConfig& config, Index window,
                                             Index sinks) {
  return std::make_unique<WindowDecoder>(config, window, sinks);
}

}  // namespace subquad
