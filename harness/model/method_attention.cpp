#include "harness/model/method_attention.h"

#include <algorithm>

namespace subquad {

MethodAttention::MethodAttention(const std::vector<LayerMethod>& methods, const Problem& problem,
                                 Index d_model, Seed seed, bool key_padding) {
  for (std::size_t i = 0; i < methods.size(); ++i) {
    const MethodEntry& entry = Registry::instance().method(methods[i].name);
    Layer layer;
    layer.method = make_method(methods[i].name, methods[i].settings);
    std::string reason = unsupported_reason(entry, *layer.method, problem, Pass::backward);
    if (reason.empty() && key_padding && !entry.info.key_padding)
      reason = fmt::format("{} cannot leave out padded keys, which the task has", entry.info.name);
    if (!reason.empty()) throw Unsupported(reason);
    layer.method->prepare(
        problem, {.seed = derive(seed, "method", {i}), .gradients = true, .d_model = d_model});
    layer.saved = layer.method->make_saved();
    layer.uses_hidden = entry.info.uses_hidden;
    layers_.push_back(std::move(layer));
  }
}

void MethodAttention::add_parameters(ParameterLayout* layout) {
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    places_.emplace_back();
    for (const Parameter* parameter : layers_[i].method->parameters()) {
      autodiff::Dims dims;
      for (const Index size : parameter->shape) dims.push_back(size);
      SUBQUAD_CHECK(dims.count() == parameter->value.size(), "{}: {} has {} values",
                    parameter->name, dims.str(), parameter->value.size());
      const std::size_t number = layout->add(fmt::format("layers.{}.method.{}", i, parameter->name),
                                             dims, parameter->decay, 0);
      places_.back().push_back((*layout)[number].offset);
    }
  }
}

void MethodAttention::initial_values(float* weights) {
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const auto parameters = layers_[i].method->parameters();
    for (std::size_t p = 0; p < parameters.size(); ++p)
      std::copy_n(parameters[p]->value.data(), parameters[p]->value.size(),
                  weights + places_[i][p]);
  }
}

void MethodAttention::load(const float* weights) {
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    if (places_[i].empty()) continue;
    const auto parameters = layers_[i].method->parameters();
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      Parameter& parameter = *parameters[p];
      std::copy_n(weights + places_[i][p], parameter.value.size(), parameter.value.data());
      std::fill_n(parameter.grad.data(), parameter.grad.size(), 0.0f);
    }
  }
}

void MethodAttention::add_gradients(float* grads) const {
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    if (places_[i].empty()) continue;
    const auto parameters = layers_[i].method->parameters();
    for (std::size_t p = 0; p < parameters.size(); ++p)
      for (Index j = 0; j < parameters[p]->grad.size(); ++j)
        grads[places_[i][p] + j] += parameters[p]->grad[j];
  }
}

autodiff::Var<float> MethodAttention::attend(Index layer, autodiff::Var<float> q,
                                             autodiff::Var<float> k, autodiff::Var<float> v,
                                             autodiff::Var<float> x,
                                             std::span<const std::uint8_t> key_mask) {
  Layer& l = layers_[static_cast<std::size_t>(layer)];
  return autodiff::attention(q, k, v, l.uses_hidden ? x : autodiff::Var<float>{},
                             {.method = l.method.get(),
                              .saved = l.saved.get(),
                              .key_mask = key_mask,
                              .training = training_,
                              .step = step_});
}

}  // namespace subquad
