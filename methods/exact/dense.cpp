// Exact softmax attention, streamed over key tiles: O(n) extra memory.
// Source: Vaswani et al. 2017 (arXiv 1706.03762), evaluated as in FlashAttention-2 (Dao 2023,
// arXiv 2307.08691).
//   out_i = sum_j softmax_j(scale q_i . k_j) v_j
// The honest opponent of every approximate method. All of the work is in engines/band_attention.

#include "harness/core/registry.h"
#include "methods/engines/band_attention.h"
#include "methods/engines/window_decoder.h"

namespace subquad {
namespace {

struct DenseSaved final : Saved {
  explicit DenseSaved(Index rows) : lse(rows) {}
  AlignedArray<float> lse;  // [batch * heads * n] row log-sum-exp of the scaled logits
};

class Dense final : public Method {
 public:
  void prepare(const Problem& problem, const Env& env) override {
    problem_ = problem;
    attention_.prepare(problem, Band::dense(problem), env.gradients);
  }

  std::unique_ptr<Saved> make_saved() const override {
    return std::make_unique<DenseSaved>(problem_.batch * problem_.heads * problem_.n);
  }
  void forward(const Inputs& in, TensorView out, Saved* saved) override {
    attention_.forward(in, out,
                       saved == nullptr ? nullptr : static_cast<DenseSaved&>(*saved).lse.data());
  }
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved& saved,
                const Gradients& grads) override {
    attention_.backward(in, out, dout, static_cast<const DenseSaved&>(saved).lse.data(), grads);
  }

  std::unique_ptr<Decoder> make_decoder(const DecodeConfig& config) const override {
    return make_window_decoder(config, config.capacity, 0);
  }

  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    band_attention_rows(in, Band::dense(problem_), problem_.logit_scale(), b, h, rows, weights);
    return true;
  }

  Budget budget(const Problem& p) const override {
    return {.keys_per_query = static_cast<double>(p.n_kv),
            .state_bytes = 4.0 * static_cast<double>(p.batch * p.heads * p.n_kv * (p.d_k + p.d_v))};
  }
  double extra_bytes(const Problem& p, Pass pass) const override {
    const double lse = 4.0 * static_cast<double>(p.batch * p.heads * p.n);
    if (pass == Pass::forward) return BandAttention::work_bytes(p, Band::dense(p), false);
    if (pass == Pass::backward || pass == Pass::forward_backward)
      return BandAttention::work_bytes(p, Band::dense(p), true) + lse;
    if (pass == Pass::decode) return window_decoder_bytes(p.batch * p.heads, p.n_kv, p.d_k, p.d_v);
    return 0;
  }
  double flops(const Problem& p, Pass pass) const override {
    return BandAttention::flops(p, Band::dense(p), pass);
  }

 private:
  Problem problem_;
  BandAttention attention_;
};

const RegisterMethod<Dense> kRegistration{{
    .name = "dense",
    .family = "exact",
    .source = "Vaswani et al. 2017, arXiv 1706.03762; FlashAttention-2, arXiv 2307.08691",
    .summary = "exact softmax attention by streaming softmax, O(n) extra memory",
    .causality = Causality::strict,
    .cross_attention = true,
    .key_padding = true,
    .passes = {Pass::forward, Pass::backward, Pass::decode},
    .exact = true,
    .exact_limit = [](const Problem&) { return Settings{}; },
    .time_exponent = 2,
    .memory_exponent = 1,
    .notes = {"backward recomputes the weights from the saved row log-sum-exp, in two passes "
              "without shared writes: 7 tile products where 5 would do, the same bits for any "
              "number of threads"},
}};

}  // namespace
}  // namespace subquad
