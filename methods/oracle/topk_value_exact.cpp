// Oracle: the k keys that move the output of a query most, for methods that look at the values.
// With A_i the exact row and o_i = sum_j A_ij v_j the exact output,
//   T_i = the k visible keys of largest A_ij ||v_j - o_i|| (ties: larger A_ij, then lowest index;
//         compared in float32, because two visible keys always tie but for rounding),
//   out_i = sum_{j in T_i} A_ij v_j / m_i,   m_i = sum_{j in T_i} A_ij.
// Since out_i - o_i = -(1 / m_i) sum_{j not in T_i} A_ij (v_j - o_i), this choice makes the sum of
// the norms on the right, a bound of the output error times m_i, as small as k keys allow. The
// output error itself is not minimised (any d_v + 1 keys can reproduce an output exactly).

#include <algorithm>
#include <cmath>
#include <numeric>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "methods/engines/exact_rows.h"

namespace subquad {
namespace {

constexpr Index kRows = 16;  // queries of a work item

struct Params {
  Index top_k = 128;
};

class TopKValueExact final : public Method {
 public:
  explicit TopKValueExact(const Params& params) : params_(params) {}

  void prepare(const Problem& problem, const Env&) override {
    problem_ = problem;
    work_.clear();
    grow_work();
  }

  // O(n n_kv (d_k + d_v)), extra memory O(n_kv) a thread.
  void forward(const Inputs& in, TensorView out, Saved*) override {
    grow_work();
    const Index blocks = (problem_.n + kRows - 1) / kRows;
    parallel_for(problem_.batch * problem_.heads * blocks, [&](Index item, int thread) {
      const Index bh = item / blocks, r0 = item % blocks * kRows;
      Work& w = work_[static_cast<std::size_t>(thread)];
      for (Index i = r0; i < std::min(r0 + kRows, problem_.n); ++i) {
        choose(in, bh, i, w);
        w.out.setZero();
        for (Index j = 0; j < problem_.visible(i); ++j)
          if (w.a[j] != 0) w.out += w.a[j] * in.v.head(bh).row(j).cast<double>();
        out.head(bh).row(i) = w.out.cast<float>();
      }
    });
  }

  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    for (std::size_t r = 0; r < rows.size(); ++r) {
      choose(in, b * problem_.heads + h, rows[r], work_.front());
      weights.row(static_cast<Index>(r)) = work_.front().a.cast<float>();
    }
    return true;
  }

  Budget budget(const Problem& p) const override {
    return {.keys_per_query = static_cast<double>(std::min(params_.top_k, p.n_kv)),
            .state_bytes = 4.0 * static_cast<double>(p.batch * p.heads * p.n_kv * (p.d_k + p.d_v))};
  }
  double extra_bytes(const Problem& p, Pass) const override {
    return static_cast<double>(thread_count() * (20 * p.n_kv + 8 * p.d_v));
  }

 private:
  struct Work {                 // of one thread
    RowVectorT<double> a, out;  // [n_kv], [d_v]
    RowVector score;            // [n_kv]
    std::vector<Index> order;   // [n_kv] keys, best first
    explicit Work(const Problem& p)
        : a(p.n_kv), out(p.d_v), score(p.n_kv), order(static_cast<std::size_t>(p.n_kv)) {}
  };
  void grow_work() {
    while (static_cast<int>(work_.size()) < thread_count()) work_.emplace_back(problem_);
  }

  // The weights of query i -> w.a.
  void choose(const Inputs& in, Index bh, Index i, Work& w) const {
    const auto v = in.v.head(bh);
    const Index visible = problem_.visible(i), kept = std::min(params_.top_k, visible);
    exact_attention_row(in, problem_, bh, i, w.a.data());
    w.out.setZero();
    for (Index j = 0; j < visible; ++j)
      if (w.a[j] != 0) w.out += w.a[j] * v.row(j).cast<double>();
    for (Index j = 0; j < visible; ++j) {
      const double score = w.a[j] != 0 ? w.a[j] * (v.row(j).cast<double>() - w.out).norm() : 0;
      // No number: chosen first, so that it shows in the output.
      w.score[j] =
          score == score ? static_cast<float>(score) : std::numeric_limits<float>::infinity();
    }
    std::iota(w.order.begin(), w.order.begin() + visible, Index{0});
    std::nth_element(w.order.begin(), w.order.begin() + (kept - 1), w.order.begin() + visible,
                     [&](Index x, Index y) {
                       if (w.score[x] != w.score[y]) return w.score[x] > w.score[y];
                       return w.a[x] != w.a[y] ? w.a[x] > w.a[y] : x < y;
                     });
    for (auto j = w.order.begin() + kept; j != w.order.begin() + visible; ++j) w.a[*j] = 0;
    const double mass = w.a.head(visible).sum();
    if (mass != 0) w.a /= mass;
  }

  Params params_;
  Problem problem_;
  std::vector<Work> work_;  // per thread
};

const RegisterMethod<TopKValueExact, Params> kRegistration{
    {.name = "topk_value_exact",
     .family = "oracle",
     .source = "value-aware form of exact top-k attention",
     .summary = "oracle: the k keys of largest weight times distance of the value from the output",
     .causality = Causality::strict,
     .cross_attention = true,
     .key_padding = true,
     .structure_from_v = true,
     .oracle = true,
     .bounded_by = {"topk_exact"},
     .exact_limit =
         [](const Problem& p) {
           return Settings{{"top_k", p.n_kv}};
         },
     .time_exponent = 2,
     .memory_exponent = 0,
     .notes = {"shows what a choice of k keys gains that also looks at the values; it minimises a "
               "bound of the output error, not the error itself: a reference, no strict bound",
               "its attention matrix is never nearer to the exact one than that of topk_exact"}},
    {param("top_k", &Params::top_k, {1, 1 << 24}, "keys that a query keeps")}};

}  // namespace
}  // namespace subquad
