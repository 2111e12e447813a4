// A trained model without a cache: a token costs the parallel forward of all tokens up to it, as
// generation by a Transformer does that keeps nothing (Katharopoulos et al. 2020, arXiv 2006.16236,
// section 4.2, "softmax"). Any method with a forward takes part, also one whose tokens see what
// comes later: there is nothing later.
#pragma once

#include <vector>

#include "harness/model/trained_model.h"

namespace subquad {

class UncachedSteps {
 public:
  // `methods`, one for each layer, with the seed of random ones. Parameters of methods are the
  // model's. Unsupported when a method cannot do that; `model` outlives the object.
  UncachedSteps(const TrainedModel& model, std::vector<LayerMethod> methods, Seed seed,
                Index batch);

  // tokens [batch, capacity], of which `length` are there -> logits [batch, classes] of what
  // follows the last. Makes the network for that length anew, and allocates.
  void step(const std::int32_t* tokens, Index capacity, Index length, float* logits);

 private:
  const float* weights_for(const ParameterLayout& layout);

  const TrainedModel& model_;
  std::vector<LayerMethod> methods_;
  Seed seed_;
  Index batch_;
  AlignedArray<float> shorter_;  // where the layout depends on the length
};

}  // namespace subquad
