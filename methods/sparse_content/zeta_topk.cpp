// ZETA with a perfect curve: the exact nearest keys among those that the chunk rule allows. Its
// distance from `zeta` is what Z-order misses. Time O(n^2 d_key).

#include "methods/engines/zeta_method.h"

namespace subquad {
namespace {

class ZetaTopK final : public ZetaMethod {
 public:
  explicit ZetaTopK(const ZetaChunkParams& params)
      : ZetaMethod(params.options(ZetaOptions::Candidates::pool), params) {}
};

const RegisterMethod<ZetaTopK, ZetaChunkParams> kRegistration{
    zeta_info({.name = "zeta_topk",
               .family = "sparse_content",
               .source = "reference of zeta, Zeng et al. 2025, arXiv 2501.14577",
               .summary = "zeta with the exact nearest keys of earlier chunks",
               .time_exponent = 2,
               .memory_exponent = 1}),
    with_chunk_params<ZetaChunkParams>({})};

}  // namespace
}  // namespace subquad
