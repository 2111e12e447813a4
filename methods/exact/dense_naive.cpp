// Exact softmax attention that materialises the n x n matrix. First version: forward only.
#include <cmath>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"

namespace subquad {
namespace {

class DenseNaive final : public Method {
 public:
  void prepare(const Problem& problem, const Env&) override {
    problem_ = problem;
    weights_ = Tensor(problem.batch, problem.heads, problem.n, problem.n_kv);
  }

  void forward(const Inputs& in, TensorView out, Saved*) override {
    parallel_for(problem_.batch * problem_.heads, [&](Index bh, int) {
      auto weights = weights_.view().head(bh);
      weights.noalias() = in.q.head(bh) * in.k.head(bh).transpose();
      for (Index i = 0; i < problem_.n; ++i) {
        const Index visible = problem_.visible(i);
        auto row = weights.row(i);
        row.tail(problem_.n_kv - visible).setZero();
        auto seen = row.head(visible).array();
        seen *= static_cast<float>(problem_.logit_scale());
        seen = (seen - seen.maxCoeff()).exp();
        seen /= seen.sum();
      }
      out.head(bh).noalias() = weights * in.v.head(bh);
    });
  }

  double extra_bytes(const Problem& p, Pass) const override {
    return 4.0 * static_cast<double>(p.batch * p.heads * p.n * p.n_kv);
  }

 private:
  Problem problem_;
  Tensor weights_;  // [batch, heads, n, n_kv]
};

const RegisterMethod<DenseNaive> kRegistration{{
    .name = "dense_naive",
    .family = "exact",
    .source = "Vaswani et al. 2017, arXiv 1706.03762",
    .summary = "exact softmax attention with the whole n x n matrix in memory",
    .causality = Causality::strict,
    .cross_attention = true,
    .exact = true,
    .time_exponent = 2,
    .memory_exponent = 2,
}};

}  // namespace
}  // namespace subquad
