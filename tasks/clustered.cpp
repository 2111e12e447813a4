// Keys in clusters, queries near some of them: the case that hashing, clustering and block-sparse
// methods are made for.
//
// Per head: centres c_1 .. c_C uniform on the unit sphere; each key belongs to a uniformly random
// cluster, each query to `query_clusters` distinct ones S_i:
//   k_j = r (c_z(j) + spread g_j / sqrt(d_k)),
//   q_i = r (sum_{m in S_i} c_m + spread h_i / sqrt(d_k)),      g, h ~ N(0, I),
// with scale r^2 = sharpness: a query's logit with a key of its own clusters is about `sharpness`
// above its logit with another key. Half of a value's variance is common to its cluster.

#include "tasks/common.h"

namespace subquad {
namespace {

struct Params {
  Index clusters = 16;
  double spread = 0.3;
  Index query_clusters = 1;
  double sharpness = 6;
};

class Clustered final : public Task {
 public:
  explicit Clustered(const Params& params) : params_(params) {}

  std::string unsupported(const Problem&) const override {
    if (params_.query_clusters > params_.clusters)
      return fmt::format("query_clusters={} is more than clusters={}", params_.query_clusters,
                         params_.clusters);
    return "";
  }

  void fill(const Problem& p, Seed seed, Index set, QKV* out) const override {
    fill_tensor(seed, "clustered.q", set, &out->q);
    fill_tensor(seed, "clustered.k", set, &out->k);
    fill_tensor(seed, "clustered.v", set, &out->v);
    const double scale = p.logit_scale();
    const double r = std::sqrt(params_.sharpness / std::fabs(scale));
    const auto noise =
        static_cast<float>(r * params_.spread / std::sqrt(static_cast<double>(p.d_k)));
    const float half = static_cast<float>(std::sqrt(0.5));

    for_heads(p.batch, p.heads, [&](Index b, Index h) {
      Random random = head_random(seed, "clustered.head", set, b, h);
      std::vector<double> unit = directions(random, params_.clusters, p.d_k, false);
      std::vector<float> centre(unit.size());
      for (std::size_t c = 0; c < unit.size(); ++c) centre[c] = static_cast<float>(r * unit[c]);
      std::vector<float> mean(static_cast<std::size_t>(params_.clusters * p.d_v));  // of values
      for (float& x : mean) x = static_cast<float>(random.normal());

      float* k = out->k.view().head_data(b, h);
      float* v = out->v.view().head_data(b, h);
      for (Index j = 0; j < p.n_kv; ++j, k += p.d_k, v += p.d_v) {
        const auto z =
            static_cast<Index>(random.below(static_cast<std::uint64_t>(params_.clusters)));
        const float* key_centre = centre.data() + z * p.d_k;
        const float* value_mean = mean.data() + z * p.d_v;
        for (Index c = 0; c < p.d_k; ++c) k[c] = key_centre[c] + noise * k[c];
        for (Index c = 0; c < p.d_v; ++c) v[c] = half * (value_mean[c] + v[c]);
      }
      const float sign = scale < 0 ? -1.0f : 1.0f;  // near in logits, whatever the scale
      float* q = out->q.view().head_data(b, h);
      for (Index i = 0; i < p.n; ++i, q += p.d_k) {
        for (Index c = 0; c < p.d_k; ++c) q[c] *= noise;
        for (const Index m : choose(random)) {
          const float* query_centre = centre.data() + m * p.d_k;
          for (Index c = 0; c < p.d_k; ++c) q[c] += query_centre[c];
        }
        for (Index c = 0; c < p.d_k; ++c) q[c] *= sign;
      }
    });
  }

 private:
  // The clusters of one query.
  std::vector<Index> choose(Random& random) const {
    if (params_.query_clusters > 1)
      return random.sample_without_replacement(params_.clusters, params_.query_clusters);
    return {static_cast<Index>(random.below(static_cast<std::uint64_t>(params_.clusters)))};
  }

  Params params_;
};

const RegisterTask<Clustered, Params> kRegistration{
    {.name = "clustered",
     .source = "",
     .summary = "keys in clusters on a sphere, each query near one or a few of them",
     .notes =
         {"half of a value's variance is common to its cluster (our choice): finding the right "
          "cluster is rewarded even when attention within it is even",
          "a query's clusters hold about query_clusters / clusters of the keys"}},
    {param("clusters", &Params::clusters, {1, 65536}, "clusters of keys in every head"),
     param("spread", &Params::spread, {0, 100},
           "radius of a cluster, relative to the radius of the sphere of centres"),
     param("query_clusters", &Params::query_clusters, {1, 65536},
           "clusters that one query is near to"),
     param("sharpness", &Params::sharpness, {0, 1000},
           "logit of a query with the keys of its clusters, above the other keys")}};

}  // namespace
}  // namespace subquad
