// Linear attention with the feature map phi(x) = elu(x) + 1.
// Source: Katharopoulos et al. 2020, "Transformers are RNNs" (arXiv 2006.16236), equations 5-12.
//   out_i = phi(q_i)^T S / (phi(q_i)^T z + eps),  S = sum_j phi(k_j) v_j^T,  z = sum_j phi(k_j),
// sums over all keys, or over j <= i + n_kv - n when causal. Logits are not scaled. Padding is
// applied after phi, because phi(0) = 1.
//
// The keys are cut into segments. Pass 1 sums each segment on its own, pass 2 turns the sums into
// totals (bidirectional) or into sums over all earlier segments (causal), pass 3 computes the
// outputs; inside a causal segment it goes on in chunks (a masked product inside the chunk, the
// running state for what lies before). Segments are independent, so one head keeps all threads
// busy; their size is fixed, so the bits do not depend on the thread count.

#include <algorithm>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "methods/engines/band.h"
#include "methods/engines/masked_product.h"

namespace subquad {
namespace {

constexpr Index kSegment = 1024;  // keys of a segment: its state costs a few bytes per key
constexpr Index kChunk = 64;

struct Params {
  double eps = 1e-6;
};

// elu(x) + 1 = max(x, 0) + exp(min(x, 0)), without branches so that the exponential vectorises.
auto phi(const auto& x) { return 0.5f * (x.array() + x.array().abs()) + x.array().min(0.f).exp(); }

Index padded(Index floats) { return (floats + 15) / 16 * 16; }  // to whole cache lines

class Linear final : public Method {
 public:
  explicit Linear(const Params& params) : params_(params) {}

  void prepare(const Problem& problem, const Env&) override {
    problem_ = problem;
    states_ = AlignedArray<float>(problem.batch * problem.heads * segments(problem) *
                                  state_floats(problem));
    work_.clear();
    grow_work();
  }

  void forward(const Inputs& in, TensorView out, Saved*) override {
    grow_work();
    const Index heads = problem_.batch * problem_.heads, count = segments(problem_);
    parallel_for(heads * count, [&](Index item, int thread) {
      sum_segment(in, item / count, item % count, thread);
    });
    parallel_for(heads, [&](Index bh, int thread) { accumulate(bh, thread); });
    const Index blocks = (problem_.n + kSegment - 1) / kSegment;
    parallel_for(heads * blocks, [&](Index item, int thread) {
      outputs(in, out, item / blocks, item % blocks, thread);
    });
  }

  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    const auto real = keys_of_batch(in, b);
    const Matrix q = phi(in.q.head(b, h)), k = phi(in.k.head(b, h));
    for (std::size_t r = 0; r < rows.size(); ++r) {
      VectorD row = VectorD::Zero(problem_.n_kv);
      for (Index j = 0; j < problem_.visible(rows[r]); ++j)
        if (real.empty() || real[static_cast<std::size_t>(j)] != 0)
          row[j] = q.row(rows[r]).cast<double>().dot(k.row(j).cast<double>());
      const double sum = row.sum() + params_.eps;
      if (sum != 0) row /= sum;
      weights.row(static_cast<Index>(r)) = row.cast<float>();
    }
    return true;
  }

  Budget budget(const Problem& p) const override {
    return {.keys_per_query = static_cast<double>(p.d_k),  // features
            .state_bytes = 4.0 * static_cast<double>(p.batch * p.heads * p.d_k * (p.d_v + 1))};
  }
  double extra_bytes(const Problem& p, Pass) const override {
    return 4.0 * static_cast<double>(p.batch * p.heads * segments(p) * state_floats(p) +
                                     thread_count() * work_floats(p)) +
           8.0 * static_cast<double>(thread_count() * state_floats(p));
  }
  // The recurrent form: one update of the state per key, one product with it per query.
  double flops(const Problem& p, Pass) const override {
    return 2.0 * static_cast<double>(p.batch * p.heads) * static_cast<double>(p.n + p.n_kv) *
           static_cast<double>(p.d_k * (p.d_v + 1));
  }

