// Oracle: softmax attention over the k keys of largest score.
// Source: the exact top-k attention of fast-transformers (arXiv 2006.16236's code base). It looks
// at all n scores: a bound for methods that attend to k keys per query, not a competitor.
//   T_i = the k visible keys of largest q_i . k_j (ties: lowest index first; all when fewer),
//   out_i = sum_{j in T_i} w_ij v_j,  and with A_i the exact row and m_i its mass on T_i
//   norm tv:             w_ij = A_ij / m_i: nearest row of sum one and k entries in total
//                        variation, which is 1 - m_i (no other choice of k keys holds more)
//   norm frobenius:      w_ij = A_ij: nearest of all rows of k entries, sum of the dropped A_ij^2
//   norm frobenius_row1: w_ij = A_ij + (1 - m_i) / k: the same among rows of sum one
// The three have the same T_i. Backward (norm tv) keeps T_i fixed, which is exact wherever the k-th
// and the next score differ.
//
// Scores are computed in double and in the same order of additions for every key: equal keys get
// equal scores, and the choice is that of exact arithmetic but for differences near 1e-16.

#include <algorithm>
#include <cmath>
#include <limits>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "methods/engines/band.h"

namespace subquad {
namespace {

constexpr Index kRows = 8;  // queries of a work item; they share the conversion of a key tile
constexpr Index kKeys = 64;
constexpr Index kKeyBlock = 256;  // keys whose gradients one work item adds up

struct Params {
  Index top_k = 128;
  std::string norm = "tv";
};

struct TopKSaved final : Saved {
  TopKSaved(Index rows, Index width) : keys(rows * width), weights(rows * width), count(rows) {}
  AlignedArray<std::int32_t> keys;   // [batch * heads * n, width] ascending
  AlignedArray<float> weights;       // [batch * heads * n, width] p
  AlignedArray<std::int32_t> count;  // [batch * heads * n] keys of the row
};

class TopKExact final : public Method {
 public:
  explicit TopKExact(const Params& params) : params_(params) {}

  std::string unsupported(const Problem&, Pass pass) const override {
    const bool gradients = pass == Pass::backward || pass == Pass::forward_backward;
    return gradients && params_.norm != "tv" ? "the backward pass needs norm: tv" : "";
  }

  void prepare(const Problem& problem, const Env& env) override {
    problem_ = problem;
    mass_ = AlignedArray<double>(problem.batch * problem.heads * problem.n);
    if (env.gradients)
      dscores_ = AlignedArray<float>(problem.batch * problem.heads * problem.n * width(problem));
    work_.clear();
    chosen_.clear();
    grow_work();
  }
  std::unique_ptr<Saved> make_saved() const override {
    return std::make_unique<TopKSaved>(problem_.batch * problem_.heads * problem_.n,
                                       width(problem_));
  }

