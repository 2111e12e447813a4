// ZETA: top-k attention whose keys are found by sorting Morton codes.
// Source: Zeng et al., ICLR 2025 (arXiv 2501.14577). No code of the authors is public.
//   q, k in [-1, 1]^3;  codes by interleaving the bits of their coordinates
//   keys of all chunks before the query's own, sorted by code; K = window_factor top_k of them
//   around the query's place; of these the top_k of smallest |q - k|^2, and one averaged token
//   out_i = sum_j u_ij v_j / sum_j u_ij,  u_ij = 1 / (|q_i - k_j|^2 + gamma^2)
// Our choices where the paper is silent: the quantised range is fixed by tanh; the window is
// centred and pushed inwards at the ends; chunks of the larger of top_k and n_kv / 16; the averaged
// token includes the query's own; bidirectional attention has one pool and a mean over all tokens;
// `local` adds the query's own chunk up to itself, which the chunk rule hides otherwise.

#include "methods/engines/zeta_method.h"

namespace subquad {
namespace {

struct Params : ZetaChunkParams {
  Index window_factor = 2;
  Index bits = 0;
};

ZetaOptions options_of(const Params& p) {
  ZetaOptions o = p.options(ZetaOptions::Candidates::z_order);
  if (p.bits > 0) o.points.bits = static_cast<int>(p.bits);
  o.window_factor = p.window_factor;
  return o;
}

class Zeta final : public ZetaMethod {
 public:
  explicit Zeta(const Params& params) : ZetaMethod(options_of(params), params) {}
};

const RegisterMethod<Zeta, Params> kRegistration{
    zeta_info(
        {.name = "zeta",
         .family = "sparse_content",
         .source = "Zeng et al. 2025, arXiv 2501.14577",
         .summary = "top-k attention with a Cauchy kernel, keys found next to the query in Z-order",
         .time_exponent = 1,
         .memory_exponent = 1,
         .notes = {"codes of more than 63 bits are refused; bits=0 takes 10 a coordinate, or what "
                   "fits",
                   "with a fixed chunk instead of a fixed number of chunks the time grows with "
                   "n^2 / chunk: every chunk has its own sorted prefix"}}),
    with_chunk_params<Params>(
        {param("window_factor", &Params::window_factor, {1, 1 << 16},
               "candidates per kept key; 1: what is found is kept"),
         param("bits", &Params::bits, {0, 31},
               "bits of a coordinate in the code; 0: 10, or as many as fit")})};

}  // namespace
}  // namespace subquad
