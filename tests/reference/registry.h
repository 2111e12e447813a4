// The references by method name. A built-in method without one fails a test.
#pragma once

#include <map>
#include <string>

#include "harness/core/params.h"
#include "tests/reference/deltanet.h"
#include "tests/reference/linear_attention.h"
#include "tests/reference/performer.h"
#include "tests/reference/sliding_window.h"
#include "tests/reference/softmax_attention.h"
#include "tests/reference/top_k.h"

namespace subquad::reference {

struct Reference {
  std::function<TensorD(const Settings&, const Call&)> forward;
  std::function<Gradient(const Settings&, const Call&, const TensorD& dout)> gradient = {};
};

inline LinearOptions linear_options(const Settings& s) {
  const Features phi = features_named(std::get<std::string>(s.at("feature_map")),
                                      std::get<double>(s.at("relu_shift")));
  return {phi, phi, true, std::get<double>(s.at("eps")), {}};
}

inline LinearOptions lightning_options(const Settings& s, const Problem& p) {
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
inline LinearOptions performer_options(const Settings& s, const Problem& p) {
  const PerformerOptions o{.form = std::get<std::string>(s.at("form")),
                           .features = std::get<Index>(s.at("features")),
                           .orthogonal = std::get<bool>(s.at("orthogonal")),
                           .norms = std::get<std::string>(s.at("norms")),
                           .eps = std::get<double>(s.at("eps"))};
  return performer_options(o, p, 0);
}

inline DeltaOptions delta_options(const Settings& s) {
  return {{std::get<double>(s.at("beta"))}, std::get<bool>(s.at("normalize"))};
}

inline const std::map<std::string, Reference>& references() {
  const auto integer = [](const Settings& s, const char* key) {
    return std::get<Index>(s.at(key));
  };
  const Reference dense{
      [](const Settings&, const Call& c) { return softmax_attention(c, sees_everything(c)); },
      [](const Settings&, const Call& c, const TensorD& dout) {
        return softmax_attention_gradient(c, sees_everything(c), dout);
      }};
  static const std::map<std::string, Reference> all{
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
      {"performer",
       {[](const Settings& s, const Call& c) {
          return linear_attention(c, performer_options(s, c.problem));
        },
        [](const Settings& s, const Call& c, const TensorD& dout) {
          return linear_attention_gradient(c, performer_options(s, c.problem), dout);
        }}},
      {"sliding_window",
       {[integer](const Settings& s, const Call& c) {
          return softmax_attention(c, sees_window(c, integer(s, "window"), integer(s, "sinks")));
        },
        [integer](const Settings& s, const Call& c, const TensorD& dout) {
          return softmax_attention_gradient(
              c, sees_window(c, integer(s, "window"), integer(s, "sinks")), dout);
        }}},
      {"topk_exact",
       {[integer](const Settings& s, const Call& c) {
          return top_k_attention(c, integer(s, "top_k"));
        },
        [integer](const Settings& s, const Call& c, const TensorD& dout) {
          return top_k_attention_gradient(c, integer(s, "top_k"), dout);
        }}},
  };
  return all;
}

}  // namespace subquad::reference
