// Softmax attention decoded without a cache: every token recomputes the attention of all tokens so
// far and keeps the last row. The "softmax" rows of the decoding tables of Katharopoulos et al.
// 2020 (arXiv 2006.16236, tables 4 and 5). Step time O(length^2 (d_k + d_v)). Our choice: what a
// model would recompute in its layers, the q, k, v of earlier tokens, is kept.

#include <vector>

#include "harness/core/registry.h"
#include "methods/engines/score_tile.h"
#include "methods/engines/tiled_attention.h"

namespace subquad {
namespace {

constexpr Index kGrain = 64;  // tokens between two makings of the work space

class RecomputeDecoder final : public Decoder {
 public:
  explicit RecomputeDecoder(const DecodeConfig& config)
      : config_(config),
        rows_(engine::round_up(std::max<Index>(config.capacity, 1), kGrain)),
        q_(heads(), 1, rows_, config.d_k),
        k_(heads(), 1, rows_, config.d_k),
        v_(heads(), 1, rows_, config.d_v),
        out_(1, 1, rows_, config.d_v) {}

  void reset() override { length_ = 0; }

  void prefill(ConstTensorView q, ConstTensorView k, ConstTensorView v, ConstTensorView) override {
    check_room(k.n());
    const auto copy = [&](const ConstTensorView& from, Tensor& to) {
      for (Index h = 0; h < heads(); ++h)
        std::copy_n(from.data() + h * from.n() * from.d(), from.n() * from.d(),
                    to.view().head_data(h, 0) + length_ * from.d());
    };
    copy(q, q_);
    copy(k, k_);
    copy(v, v_);
    length_ += k.n();
  }

  void step(const DecodeStep& in, float* out) override {
    check_room(1);
    const auto keep = [&](const float* from, Tensor& to) {
      for (Index h = 0; h < heads(); ++h)
        std::copy_n(from + h * to.d(), to.d(), to.view().head_data(h, 0) + length_ * to.d());
    };
    keep(in.q, q_);
    keep(in.k, k_);
    keep(in.v, v_);
    ++length_;
    // Causal rows do not see the unused tokens behind them, whatever they hold.
    const Index padded = engine::round_up(length_, kGrain);
    if (padded != prepared_) {
      Problem p{
          .n = padded, .n_kv = padded, .d_k = config_.d_k, .d_v = config_.d_v, .causal = true};
      p.scale = config_.logit_scale();
      attention_.prepare(p, Pattern::of(Band::dense(p)), false);
      prepared_ = padded;
    }
    const auto head = [&](Tensor& x, Index h, Index d) {
      return ConstTensorView(x.view().head_data(h, 0), {1, 1, padded, d});
    };
    for (Index h = 0; h < heads(); ++h) {
      Inputs inputs;
      inputs.q = head(q_, h, config_.d_k);
      inputs.k = head(k_, h, config_.d_k);
      inputs.v = head(v_, h, config_.d_v);
      attention_.forward(inputs, {out_.data(), {1, 1, padded, config_.d_v}}, nullptr);
      std::copy_n(out_.data() + (length_ - 1) * config_.d_v, config_.d_v, out + h * config_.d_v);
    }
  }

  // No cache: the history stands for what a model computes again.
  CacheBytes bytes() const override {
    const auto bytes = [](Index floats) { return 4.0 * static_cast<double>(floats); };
    return {.cold = bytes(heads() * length_ * (2 * config_.d_k + config_.d_v)),
            .scratch = bytes(out_.size())};
  }

 private:
  Index heads() const { return config_.batch * config_.heads; }
  void check_room(Index more) const {
    SUBQUAD_CHECK(length_ + more <= config_.capacity, "{} tokens are kept, {} more exceed {}",
                  length_, more, config_.capacity);
  }

  DecodeConfig config_;
  Index rows_;        // capacity in whole grains
  Tensor q_, k_, v_;  // [batch * heads, 1, rows, d]
  Tensor out_;        // [1, 1, rows, d_v]: of one head
  TiledAttention attention_;
  Index prepared_ = 0;  // tokens that attention_ is prepared for
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
    return {.keys_per_query = static_cast<double>(p.n_kv), .state_bytes = 0};
  }
  double extra_bytes(const Problem& p, Pass pass) const override {
    if (pass != Pass::decode)
      return TiledAttention::work_bytes(p, Pattern::of(Band::dense(p)), false);
    const Index rows = engine::round_up(p.n, kGrain);
    Problem one = p;
    one.batch = one.heads = 1;
    one.n = one.n_kv = rows;
    return TiledAttention::work_bytes(one, Pattern::of(Band::dense(one)), false) +
           4.0 * static_cast<double>(rows * (p.batch * p.heads * (2 * p.d_k + p.d_v) + p.d_v));
  }
  double flops(const Problem& p, Pass) const override {
    return TiledAttention::flops(p, Pattern::of(Band::dense(p)), Pass::forward);
  }

 private:
  TiledAttention attention_;
};

const RegisterMethod<DenseRecompute> kRegistration{{
    .name = "dense_recompute",
    .family = "exact",
    .source = "Katharopoulos et al. 2020, arXiv 2006.16236, tables 4 and 5",
    .summary = "exact softmax attention decoded without a cache, all rows again for every token",
    .causality = Causality::strict,
    .cross_attention = true,
    .key_padding = true,
    .passes = {Pass::forward, Pass::decode},
    .exact = true,
    .exact_limit = [](const Problem&) { return Settings{}; },
    .time_exponent = 2,
    .memory_exponent = 1,
    .notes = {"a baseline of decoding: the other passes are those of dense",
              "decoding makes its work space anew every 64 tokens"},
}};

}  // namespace
}  // namespace subquad
