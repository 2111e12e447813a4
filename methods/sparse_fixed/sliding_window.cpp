// Exact softmax attention inside a window around every query, with optional sinks.
// Source: the local attention of Longformer (Beltagy et al. 2020, arXiv 2004.05150); sinks as in
// StreamingLLM (Xiao et al. 2023, arXiv 2309.17453), positions unchanged.
//   causal:        query i, at position p = i + n_kv - n, sees the keys p - window + 1 .. p
//   bidirectional: query i sees the keys j with 0 <= j - i + floor(window / 2) < window,
//                  `window` keys in all: for an even window one key more before than after
// cut to the keys that exist, and besides the first `sinks` keys (causal: those not after p).

#include "harness/core/registry.h"
#include "methods/engines/pattern_method.h"
#include "methods/engines/window_decoder.h"

namespace subquad {
namespace {

struct Params {
  Index window = 128;
  Index sinks = 0;
};

class SlidingWindow final : public PatternMethod {
 public:
  explicit SlidingWindow(const Params& params) : params_(params) {}

  std::string unsupported(const Problem& p, Pass) const override {
    if (!p.causal && p.n != p.n_kv) return "a centred window needs n_kv = n";
    return "";
  }

  Pattern pattern(const Problem& p, Seed) const override {
    Band band = Band::dense(p);
    band.before = p.causal ? params_.window - 1 : params_.window / 2;
    band.after = params_.window - 1 - band.before;
    band.sinks = params_.sinks;
    return Pattern::of(band);
  }

  std::unique_ptr<Decoder> make_decoder(const DecodeConfig& config) const override {
    return make_window_decoder(config, params_.window, params_.sinks);
  }

  Budget budget(const Problem& p) const override {
    const auto keys = static_cast<double>(std::min(params_.window + params_.sinks, p.n_kv));
    return {.keys_per_query = keys,
            .state_bytes = 4.0 * keys * static_cast<double>(p.batch * p.heads * (p.d_k + p.d_v))};
  }
  double extra_bytes(const Problem& p, Pass pass) const override {
    if (pass == Pass::decode)
      return window_decoder_bytes(p.batch * p.heads, static_cast<Index>(budget(p).keys_per_query),
                                  p.d_k, p.d_v);
    return PatternMethod::extra_bytes(p, pass);
  }

 private:
  Params params_;
};

const RegisterMethod<SlidingWindow, Params> kRegistration{
    {.name = "sliding_window",
     .family = "sparse_fixed",
     .source = "Longformer, arXiv 2004.05150; sinks: StreamingLLM, arXiv 2309.17453",
     .summary = "exact softmax attention inside a window, with optional sinks",
     .causality = Causality::strict,
     .cross_attention = true,
     .key_padding = true,
     .passes = {Pass::forward, Pass::backward, Pass::decode},
     .bounded_by = {"topk_exact"},
     .exact_limit =
         [](const Problem& p) {
           return Settings{{"window", p.causal ? p.n_kv : 2 * p.n_kv}, {"sinks", Index{0}}};
         },
     .time_exponent = 1,
     .memory_exponent = 1,
     .notes = {"a bidirectional window is centred, so it is exact only from window = 2 n - 1 on",
               "sinks keep their positions; their distance to the query is not shortened"}},
    {param("window", &Params::window, {1, 1 << 25}, "keys that a query sees, sinks not counted"),
     param("sinks", &Params::sinks, {0, 1 << 24}, "first keys that every query sees")}};

}  // namespace
}  // namespace subquad
