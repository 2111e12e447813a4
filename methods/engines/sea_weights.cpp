// Shapes and initial values of SEA's learned tensors, and the operations that they stand for.

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "harness/core/error.h"
#include "methods/engines/sea_estimator.h"

namespace subquad {
namespace {

using W = SeaWeights;

struct Place {
  Parameter SeaWeights::*tensor;
  const char* name;
  std::vector<Index> shape;
  char start;  // 'n' N(0, 0.02), 'p' N(0, 1), 'u' uniform by fan-in, '1', '0'
  Index fan_in = 0;
};

// Every tensor of the shape, in the order of the pipeline.
std::vector<Place> places(const SeaShape& s) {
  const Index hidden = s.hidden(), c = s.image_channels(), w = s.width(), heads = s.heads;
  std::vector<Place> all{{&W::w1, "encoder.weight", {s.inputs(), hidden}, 'n'},
                         {&W::b1, "encoder.bias", {hidden}, '0'},
                         {&W::ln1_w, "encoder_norm.weight", {hidden}, '1'},
                         {&W::ln1_b, "encoder_norm.bias", {hidden}, '0'},
                         {&W::w2, "decoder.weight", {hidden, s.per_head() * w}, 'n'},
                         {&W::b2, "decoder.bias", {s.per_head() * w}, '0'},
                         {&W::w3, "gates.weight", {hidden, 2}, 'n'},
                         {&W::b3, "gates.bias", {2}, '0'}};
  const auto convolution = [&](Parameter W::*weight, const char* weight_name, Parameter W::*bias,
                               const char* bias_name, Index out, Index kernel) {
    const Index fan_in = c * kernel * kernel;
    all.push_back({weight, weight_name, {out, c, kernel, kernel}, 'u', fan_in});
    all.push_back({bias, bias_name, {out}, 'u', fan_in});
  };
  if (s.cnn) {
    if (s.causal) {
      all.push_back({&W::ln2_w, "image_norm.weight", {w}, '1'});
      all.push_back({&W::ln2_b, "image_norm.bias", {w}, '0'});
    }
    convolution(&W::conv1_w, "conv1.weight", &W::conv1_b, "conv1.bias", c, 3);
    convolution(&W::conv2_w, "conv2.weight", &W::conv2_b, "conv2.bias", c, 3);
    convolution(&W::conv3_w, "conv3.weight", &W::conv3_b, "conv3.bias", heads, s.causal ? 1 : 3);
    if (s.causal) {
      all.push_back({&W::ln3_w, "score_norm.weight", {s.cells}, '1'});
      all.push_back({&W::ln3_b, "score_norm.bias", {s.cells}, '0'});
    }
  }
  if (s.positions > 0) all.push_back({&W::positions, "positions", {s.positions, s.d_v}, 'p'});
  return all;
}

constexpr Parameter SeaWeights::*kTensors[] = {
    &W::w1,      &W::b1,      &W::ln1_w, &W::ln1_b,   &W::w2,       &W::b2,      &W::w3,
    &W::b3,      &W::ln2_w,   &W::ln2_b, &W::conv1_w, &W::conv1_b,  &W::conv2_w, &W::conv2_b,
    &W::conv3_w, &W::conv3_b, &W::ln3_w, &W::ln3_b,   &W::positions};

}  // namespace

void SeaWeights::make(const SeaShape& shape, Seed seed, bool gradients) {
  for (Parameter* p : {&ln2_w, &ln2_b, &conv1_w, &conv1_b, &conv2_w, &conv2_b, &conv3_w, &conv3_b,
                       &ln3_w, &ln3_b, &positions})
    *p = Parameter{};
  for (const Place& place : places(shape)) {
    Parameter& p = this->*place.tensor;
    p.name = place.name;
    p.shape = place.shape;
    p.decay = place.shape.size() > 1;
    Index size = 1;
    for (const Index axis : place.shape) size *= axis;
    p.value = AlignedArray<float>(size);
    p.grad = AlignedArray<float>(gradients ? size : 0);
    const Seed stream = derive(seed, std::string("sea.") + place.name);
    if (place.start == '1') std::fill_n(p.value.data(), size, 1.0f);
    if (place.start == 'n' || place.start == 'p') fill_normal(stream, p.value.data(), size);
    if (place.start == 'u') fill_uniform(stream, p.value.data(), size);
    const float bound = place.fan_in > 0
                            ? static_cast<float>(1 / std::sqrt(static_cast<double>(place.fan_in)))
                            : 0.0f;
    for (Index i = 0; i < size; ++i) {
      if (place.start == 'n') p.value[i] *= 0.02f;
      if (place.start == 'u') p.value[i] = bound * (2 * p.value[i] - 1);
    }
  }
}

std::vector<Parameter*> SeaWeights::all() {
  std::vector<Parameter*> some;
  for (Parameter SeaWeights::*tensor : kTensors)
    if ((this->*tensor).value.size() > 0) some.push_back(&(this->*tensor));
  return some;
}

void SeaWeights::take_values(const SeaWeights& from) {
  const auto filled = [&](Parameter SeaWeights::*tensor) {
    return (from.*tensor).value.size() > 0;
  };
  if (std::none_of(std::begin(kTensors), std::end(kTensors), filled)) return;  // never prepared
  for (Parameter SeaWeights::*tensor : kTensors)
    SUBQUAD_CHECK((this->*tensor).shape == (from.*tensor).shape,
                  "sea: {} was learned as {}, the decoder needs {}", (from.*tensor).name,
                  (from.*tensor).shape, (this->*tensor).shape);
  for (Parameter SeaWeights::*tensor : kTensors) {
    const AlignedArray<float>& value = (from.*tensor).value;
    std::copy_n(value.data(), value.size(), (this->*tensor).value.data());
  }
}

double SeaWeights::bytes(const SeaShape& shape, bool gradients) {
  Index floats = 0;
  for (const Place& place : places(shape)) {
    Index size = 1;
    for (const Index axis : place.shape) size *= axis;
    floats += size;
  }
  return (gradients ? 8.0 : 4.0) * static_cast<double>(floats);
}

double SeaEstimator::flops_per_row(const SeaShape& s) {
  const auto h = static_cast<double>(s.heads), d = static_cast<double>(s.d_v),
             c = static_cast<double>(s.image_channels()), w = static_cast<double>(s.width()),
             per_head = static_cast<double>(s.per_head());
  double all = h * (6 * d * d + 2 * d * per_head * w + 4 * d);
  if (s.cnn) all += s.causal ? 2 * 9 * c * c * w + h * c * w : 9 * c * c * w + 9 * c * h * w;
  return 2 * all;
}

}  // namespace subquad
