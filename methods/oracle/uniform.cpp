// Control: every query gets the mean of the values that it may see.
//   out_i = mean of v_j over the visible keys: all, or j <= i + n_kv - n when causal
// It does not look at q and k. As a linear attention it has one constant feature: rank 1.

#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "methods/engines/band.h"

namespace subquad {
namespace {

class Uniform final : public Method {
 public:
  void prepare(const Problem& problem, const Env&) override {
    problem_ = problem;
    sums_ = AlignedArray<double>(problem.batch * problem.heads * problem.d_v);
  }

  // One pass over the values: query i adds those that it sees and query i - 1 did not.
  // O((n + n_kv) d_v), extra memory O(d_v).
  void forward(const Inputs& in, TensorView out, Saved*) override {
    parallel_for(problem_.batch * problem_.heads, [&](Index bh, int) {
      Eigen::Map<RowVectorT<double>> sum(sums_.data() + bh * problem_.d_v, problem_.d_v);
      const auto real = keys_of_batch(in, bh / problem_.heads);
      auto o = out.head(bh);
      sum.setZero();
      Index count = 0;
      for (Index i = 0, j = 0; i < problem_.n; ++i) {
        for (; j < problem_.visible(i); ++j) {
          if (!real.empty() && real[static_cast<std::size_t>(j)] == 0) continue;
          sum += in.v.head(bh).row(j).cast<double>();
          ++count;
        }
        if (count == 0) {
          o.row(i).setZero();
        } else {
          o.row(i) = (sum / static_cast<double>(count)).cast<float>();
        }
      }
    });
  }

  bool attention_rows(const Inputs& in, Index b, Index, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    const auto real = keys_of_batch(in, b);
    weights.setZero();
    for (std::size_t r = 0; r < rows.size(); ++r) {
      auto row = weights.row(static_cast<Index>(r));
      for (Index j = 0; j < problem_.visible(rows[r]); ++j)
        if (real.empty() || real[static_cast<std::size_t>(j)] != 0) row[j] = 1;
      const float count = row.sum();
      if (count > 0) row /= count;
    }
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
    return static_cast<double>(p.batch * p.heads * (p.n + p.n_kv) * p.d_v);
  }

 private:
  Problem problem_;
  AlignedArray<double> sums_;  // [batch * heads, d_v]
};

const RegisterMethod<Uniform> kRegistration{
    {.name = "uniform",
     .family = "oracle",
     .source = "control",
     .summary = "control: the mean of the values that a query may see",
     .approximates = Approximates::nothing,
     .causality = Causality::strict,
     .cross_attention = true,
     .key_padding = true,
     .bounded_by = {"svd_rank", "block_rank_causal"},
     .time_exponent = 1,
     .memory_exponent = 0,
     .notes = {
         "no oracle and no competitor: an error that is not clearly below this one shows that "
         "the data need no attention",
         "equals v_mean where nothing is causal"}}};

}  // namespace
}  // namespace subquad
