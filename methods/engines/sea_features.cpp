#include "methods/engines/sea_features.h"

#include <cmath>

#include "harness/core/parallel.h"
#include "methods/engines/favor.h"
#include "methods/engines/score_tile.h"
#include "methods/engines/vector_math.h"

namespace subquad {

Index sea_feature_count(Index features, Index d) {
  if (features > 0) return features;
  const auto width = static_cast<double>(d);
  return std::max<Index>(1, static_cast<Index>(width * std::log(width) / 8));
}

namespace {

using namespace engine;

constexpr float kReluFloor = 1e-3f, kFavorFloor = 1e-4f;

class SeaFeatures final : public FeatureMap {
 public:
  SeaFeatures(bool relu, Index features) : relu_(relu), features_(features) {}

  Index features(Index d) const override { return sea_feature_count(features_, d); }

  void prepare(Index d, Seed seed, Index heads, Index n_kv) override {
    const Index m = features(d), wide_d = round_up(d, kLanes);
    wide_ = round_up(m, kLanes);
    root_scale_ = static_cast<float>(std::pow(static_cast<double>(d), -0.25));
    const MatrixD w = favor_projection(m, d, FavorOptions{.form = "positive"}, seed);
    columns_ = AlignedArray<float>(d * wide_);
    rows_ = AlignedArray<float>(m * wide_d);
    for (Index r = 0; r < m; ++r)
      for (Index x = 0; x < d; ++x) {
        const auto scaled = static_cast<float>(w(r, x) * static_cast<double>(root_scale_));
        columns_[x * wide_ + r] = rows_[r * wide_d + x] = scaled;
      }
    if (relu_) return;
    key_shift_ = AlignedArray<float>(heads);
    block_max_ = AlignedArray<float>(heads * blocks(n_kv));
    if (n_kv > 0) grow(d);
  }
  double bytes(Index d, Index heads, Index n_kv) const override {
    const Index m = features(d);
    Index floats = d * round_up(m, kLanes) + m * round_up(d, kLanes);
    if (!relu_)
      floats += heads + heads * blocks(n_kv) + (n_kv > 0 ? thread_count() * begin_floats(d) : 0);
    return 4.0 * static_cast<double>(floats);
  }

  void begin(const Problem& p, const Inputs& in) override {
    if (relu_) return;
    const Index heads = p.batch * p.heads, count = blocks(p.n_kv);
    std::fill_n(key_shift_.data(), heads, 0.0f);
    if (p.causal) return;  // the largest of all keys would look ahead
    grow(p.d_k);
    parallel_for(heads * count, [&](Index item, int thread) {
      const Index bh = item / count, first = item % count * kBlock;
      float* const scratch = begin_scratch_.data() + thread * begin_floats(p.d_k);
      float largest = -kInfinity;
      for (Index j = first; j < std::min(first + kBlock, p.n_kv); j += kRows) {
        const Index rows = std::min({kRows, first + kBlock - j, p.n_kv - j});
        project(in.k.data() + (bh * p.n_kv + j) * p.d_k, rows, p.d_k, scratch);
        for (Index r = 0; r < rows; ++r)
          largest = std::max(largest, largest_of(scratch + r * wide_, features(p.d_k)));
      }
      block_max_[item] = largest;
    });
    for (Index bh = 0; bh < heads; ++bh) {
      float largest = -kInfinity;
      for (Index b = 0; b < count; ++b) largest = std::max(largest, block_max_[bh * count + b]);
      if (std::isfinite(largest)) key_shift_[bh] = largest;
    }
  }

  Index scratch_floats(Index d, Index rows) const override {
    return round_up(rows, 8) * round_up(features(d), kLanes);
  }

  void apply(Side side, Index bh, const float* x, Index rows, Index d, float* phi, Index wide,
             float* scratch) const override {
    const Index m = features(d);
    project(x, rows, d, scratch);
    for (Index r = 0; r < rows; ++r) {
      const float* const s = scratch + r * wide_;
      float* const to = phi + r * wide;
      if (relu_) {
        each(m, [&](Index f, Index count) {
          const Vec v = load(s + f);
          put(to + f, (v > 0.0f ? v : v * 0.0f) + kReluFloor, count);  // a NaN stays one
        });
      } else {
        const float shift =
            half_square(x + r * d, d) + (side == Side::query ? largest_of(s, m) : key_shift_[bh]);
        const float factor = norm(m);
        each(m, [&](Index f, Index count) {
          put(to + f, (exp_any(load(s + f) - shift) + kFavorFloor) * factor, count);
        });
      }
      for (Index f = m; f < wide; ++f) to[f] = 0;
    }
  }

