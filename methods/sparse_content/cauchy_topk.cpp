// The kernel of ZETA over the exact nearest of all keys up to the query. Its distance from
// `zeta_topk` is what the chunk rule hides. Time O(n^2 d_key).

#include "methods/engines/zeta_method.h"

namespace subquad {
namespace {

struct Params : ZetaParams {
  Index top_k = 32;
};

ZetaOptions options_of(const Params& p) {
  ZetaOptions o = p.options();
  o.candidates = ZetaOptions::Candidates::past;
  o.top_k = p.top_k;
  return o;
}

class CauchyTopK final : public ZetaMethod {
 public:
  explicit CauchyTopK(const Params& params) : ZetaMethod(options_of(params), params) {}
};

const RegisterMethod<CauchyTopK, Params> kRegistration{
    zeta_info({.name = "cauchy_topk",
               .family = "sparse_content",
               .source = "reference of zeta, Zeng et al. 2025, arXiv 2501.14577",
               .summary = "the kernel of zeta over the exact nearest of all visible keys",
               .time_exponent = 2,
               .memory_exponent = 1}),
    with_zeta_params<Params>(
        {param("top_k", &Params::top_k, {1, 1 << 16}, "keys that a query keeps")})};

}  // namespace
}  // namespace subquad
