// Control: every query gets the mean of all values.
// Source: the baseline "V-mean" of Skeinformer (Chen et al. 2022, arXiv 2112.05359).
//   out_i = (1 / n_kv) sum_j v_j   over the keys that are no padding
// All rows of its attention matrix are equal: its rank is 1.

#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "methods/engines/band.h"

namespace subquad {
namespace {

class VMean final : public Method {
 public:
  void prepare(const Problem& problem, const Env&) override {
    problem_ = problem;
    sums_ = AlignedArray<double>(problem.batch * problem.heads * problem.d_v);
  }

  // O((n + n_kv) d_v), extra memory O(d_v).
  void forward(const Inputs& in, TensorView out, Saved*) override {
    parallel_for(problem_.batch * problem_.heads, [&](Index bh, int) {
      Eigen::Map<RowVectorT<double>> mean(sums_.data() + bh * problem_.d_v, problem_.d_v);
      const auto real = keys_of_batch(in, bh / problem_.heads);
      mean.setZero();
      Index count = 0;
      for (Index j = 0; j < problem_.n_kv; ++j) {
        if (!real.empty() && real[static_cast<std::size_t>(j)] == 0) continue;
        mean += in.v.head(bh).row(j).cast<double>();
        ++count;
      }
      if (count > 0) mean /= static_cast<double>(count);
      for (Index i = 0; i < problem_.n; ++i) out.head(bh).row(i) = mean.cast<float>();
    });
  }

  bool attention_rows(const Inputs& in, Index b, Index, std::span<const Index>,
                      Eigen::Ref<Matrix> weights) override {
    const auto real = keys_of_batch(in, b);
    weights.setOnes();
    for (Index j = 0; j < problem_.n_kv && !real.empty(); ++j)
      if (real[static_cast<std::size_t>(j)] == 0) weights.col(j).setZero();
    const float count = weights.row(0).sum();
    if (count > 0) weights /= count;
    return true;
  }

  Budget budget(const Problem& p) const override {
    return {.keys_per_query = 1,  // one constant feature
            .state_bytes = 4.0 * static_cast<double>(p.batch * p.heads * (p.d_v + 1))};
  }
  double extra_bytes(const Problem& p, Pass) const override {
    return 8.0 * static_cast<double>(p.batch * p.heads * p.d_v);
  }
  double flops(const Problem& p, Pass) const override {
    return static_cast<double>(p.batch * p.heads * p.n_kv * p.d_v);
  }

 private:
  Problem problem_;
  AlignedArray<double> sums_;  // [batch * heads, d_v]
};

const RegisterMethod<VMean> kRegistration{
    {.name = "v_mean",
     .family = "oracle",
     .source = "baseline of Skeinformer, arXiv 2112.05359",
     .summary = "control: the mean of all values, for every query",
     .approximates = Approximates::nothing,
     .cross_attention = true,
     .key_padding = true,
     .bounded_by = {"svd_rank"},
     .time_exponent = 1,
     .memory_exponent = 0,
     .notes = {"no oracle and no competitor: a sanity line that sketching methods have to beat",
               "has no causal form: it would see the future; the causal one is uniform"}}};

}  // namespace
}  // namespace subquad
