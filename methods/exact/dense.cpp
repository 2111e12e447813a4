// Exact softmax attention, streamed over key tiles: O(n) extra memory.
// Source: Vaswani et al. 2017 (arXiv 1706.03762), evaluated as in FlashAttention-2 (Dao 2023,
// arXiv 2307.08691).
//   out_i = sum_j softmax_j(scale q_i . k_j) v_j
// The honest opponent of every approximate method. All of the work is in engines/tiled_attention
// and engines/window_decoder.

#include "harness/core/registry.h"
#include "methods/engines/pattern_method.h"
#include "methods/engines/window_decoder.h"

namespace subquad {
namespace {

class Dense final : public PatternMethod {
 public:
  Pattern pattern(const Problem& p, Seed) const override { return Pattern::of(Band::dense(p)); }

  std::unique_ptr<Decoder> make_decoder(const DecodeConfig& config) const override {
    return make_window_decoder(config, config.capacity, 0);
  }

  Budget budget(const Problem& p) const override {
    return {.keys_per_query = static_cast<double>(p.n_kv),
            .state_bytes = 4.0 * static_cast<double>(p.batch * p.heads * p.n_kv * (p.d_k + p.d_v))};
  }
  double extra_bytes(const Problem& p, Pass pass) const override {
    if (pass == Pass::decode) return window_decoder_bytes(p.batch * p.heads, p.n_kv, p.d_k, p.d_v);
    return PatternMethod::extra_bytes(p, pass);
  }
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
    .notes =
        {"backward recomputes the weights from the saved row log-sum-exp: five products a tile; "
         "dq is summed in up to eight parts of fixed size and order, so the bits are the same "
         "for any number of threads"},
}};

}  // namespace
}  // namespace subquad
