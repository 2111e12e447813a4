// SEA token by token. State of a head: the sums of kernel attention [features, 2 d_v] and
// [features], the sum of the values, and keys and values themselves, which SEA does not shrink; of
// all heads together: the last eight rows of the CNN's image.

#include <cmath>
#include <cstring>

#include "harness/core/parallel.h"
#include "methods/engines/sea_features.h"
#include "methods/engines/sea_work.h"

namespace subquad {

using namespace engine;

namespace {

class SeaDecoder final : public Decoder {
 public:
  SeaDecoder(const DecodeConfig& c, const SeaOptions& options, std::unique_ptr<SeaWeights> weights,
             Seed seed)
      : config_(c), options_(options), weights_(std::move(weights)) {
    problem_ = {.batch = 1,
                .heads = c.heads,
                .n = c.capacity,
                .n_kv = c.capacity,
                .d_k = c.d_k,
                .d_v = c.d_v,
                .causal = true};
    max_n_ = options.max_n > 0 ? options.max_n : c.capacity;
    shape_ = SeaAttention::shape_of(problem_, options);
    wide_ = round_up(options.cells, kLanes);
    const Index heads = c.batch * c.heads;
    keys_ = AlignedArray<float>(heads * c.capacity * c.d_k);
    values_ = AlignedArray<float>(heads * c.capacity * c.d_v);
    if (learned()) {
      estimator_.prepare(shape_);
      estimator_.pack(*weights_);
      map_ = make_sea_features(options.relu, options.features);
      map_->prepare(c.d_k, derive(seed, "sea.projection"), heads, 0);
      features_ = map_->features(c.d_k);
      wide_f_ = round_up(features_, kLanes);
      // Sums in double: decoding adds them token by token.
      state_ = AlignedArray<double>(heads * features_ * (2 * c.d_v + 1));
      image_ =
          AlignedArray<float>(c.batch * (SeaEstimator::kHistory + 1) * estimator_.image_floats());
      scores_ = AlignedArray<float>(heads * wide_);
      gates_ = AlignedArray<float>(heads * 2);
      kernel_ = AlignedArray<float>(heads * 2 * c.d_v);
      phi_ = AlignedArray<float>(2 * wide_f_ + map_->scratch_floats(c.d_k, 1));
      work_ = AlignedArray<float>(SeaEstimator::work_floats(shape_, 16));
    }
    sum_ = AlignedArray<double>(heads * (c.d_v + 2 * c.d_v));
    p_ = AlignedArray<float>(c.heads * wide_);
    row_ = AlignedArray<float>(round_up(c.capacity, kLanes));
    q_ = AlignedArray<float>(round_up(c.d_k, kLanes) + kLanes + round_up(c.d_v, kLanes));
    bits_ = AlignedArray<std::uint32_t>((options.cells + 31) / 32);
    picked_ = AlignedArray<std::int32_t>(c.capacity);
  }

  void reset() override {
    t_ = 0;
    for (AlignedArray<double>* a : {&state_, &sum_})
      if (a->size() > 0) std::fill_n(a->data(), a->size(), 0.0);
  }

  void step(const DecodeStep& in, float* out) override {
    SUBQUAD_CHECK(t_ < config_.capacity, "token {} of {}", t_, config_.capacity);
    for (Index b = 0; b < config_.batch; ++b) item(b, in, out);
    ++t_;
  }

  CacheBytes bytes() const override {
    const auto heads = static_cast<double>(config_.batch * config_.heads),
               d = static_cast<double>(config_.d_k + config_.d_v);
    const auto f4 = [](const AlignedArray<float>& a) {
      return 4.0 * static_cast<double>(a.size());
    };
    return {.kv = 4.0 * heads * static_cast<double>(t_) * d,
            .aux = 8.0 * static_cast<double>(state_.size() + sum_.size()) + f4(image_) +
                   f4(scores_) + f4(gates_),
            .cold = 0,
            .scratch = f4(kernel_) + f4(phi_) + f4(work_) + f4(p_) + f4(row_) + f4(q_) +
                       4.0 * static_cast<double>(bits_.size() + picked_.size())};
  }

