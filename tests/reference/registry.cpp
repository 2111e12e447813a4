#include "tests/reference/registry.h"

#include "harness/core/registry.h"
#include "tests/reference/adore.h"
#include "tests/reference/block_patterns.h"
#include "tests/reference/cache_policy.h"
#include "tests/reference/clustered.h"
#include "tests/reference/conv_basis.h"
#include "tests/reference/deltanet.h"
#include "tests/reference/hrrformer.h"
#include "tests/reference/linear_attention.h"
#include "tests/reference/nprf.h"
#include "tests/reference/oracles.h"
#include "tests/reference/performer.h"
#include "tests/reference/reformer.h"
#include "tests/reference/sea.h"
#include "tests/reference/sliding_window.h"
#include "tests/reference/softmax_attention.h"
#include "tests/reference/top_k.h"
#include "tests/reference/zeta.h"

namespace subquad::reference {
namespace {

LinearOptions linear_options(const Settings& s) {
  const Features phi = features_named(std::get<std::string>(s.at("feature_map")),
                                      std::get<double>(s.at("relu_shift")));
  return {phi, phi, true, std::get<double>(s.at("eps")), {}};
}

LinearOptions lightning_options(const Settings& s, const Problem& p) {
  const Features phi = features_named("identity", 0);
  LinearOptions o{phi, phi, false, 0, {}};
  const auto& kind = std::get<std::string>(s.at("decay"));
  const double layer = static_cast<double>(std::get<Index>(s.at("layer")));
  const double layers = static_cast<double>(std::get<Index>(s.at("layers")));
  const auto slope = [](Index h, Index heads) {
    return std::pow(2.0, -8.0 * static_cast<double>(h + 1) / static_cast<double>(heads));
  };
  Index power = 1;
  while (2 * power <= p.heads) power *= 2;
  for (Index h = 0; h < p.heads && kind != "none"; ++h) {
    const double alibi = h < power ? slope(h, power) : slope(2 * (h - power), 2 * power);
    const double depth = layers > 1 ? 1 - layer / (layers - 1) + 1e-5 : 1;
    const double linear = 8.0 * static_cast<double>(h) / static_cast<double>(p.heads);
    o.decay.push_back(kind == "constant" ? std::get<double>(s.at("lambda"))
                      : kind == "linear" ? std::exp(-linear * (1 - layer / layers))
                                         : std::exp(-alibi * depth));
  }
  return o;
}

// Without seed: what run_method prepares with.
LinearOptions performer_options(const Settings& s, const Problem& p) {
  const PerformerOptions o{.form = std::get<std::string>(s.at("form")),
                           .features = std::get<Index>(s.at("features")),
                           .orthogonal = std::get<bool>(s.at("orthogonal")),
                           .norms = std::get<std::string>(s.at("norms")),
                           .eps = std::get<double>(s.at("eps"))};
  return performer_options(o, p, 0);
}

DeltaOptions delta_options(const Settings& s) {
  return {{std::get<double>(s.at("beta"))}, std::get<bool>(s.at("normalize"))};
}

ClusteredOptions clustered_options(const Settings& s) {
  return {std::get<Index>(s.at("clusters")), std::get<Index>(s.at("bits")),
          std::get<Index>(s.at("iterations")), std::get<bool>(s.at("hash_bias")),
          s.contains("top_k") ? std::get<Index>(s.at("top_k")) : 0};
}

LshOptions lsh_options(const Settings& s) {
  return {std::get<Index>(s.at("rounds")), std::get<Index>(s.at("bits")),
          std::get<Index>(s.at("chunk")), std::get<std::string>(s.at("round_combine")) == "lse",
          std::get<bool>(s.at("attend_self"))};
}

Reference zeta_reference(const std::string& name) {
  return {[name](const Settings& s, const Call& c) {
            return zeta_attention(ZetaRule::from(name, s), c);
          },
          [name](const Settings& s, const Call& c, const TensorD& dout) {
            ZetaGradient gradient;
            zeta_attention(ZetaRule::from(name, s), c, &dout, &gradient);
            return std::move(gradient.qkv);
          }};
}

Reference cache_reference(const std::string& name) {
  return {[name](const Settings& s, const Call& c) {
    return cache_attention(c, cache_rule(name, s, c.problem));
  }};
}

}  // namespace

const std::map<std::string, Reference>& references() {
  const auto integer = [](const Settings& s, const char* key) {
    return std::get<Index>(s.at(key));
  };
  const Reference dense{
      [](const Settings&, const Call& c) { return softmax_attention(c, sees_everything(c)); },
      [](const Settings&, const Call& c, const TensorD& dout) {
        return softmax_attention_gradient(c, sees_everything(c), dout);
      }};
  const auto by_head = [](auto sees) {
    return Reference{
        [sees](const Settings& s, const Call& c) { return attention_by_head(c, sees(s, c)); },
        [sees](const Settings& s, const Call& c, const TensorD& dout) {
          return gradient_by_head(c, sees(s, c), dout);
        }};
  };
  const auto text = [](const Settings& s, const char* key) {
    return std::get<std::string>(s.at(key));
  };
  const Reference clustered{
      [](const Settings& s, const Call& c) { return clustered_attention(c, clustered_options(s)); },
      [](const Settings& s, const Call& c, const TensorD& dout) {
        return clustered_attention_gradient(c, clustered_options(s), dout);
      }};
  static const std::map<std::string, Reference> all{
      {"adore",
       {[text](const Settings& s, const Call& c) { return adore(s, c, text(s, "score")); }}},
      {"adore_oracle", {[](const Settings& s, const Call& c) { return adore(s, c, "truth"); }}},
      {"bigbird", by_head([integer, text](const Settings& s, const Call& c) {
         return sees_bigbird(c.problem.n, integer(s, "block"), integer(s, "random_blocks"),
                             text(s, "plan"), 0);
       })},
      {"block_sparse", by_head([integer, text](const Settings& s, const Call&) {
         return sees_block_sparse(text(s, "pattern"), integer(s, "block"), integer(s, "stride"),
                                  integer(s, "summary"));
       })},
      {"longformer",
       {[integer](const Settings& s, const Call& c) {
          return softmax_attention(
              c, sees_longformer(c, integer(s, "half_window"), integer(s, "global_tokens")));
        },
        [integer](const Settings& s, const Call& c, const TensorD& dout) {
          return softmax_attention_gradient(
              c, sees_longformer(c, integer(s, "half_window"), integer(s, "global_tokens")), dout);
        }}},
      {"block_rank_causal", {[integer](const Settings& s, const Call& c) {
         return matrix_attention(c, block_rank_matrix(c, integer(s, "rank")));
       }}},
      {"clustered", clustered},
      {"cauchy_dense", zeta_reference("cauchy_dense")},
      {"cauchy_topk", zeta_reference("cauchy_topk")},
      {"column_sampling", {[integer](const Settings& s, const Call& c) {
         return matrix_attention(
             c, column_sampling_matrix(c, integer(s, "samples"), std::get<bool>(s.at("values"))));
       }}},
      {"conv_basis",
       {[](const Settings& s, const Call& c) { return conv_basis(ConvBasisRule::from(s), c); },
        [](const Settings& s, const Call& c, const TensorD& dout) {
          return conv_basis_gradient(ConvBasisRule::from(s), c, dout);
        }}},
      {"dense", dense},
      {"deltanet",
       {[](const Settings& s, const Call& c) { return delta_rule(c, delta_options(s)); },
        [](const Settings& s, const Call& c, const TensorD& dout) {
          DeltaGradient gradient;
          delta_rule(c, delta_options(s), &dout, &gradient);
          return std::move(gradient.qkv);
        }}},
      {"dense_naive", dense},
      {"dense_recompute", {dense.forward}},
      {"dense_stateful", {dense.forward}},
      {"improved_clustered", clustered},
      {"keyformer", cache_reference("keyformer")},
      {"lightning2",
       {[](const Settings& s, const Call& c) {
          return linear_attention(c, lightning_options(s, c.problem));
        },
        [](const Settings& s, const Call& c, const TensorD& dout) {
          return linear_attention_gradient(c, lightning_options(s, c.problem), dout);
        }}},
      {"linear",
       {[](const Settings& s, const Call& c) { return linear_attention(c, linear_options(s)); },
        [](const Settings& s, const Call& c, const TensorD& dout) {
          return linear_attention_gradient(c, linear_options(s), dout);
        }}},
      {"h2o", cache_reference("h2o")},
      {"hrrformer",
       {[](const Settings& s, const Call& c) { return hrrformer(HrrRule::from(s), c); },
        [](const Settings& s, const Call& c, const TensorD& dout) {
          return hrrformer_gradient(HrrRule::from(s), c, dout);
        }}},
      {"nprf", {[](const Settings& s, const Call& c) { return nprf(NprfRule::from(s), c); }}},
      {"performer",
       {[](const Settings& s, const Call& c) {
          return linear_attention(c, performer_options(s, c.problem));
        },
        [](const Settings& s, const Call& c, const TensorD& dout) {
          return linear_attention_gradient(c, performer_options(s, c.problem), dout);
        }}},
      {"random_cache", cache_reference("random_cache")},
      {"release_oracle", cache_reference("release_oracle")},
      {"reformer",
       {[](const Settings& s, const Call& c) { return lsh_attention(c, lsh_options(s)); },
        [](const Settings& s, const Call& c, const TensorD& dout) {
          return lsh_attention_gradient(c, lsh_options(s), dout);
        }}},
      {"sea", {[](const Settings& s, const Call& c) { return sea_attention(s, c); }}},
      {"sea_sparse", {[integer](const Settings& s, const Call& c) {
         const Settings sea = resolve("sea", Registry::instance().method("sea").params,
                                      {{"mask", std::string("random")},
                                       {"group", std::string("per_query")},
                                       {"gates", std::string("one")},
                                       {"top_k", integer(s, "top_k")},
                                       {"cells", integer(s, "cells")}});
         return sea_attention(sea, c);
       }}},
      {"sliced_window", cache_reference("window")},
      {"sliding_window",
       {[integer](const Settings& s, const Call& c) {
          return softmax_attention(c, sees_window(c, integer(s, "window"), integer(s, "sinks")));
        },
        [integer](const Settings& s, const Call& c, const TensorD& dout) {
          return softmax_attention_gradient(
              c, sees_window(c, integer(s, "window"), integer(s, "sinks")), dout);
        }}},
      {"streaming_llm", cache_reference("streaming_llm")},
      {"strided", cache_reference("strided")},
      {"subgen", {[integer](const Settings& s, const Call& c) {
         return subgen(c, {integer(s, "samples"), integer(s, "per_cluster"),
                           integer(s, "max_clusters"), std::get<double>(s.at("delta"))});
       }}},
      {"subgen_kcenter", {[integer](const Settings& s, const Call& c) {
         const Index m = integer(s, "m");
         return centre_stream(c, m, std::max<Index>(1, recent_of(s, m, m / 2)));
       }}},
      {"svd_rank", {[integer](const Settings& s, const Call& c) {
         return matrix_attention(c, svd_rank_matrix(c, integer(s, "rank")));
       }}},
      {"topk_block_exact", {[integer](const Settings& s, const Call& c) {
         return matrix_attention(c, top_k_block_matrix(c, integer(s, "block"), integer(s, "blocks"),
                                                       std::get<std::string>(s.at("norm"))));
       }}},
      {"topk_exact",
       {[integer](const Settings& s, const Call& c) {
          const auto norm = std::get<std::string>(s.at("norm"));
          return norm == "tv" ? top_k_attention(c, integer(s, "top_k"))
                              : matrix_attention(c, top_k_matrix(c, integer(s, "top_k"), norm));
        },
        [integer](const Settings& s, const Call& c, const TensorD& dout) {
          return top_k_attention_gradient(c, integer(s, "top_k"), dout);
        }}},
      {"topk_oracle",
       {[integer](const Settings& s, const Call& c) { return top_k_stream(c, integer(s, "m")); }}},
      {"topk_value_exact", {[integer](const Settings& s, const Call& c) {
         return matrix_attention(c, top_k_value_matrix(c, integer(s, "top_k")));
       }}},
      {"uniform", {[](const Settings&, const Call& c) {
         return matrix_attention(c, uniform_matrix(c, true));
       }}},
      {"v_mean", {[](const Settings&, const Call& c) {
         return matrix_attention(c, uniform_matrix(c, false));
       }}},
      {"window", cache_reference("window")},
      {"zeta", zeta_reference("zeta")},
      {"zeta_topk", zeta_reference("zeta_topk")},
  };
  return all;
}

}  // namespace subquad::reference
