// SubGen: softmax attention estimated from clusters of keys and a sample of values.
// Source: Zandieh et al. 2024 (arXiv 2402.06082). Per head and token (q, k, v), exp(<q, k>) with
// the scale of the logits in it:
//   1. nearest representative r of k; within delta: n += 1, and each of its t samples becomes k
//   with
//      probability 1 / n; else a new cluster of k alone.
//   2. each of s slots becomes (k, v) with probability |v|^2 / (mu + |v|^2); mu += |v|^2.
//   3. out = num / tau,  num = sum_slots mu / (s |v|^2) exp(<q, k>) v,
//                        tau = sum_clusters n / t sum_samples exp(<q, x>).
// num and tau are unbiased; out is not a mean of values, and its weights do not sum to one.
// Our choice: at max_clusters a key joins the nearest cluster whatever the distance; delta = auto
// is half the median distance of the first 32 keys, which are clusters of their own until then; and
// out is num / tau even where no slot of weight is left.

#include <algorithm>
#include <cmath>

#include "methods/engines/cache_policy.h"

namespace subquad {
namespace {

constexpr Index kProbe = 32;  // keys from which delta: auto is taken

struct Params {
  Index samples = 64;
  Index per_cluster = 4;
  Index max_clusters = 64;
  double delta = -1;
};

class SubGenStream final : public PolicyStream {
 public:
  SubGenStream(const StreamConfig& config, const Params& params)
      : PolicyStream(config),
        params_(params),
        most_(std::min(params.max_clusters, config.capacity)),
        seed_(derive(config.seed, "subgen", {static_cast<std::uint64_t>(config.first_head)})),
        random_(seed_),
        centres_(most_ * config.d_k),
        cluster_keys_(most_ * params.per_cluster * config.d_k),
        keys_(params.samples * config.d_k),
        values_(params.samples * config.d_v),
        squared_(params.samples),
        size_(most_),
        scores_(engine::round_up(
            std::max(most_ * params.per_cluster, params.samples) + engine::kLanes, engine::kLanes)),
        weights_(scores_.size()),
        query_(config.d_k + engine::kLanes),
        probe_(probed(config)) {
    reset();
  }

  void reset() override {
    PolicyStream::reset();
    random_ = Random(seed_);
    clusters_ = 0;
    mu_ = 0;
    filled_ = false;
    delta_ = params_.delta < 0 ? 0 : params_.delta;
  }

  // O((clusters t + s) (d_k + d_v)).
  void step(const StreamTokens& token, float* out, Index) override {
    check_room(1);
    join_cluster(token.k);
    sample_value(token.k, token.v);
    ++length_;
    if (params_.delta < 0 && length_ == kProbe) choose_delta();
    estimate(token.q, out);
  }

  CacheBytes bytes() const override {
    const Index d_k = config_.d_k, s = filled_ ? params_.samples : 0;
    const Index floats =
        clusters_ * (d_k * (1 + params_.per_cluster) + 1) + s * (d_k + config_.d_v) + 1;
    return {.kv = 4.0 * static_cast<double>(floats),
            .aux = 8.0 * static_cast<double>(s),
            .scratch = 4.0 * static_cast<double>(scores_.size() + weights_.size() + query_.size())};
  }

  static double allocated(const StreamConfig& c, const Params& p) {
    const Index most = std::min(p.max_clusters, c.capacity);
    return 4.0 * static_cast<double>(most * (c.d_k * (1 + p.per_cluster) + 2) +
                                     p.samples * (c.d_k + c.d_v + 2) +
                                     2 * std::max(most * p.per_cluster, p.samples) + c.d_k + c.d_v +
                                     3 * engine::kLanes + 2 * probed(c));
  }

 private:
  // Distances of the first keys that are kept.
  static Index probed(const StreamConfig& c) {
    return std::min(kProbe * (kProbe - 1) / 2, c.capacity * kProbe);
  }
  static double squared_distance(const float* a, const float* b, Index d) {
    double sum = 0;
    for (Index c = 0; c < d; ++c) {
      const double x = static_cast<double>(a[c]) - static_cast<double>(b[c]);
      sum += x * x;
    }
    return sum;
  }
  float* centre(Index c) { return centres_.data() + c * config_.d_k; }
  float* sample(Index c, Index i) {
    return cluster_keys_.data() + (c * params_.per_cluster + i) * config_.d_k;
  }

  void join_cluster(const float* k) {
    Index best = -1;
    double nearest = 0;
    for (Index c = 0; c < clusters_; ++c) {
      const double distance = squared_distance(k, centre(c), config_.d_k);
      if (best < 0 || distance < nearest) best = c, nearest = distance;
    }
    if (best >= 0 && (nearest <= delta_ * delta_ || clusters_ == most_)) {
      ++size_[best];
      for (Index i = 0; i < params_.per_cluster; ++i)
        if (random_.uniform() * static_cast<double>(size_[best]) < 1)
          std::copy_n(k, config_.d_k, sample(best, i));
      return;
    }
    size_[clusters_] = 1;
    std::copy_n(k, config_.d_k, centre(clusters_));
    for (Index i = 0; i < params_.per_cluster; ++i)
      std::copy_n(k, config_.d_k, sample(clusters_, i));
    ++clusters_;
  }

