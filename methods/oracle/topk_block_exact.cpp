// Oracle: the b blocks of keys that hold most of the attention of a block of queries.
// Source: exact block selection, the bound of block-sparse attention (BigBird and its relatives).
// Queries and keys are cut into blocks of `block`; all queries of a block share their key blocks:
//   T = the `blocks` key blocks of largest sum over the block's queries of
//       norm tv: A_ij, softmax over the kept keys;    norm frobenius: A_ij^2, A_ij as it is
// (ties: lowest index first). With norm tv the mean total variation of the rows is least among
// masks on this grid with rows of sum one, with norm frobenius the Frobenius error among all.

#include <algorithm>
#include <cmath>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "methods/engines/exact_rows.h"

namespace subquad {
namespace {

struct Params {
  Index block = 64;
  Index blocks = 2;
  std::string norm = "tv";
};

class TopKBlockExact final : public Method {
 public:
  explicit TopKBlockExact(const Params& params) : params_(params) {}

  void prepare(const Problem& problem, const Env&) override {
    problem_ = problem;
    mass_ = AlignedArray<double>(problem.batch * problem.heads * problem.n);
    work_.clear();
    grow_work();
  }

  // O(n n_kv (d_k + d_v)) at worst, extra memory O(block n_kv) a thread.
  void forward(const Inputs& in, TensorView out, Saved*) override {
    grow_work();
    const Index count = query_blocks();
    parallel_for(problem_.batch * problem_.heads * count, [&](Index item, int thread) {
      const Index bh = item / count, r0 = item % count * params_.block;
      Work& w = work_[static_cast<std::size_t>(thread)];
      const Index rows = choose(in, bh, r0, w, mass_.data() + bh * problem_.n);
      for (Index r = 0; r < rows; ++r) {
        w.sum.setZero();
        for (Index j = 0; j < problem_.visible(r0 + r); ++j)
          if (w.a(r, j) != 0) w.sum += w.a(r, j) * in.v.head(bh).row(j).cast<double>();
        out.head(bh).row(r0 + r) = w.sum.cast<float>();
      }
    });
    queries_ = problem_.batch * problem_.heads * problem_.n;
  }

  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    Work& w = work_.front();
    Index now = -1;
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const Index block = rows[r] / params_.block;
      if (block != now) choose(in, b * problem_.heads + h, block * params_.block, w, nullptr);
      now = block;
      weights.row(static_cast<Index>(r)) = w.a.row(rows[r] - block * params_.block).cast<float>();
    }
    return true;
  }

  std::vector<Metric> metrics() const override {
    double sum = 0;
    for (Index row = 0; row < queries_; ++row) sum += mass_[row];
    return {{"captured_mass", queries_ > 0 ? sum / static_cast<double>(queries_) : 0}};
  }

  Budget budget(const Problem& p) const override {
    return {.keys_per_query = static_cast<double>(std::min(params_.block * params_.blocks, p.n_kv)),
            .state_bytes = 4.0 * static_cast<double>(p.batch * p.heads * p.n_kv * (p.d_k + p.d_v))};
  }
  double extra_bytes(const Problem& p, Pass) const override {
    return 8.0 * static_cast<double>(p.batch * p.heads * p.n +
                                     thread_count() * (std::min(params_.block, p.n) * p.n_kv +
                                                       p.d_v + 2 * key_blocks(p)));
  }
  MatrixDistance bounds_in() const override {
    return params_.norm == "tv" ? MatrixDistance::row_tv : MatrixDistance::frobenius;
  }

 private:
  struct Work {                // of one thread
    MatrixD a;                 // [block, n_kv] exact rows, then the method's own weights
    RowVectorT<double> sum;    // [d_v]
    VectorD score;             // [key blocks]
    std::vector<Index> order;  // [key blocks] best first
    Work(const Problem& p, Index block)
        : a(std::min(block, p.n), p.n_kv),
          sum(p.d_v),
          score((p.n_kv + block - 1) / block),
          order(static_cast<std::size_t>((p.n_kv + block - 1) / block)) {}
  };

