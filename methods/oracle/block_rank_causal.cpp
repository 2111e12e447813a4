// Oracle: the matrix nearest to causal attention whose lower-left blocks have rank r, for methods
// that carry a recurrent state of r rows.
//
// A causal linear attention, delta rule or state-space layer with a state of r x d_v has weights
// w_ij = phi_i^T T_i .. T_{j+1} psi_j: what the queries from t on take from the keys before t goes
// through the state at t, so the block A^[t.., ..t) has rank r at most, for every t. The masked
// matrix itself has full rank, so a singular value decomposition of all of it bounds nothing.
//
// The oracle keeps less than that: it cuts the key axis at one t into two halves, each of them
// again, and so on, and asks for rank r only of the blocks between the halves of one cut. Each is
// part of a block as above, so every such method belongs to this larger class; and since the
// blocks do not overlap, the nearest matrix of the class is known: each block is replaced by its
// own nearest matrix of rank r (Eckart and Young 1936), the triangles that are left (blocks with a
// side of r or less) are exact. Its error sqrt(sum over blocks sum_{t > r} s_t^2) is therefore
// a lower bound for the Frobenius error of every method of the family, and it is attained by the
// matrix that this oracle shows; no recurrence with a state of r need attain it.
//
// Our choice: the first cut is, of eight places, the one whose block loses most; then halves. So
// the bound is at least the largest error of one block over those places (metric split_bound).
// Nearest blocks as in svd_rank: within 1e-8 ||A||_F of the optimum.

#include <memory>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "methods/engines/exact_rows.h"
#include "methods/engines/gram_spectrum.h"

namespace subquad {
namespace {

constexpr Index kPlaces = 8;  // of the first cut

struct Params {
  Index rank = 64;
};

class BlockRankCausal final : public Method {
 public:
  explicit BlockRankCausal(const Params& params) : params_(params) {}

  void prepare(const Problem& problem, const Env&) override {
    problem_ = problem;
    losses_.assign(static_cast<std::size_t>(problem.batch * problem.heads), {});
    work_.clear();
    grow_work();
  }

  // O(n n_kv (d_k + d_v)) and about n^3 / 3 for the blocks; extra memory O(n n_kv) a thread.
  void forward(const Inputs& in, TensorView out, Saved*) override {
    grow_work();
    parallel_for(problem_.batch * problem_.heads, [&](Index bh, int thread) {
      Work& w = *work_[static_cast<std::size_t>(thread)];
      losses_[static_cast<std::size_t>(bh)] = approximate(in, bh, w);
      values_of_real_keys(in, problem_, bh, w.v);
      for (Index i = 0; i < problem_.n; ++i) {  // values that row i does not see are not read
        const Index visible = problem_.visible(i);
        w.row.noalias() = w.a.row(i).head(visible) * w.v.topRows(visible);
        out.head(bh).row(i) = w.row.cast<float>();
      }
    });
  }

  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    Work& w = *work_.front();
    approximate(in, b * problem_.heads + h, w);
    for (std::size_t r = 0; r < rows.size(); ++r)
      weights.row(static_cast<Index>(r)) = w.a.row(rows[r]).cast<float>();
    return true;
  }

  std::vector<Metric> metrics() const override {
    double blocks = 0, split = 0, total = 0;
    for (const Loss& loss : losses_) {
      blocks += loss.blocks;
      split += loss.split;
      total += loss.total;
    }
    if (!(total > 0)) total = 1;
    return {{"bound", std::sqrt(blocks / total)}, {"split_bound", std::sqrt(split / total)}};
  }

  Budget budget(const Problem& p) const override {
    const double rank = static_cast<double>(std::min(params_.rank, p.n_kv));
    return {.keys_per_query = rank,  // features
            .state_bytes = 4.0 * rank * static_cast<double>(p.batch * p.heads * (p.d_v + 1))};
  }
  double extra_bytes(const Problem& p, Pass) const override {
    const Index m = widest(p);
    return 8.0 * static_cast<double>(thread_count() *
                                     (p.n * p.n_kv + 2 * m * m + 4 * m + (p.n_kv + 1) * p.d_v)) +
           static_cast<double>(sizeof(Loss)) * static_cast<double>(p.batch * p.heads);
  }
  MatrixDistance bounds_in() const override { return MatrixDistance::frobenius; }

 private:
  using Block = Eigen::Block<MatrixD>;
  struct Loss {         // squared Frobenius norms, of one head
    double blocks = 0;  // of what all blocks lose
    double split = 0;   // of what the worst single block A[t.., ..t) loses
    double total = 0;   // of A
  };
  struct Work {              // of one thread
    MatrixD a, v;            // [n, n_kv], [n_kv, d_v]
    RowVectorT<double> row;  // [d_v]
    GramSpectrum spectrum;
    explicit Work(const Problem& p)
        : a(p.n, p.n_kv), v(p.n_kv, p.d_v), row(p.d_v), spectrum(widest(p)) {}
  };