  void sample_value(const float* k, const float* v) {
    double norm2 = 0;
    for (Index c = 0; c < config_.d_v; ++c)
      norm2 += static_cast<double>(v[c]) * static_cast<double>(v[c]);
    if (!(norm2 > 0)) return;  // contributes nothing to the numerator
    for (Index i = 0; i < params_.samples; ++i) {
      if (filled_ && !(random_.uniform() * (mu_ + norm2) < norm2)) continue;
      std::copy_n(k, config_.d_k, keys_.data() + i * config_.d_k);
      std::copy_n(v, config_.d_v, values_.data() + i * config_.d_v);
      squared_[i] = norm2;
    }
    filled_ = true;
    mu_ += norm2;
  }

  // Half the median distance of the keys so far, each of which is a cluster.
  void choose_delta() {
    Index pairs = 0;
    for (Index a = 0; a < clusters_; ++a)
      for (Index b = 0; b < a; ++b)
        probe_[pairs++] = std::sqrt(squared_distance(centre(a), centre(b), config_.d_k));
    if (pairs == 0) return;
    double* const middle = probe_.data() + pairs / 2;
    std::nth_element(probe_.data(), middle, probe_.data() + pairs);
    delta_ = 0.5 * *middle;
  }

  void estimate(const float* q, float* out) {
    using namespace engine;
    const Index d_k = config_.d_k, d_v = config_.d_v, t = params_.per_cluster;
    const float factor = static_cast<float>(config_.scale) * kLog2e;
    for (Index c = 0; c < d_k; ++c) query_[c] = factor * q[c];
    const RowQuery query(query_.data(), d_k, query_.data() + d_k);
    const auto exponentials = [&](const float* rows, Index count, float* to, float* max) {
      query.score(ContiguousRows{rows, d_k}, count, to);
      *max = *std::max_element(to, to + count);
    };
    std::fill_n(out, d_v, 0.0f);
    float max_keys = -kInfinity, max_values = -kInfinity;
    exponentials(cluster_keys_.data(), clusters_ * t, scores_.data(), &max_keys);
    if (filled_) exponentials(keys_.data(), params_.samples, weights_.data(), &max_values);
    // One common shift, so that it cancels.
    const double shift = static_cast<double>(std::max(max_keys, max_values));
    double tau = 0;
    for (Index c = 0; c < clusters_; ++c) {
      double sum = 0;
      for (Index i = 0; i < t; ++i)
        sum += std::exp2(static_cast<double>(scores_[c * t + i]) - shift);
      tau += static_cast<double>(size_[c]) / static_cast<double>(t) * sum;
    }
    if (!filled_) return;
    for (Index i = 0; i < params_.samples; ++i)
      weights_[i] = static_cast<float>(mu_ / (static_cast<double>(params_.samples) * squared_[i]) *
                                       std::exp2(static_cast<double>(weights_[i]) - shift) / tau);
    add_weighted_rows(weights_.data(), ContiguousRows{values_.data(), d_v}, params_.samples, d_v,
                      out);
  }

  Params params_;
  Index most_;  // clusters
  Seed seed_;
  Random random_;
  AlignedArray<float> centres_;        // [most, d_k]
  AlignedArray<float> cluster_keys_;   // [most, per_cluster, d_k]
  AlignedArray<float> keys_, values_;  // [samples, d]
  AlignedArray<double> squared_;       // [samples] |v|^2
  AlignedArray<std::int64_t> size_;    // [most] keys of the cluster
  AlignedArray<float> scores_, weights_, query_;
  AlignedArray<double> probe_;  // distances of the first keys
  Index clusters_ = 0;
  double mu_ = 0, delta_ = 0;
  bool filled_ = false;
};

class SubGen final : public PolicyMethod {
 public:
  explicit SubGen(const Params& params) : params_(params) {}

  Budget budget(const Problem& p) const override {
    const Index clusters = std::min(params_.max_clusters, p.n_kv);
    const Index floats =
        clusters * (p.d_k * (1 + params_.per_cluster) + 1) + params_.samples * (p.d_k + p.d_v) + 1;
    return {.keys_per_query = static_cast<double>(clusters * params_.per_cluster + params_.samples),
            .state_bytes = 4.0 * static_cast<double>(p.batch * p.heads * floats)};
  }

 protected:
  std::unique_ptr<PolicyStream> make_stream(const StreamConfig& config) const override {
    return std::make_unique<SubGenStream>(config, params_);
  }
  double stream_bytes(const StreamConfig& config) const override {
    return SubGenStream::allocated(config, params_);
  }
  Index stored() const override {
    return params_.max_clusters * params_.per_cluster + params_.samples;
  }
  bool shows_weights() const override { return false; }

 private:
  Params params_;
};

MethodInfo info() {
  MethodInfo i = policy_info("subgen", "SubGen, arXiv 2402.06082",
                             "estimate of softmax attention from clustered keys, sampled values");
  i.random = true;
  i.structure_from_v = true;
  i.bounded_by = {};
  i.exact_limit = {};
  i.notes = {"forward is the stream fed token by token, as in decoding",
             "its budget is a number of clusters and samples, not of tokens; the cache has "
             "4 (clusters (d_k (1 + per_cluster) + 1) + samples (d_k + d_v) + 1) bytes a head",
             "the guarantee needs delta |q| small; the realised clusters show in kv_bytes"};
  return i;
}

const RegisterMethod<SubGen, Params> kRegistration{
    info(),
    {param("samples", &Params::samples, {1, 1 << 20}, "sampled pairs of key and value"),
     param("per_cluster", &Params::per_cluster, {1, 1024}, "sampled keys of a cluster"),
     param("max_clusters", &Params::max_clusters, {1, 1 << 20}, "clusters at most"),
     param("delta", &Params::delta, {-1, 1e6},
           "radius of a cluster; -1 = half the median distance of the first 32 keys")}};

}  // namespace
}  // namespace subquad
