// The kernel of ZETA over every visible key: what its choice of keys approximates. Time
// O(n^2 (d_key + d_v)), row by row.

#include "methods/engines/zeta_method.h"

namespace subquad {
namespace {

struct Params : ZetaParams {
  Params() { history = false; }  // nothing is left out that it could stand for
};

ZetaOptions options_of(const Params& p) {
  ZetaOptions o = p.options();
  o.candidates = ZetaOptions::Candidates::none;
  return o;
}

class CauchyDense final : public ZetaMethod {
 public:
  explicit CauchyDense(const Params& params) : ZetaMethod(options_of(params), params) {}
};

const RegisterMethod<CauchyDense, Params> kRegistration{
    zeta_info({.name = "cauchy_dense",
               .family = "sparse_content",
               .source = "reference of zeta, Zeng et al. 2025, arXiv 2501.14577",
               .summary = "attention with the kernel of zeta over every visible key",
               .time_exponent = 2,
               .memory_exponent = 1}),
    with_zeta_params<Params>({})};

}  // namespace
}  // namespace subquad
