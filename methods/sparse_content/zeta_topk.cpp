// ZETA with a perfect curve: the exact nearest keys among those that the chunk rule allows. Its
// distance from `zeta` is what Z-order misses. Time O(n^2 d_key).

#include "methods/engines/zeta_method.h"

namespace subquad {
namespace {

struct Params : ZetaParams {
  Index top_k = 32;
  Index chunk = 0;
  Index chunks = 16;
  bool local = false;
};

ZetaOptions options_of(const Params& p) {
  ZetaOptions o = p.options();
  o.candidates = ZetaOptions::Candidates::pool;
  o.top_k = p.top_k;
  o.chunk = p.chunk;
  o.chunks = p.chunks;
  o.local = p.local;
  return o;
}

class ZetaTopK final : public ZetaMethod {
 public:
  explicit ZetaTopK(const Params& params) : ZetaMethod(options_of(params)) {}
};

const RegisterMethod<ZetaTopK, Params> kRegistration{
    zeta_info({.name = "zeta_topk",
               .family = "sparse_content",
               .source = "reference of zeta, Zeng et al. 2025, arXiv 2501.14577",
               .summary = "zeta with the exact nearest keys of earlier chunks",
               .time_exponent = 2,
               .memory_exponent = 1}),
    with_zeta_params<Params>(
        {param("top_k", &Params::top_k, {1, 1 << 16}, "keys that a query keeps"),
         param("chunk", &Params::chunk, {0, 1 << 24},
               "tokens of a chunk; 0: the larger of top_k and n_kv / chunks"),
         param("chunks", &Params::chunks, {1, 1 << 16}, "chunks, where chunk is 0"),
         param("local", &Params::local,
               "causal: also attend to the query's own chunk up to itself")})};

}  // namespace
}  // namespace subquad
