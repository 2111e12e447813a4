// Exact softmax attention that materialises the n x n matrix, as the baselines of the papers do.
// Source: Vaswani et al. 2017 (arXiv 1706.03762), evaluated pass by pass over whole matrices:
//   S = scale q k^T,  P = softmax(S),  out = P v;
//   dP = dout v^T,  dS = P * (dP - rowsum(dout * out)),  dq = scale dS k,  dk = scale dS^T q,
//   dv = P^T dout.
// Matrices of [batch, heads, n, n_kv] floats: forward one (S, turned into P in place); backward
// two (P from forward, and dP, turned into dS in place). Causal: computed whole, then masked.

#include <cmath>
#include <limits>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "methods/engines/band.h"
#include "methods/engines/masked_product.h"

namespace subquad {
namespace {

constexpr Index kRows = 64;  // rows of a work item, and of a product with n_kv columns
constexpr Index kCols = 64;  // products are cut so that they fit the cache and need no heap

struct NaiveSaved final : Saved {
  explicit NaiveSaved(const Problem& p) : weights(p.batch, p.heads, p.n, p.n_kv) {}
  Tensor weights;  // P
};

class DenseNaive final : public Method {
 public:
  void prepare(const Problem& problem, const Env&) override {
    problem_ = problem;
    band_ = Band::dense(problem);
    matrix_ = Tensor(problem.batch, problem.heads, problem.n, problem.n_kv);
    spare_.clear();
    grow_spare();
  }
  std::unique_ptr<Saved> make_saved() const override {
    return std::make_unique<NaiveSaved>(problem_);
  }

  void forward(const Inputs& in, TensorView out, Saved* saved) override {
    grow_spare();
    TensorView weights =
        saved == nullptr ? matrix_.view() : static_cast<NaiveSaved&>(*saved).weights.view();
    const auto scale = static_cast<float>(problem_.logit_scale());
    constexpr float kHidden = -std::numeric_limits<float>::infinity();
    for_blocks(problem_.n, [&](Index bh, Index i, Index rows, int) {  // S
      for (Index j = 0; j < problem_.n_kv; j += kCols) {
        const Index keys = std::min(kCols, problem_.n_kv - j);
        auto s = weights.head(bh).block(i, j, rows, keys);
        s.noalias() =
            in.q.head(bh).middleRows(i, rows) * in.k.head(bh).middleRows(j, keys).transpose();
        s *= scale;
      }
    });
    for_blocks(problem_.n, [&](Index bh, Index i, Index rows, int) {  // P
      auto s = weights.head(bh).middleRows(i, rows);
      const auto real = keys_of_batch(in, bh / problem_.heads);
      fill_hidden(s, band_, real, i, 0, kHidden);
      for (Index r = 0; r < rows; ++r) {
        auto row = s.row(r).array();
        const float max = row.maxCoeff();
        if (max == kHidden) continue;  // sees no key: all zero below
        row = (row - max).exp();
      }
      fill_hidden(s, band_, real, i, 0, 0.f);
      for (Index r = 0; r < rows; ++r) {
        const float sum = s.row(r).sum();
        if (sum != 0.f) s.row(r) /= sum;
      }
    });
    for_blocks(problem_.n, [&](Index bh, Index i, Index rows, int thread) {  // out
      auto o = out.head(bh).middleRows(i, rows);
      o.setZero();
      add_rows_times(weights.head(bh).middleRows(i, rows), in.v.head(bh), o, thread);
    });
  }

  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved& saved,
                const Gradients& grads) override {
    grow_spare();
    const ConstTensorView weights = static_cast<const NaiveSaved&>(saved).weights.view();
    const auto scale = static_cast<float>(problem_.logit_scale());
    for_blocks(problem_.n, [&](Index bh, Index i, Index rows, int thread) {  // dS, dq
      const auto real = keys_of_batch(in, bh / problem_.heads);
      auto ds = matrix_.view().head(bh).middleRows(i, rows);
      for (Index j = 0; j < problem_.n_kv; j += kCols) {
        const Index keys = std::min(kCols, problem_.n_kv - j);
        ds.middleCols(j, keys).noalias() =
            dout.head(bh).middleRows(i, rows) * in.v.head(bh).middleRows(j, keys).transpose();
      }
      for (Index r = 0; r < rows; ++r) {
        const float delta = dout.head(bh).row(i + r).dot(out.head(bh).row(i + r));
        ds.row(r).array() = weights.head(bh).row(i + r).array() * (ds.row(r).array() - delta);
      }
      fill_hidden(ds, band_, real, i, 0, 0.f);
      auto dq = grads.dq.head(bh).middleRows(i, rows);
      dq.setZero();
      add_rows_times(ds, in.k.head(bh), dq, thread);
      dq *= scale;
    });
    for_blocks(problem_.n_kv, [&](Index bh, Index j, Index keys, int) {  // dk, dv
      auto dk = grads.dk.head(bh).middleRows(j, keys);
      auto dv = grads.dv.head(bh).middleRows(j, keys);
      dk.setZero();
      dv.setZero();
      for (Index i = 0; i < problem_.n; i += kRows) {
        const Index rows = std::min(kRows, problem_.n - i);
        dv.noalias() += weights.head(bh).block(i, j, rows, keys).transpose() *
                        dout.head(bh).middleRows(i, rows);
        dk.noalias() += matrix_.view().head(bh).block(i, j, rows, keys).transpose() *
                        in.q.head(bh).middleRows(i, rows);
      }
      dk *= scale;
    });
  }

  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    band_attention_rows(in, band_, problem_.logit_scale(), b, h, rows, weights);
    return true;
  }

