// Softmax attention decoded without a cache: every token's step evaluates attention of the whole
// sequence so far and keeps its last row. The uncached softmax of Katharopoulos et al. 2020 (arXiv
// 2006.16236, section 4.2), the slowest baseline of its decoding tables.
// Our choice: what is computed anew is the attention of all rows, as in the authors' generation;
// the tokens' own q, k and v are the caller's and are kept. Step time O(length^2 (d_k + d_v)).

#include <algorithm>

#include "harness/core/registry.h"
#include "methods/engines/tiled_attention.h"

namespace subquad {
namespace {

class RecomputeDecoder final : public Decoder {
 public:
  explicit RecomputeDecoder(const DecodeConfig& config)
      : config_(config),
        heads_(config.batch * config.heads),
        q_(heads_ * config.capacity * config.d_k),
        k_(heads_ * config.capacity * config.d_k),
        v_(heads_ * config.capacity * config.d_v),
        out_(heads_ * config.capacity * config.d_v) {
    const Problem problem = this->problem(config.capacity);
    attention_.prepare(problem, Pattern::of(Band::dense(problem)), false);
  }

  void reset() override { length_ = 0; }

  void prefill(ConstTensorView q, ConstTensorView k, ConstTensorView v, ConstTensorView) override {
    append(q.data(), k.data(), v.data(), q.n());
  }

  void step(const DecodeStep& in, float* out) override {
    append(in.q, in.k, in.v, 1);
    const Index d_k = config_.d_k, d_v = config_.d_v;
    const auto shape = [&](Index d) { return Shape{config_.batch, config_.heads, length_, d}; };
    const Inputs inputs{.q = {q_.data(), shape(d_k)},
                        .k = {k_.data(), shape(d_k)},
                        .v = {v_.data(), shape(d_v)},
                        .x = {},
                        .key_mask = {}};
    attention_.shorten(length_);
    attention_.forward(inputs, {out_.data(), shape(d_v)}, nullptr);
    for (Index h = 0; h < heads_; ++h)
      std::copy_n(out_.data() + ((h + 1) * length_ - 1) * d_v, d_v, out + h * d_v);
  }

  CacheBytes bytes() const override {
    const Problem p = problem(config_.capacity);
    const Index tokens = heads_ * length_ * (2 * config_.d_k + config_.d_v);
    return {.cold = 4.0 * static_cast<double>(tokens),
            .scratch = 4.0 * static_cast<double>(out_.size()) +
                       TiledAttention::work_bytes(p, Pattern::of(Band::dense(p)), false)};
  }

 private:
  Problem problem(Index n) const {
    return {.batch = config_.batch,
            .heads = config_.heads,
            .n = n,
            .n_kv = n,
            .d_k = config_.d_k,
            .d_v = config_.d_v,
            .causal = true,
            .scale = config_.logit_scale()};
  }

  // Adds `more` tokens [heads, more, d] to the end of every head's rows, which stay contiguous:
  // heads move up, the last one first. O(length d), next to nothing beside the attention.
  void append(const float* q, const float* k, const float* v, Index more) {
    SUBQUAD_CHECK(length_ + more <= config_.capacity, "{} tokens, {} more exceed {}", length_, more,
                  config_.capacity);
    const auto add = [&](AlignedArray<float>& rows, const float* from, Index d) {
      for (Index h = heads_; h-- > 0;) {
        float* const old = rows.data() + h * length_ * d;
        float* const place = rows.data() + h * (length_ + more) * d;
        if (h > 0) std::copy_backward(old, old + length_ * d, place + length_ * d);
        std::copy_n(from + h * more * d, more * d, place + length_ * d);
      }
    };
    add(q_, q, config_.d_k);
    add(k_, k, config_.d_k);
    add(v_, v, config_.d_v);
    length_ += more;
  }

  DecodeConfig config_;
  Index heads_;  // batch * heads
  TiledAttention attention_;
  AlignedArray<float> q_, k_, v_;  // [heads, length, d] of the tokens so far
  AlignedArray<float> out_;        // [heads, length, d_v]
  Index length_ = 0;
};

class DenseRecompute final : public Method {
 public:
  void prepare(const Problem& problem, const Env&) override {
    attention_.prepare(problem, Pattern::of(Band::dense(problem)), false);
  }
  void forward(const Inputs& in, TensorView out, Saved*) override {
    attention_.forward(in, out, nullptr);
  }
  std::unique_ptr<Decoder> make_decoder(const DecodeConfig& config) const override {
    return std::make_unique<RecomputeDecoder>(config);
  }

  Budget budget(const Problem& p) const override {
    return {.keys_per_query = static_cast<double>(p.n_kv),
            .state_bytes = 4.0 * tokens(p) * static_cast<double>(2 * p.d_k + p.d_v)};
  }
  double extra_bytes(const Problem& p, Pass pass) const override {
    const double work = TiledAttention::work_bytes(p, Pattern::of(Band::dense(p)), false);
    if (pass != Pass::decode) return work;
    return work + 4.0 * tokens(p) * static_cast<double>(2 * p.d_k + 2 * p.d_v);
  }
  // A decoding step is the forward pass of the sequence so far.
  double flops(const Problem& p, Pass) const override {
    return TiledAttention::flops(p, Pattern::of(Band::dense(p)), Pass::forward);
  }

 private:
  static double tokens(const Problem& p) { return static_cast<double>(p.batch * p.heads * p.n_kv); }

  TiledAttention attention_;
};

const RegisterMethod<DenseRecompute> kRegistration{{
    .name = "dense_recompute",
    .family = "exact",
    .source = "Katharopoulos et al. 2020, arXiv 2006.16236, section 4.2",
    .summary = "exact softmax attention decoded by recomputing every row at every token",
    .causality = Causality::strict,
    .cross_attention = true,
    .key_padding = true,
    .passes = {Pass::forward, Pass::decode},
    .exact = true,
    .exact_limit = [](const Problem&) { return Settings{}; },
    .time_exponent = 2,
    .memory_exponent = 1,
    .notes = {"a baseline of decoding: the other passes are those of dense",
              "a step costs a forward pass of the sequence so far; there is no cache"},
}};

}  // namespace
}  // namespace subquad
