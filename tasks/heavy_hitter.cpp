// Heavy hitters: a few key columns receive much of the mass of all queries, by a power law.
//
// Per head, keys are ranked: the first `sinks` positions take the ranks 1 .. sinks (attention
// sinks), the others the remaining ranks in random order. With a unit vector e,
//   q_i = a e + x_i,   k_j = b_j e + y_j,   x, y normal in the complement of e,
//   scale a b_j = -exponent log(rank_j) + constant,
// so that expected weights are proportional to rank^-exponent among the keys a query sees, and
// logits differ between queries by the part scale x_i.y_j, of standard deviation `noise`.

#include <numeric>

#include "tasks/common.h"

namespace subquad {
namespace {

struct Params {
  double exponent = 1;
  Index sinks = 4;
  double noise = 1;
};

class HeavyHitter final : public Task {
 public:
  explicit HeavyHitter(const Params& params) : params_(params) {}

  void fill(const Problem& p, Seed seed, Index set, QKV* out) const override {
    fill_tensor(seed, "heavy_hitter.q", set, &out->q);
    fill_tensor(seed, "heavy_hitter.k", set, &out->k);
    fill_tensor(seed, "heavy_hitter.v", set, &out->v);
    const double scale = p.logit_scale();
    const double noise_entry = entry_scale(p, params_.noise, p.d_k - 1);
    const double a = entry_scale(p, 1, p.d_k) * std::sqrt(static_cast<double>(p.d_k));

    std::vector<double> log_rank(static_cast<std::size_t>(p.n_kv));  // of rank index + 1
    double mean = 0;
    for (std::size_t r = 0; r < log_rank.size(); ++r) {
      log_rank[r] = portable_log(static_cast<double>(r + 1));
      mean += log_rank[r];
    }
    mean /= static_cast<double>(p.n_kv);

    for_heads(p.batch, p.heads, [&](Index b, Index h) {
      Random random = head_random(seed, "heavy_hitter.head", set, b, h);
      const std::vector<double> axis = directions(random, 1, p.d_k, false);
      std::vector<Index> rank(static_cast<std::size_t>(p.n_kv));  // of position j, from 0
      std::iota(rank.begin(), rank.end(), Index{0});
      const Index sinks = std::min(params_.sinks, p.n_kv);
      std::vector<Index> others(rank.begin() + sinks, rank.end());
      random.shuffle(others);
      std::copy(others.begin(), others.end(), rank.begin() + sinks);

      float* q = out->q.view().head_data(b, h);
      for (Index i = 0; i < p.n; ++i, q += p.d_k) place(axis, noise_entry, a, q);
      float* k = out->k.view().head_data(b, h);
      for (Index j = 0; j < p.n_kv; ++j, k += p.d_k) {
        // Centred, which no softmax sees, to keep the keys short.
        const double bias =
            -params_.exponent *
            (log_rank[static_cast<std::size_t>(rank[static_cast<std::size_t>(j)])] - mean);
        place(axis, noise_entry, bias / (scale * a), k);
      }
    });
  }

 private:
  // x = along * axis + entry * (x without its part along the axis).
  static void place(const std::vector<double>& axis, double entry, double along, float* x) {
    const auto d = static_cast<Index>(axis.size());
    const double part = dot(x, axis.data(), d);
    for (Index c = 0; c < d; ++c) {
      const double unit = axis[static_cast<std::size_t>(c)];
      x[c] = static_cast<float>(along * unit + entry * (static_cast<double>(x[c]) - part * unit));
    }
  }

  Params params_;
};

const RegisterTask<HeavyHitter, Params> kRegistration{
    {.name = "heavy_hitter",
     .source = "",
     .summary = "a few keys receive much of the mass of all queries, by a power law",
     .notes = {"column mass of the key of rank r is proportional to r^-exponent in expectation; "
               "the first `sinks` keys have the first ranks, the others random ones",
               "in a causal problem the law holds among the keys that a query sees",
               "for d_k = 1 there is no room for noise, and it is left out"}},
    {param("exponent", &Params::exponent, {0, 8},
           "of the power law; 0 = all columns alike, larger = fewer columns hold the mass"),
     param("sinks", &Params::sinks, {0, 1 << 20}, "first positions that take the first ranks"),
     param("noise", &Params::noise, {0, 8},
           "standard deviation of the part of the logits that differs between queries")}};

}  // namespace
}  // namespace subquad