  void forward(const Inputs& in, TensorView out, Saved* saved) override {
    grow_work();
    const Index blocks = (problem_.n + kRows - 1) / kRows, k = width(problem_);
    parallel_for(problem_.batch * problem_.heads * blocks, [&](Index item, int thread) {
      const Index bh = item / blocks, r0 = item % blocks * kRows;
      const Index rows = std::min(kRows, problem_.n - r0);
      score(in, bh, r0, rows, thread);
      for (Index r = 0; r < rows; ++r) {
        const Index row = bh * problem_.n + r0 + r;
        auto* own = static_cast<TopKSaved*>(saved);
        Chosen& scratch = chosen_[static_cast<std::size_t>(thread)];
        std::int32_t* keys = own != nullptr ? own->keys.data() + row * k : scratch.keys.data();
        float* weights = own != nullptr ? own->weights.data() + row * k : scratch.weights.data();
        const Index count = choose(in, bh, r0 + r, r, thread, keys, weights, &mass_[row]);
        if (own != nullptr) own->count[row] = static_cast<std::int32_t>(count);
        auto o = out.head(bh).row(r0 + r);
        o.setZero();
        for (Index e = 0; e < count; ++e) o += weights[e] * in.v.head(bh).row(keys[e]);
      }
    });
    queries_ = problem_.batch * problem_.heads * problem_.n;
  }

  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved& saved,
                const Gradients& grads) override {
    const auto& chosen = static_cast<const TopKSaved&>(saved);
    const auto scale = static_cast<float>(problem_.logit_scale());
    const Index k = width(problem_), heads = problem_.batch * problem_.heads;
    const Index blocks = (problem_.n + kRows - 1) / kRows;
    parallel_for(heads * blocks, [&](Index item, int) {  // dS and dq
      const Index bh = item / blocks, r0 = item % blocks * kRows;
      for (Index i = r0; i < std::min(r0 + kRows, problem_.n); ++i) {
        const Index row = bh * problem_.n + i;
        const auto g = dout.head(bh).row(i);
        auto dq = grads.dq.head(bh).row(i);
        const float delta = g.dot(out.head(bh).row(i));
        dq.setZero();
        for (Index e = row * k; e < row * k + chosen.count[row]; ++e) {
          const float dp = g.dot(in.v.head(bh).row(chosen.keys[e]));
          dscores_[e] = scale * chosen.weights[e] * (dp - delta);
          dq += dscores_[e] * in.k.head(bh).row(chosen.keys[e]);
        }
      }
    });
    const Index key_blocks = (problem_.n_kv + kKeyBlock - 1) / kKeyBlock;
    parallel_for(heads * key_blocks, [&](Index item, int) {  // dk and dv
      const Index bh = item / key_blocks, c0 = item % key_blocks * kKeyBlock;
      const Index c1 = std::min(c0 + kKeyBlock, problem_.n_kv);
      auto dk = grads.dk.head(bh), dv = grads.dv.head(bh);
      dk.middleRows(c0, c1 - c0).setZero();
      dv.middleRows(c0, c1 - c0).setZero();
      for (Index i = 0; i < problem_.n; ++i) {
        const Index row = bh * problem_.n + i;
        const std::int32_t* first = chosen.keys.data() + row * k;
        const std::int32_t* last = first + chosen.count[row];
        for (const std::int32_t* j = std::lower_bound(first, last, c0); j < last && *j < c1; ++j) {
          const Index e = j - chosen.keys.data();
          dk.row(*j) += dscores_[e] * in.q.head(bh).row(i);
          dv.row(*j) += chosen.weights[e] * dout.head(bh).row(i);
        }
      }
    });
  }

  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    const Index bh = b * problem_.heads + h;
    Chosen& chosen = chosen_.front();
    for (std::size_t r = 0; r < rows.size(); ++r) {
      double mass = 0;
      score(in, bh, rows[r], 1, 0);
      const Index count =
          choose(in, bh, rows[r], 0, 0, chosen.keys.data(), chosen.weights.data(), &mass);
      weights.row(static_cast<Index>(r)).setZero();
      for (Index e = 0; e < count; ++e)
        weights(static_cast<Index>(r), chosen.keys[e]) = chosen.weights[e];
    }
    return true;
  }

  std::vector<Metric> metrics() const override {
    double sum = 0;
    for (Index row = 0; row < queries_; ++row) sum += mass_[row];
    return {{"captured_mass", queries_ > 0 ? sum / static_cast<double>(queries_) : 0}};
  }

