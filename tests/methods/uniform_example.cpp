// Uniform attention: every query gets the mean of the values it may see.
// A control: out_i = mean of v_j over j <= i + n_kv - n (causal) or over all j.

#include "harness/core/parallel.h"
#include "harness/core/registry.h"

namespace subquad {
namespace {

struct Params {
  double gain = 1;
};

class Uniform final : public Method {
 public:
  explicit Uniform(const Params& params) : params_(params) {}

  void prepare(const Problem& problem, const Env&) override {
    problem_ = problem;
    sums_ = Tensor(problem.batch, problem.heads, 1, problem.d_v);
  }

  // One pass over the values; query i adds those that it sees and i - 1 did not. O(n d_v).
  void forward(const Inputs& in, TensorView out, Saved*) override {
    parallel_for(problem_.batch * problem_.heads, [&](Index bh, int) {
      auto sum = sums_.view().head(bh);
      sum.setZero();
      for (Index i = 0, j = 0; i < problem_.n; ++i) {
        for (; j < problem_.visible(i); ++j) sum += in.v.head(bh).row(j);
        out.head(bh).row(i) = sum * static_cast<float>(params_.gain / static_cast<double>(j));
      }
    });
  }

  Budget budget(const Problem& p) const override {
    return {.state_bytes = extra_bytes(p, Pass::forward)};
  }
  double extra_bytes(const Problem& p, Pass) const override {
    return 4.0 * static_cast<double>(p.batch * p.heads * p.d_v);
  }

 private:
  Params params_;
  Problem problem_;
  Tensor sums_;  // [batch, heads, 1, d_v]
};

const RegisterMethod<Uniform, Params> kRegistration{
    {.name = "uniform_example",
     .family = "linear",
     .source = "control",
     .summary = "the mean of the visible values",
     .approximates = Approximates::nothing,
     .causality = Causality::strict,
     .cross_attention = true},
    {param("gain", &Params::gain, {0, 10}, "factor on the output")}};

}  // namespace
}  // namespace subquad
