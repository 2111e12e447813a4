// Softmax attention decoded from a key-value cache that is allocated once: the stateful softmax of
// Katharopoulos et al. 2020 (arXiv 2006.16236, section 4.2), the baseline of its decoding tables.
// Our choice: the cache has its final size from the start; the authors' code copies it at every
// token. Step time O(length (d_k + d_v)).

#include "harness/core/registry.h"
#include "methods/engines/tiled_attention.h"
#include "methods/engines/window_decoder.h"

namespace subquad {
namespace {

class DenseStateful final : public Method {
 public:
  void prepare(const Problem& problem, const Env&) override {
    attention_.prepare(problem, Pattern::of(Band::dense(problem)), false);
  }
  void forward(const Inputs& in, TensorView out, Saved*) override {
    attention_.forward(in, out, nullptr);
  }
  std::unique_ptr<Decoder> make_decoder(const DecodeConfig& config) const override {
    return make_window_decoder(config, config.capacity, 0);
  }

  Budget budget(const Problem& p) const override {
    return {.keys_per_query = static_cast<double>(p.n_kv),
            .state_bytes = 4.0 * static_cast<double>(p.batch * p.heads * p.n_kv * (p.d_k + p.d_v))};
  }
  double extra_bytes(const Problem& p, Pass pass) const override {
    if (pass == Pass::decode) return window_decoder_bytes(p.batch * p.heads, p.n_kv, p.d_k, p.d_v);
    return TiledAttention::work_bytes(p, Pattern::of(Band::dense(p)), false);
  }
  double flops(const Problem& p, Pass pass) const override {
    return TiledAttention::flops(p, Pattern::of(Band::dense(p)), pass);
  }

 private:
  TiledAttention attention_;
};

const RegisterMethod<DenseStateful> kRegistration{{
    .name = "dense_stateful",
    .family = "exact",
    .source = "Katharopoulos et al. 2020, arXiv 2006.16236, section 4.2",
    .summary = "exact softmax attention decoded from a preallocated key-value cache",
    .causality = Causality::strict,
    .cross_attention = true,
    .key_padding = true,
    .passes = {Pass::forward, Pass::decode},
    .exact = true,
    .exact_limit = [](const Problem&) { return Settings{}; },
    .time_exponent = 2,
    .memory_exponent = 1,
    .notes = {"a baseline of decoding: the other passes are those of dense"},
}};

}  // namespace
}  // namespace subquad