  Budget budget(const Problem& p) const override {
    return {.keys_per_query = static_cast<double>(width(p)),
            .state_bytes = 4.0 * static_cast<double>(p.batch * p.heads * p.n_kv * (p.d_k + p.d_v))};
  }
  MatrixDistance bounds_in() const override {
    return params_.norm == "tv" ? MatrixDistance::row_tv : MatrixDistance::frobenius;
  }
  double extra_bytes(const Problem& p, Pass pass) const override {
    const auto rows = static_cast<double>(p.batch * p.heads * p.n);
    const auto k = static_cast<double>(width(p));
    const double per_thread = 8.0 * static_cast<double>(work_doubles(p)) + 8.0 * k;
    const double forward = 8.0 * rows + per_thread * static_cast<double>(thread_count());
    // keys, weights and counts saved, gradients of the scores
    return pass == Pass::forward ? forward : forward + rows * (12.0 * k + 4.0);
  }
  double flops(const Problem& p, Pass pass) const override {
    const auto heads = static_cast<double>(p.batch * p.heads);
    const double d_k = static_cast<double>(p.d_k), d_v = static_cast<double>(p.d_v);
    double kept = 0;
    for (Index i = 0; i < p.n; ++i)
      kept += heads * static_cast<double>(std::min(width(p), p.visible(i)));
    const double forward = 2 * heads * p.visible_entries() * d_k + 2 * kept * d_v;
    const double backward = 4 * kept * (d_k + d_v);
    if (pass == Pass::forward) return forward;
    return pass == Pass::backward ? backward : forward + backward;
  }

 private:
  struct Chosen {  // of one row, when nothing is saved
    AlignedArray<std::int32_t> keys;
    AlignedArray<float> weights;
  };

  Index width(const Problem& p) const { return std::min(params_.top_k, p.n_kv); }

  // Work space of a thread in doubles: a key tile [d_k, kKeys], scores [kRows, n_kv], and for
  // choosing: candidates [n_kv] and a copy that is partially sorted [n_kv].
  static Index work_doubles(const Problem& p) { return kKeys * p.d_k + (kRows + 2) * p.n_kv; }
  void grow_work() {
    while (static_cast<int>(work_.size()) < thread_count()) {
      work_.emplace_back(work_doubles(problem_));
      chosen_.push_back(
          {AlignedArray<std::int32_t>(width(problem_)), AlignedArray<float>(width(problem_))});
    }
  }
  double* scores(int thread) {
    return work_[static_cast<std::size_t>(thread)].data() + kKeys * problem_.d_k;
  }

  // scale * q_i . k_j for rows [r0, r0 + rows) and every key that the last of them may see.
  void score(const Inputs& in, Index bh, Index r0, Index rows, int thread) {
    const double scale = problem_.logit_scale();
    double* tile = work_[static_cast<std::size_t>(thread)].data();  // [d_k, kKeys]
    const auto k = in.k.head(bh);
    const auto q = in.q.head(bh);
    const Index last = problem_.visible(r0 + rows - 1);
    for (Index c = 0; c < last; c += kKeys) {
      const Index keys = std::min(kKeys, last - c);
      for (Index j = 0; j < kKeys; ++j)
        for (Index d = 0; d < problem_.d_k; ++d)
          tile[d * kKeys + j] = j < keys ? static_cast<double>(k(c + j, d)) : 0;
      for (Index r = 0; r < rows; ++r) {
        double sum[kKeys] = {};
        for (Index d = 0; d < problem_.d_k; ++d) {
          const auto x = static_cast<double>(q(r0 + r, d));
          for (Index j = 0; j < kKeys; ++j) sum[j] += x * tile[d * kKeys + j];
        }
        double* to = scores(thread) + r * problem_.n_kv + c;
        for (Index j = 0; j < keys; ++j) to[j] = scale * sum[j];
      }
    }
  }

