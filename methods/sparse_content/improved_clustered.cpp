// Improved clustered attention: clustered attention in which every query weighs the best keys of
// its cluster by itself. Source: Vyas et al. 2020 (arXiv 2007.04825), with the rules of its
// authors' code. With A_c the attention of the cluster's mean query and T_c its top_k keys of
// largest logit,
//   out_i = sum_{j not in T_c} A_cj v_j + m_c sum_{j in T_c} P_ij v_j,   m_c = sum_{j in T_c} A_cj
//   P_ij = softmax over T_c of scale q_i . k_j
// causal: out_i = sum_{j in T_c, j <= i} P_ij v_j, P over these keys; zero where there are none.
// Everything is in engines/clustered_method; our choices are those of `clustered`.

#include "harness/core/registry.h"
#include "methods/engines/clustered_method.h"

namespace subquad {
namespace {

struct Params : ClusterOptions {
  Index top_k = 32;
};

class ImprovedClustered final : public ClusteredMethod {
 public:
  explicit ImprovedClustered(const Params& params)
      : ClusteredMethod(params, params.top_k), params_(params) {}

  // Keys of its own, and unless causal the clusters through which the others are met.
  Budget budget(const Problem& p) const override {
    const Index keys = std::min(params_.top_k, p.n_kv);
    return {.keys_per_query =
                static_cast<double>(p.causal ? keys : keys + std::min(params_.clusters, p.n))};
  }

 private:
  Params params_;
};

const RegisterMethod<ImprovedClustered, Params> kRegistration{
    {.name = "improved_clustered",
     .family = "sparse_content",
     .source = "Vyas et al. 2020, arXiv 2007.04825",
     .summary = "clustered attention; a query weighs its cluster's best keys by itself",
     .causality = Causality::weights,
     .cross_attention = true,
     .key_padding = true,
     .passes = {Pass::forward, Pass::backward},
     .random = true,
     .exact_limit =
         [](const Problem& p) {
           return Settings{{"top_k", p.n_kv}};
         },
     .time_exponent = 1,
     .memory_exponent = 1,
     .notes =
         {"not strictly causal: clusters and their best keys depend on later queries and keys; "
          "no value of a later token is read",
          "causal, only the keys of T_c count: a query whose keys are all later outputs zero",
          "groups and best keys count as constants in the gradient"}},
    {param<Params, Index>("clusters", &Params::clusters, {1, 1 << 16},
                          "groups of queries of a head"),
     param<Params, Index>("bits", &Params::bits, {1, 63}, "of a query's hash"),
     param<Params, Index>("iterations", &Params::iterations, {1, 1000}, "of Lloyd's algorithm"),
     param<Params, bool>("hash_bias", &Params::bias, "hash planes lie beside the origin"),
     param("top_k", &Params::top_k, {1, 1 << 24}, "keys of a cluster that its queries weigh")}};

}  // namespace
}  // namespace subquad
