// Window attention with global tokens.
// Source: Longformer (Beltagy, Peters, Cohan 2020, arXiv 2004.05150).
//   query i >= g sees the keys j with |i - j| <= w and the keys j < g, in one softmax;
//   query i <  g (global) sees every key;          causal: of these, the keys j <= i.
// The paper gives global tokens projections of their own and lets a user pick them; as a function
// of q, k, v alone the projections are shared. Our choice: the first g tokens are global, as a
// classification token is.

#include "harness/core/registry.h"
#include "methods/engines/pattern_method.h"
#include "methods/engines/window_decoder.h"

namespace subquad {
namespace {

struct Params {
  Index half_window = 256;
  Index global_tokens = 1;
};

class Longformer final : public PatternMethod {
 public:
  explicit Longformer(const Params& params) : params_(params) {}

  Pattern pattern(const Problem& p, Seed) const override {
    const Index n = p.n, g = std::min(params_.global_tokens, n), far = 2 * n;
    const Index after = p.causal ? 1 : params_.half_window + 1, any = p.causal ? 1 : far;
    Pattern pattern;
    pattern.common = {{0, g, 0, n, -far, any},
                      {g, n, 0, g, -far, far},
                      {g, n, g, n, -params_.half_window, after}};
    return pattern;
  }

  // Early tokens see each other anyway, so a causal step needs the window and the global tokens.
  std::unique_ptr<Decoder> make_decoder(const DecodeConfig& config) const override {
    return make_window_decoder(config, params_.half_window + 1, params_.global_tokens);
  }

  Budget budget(const Problem& p) const override {
    const Index window = (p.causal ? 1 : 2) * params_.half_window + 1;
    const auto keys = static_cast<double>(std::min(window + params_.global_tokens, p.n_kv));
    return {.keys_per_query = keys,
            .state_bytes = 4.0 * keys * static_cast<double>(p.batch * p.heads * (p.d_k + p.d_v))};
  }
  double extra_bytes(const Problem& p, Pass pass) const override {
    if (pass == Pass::decode)
      return window_decoder_bytes(p.batch * p.heads,
                                  std::min(params_.half_window + 1 + params_.global_tokens, p.n_kv),
                                  p.d_k, p.d_v);
    return PatternMethod::extra_bytes(p, pass);
  }

 private:
  Params params_;
};

const RegisterMethod<Longformer, Params> kRegistration{
    {.name = "longformer",
     .family = "sparse_fixed",
     .source = "Longformer, arXiv 2004.05150",
     .summary = "exact softmax attention inside a window, with global tokens in both directions",
     .causality = Causality::strict,
     .key_padding = true,
     .passes = {Pass::forward, Pass::backward, Pass::decode},
     .exact_limit =
         [](const Problem& p) {
           return Settings{{"half_window", p.n_kv}};
         },
     .time_exponent = 1,
     .memory_exponent = 1,
     .notes = {"the paper's window of 512 is half_window = 256",
               "global tokens are the first ones and share the projections of the others",
               "the budget is that of a query that is not global; a global one sees every key"}},
    {param("half_window", &Params::half_window, {0, 1 << 24},
           "keys that a query sees on each side"),
     param("global_tokens", &Params::global_tokens, {0, 1 << 20},
           "first tokens that see, and are seen by, all")}};

}  // namespace
}  // namespace subquad