  // The longest short side of a block.
  static Index widest(const Problem& p) { return std::max<Index>(1, std::min(p.n, p.n_kv / 2)); }
  void grow_work() {
    while (static_cast<int>(work_.size()) < thread_count())
      work_.push_back(std::make_unique<Work>(problem_));
  }

  // Rows of the queries at positions [middle, end) of the key axis, columns [begin, middle).
  Block lower_left(Work& w, Index begin, Index middle, Index end) const {
    const Index offset = problem_.causal_offset();
    return w.a.block(middle - offset, begin, end - middle, middle - begin);
  }
  bool kept_whole(const Block& block) const {
    return std::min(block.rows(), block.cols()) <= params_.rank;
  }

  // Replaces the block by the nearest one of the rank; returns the squared error.
  double truncate(Block block, Work& w) const {
    if (kept_whole(block)) return 0;
    w.spectrum.compute(block, true);
    w.spectrum.truncate(block, params_.rank);
    return w.spectrum.tail(params_.rank);
  }

  // Cuts keys [begin, end) at `middle`, and both parts again. Returns the squared error.
  double cut(Index begin, Index middle, Index end, Work& w) const {
    double lost = truncate(lower_left(w, begin, middle, end), w);
    if (begin < middle) lost += halve(begin, middle, w);
    return lost + halve(middle, end, w);
  }
  double halve(Index begin, Index end, Work& w) const {
    const Index offset = problem_.causal_offset();
    if (end - begin < 2 || end <= offset) return 0;  // one entry a row, or no query
    return cut(begin, std::max((begin + end) / 2, offset), end, w);
  }

  // The approximation of head bh -> w.a.
  Loss approximate(const Inputs& in, Index bh, Work& w) const {
    exact_attention_matrix(in, problem_, bh, w.a);
    const std::vector<bool> hidden = rows_without_keys(w.a);
    Loss loss;
    loss.total = w.a.squaredNorm();
    Index first = -1;
    for (Index place = 0; place < kPlaces; ++place) {
      const Index t = problem_.causal_offset() + place * problem_.n / kPlaces;
      if (t < 1) continue;
      const Block block = lower_left(w, 0, t, problem_.n_kv);
      if (kept_whole(block)) continue;
      w.spectrum.compute(block, false);
      const double lost = w.spectrum.tail(params_.rank);
      if (lost > loss.split) {
        loss.split = lost;
        first = t;
      }
    }
    if (first < 0) return loss;  // every block has the rank already
    loss.blocks = cut(0, first, problem_.n_kv, w);
    clear_hidden(in, problem_, bh, hidden, w.a);
    return loss;
  }

  Params params_;
  Problem problem_;
  std::vector<Loss> losses_;                 // by head, of the last forward
  std::vector<std::unique_ptr<Work>> work_;  // per thread
};

const RegisterMethod<BlockRankCausal, Params> kRegistration{
    {.name = "block_rank_causal",
     .family = "oracle",
     .source = "Eckart and Young 1936, applied to the blocks of a hierarchy",
     .summary = "oracle: nearest causal matrix whose blocks between past and future have rank r",
     .causality = Causality::weights,
     .bidirectional = false,
     .cross_attention = true,
     .key_padding = true,
     .oracle = true,
     .max_n = 2048,
     .at_budget =
         [](double keys) {
           return Settings{{"rank", static_cast<Index>(std::ceil(keys))}};
         },
     .exact_limit =
         [](const Problem& p) {
           return Settings{{"rank", p.n_kv}};
         },
     .time_exponent = 3,
     .memory_exponent = 2,
     .notes =
         {"bounds the Frobenius error of the attention matrix of every causal method with a "
          "recurrent state of r rows: linear attention with r features (normalised or not), delta "
          "rules, gated and state-space layers",
          "the matrix is the nearest of a larger class (only blocks of a hierarchy must have rank "
          "r), so no recurrence need reach it; it is not the output of any recurrence",
          "does not bound windows, top-k or hybrids of a window and a state, nor any output",
          "not strict: how a past block is approximated depends on later queries; no value of a "
          "future token leaks",
          "metric bound: relative Frobenius error of the matrix from the singular values; "
          "split_bound: the same of the worst single block over eight places",
          "weights may be negative, rows need not sum to one; the eigenvalue solver allocates "
          "inside the call"}},
    {param("rank", &Params::rank, {1, 1 << 24}, "rank of a block: rows of the state")}};

}  // namespace
}  // namespace subquad