  Index query_blocks() const { return (problem_.n + params_.block - 1) / params_.block; }
  Index key_blocks(const Problem& p) const { return (p.n_kv + params_.block - 1) / params_.block; }
  void grow_work() {
    while (static_cast<int>(work_.size()) < thread_count())
      work_.emplace_back(problem_, params_.block);
  }

  // Weights of the block of queries from r0 on -> w.a; returns how many rows it has. The mass that
  // row i keeps goes to mass[i], unless mass is null.
  Index choose(const Inputs& in, Index bh, Index r0, Work& w, double* mass) const {
    const Index rows = std::min(params_.block, problem_.n - r0), count = key_blocks(problem_);
    const bool tv = params_.norm == "tv";
    for (Index r = 0; r < rows; ++r)
      exact_attention_row(in, problem_, bh, r0 + r, w.a.row(r).data());
    for (Index c = 0; c < count; ++c) {
      const auto tile = part(w, rows, c);
      const double score = tv ? tile.sum() : tile.squaredNorm();
      // No number: chosen first, so that it shows in the output.
      w.score[c] = score == score ? score : std::numeric_limits<double>::infinity();
      w.order[static_cast<std::size_t>(c)] = c;
    }
    std::sort(w.order.begin(), w.order.end(), [&](Index x, Index y) {
      return w.score[x] > w.score[y] || (w.score[x] == w.score[y] && x < y);
    });
    for (Index c = params_.blocks; c < count; ++c)
      part(w, rows, w.order[static_cast<std::size_t>(c)]).setZero();
    for (Index r = 0; r < rows; ++r) {
      const double kept = w.a.row(r).sum();
      if (mass != nullptr) mass[r0 + r] = kept;
      if (tv && kept != 0) w.a.row(r) /= kept;
    }
    return rows;
  }
  Eigen::Block<MatrixD> part(Work& w, Index rows, Index c) const {
    const Index first = c * params_.block;
    return w.a.block(0, first, rows, std::min(params_.block, problem_.n_kv - first));
  }

  Params params_;
  Problem problem_;
  Index queries_ = 0;          // of the last forward
  AlignedArray<double> mass_;  // [batch * heads * n] mass that each row keeps
  std::vector<Work> work_;     // per thread
};

const RegisterMethod<TopKBlockExact, Params> kRegistration{
    {.name = "topk_block_exact",
     .family = "oracle",
     .source = "exact selection of key blocks, as block-sparse attention shares them",
     .summary = "oracle: the key blocks that hold most of a query block's attention",
     .causality = Causality::weights,
     .cross_attention = true,
     .key_padding = true,
     .oracle = true,
     .bounded_by = {"topk_exact"},
     .at_budget =
         [](double keys) {
           return Settings{{"blocks", static_cast<Index>(std::ceil(keys / 64))}};
         },
     .exact_limit =
         [](const Problem& p) {
           return Settings{{"blocks", p.n_kv}};
         },
     .time_exponent = 2,
     .memory_exponent = 1,
     .notes =
         {"bounds block-sparse methods whose query blocks share their key blocks on this grid "
          "(block, both from key and query 0 on); a finer or shifted grid can do better",
          "norm tv: the total variation of rows that sum to one; norm frobenius: the Frobenius "
          "error of any",
          "a query that sees nothing of its block's choice has a zero row",
          "not strict: the queries of a block choose together",
          "metric captured_mass: share of the softmax mass that the kept blocks hold, averaged "
          "over "
          "queries"}},
    {param("block", &Params::block, {1, 4096}, "queries, and keys, of a block"),
     param("blocks", &Params::blocks, {1, 1 << 24}, "key blocks that a query block keeps"),
     choice("norm", &Params::norm, {"tv", "frobenius"},
            "in which the matrix is nearest to the exact one: tv renormalises the rows")}};

}  // namespace
}  // namespace subquad
