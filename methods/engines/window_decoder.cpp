#include "methods/engines/window_decoder.h"

#include <algorithm>
#include <cmath>

#include "harness/core/parallel.h"
#include "methods/engines/row_attention.h"

namespace subquad {

using namespace engine;

namespace {

class WindowDecoder final : public Decoder {
 public:
  WindowDecoder(const DecodeConfig& config, Index window, Index sinks)
      : config_(config),
        heads_(config.batch * config.heads),
        sinks_(std::min(sinks, config.capacity)),
        ring_(std::min(window, config.capacity - sinks_)),
        part_length_(std::min(kPart, round_up(slots(), kLanes))),
        parts_((slots() + part_length_ - 1) / part_length_),
        keys_(heads_, 1, slots(), config.d_k),
        values_(heads_, 1, slots(), config.d_v),
        weights_(heads_ * parts_ * part_length_),
        outs_(heads_ * parts_ * config.d_v),
        query_(heads_ * (config.d_k + kLanes)),
        part_(static_cast<std::size_t>(heads_ * parts_)),
        whole_(static_cast<std::size_t>(heads_)) {}

  void reset() override { length_ = 0; }

  void prefill(ConstTensorView, ConstTensorView k, ConstTensorView v, ConstTensorView) override {
    const Index length = k.n();
    check_room(length);
    for (Index h = 0; h < heads_; ++h)
      for (Index t = 0; t < length; ++t)
        if (length_ + t < sinks_ || t >= length - ring_)  // the others would be overwritten
          store_token(h, slot(length_ + t), k.data() + (h * length + t) * config_.d_k,
                      v.data() + (h * length + t) * config_.d_v);
    length_ += length;
  }

  // Time O(slots (d_k + d_v)) per head: one stream through the cache.
  void step(const DecodeStep& in, float* out) override {
    check_room(1);
    const Index slot_now = slot(length_);
    ++length_;
    const float scale = static_cast<float>(config_.logit_scale()) * kLog2e;
    const Index d_k = config_.d_k, d_v = config_.d_v,
                used = (filled() + part_length_ - 1) / part_length_;
    for (Index h = 0; h < heads_; ++h) {
      store_token(h, slot_now, in.k + h * d_k, in.v + h * d_v);
      float* const q = query_.data() + h * (d_k + kLanes);
      for (Index c = 0; c < d_k; ++c) q[c] = scale * in.q[h * d_k + c];
    }
    // Parts of a long cache are items of their own, so one head keeps several threads busy; their
    // borders depend on the length alone, and so do the bits.
    const auto attend = [&](Index item, int) {
      const Index h = item / used, p = item % used, first = p * part_length_;
      float* const q = query_.data() + h * (d_k + kLanes);
      const Index place = h * parts_ + p;
      part_[static_cast<std::size_t>(place)] =
          attend_rows(RowQuery(q, d_k, q + d_k),
                      ContiguousRows{keys_.view().head_data(h, 0) + first * d_k, d_k},
                      ContiguousRows{values_.view().head_data(h, 0) + first * d_v, d_v},
                      std::min(part_length_, filled() - first), d_v,
                      weights_.data() + place * part_length_, outs_.data() + place * d_v);
    };
    constexpr Index kWorthThreads = 1 << 15;  // floats; below it starting threads costs more
    if (heads_ * filled() * (d_k + d_v) < kWorthThreads) {
      for (Index item = 0; item < heads_ * used; ++item) attend(item, 0);
    } else {
      parallel_for(heads_ * used, attend);
    }
    for (Index h = 0; h < heads_; ++h)
      whole_[static_cast<std::size_t>(h)] = merge_parts(
          part_.data() + h * parts_, outs_.data() + h * parts_ * d_v, used, d_v, out + h * d_v);
  }

  CacheBytes bytes() const override {
    const auto bytes = [](Index floats) { return 4.0 * static_cast<double>(floats); };
    return {.kv = bytes(heads_ * filled() * (config_.d_k + config_.d_v)),
            .scratch = bytes(weights_.size() + outs_.size() + query_.size())};
  }

  std::vector<VisibleKey> visible(Index b, Index h) const override {
    std::vector<VisibleKey> keys;
    const Index head = b * config_.heads + h;
    const Part& all = whole_[static_cast<std::size_t>(head)];
    for (Index position = 0; position < length_; ++position)
      if (position < sinks_ || position >= length_ - ring_) {
        const Index place = head * parts_ + slot(position) / part_length_;
        const float factor =
            std::exp2(part_[static_cast<std::size_t>(place)].max - all.max) / all.sum;
        keys.push_back(
            {position, factor * weights_[place * part_length_ + slot(position) % part_length_]});
      }
    return keys;
  }

  // What the constructor allocates.
  static double bytes(Index heads, Index slots, Index d_k, Index d_v) {
    const Index length = std::min(kPart, round_up(slots, kLanes));
    const Index parts = (slots + length - 1) / length;
    const Index floats = slots * (d_k + d_v) + parts * (length + d_v) + d_k + kLanes;
    const double part_bytes = static_cast<double>(sizeof(Part)) * static_cast<double>(parts + 1);
    return static_cast<double>(heads) * (4.0 * static_cast<double>(floats) + part_bytes);
  }

 private:
  static constexpr Index kPart = 1024;  // keys that one item attends to, at most

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
  void store_token(Index h, Index to, const float* k, const float* v) {
    std::copy_n(k, config_.d_k, keys_.view().head_data(h, 0) + to * config_.d_k);
    std::copy_n(v, config_.d_v, values_.view().head_data(h, 0) + to * config_.d_v);
  }

  DecodeConfig config_;
  Index heads_;           // batch * heads
  Index sinks_, ring_;    // slots of the two parts of the cache
  Index part_length_;     // slots that one item attends to
  Index parts_;           // of part_length_ slots, per head
  Tensor keys_, values_;  // [batch * heads, 1, slots, d]
  AlignedArray<float>
      weights_;  // [batch * heads, parts, part_length_] of the last step, 2^(s - part max)
  AlignedArray<float> outs_;   // [batch * heads, parts, d_v]
  AlignedArray<float> query_;  // [batch * heads, d_k + kLanes], scaled; RowQuery's work space
  std::vector<Part> part_;     // [batch * heads, parts]
  std::vector<Part> whole_;    // [batch * heads]
  Index length_ = 0;           // tokens seen
};

}  // namespace

double window_decoder_bytes(Index heads, Index slots, Index d_k, Index d_v) {
  return WindowDecoder::bytes(heads, slots, d_k, d_v);
}

std::unique_ptr<Decoder> make_window_decoder(const DecodeConfig& config, Index window,
                                             Index sinks) {
  return std::make_unique<WindowDecoder>(config, window, sinks);
}

}  // namespace subquad
