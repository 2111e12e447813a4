// The attention layers of a model by registered methods: the instances that one thread works with.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "harness/autodiff/attention.h"
#include "harness/core/registry.h"
#include "harness/model/transformer.h"

namespace subquad {

struct LayerMethod {
  std::string name;
  Settings settings;  // resolved
};

class MethodAttention final : public LayerAttention<float> {
 public:
  // Unsupported when a method cannot train on the problem. `key_padding`: some tokens are padding.
  MethodAttention(const std::vector<LayerMethod>& methods, const Problem& problem, Index d_model,
                  Seed seed, bool key_padding);

  // Adds the methods' own parameters to the layout, "layers.2.method.NAME"; first instance only.
  void add_parameters(ParameterLayout* layout);
  // Where add_parameters of the first instance put them.
  void take_places(const MethodAttention& first) { places_ = first.places_; }
  void initial_values(float* weights);     // the methods' own
  void load(const float* weights);         // into the methods; their gradients become zero
  void add_gradients(float* grads) const;  // from the methods
  Index layers() const { return static_cast<Index>(layers_.size()); }
  Method& method(Index layer) { return *layers_[static_cast<std::size_t>(layer)].method; }
  void begin(bool training, std::uint64_t step) {
    training_ = training;
    step_ = step;
  }

  autodiff::Var<float> attend(Index layer, autodiff::Var<float> q, autodiff::Var<float> k,
                              autodiff::Var<float> v, autodiff::Var<float> x,
                              std::span<const std::uint8_t> key_mask) override;

 private:
  struct Layer {
    std::unique_ptr<Method> method;
    std::unique_ptr<Saved> saved;
    bool uses_hidden = false;
  };
  std::vector<Layer> layers_;
  std::vector<std::vector<Index>> places_;  // [layer][parameter] offset in the layout
  bool training_ = false;
  std::uint64_t step_ = 0;
};

}  // namespace subquad
