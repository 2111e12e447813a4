// Keys and values of the tokens that a decoder keeps, in slots, and attention over them. A released
// token's slot is written over in place: softmax does not care about the order of slots.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "harness/core/method.h"
#include "harness/core/tensor.h"
#include "methods/engines/row_attention.h"

namespace subquad {

inline CacheBytes& operator+=(CacheBytes& all, const CacheBytes& one) {
  all.kv += one.kv;
  all.aux += one.aux;
  all.cold += one.cold;
  all.scratch += one.scratch;
  return all;
}

class CacheSlots {
 public:
  CacheSlots() = default;
  CacheSlots(Index heads, Index slots, Index d_k, Index d_v)
      : slots_(slots),
        d_k_(d_k),
        d_v_(d_v),
        padded_(engine::round_up(slots, engine::kLanes)),
        keys_(heads * slots * d_k),
        values_(heads * slots * d_v),
        weights_(heads * padded_),
        outs_(parts(slots) * d_v),
        query_(d_k + engine::kLanes),
        part_(static_cast<std::size_t>(parts(slots))) {}

  Index slots() const { return slots_; }
  float* key(Index h, Index slot) { return keys_.data() + (h * slots_ + slot) * d_k_; }
  const float* key(Index h, Index slot) const { return keys_.data() + (h * slots_ + slot) * d_k_; }
  float* value(Index h, Index slot) { return values_.data() + (h * slots_ + slot) * d_v_; }
  // Softmax weights of the last attend(h), in the order of the slots then.
  const float* weights(Index h) const { return weights_.data() + h * padded_; }

  void write(Index h, Index slot, const float* k, const float* v) {
    std::copy_n(k, d_k_, key(h, slot));
    std::copy_n(v, d_v_, value(h, slot));
  }
  void move(Index h, Index from, Index to) {
    if (from != to) write(h, to, key(h, from), value(h, from));
  }

  // out [d_v] = softmax over slots [0, count) of scale q . k. O(count (d_k + d_v)).
  void attend(Index h, const float* q, double scale, Index count, float* out) {
    attend_rows_at(h, q, scale, count, out, [&](Index first, Index d, const float* base) {
      return engine::ContiguousRows{base + first * d, d};
    });
  }
  // The same over the slots named, whose weights then stand in the order of that list.
  void attend(Index h, const float* q, double scale, std::span<const std::int32_t> slots,
              float* out) {
    attend_rows_at(h, q, scale, static_cast<Index>(slots.size()), out,
                   [&](Index first, Index d, const float* base) {
                     return engine::GatheredRows<std::int32_t>{base, d, slots.data() + first};
                   });
  }

  // Bytes of keys and values of `tokens` tokens of every head.
  static double kv_bytes(Index heads, Index tokens, Index d_k, Index d_v) {
    return 4.0 * static_cast<double>(heads * tokens * (d_k + d_v));
  }
  // What attend() works in.
  static double work_bytes(Index heads, Index slots, Index d_k, Index d_v) {
    const Index floats =
        heads * engine::round_up(slots, engine::kLanes) + parts(slots) * d_v + d_k + engine::kLanes;
    return 4.0 * static_cast<double>(floats) +
           static_cast<double>(sizeof(engine::Part)) * static_cast<double>(parts(slots));
  }

 private:
  // `rows(first, d, base)`: the rows from number `first` on, of a head's keys or values at `base`.
  template <class Rows>
  void attend_rows_at(Index h, const float* q, double scale, Index count, float* out,
                      const Rows& rows) {
    using namespace engine;
    const float factor = static_cast<float>(scale) * kLog2e;
    for (Index c = 0; c < d_k_; ++c) query_[c] = factor * q[c];
    const RowQuery query(query_.data(), d_k_, query_.data() + d_k_);
    float* const weights = weights_.data() + h * padded_;
    const Index used = parts(count);
    for (Index p = 0; p < used; ++p) {
      const Index first = p * kPart;
      part_[static_cast<std::size_t>(p)] = attend_rows(
          query, rows(first, d_k_, key(h, 0)), rows(first, d_v_, value(h, 0)),
          std::min(kPart, count - first), d_v_, weights + first, outs_.data() + p * d_v_);
    }
    const Part all = merge_parts(part_.data(), outs_.data(), used, d_v_, out);
    for (Index p = 0; p < used; ++p) {
      const float to_one = std::exp2(part_[static_cast<std::size_t>(p)].max - all.max) / all.sum;
      for (Index j = p * kPart; j < std::min(count, (p + 1) * kPart); ++j) weights[j] *= to_one;
    }
  }

  static constexpr Index kPart = 1024;  // keys whose sums are added up in one go in float32
  static Index parts(Index slots) { return (slots + kPart - 1) / kPart; }

  Index slots_ = 0, d_k_ = 0, d_v_ = 0, padded_ = 0;
  AlignedArray<float> keys_, values_;  // [heads, slots, d]
  AlignedArray<float> weights_;        // [heads, slots rounded up]
  AlignedArray<float> outs_;           // [parts, d_v]
  AlignedArray<float> query_;          // [d_k + kLanes], scaled; work space of RowQuery
  std::vector<engine::Part> part_;     // [parts]
};

}  // namespace subquad