  // The chosen keys of query i, whose scores are row r of the work space: ascending indices and
  // softmax weights; returns how many. *mass is their share of the full softmax.
  Index choose(const Inputs& in, Index bh, Index i, Index r, int thread, std::int32_t* keys,
               float* weights, double* mass) {
    const auto real = keys_of_batch(in, bh / problem_.heads);
    const double* s = scores(thread) + r * problem_.n_kv;
    double* candidates = scores(thread) + kRows * problem_.n_kv;
    double* sorted = candidates + problem_.n_kv;
    const auto seen = [&](Index j) {
      return real.empty() || real[static_cast<std::size_t>(j)] != 0;
    };
    const Index visible = problem_.visible(i);
    Index count = 0;
    for (Index j = 0; j < visible; ++j) {
      if (!seen(j)) continue;
      // A score that is no number is chosen first, so that it shows in the output.
      candidates[count++] = s[j] == s[j] ? s[j] : std::numeric_limits<double>::infinity();
    }
    *mass = 0;
    if (count == 0) return 0;
    const Index kept = std::min(width(problem_), count);
    std::copy_n(candidates, count, sorted);
    std::nth_element(sorted, sorted + kept - 1, sorted + count, std::greater<>());
    const double threshold = sorted[kept - 1];
    const double max = *std::max_element(sorted, sorted + kept);
    Index ties =
        kept - std::count_if(sorted, sorted + kept, [&](double x) { return x > threshold; });
    Index chosen = 0, candidate = 0;
    double sum = 0;
    for (Index j = 0; j < visible && chosen < kept; ++j) {
      if (!seen(j)) continue;
      const double score = candidates[candidate++];
      if (score < threshold || (score == threshold && ties-- <= 0)) continue;
      const double weight = std::exp(s[j] - max);
      sum += weight;
      keys[chosen] = static_cast<std::int32_t>(j);
      weights[chosen++] = static_cast<float>(weight);
    }
    Eigen::Map<Eigen::ArrayXd> all(candidates, count);
    *mass = sum / (all - max).exp().sum();
    const double factor = params_.norm == "tv" ? 1 / sum : *mass / sum;
    const double shift =
        params_.norm == "frobenius_row1" ? (1 - *mass) / static_cast<double>(kept) : 0;
    for (Index e = 0; e < kept; ++e)
      weights[e] = static_cast<float>(factor * static_cast<double>(weights[e]) + shift);
    return kept;
  }

  Params params_;
  Problem problem_;
  Index queries_ = 0;                       // of the last forward
  AlignedArray<double> mass_;               // [batch * heads * n] captured mass of each row
  AlignedArray<float> dscores_;             // [batch * heads * n, width]
  std::vector<AlignedArray<double>> work_;  // per thread
  std::vector<Chosen> chosen_;              // per thread
};

const RegisterMethod<TopKExact, Params> kRegistration{
    {.name = "topk_exact",
     .family = "oracle",
     .source = "exact top-k attention of fast-transformers, code of arXiv 2006.16236",
     .summary = "oracle: softmax over the k keys of largest score of every query",
     .causality = Causality::strict,
     .cross_attention = true,
     .key_padding = true,
     .passes = {Pass::forward, Pass::backward},
     .oracle = true,
     .at_budget =
         [](double keys) {
           return Settings{{"top_k", static_cast<Index>(std::ceil(keys))}};
         },
     .exact_limit =
         [](const Problem& p) {
           return Settings{{"top_k", p.n_kv}};
         },
     .time_exponent = 2,
     .memory_exponent = 1,
     .notes =
         {"scores and the choice are computed in double precision; ties go to the lowest index",
          "the gradient keeps the choice of keys fixed; it is that of norm tv only",
          "bounds the attention matrix of every method that attends to k keys per query: with norm "
          "tv the total variation of rows that sum to one, with norm frobenius the Frobenius error "
          "of any rows, with norm frobenius_row1 that of rows that sum to one",
          "does not bound methods that give weight to more than k keys (linear, low-rank), nor any "
          "output: with values in mind fewer keys can do better",
          "metric captured_mass: share of the softmax mass that the chosen keys hold, averaged "
          "over queries"}},
    {param("top_k", &Params::top_k, {1, 1 << 24}, "keys that a query keeps"),
     choice("norm", &Params::norm, {"tv", "frobenius", "frobenius_row1"},
            "in which the row is nearest to the exact one: tv renormalises, frobenius does not, "
            "frobenius_row1 spreads the dropped mass evenly")}};

}  // namespace
}  // namespace subquad