  void pull_back(Side side, Index bh, const float* x, const float*, const float* dphi, Index rows,
                 Index d, Index wide, float* dx, float* scratch) const override {
    const Index m = features(d), wide_d = round_up(d, kLanes);
    project(x, rows, d, scratch);
    for (Index r = 0; r < rows; ++r) {
      float* const s = scratch + r * wide_;
      const float* const g = dphi + r * wide;
      float pull = 0;  // favor: d exp(w.x' - |x'|^2/2) = exp(..) (w - x')
      if (relu_) {
        for (Index f = 0; f < m; ++f) s[f] = s[f] > 0 ? g[f] : 0;
      } else {
        const float shift =
            half_square(x + r * d, d) + (side == Side::query ? largest_of(s, m) : key_shift_[bh]);
        const float factor = norm(m);
        double inner = 0;
        each(m, [&](Index f, Index count) {
          put(s + f, exp_any(load(s + f) - shift) * factor, count);
        });
        for (Index f = 0; f < m; ++f) {
          s[f] *= g[f];
          inner += static_cast<double>(s[f]);
        }
        pull = -static_cast<float>(inner) * root_scale_ * root_scale_;
      }
      for (Index c = 0; c < d; c += kLanes) {
        const Index count = std::min<Index>(kLanes, d - c);
        Vec sum{};
        for (Index f = 0; f < m; ++f) sum += s[f] * load(rows_.data() + f * wide_d + c);
        sum += pull * (count == kLanes ? load(x + r * d + c) : load_part(x + r * d + c, count));
        put(dx + r * d + c, sum, count);
      }
    }
  }

 private:
  static constexpr Index kRows = 32;     // rows that begin() projects at once
  static constexpr Index kBlock = 1024;  // keys of an item of begin()

  static Index blocks(Index n_kv) { return (n_kv + kBlock - 1) / kBlock; }
  Index begin_floats(Index d) const { return kRows * round_up(features(d), kLanes); }
  void grow(Index d) {
    if (begin_scratch_.size() < thread_count() * begin_floats(d))
      begin_scratch_ = AlignedArray<float>(thread_count() * begin_floats(d));
  }
  static float norm(Index m) { return static_cast<float>(1 / std::sqrt(static_cast<double>(m))); }
  template <class Body>
  static void each(Index m, Body&& body) {
    for (Index f = 0; f < m; f += kLanes) body(f, std::min<Index>(kLanes, m - f));
  }
  static void put(float* to, Vec v, Index count) {
    if (count == kLanes) {
      store(to, v);
    } else {
      store_part(to, count, v);
    }
  }
  static float largest_of(const float* s, Index m) {
    Vec largest = broadcast(s[0]);
    const Index whole = m / kLanes * kLanes;
    for (Index f = 0; f < whole; f += kLanes) largest = engine::max(largest, load(s + f));
    float most = horizontal_max(largest);
    for (Index f = whole; f < m; ++f) most = std::max(most, s[f]);
    return most;
  }
  float half_square(const float* x, Index d) const {  // of the scaled row
    Vec sum{};
    each(d, [&](Index c, Index count) {
      const Vec v = count == kLanes ? load(x + c) : load_part(x + c, count);
      sum += v * v;
    });
    return 0.5f * horizontal_sum(sum) * root_scale_ * root_scale_;
  }
  void project(const float* x, Index rows, Index d, float* to) const {  // x' W^T
    product<false>(x, d, 1, rows, d, columns_.data(), wide_, wide_, to, wide_);
  }

  bool relu_;
  Index features_;
  float root_scale_ = 1;
  Index wide_ = 0;                     // features rounded up to whole vectors
  AlignedArray<float> columns_;        // [d, wide_]: W^T times d^-1/4
  AlignedArray<float> rows_;           // [features, d rounded up]: W, likewise
  AlignedArray<float> key_shift_;      // [batch * heads]
  AlignedArray<float> block_max_;      // [batch * heads, blocks of kBlock keys]
  AlignedArray<float> begin_scratch_;  // [threads, begin_floats]
};

}  // namespace

std::unique_ptr<FeatureMap> make_sea_features(bool relu, Index features) {
  return std::make_unique<SeaFeatures>(relu, features);
}

}  // namespace subquad