 private:
  // Segments of the keys. Causal: the keys that every query sees come first, in segments of their
  // own, so that the others line up with the blocks of queries.
  static Index leading(const Problem& p) {
    return p.causal ? (p.causal_offset() + kSegment - 1) / kSegment : 0;
  }
  static Index segments(const Problem& p) {
    const Index rest = p.causal ? p.n : p.n_kv;
    return leading(p) + (rest + kSegment - 1) / kSegment;
  }
  struct Range {
    Index first, last;
  };
  Range keys_of_segment(Index segment) const {
    const Index lead = leading(problem_), offset = problem_.causal ? problem_.causal_offset() : 0;
    if (segment < lead) return {segment * kSegment, std::min((segment + 1) * kSegment, offset)};
    const Index first = offset + (segment - lead) * kSegment;
    return {first, std::min(first + kSegment, problem_.n_kv)};
  }

  static Index state_floats(const Problem& p) { return padded(p.d_k * p.d_v) + padded(p.d_k); }
  static Index work_floats(const Problem& p) {
    return 2 * padded(kChunk * p.d_k) + padded(kChunk * std::max(p.d_k, p.d_v)) + kChunk * kChunk +
           padded(kChunk) + state_floats(p);
  }
  struct State {
    MatrixMap s;              // [d_k, d_v]
    Eigen::Map<RowVector> z;  // [d_k]
    State(float* base, const Problem& p)
        : s(base, p.d_k, p.d_v), z(base + padded(p.d_k * p.d_v), p.d_k) {}
  };
  struct Work {  // of one thread
    float *q, *k, *spare, *products, *norm, *state;
    Work(float* base, const Problem& p) {
      q = base;
      k = q + padded(kChunk * p.d_k);
      spare = k + padded(kChunk * p.d_k);
      products = spare + padded(kChunk * std::max(p.d_k, p.d_v));
      norm = products + kChunk * kChunk;
      state = norm + padded(kChunk);
    }
  };
  float* state(Index bh, Index segment) {
    return states_.data() + (bh * segments(problem_) + segment) * state_floats(problem_);
  }
  Work work(int thread) { return Work(work_[static_cast<std::size_t>(thread)].data(), problem_); }
  void grow_work() {
    while (static_cast<int>(work_.size()) < thread_count()) {
      work_.emplace_back(work_floats(problem_));
      sums_.emplace_back(state_floats(problem_));
    }
  }

  // phi(k) of keys [c0, c1), zero where padded.
  void key_features(const Inputs& in, Index bh, Index c0, Index c1, MatrixMap features) const {
    features = phi(in.k.head(bh).middleRows(c0, c1 - c0));
    const auto real = keys_of_batch(in, bh / problem_.heads);
    for (Index j = c0; j < c1 && !real.empty(); ++j)
      if (real[static_cast<std::size_t>(j)] == 0) features.row(j - c0).setZero();
  }
  void add_to_state(const Inputs& in, Index bh, Index c0, Index c1, const MatrixMap& features,
                    State& to, float* spare) const {
    add_masked_product(features.transpose(), in.v.head(bh).middleRows(c0, c1 - c0), to.s, spare);
    for (Index j = 0; j < c1 - c0; ++j) to.z += features.row(j);
  }

  void sum_segment(const Inputs& in, Index bh, Index segment, int thread) {
    const Work w = work(thread);
    State to(state(bh, segment), problem_);
    to.s.setZero();
    to.z.setZero();
    const Range keys = keys_of_segment(segment);
    for (Index c = keys.first; c < keys.last; c += kChunk) {
      const Index last = std::min(c + kChunk, keys.last);
      const MatrixMap features(w.k, last - c, problem_.d_k);
      key_features(in, bh, c, last, features);
      add_to_state(in, bh, c, last, features, to, w.spare);
    }
  }