  Budget budget(const Problem& p) const override {
    return {.keys_per_query = static_cast<double>(p.n_kv)};
  }
  double extra_bytes(const Problem& p, Pass pass) const override {
    const double matrix = 4.0 * static_cast<double>(p.batch * p.heads * p.n * p.n_kv);
    const double spare = 4.0 * static_cast<double>(thread_count() * kCols * std::max(p.d_k, p.d_v));
    return (pass == Pass::forward ? matrix : 2 * matrix) + spare;
  }
  double flops(const Problem& p, Pass pass) const override {
    const double entries = static_cast<double>(p.batch * p.heads) * p.visible_entries();
    const double d_k = static_cast<double>(p.d_k), d_v = static_cast<double>(p.d_v);
    const double forward = 2 * entries * (d_k + d_v), backward = 4 * entries * (d_k + d_v);
    if (pass == Pass::forward) return forward;
    return pass == Pass::backward ? backward : forward + backward;
  }

 private:
  // body(bh, first row, rows, thread) for every head and block of kRows of `length` rows.
  template <class Body>
  void for_blocks(Index length, Body&& body) {
    const Index blocks = (length + kRows - 1) / kRows;
    parallel_for(problem_.batch * problem_.heads * blocks, [&](Index item, int thread) {
      const Index first = item % blocks * kRows;
      body(item / blocks, first, std::min(kRows, length - first), thread);
    });
  }
  // out += weights * values, in depth blocks; weights [rows, n_kv], values [n_kv, d].
  template <class Weights, class Values>
  void add_rows_times(const Weights& weights, const Values& values, Eigen::Ref<Matrix> out,
                      int thread) {
    for (Index j = 0; j < problem_.n_kv; j += kCols) {
      const Index keys = std::min(kCols, problem_.n_kv - j);
      add_masked_product(weights.middleCols(j, keys), values.middleRows(j, keys), out,
                         spare_[static_cast<std::size_t>(thread)].data());
    }
  }
  void grow_spare() {
    while (static_cast<int>(spare_.size()) < thread_count())
      spare_.emplace_back(kCols * std::max(problem_.d_k, problem_.d_v));
  }

  Problem problem_;
  Band band_;
  Tensor matrix_;  // [batch, heads, n, n_kv]: P of an unsaved forward, dS of backward
  std::vector<AlignedArray<float>> spare_;  // per thread, [kCols, max(d_k, d_v)]
};

const RegisterMethod<DenseNaive> kRegistration{{
    .name = "dense_naive",
    .family = "exact",
    .source = "Vaswani et al. 2017, arXiv 1706.03762",
    .summary = "exact softmax attention with the whole n x n matrix in memory",
    .causality = Causality::strict,
    .cross_attention = true,
    .key_padding = true,
    .passes = {Pass::forward, Pass::backward},
    .exact = true,
    .exact_limit = [](const Problem&) { return Settings{}; },
    .time_exponent = 2,
    .memory_exponent = 2,
    .notes = {"causal problems compute the whole matrix and mask it, as the papers' baselines do",
              "backward needs two matrices of n x n_kv floats per head: the weights that forward "
              "saved, and their gradients"},
}};

}  // namespace
}  // namespace subquad
