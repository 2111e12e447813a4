// Oracle: s columns of the attention matrix drawn with the best possible probabilities.
// Source: Drineas, Kannan and Mahoney 2006 (fast Monte Carlo algorithms for matrices I), lemma 4.
//   draws j_1 .. j_s with replacement by p,   out = (1 / s) sum_t A_{:,j_t} v_{j_t} / p_{j_t}
// is unbiased, with E ||out - A v||_F^2 = (1 / s) (sum_j ||A_:j||^2 ||v_j||^2 / p_j - ||A v||_F^2).
// Least where p_j ~ ||A_:j|| ||v_j|| (values: true); for the matrix alone (v = identity) where
// p_j ~ ||A_:j|| (values: false).

#include <algorithm>
#include <cmath>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "methods/engines/exact_rows.h"

namespace subquad {
namespace {

struct Params {
  Index samples = 64;
  bool values = false;
};

class ColumnSampling final : public Method {
 public:
  explicit ColumnSampling(const Params& params) : params_(params) {}

  std::string unsupported(const Problem& problem, Pass) const override {
    return params_.values && problem.causal
               ? "with values: true the norms of future values would decide"
               : "";
  }

  void prepare(const Problem& problem, const Env& env) override {
    problem_ = problem;
    seed_ = env.seed;
    expected_.assign(static_cast<std::size_t>(problem.batch * problem.heads), {});
    work_.clear();
    grow_work();
  }

  // O(n n_kv (d_k + d_v)), extra memory O(n n_kv) a thread.
  void forward(const Inputs& in, TensorView out, Saved*) override {
    grow_work();
    parallel_for(problem_.batch * problem_.heads, [&](Index bh, int thread) {
      Work& w = work_[static_cast<std::size_t>(thread)];
      expected_[static_cast<std::size_t>(bh)] = draw(in, bh, w);
      for (Index i = 0; i < problem_.n; ++i) {  // values that row i does not see are not read
        w.row.setZero();
        for (Index j = 0; j < problem_.visible(i); ++j)
          if (w.factor[j] != 0) w.row += w.a(i, j) * w.factor[j] * w.v.row(j);
        out.head(bh).row(i) = w.row.cast<float>();
      }
    });
  }

  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    Work& w = work_.front();
    draw(in, b * problem_.heads + h, w);
    for (std::size_t r = 0; r < rows.size(); ++r)
      weights.row(static_cast<Index>(r)) =
          w.a.row(rows[r]).cwiseProduct(w.factor.transpose()).cast<float>();
    return true;
  }

  std::vector<Metric> metrics() const override {
    double matrix = 0, total = 0;
    for (const Expected& e : expected_) {
      matrix += e.matrix;
      total += e.total;
    }
    return {{"expected_matrix_error", total > 0 ? std::sqrt(matrix / total) : 0}};
  }

  Budget budget(const Problem& p) const override {
    const auto samples = static_cast<double>(params_.samples);
    return {
        .keys_per_query = samples,
        .state_bytes = 4.0 * samples * static_cast<double>(p.batch * p.heads * (p.d_k + p.d_v))};
  }
  double extra_bytes(const Problem& p, Pass) const override {
    return 8.0 * static_cast<double>(thread_count() *
                                     (p.n * p.n_kv + (p.n_kv + 1) * p.d_v + 3 * p.n_kv)) +
           static_cast<double>(sizeof(Expected)) * static_cast<double>(p.batch * p.heads);
  }

 private:
  struct Expected {  // of one head: expected squared error of the matrix, and its squared norm
    double matrix = 0, total = 0;
  };
  struct Work {              // of one thread
    MatrixD a, v;            // [n, n_kv], [n_kv, d_v]
    RowVectorT<double> row;  // [d_v]
    VectorD norm2;           // [n_kv] ||A_:j||^2
    VectorD cumulative;      // [n_kv] of the unnormalised probabilities
    VectorD factor;          // [n_kv] times drawn / (s p_j)
    explicit Work(const Problem& p)
        : a(p.n, p.n_kv),
          v(p.n_kv, p.d_v),
          row(p.d_v),
          norm2(p.n_kv),
          cumulative(p.n_kv),
          factor(p.n_kv) {}
  };

  void grow_work() {
    while (static_cast<int>(work_.size()) < thread_count()) work_.emplace_back(problem_);
  }

  double weight(const Work& w, Index j) const {  // ~ p_j
    const double norm = std::sqrt(w.norm2[j]);
    return params_.values ? norm * w.v.row(j).norm() : norm;
  }

  // A, v, and what the draws of head bh multiply the columns of A with.
  Expected draw(const Inputs& in, Index bh, Work& w) const {
    exact_attention_matrix(in, problem_, bh, w.a);
    values_of_real_keys(in, problem_, bh, w.v);
    double sum = 0;
    for (Index j = 0; j < problem_.n_kv; ++j) {
      w.norm2[j] = w.a.col(j).squaredNorm();
      sum += weight(w, j);
      w.cumulative[j] = sum;
    }
    w.factor.setZero();
    Expected expected{.matrix = 0, .total = w.norm2.sum()};
    if (std::isnan(sum)) w.factor.setConstant(sum);  // so that it shows in the output
    if (!(sum > 0)) return expected;
    Random random(seed_, "column_sampling", {static_cast<std::uint64_t>(bh)});
    const double* begin = w.cumulative.data();
    const double* end = begin + problem_.n_kv;
    for (Index s = 0; s < params_.samples; ++s) {
      const double* found = std::upper_bound(begin, end, random.uniform() * sum);
      w.factor[std::min(found - begin, problem_.n_kv - 1)] += 1;
    }
    const auto samples = static_cast<double>(params_.samples);
    for (Index j = 0; j < problem_.n_kv; ++j) {
      const double p = weight(w, j) / sum;
      if (!(p > 0)) continue;
      w.factor[j] /= samples * p;
      expected.matrix += w.norm2[j] / p;
    }
    expected.matrix = std::max(0.0, (expected.matrix - expected.total) / samples);
    return expected;
  }

  Params params_;
  Problem problem_;
  Seed seed_ = 0;
  std::vector<Expected> expected_;  // by head, of the last forward
  std::vector<Work> work_;          // per thread
};

const RegisterMethod<ColumnSampling, Params> kRegistration{
    {.name = "column_sampling",
     .family = "oracle",
     .source = "Drineas, Kannan and Mahoney 2006, SIAM J. Comput. 36(1)",
     .summary = "oracle: columns of the attention matrix, drawn with the best probabilities",
     .causality = Causality::weights,
     .cross_attention = true,
     .key_padding = true,
     .random = true,
     .structure_from_v = true,
     .oracle = true,
     .max_n = 8192,
     .bounded_by = {"svd_rank"},  // rank s; rows of s keys, but of no fixed sum
     .time_exponent = 2,
     .memory_exponent = 2,
     .notes =
         {"bounds, in expectation over the draws, unbiased estimates of A v from s independent "
          "columns drawn with the same probabilities for every query",
          "does not bound a single draw, distinct columns, nor estimates that are divided by their "
          "own sum of weights: these may lie below it",
          "rows do not sum to one; the error can exceed one where s is small",
          "not strict: which columns are drawn depends on later queries",
          "metric expected_matrix_error: relative Frobenius error of the matrix, root of the mean "
          "square over all draws, from the formula"}},
    {param("samples", &Params::samples, {1, 1 << 20}, "columns drawn, with replacement"),
     param("values", &Params::values,
           "probabilities also follow the norms of the values (best for the output, not for the "
           "matrix)")}};

}  // namespace
}  // namespace subquad
