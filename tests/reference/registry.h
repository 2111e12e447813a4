// The references by method name. A built-in method without one fails a test.
#pragma once

#include <map>
#include <string>

#include "harness/core/params.h"
#include "tests/reference/conv_basis.h"
#include "tests/reference/hrrformer.h"
#include "tests/reference/linear_attention.h"
#include "tests/reference/nprf.h"
#include "tests/reference/sliding_window.h"
#include "tests/reference/softmax_attention.h"
#include "tests/reference/top_k.h"

namespace subquad::reference {

struct Reference {
  std::function<TensorD(const Settings&, const Call&)> forward;
  std::function<Gradient(const Settings&, const Call&, const TensorD& dout)> gradient = {};
};

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
      {"conv_basis",
       {[](const Settings& s, const Call& c) { return conv_basis(ConvBasisRule::from(s), c); },
        [](const Settings& s, const Call& c, const TensorD& dout) {
          return conv_basis_gradient(ConvBasisRule::from(s), c, dout);
        }}},
      {"dense", dense},
      {"dense_naive", dense},
      {"hrrformer",
       {[](const Settings& s, const Call& c) { return hrrformer(HrrRule::from(s), c); },
        [](const Settings& s, const Call& c, const TensorD& dout) {
          return hrrformer_gradient(HrrRule::from(s), c, dout);
        }}},
      {"nprf", {[](const Settings& s, const Call& c) { return nprf(NprfRule::from(s), c); }}},
      {"linear", {[](const Settings& s, const Call& c) {
         return linear_attention(c, std::get<double>(s.at("eps")));
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
