// Oracle: the matrix of rank r that is nearest to the attention matrix, times v.
// Source: Eckart and Young 1936. With A = U S W^T the singular value decomposition,
//   A_r = sum_{t <= r} s_t u_t w_t^T,   out = A_r v,
// has the smallest Frobenius error of all matrices of rank r, sqrt(sum_{t > r} s_t^2).
//
// A_r = A W_r W_r^T (or U_r U_r^T A, whichever side is smaller), in double precision.

#include <memory>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "methods/engines/exact_rows.h"
#include "methods/engines/gram_spectrum.h"

namespace subquad {
namespace {

struct Params {
  Index rank = 64;
};

class SvdRank final : public Method {
 public:
  explicit SvdRank(const Params& params) : params_(params) {}

  void prepare(const Problem& problem, const Env&) override {
    problem_ = problem;
    spectra_.assign(static_cast<std::size_t>(problem.batch * problem.heads), {});
    work_.clear();
    grow_work();
  }

  // O(n n_kv (d_k + d_v) + n n_kv m + m^3) with m = min(n, n_kv); extra memory O(n n_kv) a thread.
  void forward(const Inputs& in, TensorView out, Saved*) override {
    grow_work();
    parallel_for(problem_.batch * problem_.heads, [&](Index bh, int thread) {
      Work& w = *work_[static_cast<std::size_t>(thread)];
      approximate(in, bh, w, &spectra_[static_cast<std::size_t>(bh)]);
      values_of_real_keys(in, problem_, bh, w.v);
      w.out.noalias() = w.a * w.v;
      out.head(bh) = w.out.cast<float>();
    });
  }

  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    Work& w = *work_.front();
    Spectrum spectrum;
    approximate(in, b * problem_.heads + h, w, &spectrum);
    for (std::size_t r = 0; r < rows.size(); ++r)
      weights.row(static_cast<Index>(r)) = w.a.row(rows[r]).cast<float>();
    return true;
  }

  std::vector<Metric> metrics() const override {
    double tail = 0, total = 0, next = 0;
    for (const Spectrum& s : spectra_) {
      tail += s.tail;
      total += s.total;
      next = std::max(next, s.next);
    }
    return {{"bound", total > 0 ? std::sqrt(tail / total) : 0}, {"spectral_bound", next}};
  }

  Budget budget(const Problem& p) const override {
    const double rank = static_cast<double>(std::min({params_.rank, p.n, p.n_kv}));
    return {.keys_per_query = rank,  // features
            .state_bytes = 4.0 * rank * static_cast<double>(p.batch * p.heads * (p.d_v + 1))};
  }
  double extra_bytes(const Problem& p, Pass) const override {
    const Index m = std::min(p.n, p.n_kv);
    return 8.0 * static_cast<double>(thread_count() *
                                     (p.n * p.n_kv + 2 * m * m + 3 * m + (p.n + p.n_kv) * p.d_v)) +
           static_cast<double>(sizeof(Spectrum)) * static_cast<double>(p.batch * p.heads);
  }
  MatrixDistance bounds_in() const override { return MatrixDistance::frobenius; }

 private:
  struct Spectrum {              // squared singular values of a head's attention matrix
    double tail = 0, total = 0;  // sum beyond the rank, sum of all
    double next = 0;             // s_{r+1} / s_1
  };
  struct Work {         // of one thread
    MatrixD a, v, out;  // [n, n_kv], [n_kv, d_v], [n, d_v]
    GramSpectrum spectrum;
    explicit Work(const Problem& p)
        : a(p.n, p.n_kv), v(p.n_kv, p.d_v), out(p.n, p.d_v), spectrum(std::min(p.n, p.n_kv)) {}
  };

  void grow_work() {
    while (static_cast<int>(work_.size()) < thread_count())
      work_.push_back(std::make_unique<Work>(problem_));
  }

  // A_r of head bh -> w.a.
  void approximate(const Inputs& in, Index bh, Work& w, Spectrum* spectrum) const {
    exact_attention_matrix(in, problem_, bh, w.a);
    *spectrum = {.tail = 0, .total = w.a.squaredNorm(), .next = 0};
    const Index side = std::min(problem_.n, problem_.n_kv);
    if (params_.rank >= side) return;
    const std::vector<bool> hidden = rows_without_keys(w.a);
    w.spectrum.compute(w.a, true);
    spectrum->tail = w.spectrum.tail(params_.rank);
    const auto& squares = w.spectrum.squares();
    if (squares[side - 1] > 0)
      spectrum->next =
          std::sqrt(std::max(0.0, squares[side - params_.rank - 1]) / squares[side - 1]);
    w.spectrum.truncate(w.a, params_.rank);
    clear_hidden(in, problem_, bh, hidden, w.a);
  }

  Params params_;
  Problem problem_;
  std::vector<Spectrum> spectra_;            // by head, of the last forward
  std::vector<std::unique_ptr<Work>> work_;  // per thread
};

const RegisterMethod<SvdRank, Params> kRegistration{
    {.name = "svd_rank",
     .family = "oracle",
     .source = "Eckart and Young 1936",
     .summary = "oracle: the rank-r matrix nearest to the attention matrix",
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
         {"bounds the Frobenius error of the attention matrix of every method whose matrix has "
          "rank "
          "r: linear attention with r features (normalised or not), Linformer and landmarks with "
          "r, without a causal mask",
          "does not bound sparse methods, causal ones (a mask makes rank r full: see "
          "block_rank_causal), nor any output: the output has rank d_v at most, so from r = d_v "
          "on an oracle of the output would be exact",
          "weights may be negative, rows need not sum to one",
          "metric bound: relative Frobenius error of the matrix from the singular values; "
          "spectral_bound: s_(r+1) / s_1, the largest over heads",
          "the eigenvalue solver allocates inside the call"}},
    {param("rank", &Params::rank, {1, 1 << 24}, "rank of the attention matrix")}};

}  // namespace
}  // namespace subquad
