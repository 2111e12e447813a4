// Clustered attention: queries of similar hashes share the attention of their mean.
// Source: Vyas et al. 2020 (arXiv 2007.04825), with the rules of its authors' code.
//   q_c = mean of the queries of cluster c,   out_i = sum_j softmax_j(scale q_c . k_j) v_j,  i in c
// Our choices where the source is silent: with as many clusters as queries every query is a cluster
// of its own; queries of padded tokens are clustered with the others, since padding is a property
// of keys. Everything is in engines/clustered_method.

#include "harness/core/registry.h"
#include "methods/engines/clustered_method.h"

namespace subquad {
namespace {

class Clustered final : public ClusteredMethod {
 public:
  explicit Clustered(const ClusterOptions& options)
      : ClusteredMethod(options, 0), most_(options.clusters) {}

  Budget budget(const Problem& p) const override {  // the rank of its matrix
    return {.keys_per_query = static_cast<double>(std::min(most_, p.n))};
  }

 private:
  Index most_;
};

const RegisterMethod<Clustered, ClusterOptions> kRegistration{
    {.name = "clustered",
     .family = "sparse_content",
     .source = "Vyas et al. 2020, arXiv 2007.04825",
     .summary = "clusters of queries attend with their mean",
     .cross_attention = true,
     .key_padding = true,
     .passes = {Pass::forward, Pass::backward},
     .random = true,
     .bounded_by = {"svd_rank"},
     .exact_limit =
         [](const Problem& p) {
           return Settings{{"clusters", p.n}};
         },
     .time_exponent = 1,
     .memory_exponent = 1,
     .notes = {"no causal form: a cluster's mean mixes queries of all positions, so its attention "
               "to early keys would depend on later queries and its attention to late keys would "
               "reach early queries",
               "the matrix has as many different rows as there are clusters; that is its budget",
               "groups count as constants in the gradient"}},
    {param("clusters", &ClusterOptions::clusters, {1, 1 << 16}, "groups of queries of a head"),
     param("bits", &ClusterOptions::bits, {1, 63}, "of a query's hash"),
     param("iterations", &ClusterOptions::iterations, {1, 1000}, "of Lloyd's algorithm"),
     param("hash_bias", &ClusterOptions::bias, "hash planes lie beside the origin")}};

}  // namespace
}  // namespace subquad