 private:
  bool learned() const { return options_.source == SeaOptions::Source::learned; }
  bool gated() const { return learned() && options_.gates; }
  const float* head(const AlignedArray<float>& cache, Index bh, Index d) const {
    return cache.data() + bh * config_.capacity * d;
  }
  std::pair<Index, Index> cell_keys(Index c) const {
    const SeaCells cells{options_.cells, options_.absolute ? max_n_ : t_ + 1};
    return {std::min(cells.first(c), t_ + 1), std::min(cells.first(c + 1), t_ + 1)};
  }

  // Adds the token to the sums of kernel attention and reads them: kernel_ [heads, 2 d_v].
  void kernel_row(Index bh, const float* q, const float* k, const float* v) {
    const Index d = config_.d_v;
    float *const phi_q = phi_.data(), *const phi_k = phi_q + wide_f_,
                 *const scratch = phi_k + wide_f_;
    map_->apply(FeatureMap::Side::query, bh, q, 1, config_.d_k, phi_q, wide_f_, scratch);
    map_->apply(FeatureMap::Side::key, bh, k, 1, config_.d_k, phi_k, wide_f_, scratch);
    double* const state = state_.data() + bh * features_ * (2 * d + 1);
    const float* const position = weights_->positions.value.data() + t_ * d;
    double* const sums = sum_.data() + config_.batch * config_.heads * d + bh * 2 * d;
    std::fill_n(sums, 2 * d, 0.0);
    double norm = 0;
    for (Index f = 0; f < features_; ++f) {
      double* const row = state + f * (2 * d + 1);
      const double key = static_cast<double>(phi_k[f]), query = static_cast<double>(phi_q[f]);
      for (Index c = 0; c < d; ++c) {
        row[c] += key * static_cast<double>(position[c]);
        row[d + c] += key * static_cast<double>(v[c]);
        sums[c] += query * row[c];
        sums[d + c] += query * row[d + c];
      }
      row[2 * d] += key;
      norm += query * row[2 * d];
    }
    for (Index c = 0; c < 2 * d; ++c) kernel_[bh * 2 * d + c] = static_cast<float>(sums[c] / norm);
  }

  void estimate(Index b) {
    if (t_ % options_.skip != 0) return;  // the last estimate stands
    const Index heads = config_.heads, d = config_.d_v, first = b * heads, at = t_ / options_.skip,
                size = estimator_.image_floats();
    float* const image = image_.data() + b * (SeaEstimator::kHistory + 1) * size;
    Index row = at;
    if (at > SeaEstimator::kHistory) {  // the oldest row makes room
      std::memmove(image, image + size,
                   static_cast<std::size_t>(SeaEstimator::kHistory * size) * sizeof(float));
      row = SeaEstimator::kHistory;
    }
    estimator_.image_row(kernel_.data() + first * 2 * d, 2 * d, head(values_, first, d) + t_ * d,
                         config_.capacity * d, image + row * size, gates_.data() + first * 2,
                         work_.data());
    estimator_.last_row(image, at, work_.data(), scores_.data() + first * wide_);
  }

