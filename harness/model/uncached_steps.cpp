#include "harness/model/uncached_steps.h"

#include <algorithm>

namespace subquad {

UncachedSteps::UncachedSteps(const TrainedModel& model, std::vector<LayerMethod> methods, Seed seed,
                             Index batch)
    : model_(model), methods_(std::move(methods)), seed_(seed), batch_(batch) {
  Problem problem = model.problem();
  problem.batch = batch;
  const MethodAttention tried(methods_, problem, model.d_model(), seed, false);
}

// The model's weights in a layout for fewer tokens: tables over positions (their first dimension)
// have fewer rows there.
const float* UncachedSteps::weights_for(const ParameterLayout& layout) {
  const auto& own = model_.layout().entries();
  const auto& wanted = layout.entries();
  const auto same = [](const ParameterEntry& a, const ParameterEntry& b) {
    return a.name == b.name && a.offset == b.offset && a.dims == b.dims;
  };
  if (std::equal(wanted.begin(), wanted.end(), own.begin(), own.end(), same))
    return model_.weights();
  shorter_ = AlignedArray<float>(layout.size());
  for (const ParameterEntry& entry : wanted) {
    const auto from = std::find_if(own.begin(), own.end(),
                                   [&](const ParameterEntry& e) { return e.name == entry.name; });
    const bool fits = from != own.end() && entry.dims.rank() == from->dims.rank() &&
                      entry.dims[0] <= from->dims[0] &&
                      entry.dims.count() * from->dims[0] == from->dims.count() * entry.dims[0];
    if (!fits)
      throw Unsupported(fmt::format("{} of fewer tokens has dimensions {}, the model's {}",
                                    entry.name, entry.dims.str(),
                                    from == own.end() ? "none" : from->dims.str()));
    std::copy_n(model_.weights() + from->offset, entry.dims.count(),
                shorter_.data() + entry.offset);
  }
  return shorter_.data();
}

void UncachedSteps::step(const std::int32_t* tokens, Index capacity, Index length, float* logits) {
  ModelSizes sizes = model_.sizes();
  sizes.n = length;
  Problem problem = model_.problem();
  problem.batch = batch_;
  problem.n = problem.n_kv = length;
  Transformer<float> network(model_.setup().options, sizes);
  MethodAttention attention(methods_, problem, sizes.d_model, seed_, false);
  attention.add_parameters(&network.layout());
  const float* const weights = weights_for(network.layout());
  attention.load(weights);
  const auto count = static_cast<std::size_t>(batch_ * length);
  std::vector<std::int32_t> given(count), labels(count, kIgnore);
  for (Index b = 0; b < batch_; ++b) {
    std::copy_n(tokens + b * capacity, length, given.data() + b * length);
    labels[static_cast<std::size_t>((b + 1) * length - 1)] = 0;  // only its row is wanted
  }
  autodiff::Tape<float> tape;
  ModelWork work;
  tape.record_gradients(false);
  attention.begin(false, 0);
  const auto out = network.forward(tape, weights, nullptr, {batch_, given, labels, {}, false, 0}, 1,
                                   attention, &work);
  std::copy_n(out.logits.data(), batch_ * sizes.labels.classes, logits);
}

}  // namespace subquad