  // Causal: each segment's sum -> the sum of those before it. Otherwise segment 0 gets the total.
  // In double: over a long sequence float32 would lose digits.
  void accumulate(Index bh, int thread) {
    auto& total = sums_[static_cast<std::size_t>(thread)];
    const Index size = state_floats(problem_), count = segments(problem_);
    std::fill_n(total.data(), size, 0.0);
    for (Index segment = 0; segment < count; ++segment) {
      float* sum = state(bh, segment);
      for (Index e = 0; e < size; ++e) {
        const double before = total[e];
        total[e] += static_cast<double>(sum[e]);
        if (problem_.causal) sum[e] = static_cast<float>(before);
      }
    }
    if (problem_.causal) return;
    for (Index e = 0; e < size; ++e) state(bh, 0)[e] = static_cast<float>(total[e]);
  }

  void outputs(const Inputs& in, TensorView out, Index bh, Index block, int thread) {
    const Work w = work(thread);
    State seen(w.state, problem_);
    std::copy_n(state(bh, problem_.causal ? leading(problem_) + block : 0), state_floats(problem_),
                w.state);
    const Index end = std::min((block + 1) * kSegment, problem_.n);
    for (Index r0 = block * kSegment; r0 < end; r0 += kChunk) {
      const Index r1 = std::min(r0 + kChunk, end), rows = r1 - r0;
      MatrixMap q(w.q, rows, problem_.d_k);
      q = phi(in.q.head(bh).middleRows(r0, rows));
      auto o = out.head(bh).middleRows(r0, rows);
      Eigen::Map<Vector> norm(w.norm, rows);
      o.noalias() = q * seen.s;
      norm.noalias() = q * seen.z.transpose();
      if (problem_.causal) {
        const Index c0 = r0 + problem_.causal_offset(), c1 = r1 + problem_.causal_offset();
        const MatrixMap k(w.k, rows, problem_.d_k);
        key_features(in, bh, c0, c1, k);
        MatrixMap p(w.products, rows, rows);
        p.noalias() = q * k.transpose();
        for (Index r = 0; r < rows; ++r) {
          p.row(r).tail(rows - 1 - r).setZero();
          norm[r] += p.row(r).head(r + 1).sum();
        }
        add_masked_product(p, in.v.head(bh).middleRows(c0, rows), o, w.spare);
        add_to_state(in, bh, c0, c1, k, seen, w.spare);
      }
      norm.array() += static_cast<float>(params_.eps);
      for (Index r = 0; r < rows; ++r) {
        if (norm[r] == 0.f) {  // only when it sees no key and eps is 0
          o.row(r).setZero();
        } else {
          o.row(r) /= norm[r];
        }
      }
    }
  }

  Params params_;
  Problem problem_;
  AlignedArray<float> states_;              // [batch * heads, segments] of S and z
  std::vector<AlignedArray<float>> work_;   // per thread
  std::vector<AlignedArray<double>> sums_;  // per thread, one state
};

const RegisterMethod<Linear, Params> kRegistration{
    {.name = "linear",
     .family = "linear",
     .source = "Katharopoulos et al. 2020, arXiv 2006.16236",
     .summary = "linear attention with feature map elu(x) + 1",
     .approximates = Approximates::own_kernel,
     .causality = Causality::strict,
     .cross_attention = true,
     .key_padding = true,
     .passes = {Pass::forward},
     .bounded_by = {"svd_rank", "block_rank_causal"},
     .time_exponent = 1,
     .memory_exponent = 1,
     .notes = {"another function than softmax attention on purpose: its error against dense is "
               "descriptive only",
               "logits are not scaled: Problem::scale has no effect",
               "eps is added to the normaliser, so rows of weights sum to slightly less than one"}},
    {param("eps", &Params::eps, {0, 1e-2}, "added to the normaliser")}};

}  // namespace
}  // namespace subquad
