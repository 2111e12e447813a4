// Gaussian q, k, v: the plainest input, with one knob for how peaked attention is.
//
//   q_i = s g_i,   k_j = s (c g_i + sqrt(1 - c^2) h_j),   g, h ~ N(0, I),   i the query at key j,
// with s^2 = temperature / (|scale| sqrt(d_k)), so that logits of unrelated tokens have standard
// deviation `temperature` at every scale and width; a token's logit with itself has mean
// c sqrt(d_k) temperature.
// Source: the entropy sweep of Chen et al. 2021 (Scatterbrain, arXiv 2110.15343), figure 1.

#include "tasks/common.h"

namespace subquad {
namespace {

struct Params {
  double temperature = 1;
  double correlation = 0;
};

class Gaussian final : public Task {
 public:
  explicit Gaussian(const Params& params) : params_(params) {}

  void fill(const Problem& p, Seed seed, Index set, QKV* out) const override {
    fill_tensor(seed, "gaussian.q", set, &out->q);
    fill_tensor(seed, "gaussian.k", set, &out->k);
    fill_tensor(seed, "gaussian.v", set, &out->v);
    const auto s = static_cast<float>(entry_scale(p, params_.temperature, p.d_k));
    const auto own = static_cast<float>(std::sqrt(1 - params_.correlation * params_.correlation));
    const auto shared = static_cast<float>(params_.correlation);
    for_rows(p.batch, p.heads, p.n_kv, [&](Index b, Index h, Index begin, Index end) {
      for (Index j = begin; j < end; ++j) {
        float* k = out->k.view().head_data(b, h) + j * p.d_k;
        const Index i = j - p.causal_offset();
        if (params_.correlation > 0 && i >= 0 && i < p.n) {
          const float* q = out->q.view().head_data(b, h) + i * p.d_k;
          for (Index c = 0; c < p.d_k; ++c) k[c] = shared * q[c] + own * k[c];
        }
        for (Index c = 0; c < p.d_k; ++c) k[c] *= s;
      }
    });
    for_rows(p.batch, p.heads, p.n, [&](Index b, Index h, Index begin, Index end) {
      float* q = out->q.view().head_data(b, h);
      for (Index c = begin * p.d_k; c < end * p.d_k; ++c) q[c] *= s;
    });
  }

 private:
  Params params_;
};

const RegisterTask<Gaussian, Params> kRegistration{
    {.name = "gaussian",
     .source = "entropy sweep as in arXiv 2110.15343, figure 1",
     .summary = "normal q, k, v; logits with a chosen standard deviation",
     .notes = {"key j belongs to the same token as query j - (n_kv - n)",
               "temperature is the standard deviation of the logits: larger means more peaked "
               "attention (the inverse of a softmax's temperature)"}},
    {param("temperature", &Params::temperature, {0, 1000},
           "standard deviation of the logits; 0 = uniform attention, larger = more peaked"),
     param("correlation", &Params::correlation, {0, 0.999999},
           "between q and k of the same token; 0 = independent")}};

}  // namespace
}  // namespace subquad
