// Exact softmax attention written out over OpenBLAS: two sgemm and a softmax. A peer: what a user
// of a good BLAS gets without writing a kernel. Source: Vaswani et al. 2017 (arXiv 1706.03762);
// OpenBLAS by its C interface.
//   S = scale q k^T,  P = softmax(S),  out = P v;
//   dP = dout v^T,  dS = P * (dP - rowsum(dout * out)),  dq = scale dS k,  dk = scale dS^T q,
//   dv = P^T dout.
// rows = 0: the n x n matrix is materialised, one product after the other, as the papers'
// baselines do. rows > 0: blocks of so many query rows go through both products before the next, in
// O(rows n) memory per thread, and causal blocks stop at the diagonal: the strong form.
// Threads take heads and blocks of rows; a product inside is serial (OpenBLAS gains little from
// threads on these shapes).
#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "methods/peers/finite_values.h"

namespace subquad {
namespace {

struct Params {
  Index rows = 0;
};

constexpr Index kRows = 256;  // rows (or keys) of a work item when the matrix is materialised

// c [m, n] = alpha op(a) op(b) + beta c, row-major, op by the flags.
void product(bool a_transposed, bool b_transposed, Index m, Index n, Index k, float alpha,
             const float* a, Index lda, const float* b, Index ldb, float beta, float* c,
             Index ldc) {
  // OpenBLAS starts a team of its own where it is called outside of one.
  const int threads = omp_get_max_threads();
  const bool alone = threads > 1 && omp_in_parallel() == 0;
  if (alone) omp_set_num_threads(1);
  cblas_sgemm(CblasRowMajor, a_transposed ? CblasTrans : CblasNoTrans,
              b_transposed ? CblasTrans : CblasNoTrans, static_cast<blasint>(m),
              static_cast<blasint>(n), static_cast<blasint>(k), alpha, a, static_cast<blasint>(lda),
              b, static_cast<blasint>(ldb), beta, c, static_cast<blasint>(ldc));
  if (alone) omp_set_num_threads(threads);
}

struct SavedWeights final : Saved {
  explicit SavedWeights(const Problem& p) : weights(p.batch, p.heads, p.n, p.n_kv) {}
  Tensor weights;  // P
};

class OpenBlasNaive final : public Method {
 public:
  explicit OpenBlasNaive(const Params& params) : params_(params) {}

  std::string unsupported(const Problem&, Pass pass) const override {
    return params_.rows > 0 && pass != Pass::forward ? "backward needs the whole matrix: rows = 0"
                                                     : "";
  }

  void prepare(const Problem& problem, const Env&) override {
    problem_ = problem;
    matrix_ = params_.rows == 0 ? Tensor(problem.batch, problem.heads, problem.n, problem.n_kv)
                                : Tensor();
    tiles_.clear();
    grow_tiles();
  }
  std::unique_ptr<Saved> make_saved() const override {
    return std::make_unique<SavedWeights>(problem_);
  }

  // Time O(n n_kv (d_k + d_v)) per head, extra memory O(n n_kv), or O(threads rows n_kv).
  void forward(const Inputs& in, TensorView out, Saved* saved) override {
    if (problem_.causal && saved == nullptr && !peers::all_finite(in.v)) {
      const Tensor finite = peers::finite_copy(in.v);
      Inputs changed = in;
      changed.v = finite;
      forward(changed, out, nullptr);
      peers::add_not_finite(problem_, in.v, out);
      return;
    }
    if (params_.rows > 0) {
      grow_tiles();
      for_blocks(problem_.n, params_.rows, [&](Index bh, Index i, Index rows, int thread) {
        const Index keys = problem_.visible(i + rows - 1);
        float* const s = tiles_[static_cast<std::size_t>(thread)].data();
        scores(in, bh, i, rows, keys, s, keys);
        softmax(i, rows, keys, s, keys);
        output(in, bh, i, rows, keys, s, keys, out);
      });
      return;
    }
    const Index n_kv = problem_.n_kv;
    TensorView weights =
        saved == nullptr ? matrix_.view() : static_cast<SavedWeights&>(*saved).weights.view();
    const auto at = [&](Index bh, Index i) { return weights.head(bh).data() + i * n_kv; };
    for_blocks(problem_.n, kRows, [&](Index bh, Index i, Index rows, int) {
      scores(in, bh, i, rows, n_kv, at(bh, i), n_kv);
    });
    for_blocks(problem_.n, kRows, [&](Index bh, Index i, Index rows, int) {
      softmax(i, rows, n_kv, at(bh, i), n_kv);
    });
    for_blocks(problem_.n, kRows, [&](Index bh, Index i, Index rows, int) {
      output(in, bh, i, rows, n_kv, at(bh, i), n_kv, out);
    });
  }

