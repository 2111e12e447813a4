// A third party's method in one file: attention with weights 2^-(distance), causal or not.
// Runs in a sweep as a shared object and compiled in (tests/cli/third_party_test.cpp).
#include <cmath>

#include "harness/core/parallel.h"
#include "harness/core/plugin.h"

SUBQUAD_PLUGIN();

namespace subquad {
namespace {

struct Params {
  float half_life = 8;  // distance at which a weight is halved
};

class DistanceDecay final : public Method {
 public:
  explicit DistanceDecay(const Params& params) : params_(params) {}
  void prepare(const Problem& problem, const Env&) override { problem_ = problem; }

  // out_i = sum_j w_ij v_j / sum_j w_ij,  w_ij = 2^(-|i + n_kv - n - j| / half_life). O(n n_kv
  // d_v).
  void forward(const Inputs& in, TensorView out, Saved*) override {
    parallel_for(problem_.batch * problem_.heads, [&](Index head, int) {
      const auto v = in.v.head(head);
      auto o = out.head(head);
      for (Index i = 0; i < problem_.n; ++i) {
        const Index own = i + problem_.causal_offset();
        o.row(i).setZero();
        float normalizer = 0;
        for (Index j = 0; j < problem_.visible(i); ++j) {
          const float distance = static_cast<float>(std::abs(own - j));
          const float weight = std::exp2(-distance / params_.half_life);
          o.row(i) += weight * v.row(j);
          normalizer += weight;
        }
        if (normalizer > 0) o.row(i) /= normalizer;
      }
    });
  }

 private:
  Params params_;
  Problem problem_;
};

const RegisterMethod<DistanceDecay, Params> kRegistration{
    {.name = "distance_decay",
     .family = "third_party",
     .source = "example",
     .summary = "weights halve with distance",
     .approximates = Approximates::nothing,
     .causality = Causality::strict,
     .cross_attention = true},
    {param("half_life", &Params::half_life, {1, 1e6}, "distance that halves a weight")}};

}  // namespace
}  // namespace subquad