  void item(Index b, const DecodeStep& in, float* out) {
    const Index heads = config_.heads, d_k = config_.d_k, d_v = config_.d_v, cells = options_.cells;
    for (Index h = 0; h < heads; ++h) {
      const Index bh = b * heads + h;
      std::copy_n(in.k + bh * d_k, d_k, keys_.data() + (bh * config_.capacity + t_) * d_k);
      std::copy_n(in.v + bh * d_v, d_v, values_.data() + (bh * config_.capacity + t_) * d_v);
      for (Index c = 0; c < d_v; ++c) sum_[bh * d_v + c] += static_cast<double>(in.v[bh * d_v + c]);
      if (learned()) kernel_row(bh, in.q + bh * d_k, in.k + bh * d_k, in.v + bh * d_v);
    }
    if (learned()) estimate(b);
    const SeaCellRow row{cells, wide_, options_.mask_empty, options_.absolute || t_ + 1 < cells};
    const Index length = options_.absolute ? max_n_ : t_ + 1;
    for (Index h = 0; h < heads; ++h) {
      float* const p = p_.data() + h * wide_;
      if (learned()) {
        row.softmax(scores_.data() + (b * heads + h) * wide_, p,
                    [&](Index c) { return cell_keys(c); });
      } else {
        row.local(p, SeaCells{cells, length}.of_key(t_), [&](Index c) { return cell_keys(c); });
      }
    }
    SeaLimit limit;
    if (options_.group == SeaOptions::Group::row)
      limit = select_largest(p_.data(), heads * wide_, heads * cells,
                             sea_budget(heads * cells, options_.top_k, cells, length));
    for (Index h = 0; h < heads; ++h) {
      const Index bh = b * heads + h;
      const float* const p = p_.data() + h * wide_;
      if (options_.group == SeaOptions::Group::query)
        limit = select_largest(p, wide_, cells, sea_budget(cells, options_.top_k, cells, length));
      keep_bits(p, cells, wide_, &limit, bits_.data());
      Index count = 0;
      for (Index word = 0; word < bits_.size(); ++word)
        for (std::uint32_t left = bits_[word]; left != 0; left &= left - 1) {
          const auto [first, last] = cell_keys(32 * word + std::countr_zero(left));
          sea_stretch(first, last, options_.top_k,
                      [&](Index j) { picked_[count++] = static_cast<std::int32_t>(j); });
        }
      attend(bh, in.q + bh * d_k, count, out + bh * d_v);
    }
  }

  void attend(Index bh, const float* q, Index count, float* out) {
    const Index d_k = config_.d_k, d_v = config_.d_v;
    const auto factor = static_cast<float>(config_.logit_scale() * 1.4426950408889634073599);
    float *const scaled = q_.data(), *const tail = scaled + round_up(d_k, kLanes),
                 *const mean = tail + kLanes;
    for (Index c = 0; c < d_k; ++c) scaled[c] = q[c] * factor;
    const Part part =
        attend_rows(RowQuery(scaled, d_k, tail),
                    GatheredRows<std::int32_t>{head(keys_, bh, d_k), d_k, picked_.data()},
                    GatheredRows<std::int32_t>{head(values_, bh, d_v), d_v, picked_.data()}, count,
                    d_v, row_.data(), mean);
    const float s_prob = gated() ? gates_[2 * bh] : 1.0f,
                s_mix = gated() ? gates_[2 * bh + 1] : 1.0f;
    const float weight = count > 0 ? s_mix * s_prob / part.sum : 0.0f;
    const double share = static_cast<double>(1 - s_mix) / static_cast<double>(t_ + 1);
    for (Index c = 0; c < d_v; ++c) {
      out[c] = weight * mean[c];
      if (gated()) out[c] += static_cast<float>(share * sum_[bh * d_v + c]);
    }
  }

  DecodeConfig config_;
  SeaOptions options_;
  std::unique_ptr<SeaWeights> weights_;
  Problem problem_;
  SeaShape shape_;
  SeaEstimator estimator_;
  std::unique_ptr<FeatureMap> map_;
  Index t_ = 0, max_n_ = 0, wide_ = 0, features_ = 0, wide_f_ = 0;
  AlignedArray<float> keys_, values_;   // [batch * heads, capacity, d]
  AlignedArray<double> state_;          // [batch * heads, features, 2 d_v + 1]
  AlignedArray<double> sum_;            // [batch * heads, d_v], and room for one step
  AlignedArray<float> image_;           // [batch, history + 1, image]
  AlignedArray<float> scores_, gates_;  // [batch * heads, wide cells], [batch * heads, 2]
  AlignedArray<float> kernel_, phi_, work_, p_, row_, q_;
  AlignedArray<std::uint32_t> bits_;
  AlignedArray<std::int32_t> picked_;
};

}  // namespace

std::unique_ptr<Decoder> make_sea_decoder(const DecodeConfig& config, const SeaOptions& options,
                                          std::unique_ptr<SeaWeights> weights, Seed seed) {
  return std::make_unique<SeaDecoder>(config, options, std::move(weights), seed);
}

}  // namespace subquad