  // Time O(n n_kv (d_k + d_v)) per head, extra memory one more matrix.
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved& saved,
                const Gradients& grads) override {
    const Index n = problem_.n, n_kv = problem_.n_kv, d_k = problem_.d_k, d_v = problem_.d_v;
    const auto scale = static_cast<float>(problem_.logit_scale());
    const ConstTensorView weights = static_cast<const SavedWeights&>(saved).weights.view();
    for_blocks(n, kRows, [&](Index bh, Index i, Index rows, int) {  // dS, dq
      float* const ds = matrix_.view().head(bh).data() + i * n_kv;
      product(false, true, rows, n_kv, d_v, 1, dout.head(bh).data() + i * d_v, d_v,
              in.v.head(bh).data(), d_v, 0, ds, n_kv);
      for (Index r = 0; r < rows; ++r) {
        const float delta = dout.head(bh).row(i + r).dot(out.head(bh).row(i + r));
        Eigen::Map<Eigen::ArrayXf> row(ds + r * n_kv, n_kv);
        row = weights.head(bh).row(i + r).transpose().array() * (row - delta);
      }
      product(false, false, rows, d_k, n_kv, scale, ds, n_kv, in.k.head(bh).data(), d_k, 0,
              grads.dq.head(bh).data() + i * d_k, d_k);
    });
    for_blocks(n_kv, kRows, [&](Index bh, Index j, Index keys, int) {  // dk, dv
      product(true, false, keys, d_k, n, scale, matrix_.view().head(bh).data() + j, n_kv,
              in.q.head(bh).data(), d_k, 0, grads.dk.head(bh).data() + j * d_k, d_k);
      product(true, false, keys, d_v, n, 1, weights.head(bh).data() + j, n_kv, dout.head(bh).data(),
              d_v, 0, grads.dv.head(bh).data() + j * d_v, d_v);
    });
  }

  Budget budget(const Problem& p) const override {
    return {.keys_per_query = static_cast<double>(p.n_kv)};
  }
  double flops(const Problem& p, Pass pass) const override {
    const double forward = 2 * static_cast<double>(p.batch * p.heads) * p.visible_entries() *
                           static_cast<double>(p.d_k + p.d_v);
    if (pass == Pass::forward) return forward;
    return pass == Pass::backward ? 2 * forward : 3 * forward;
  }

 private:
  // s [rows, keys] = scale q k^T
  void scores(const Inputs& in, Index bh, Index i, Index rows, Index keys, float* s,
              Index ld) const {
    const Index d = problem_.d_k;
    product(false, true, rows, keys, d, static_cast<float>(problem_.logit_scale()),
            in.q.head(bh).data() + i * d, d, in.k.head(bh).data(), d, 0, s, ld);
  }
  // Rows of s become weights; hidden ones are zero.
  void softmax(Index i, Index rows, Index keys, float* s, Index ld) const {
    for (Index r = 0; r < rows; ++r) {
      const Index seen = std::min(keys, problem_.visible(i + r));
      Eigen::Map<Eigen::ArrayXf> row(s + r * ld, seen);
      row = (row - row.maxCoeff()).exp();
      row *= 1 / row.sum();
      std::fill(s + r * ld + seen, s + r * ld + keys, 0.f);
    }
  }
  void output(const Inputs& in, Index bh, Index i, Index rows, Index keys, const float* s, Index ld,
              TensorView out) const {
    const Index d = problem_.d_v;
    product(false, false, rows, d, keys, 1, s, ld, in.v.head(bh).data(), d, 0,
            out.head(bh).data() + i * d, d);
  }

  // body(bh, first row, rows, thread) for every head and block, long causal ones first.
  template <class Body>
  void for_blocks(Index length, Index block, Body&& body) {
    const Index blocks = (length + block - 1) / block, heads = problem_.batch * problem_.heads;
    parallel_for(heads * blocks, [&](Index item, int thread) {
      const Index first = (blocks - 1 - item / heads) * block;
      body(item % heads, first, std::min(block, length - first), thread);
    });
  }
  void grow_tiles() {
    while (params_.rows > 0 && static_cast<int>(tiles_.size()) < thread_count())
      tiles_.emplace_back(std::min(params_.rows, problem_.n) * problem_.n_kv);
  }

  Params params_;
  Problem problem_;
  Tensor matrix_;                           // [batch, heads, n, n_kv]: P of an unsaved forward, dS
  std::vector<AlignedArray<float>> tiles_;  // per thread, [rows, n_kv]
};

const RegisterMethod<OpenBlasNaive, Params> kRegistration{
    {.name = "openblas_naive",
     .family = "peers",
     .source = "Vaswani et al. 2017, arXiv 1706.03762; OpenBLAS",
     .summary = "peer: exact attention as two sgemm of OpenBLAS and a softmax",
     .causality = Causality::weights,
     .cross_attention = true,
     .passes = {Pass::forward, Pass::backward},
     .exact = true,
     .exact_limit = [](const Problem&) { return Settings{}; },
     .time_exponent = 2,
     .memory_exponent = 2,
     .notes = {"not strictly causal: what is hidden is computed and multiplied by zero; values "
               "that are not "
               "finite are kept out, without gradients",
               "uses AVX-512 kernels (OPENBLAS_CORETYPE=SkylakeX) where the processor has them"}},
    {param("rows", &Params::rows, {0, 65536},
           "query rows that go through both products together; 0: the whole matrix at once")}};

}  // namespace
}  // namespace subquad
