// How much a query weighs a key, as a function of their points: the kernels that the ZETA paper
// compares. With D = |q - k|^2 and gamma in (0, 1):
//   cauchy          u = 1 / (D + gamma^2)             Adaptive Cauchy-Softmax
//   neg_euclid      u = exp(-D / gamma^2)
//   inverse_euclid  u = 1 / sqrt(D + gamma^2)
//   dot             u = exp(q . k / gamma^2)
// Weights are u over its sum. Our choice where the paper is silent: gamma has the same role in all
// of them, the width of the kernel.
#pragma once

#include <cmath>
#include <string>

#include "methods/engines/zeta_select.h"

namespace subquad {

enum class Similarity { cauchy, neg_euclid, inverse_euclid, dot };

inline Similarity similarity_named(const std::string& name) {
  if (name == "neg_euclid") return Similarity::neg_euclid;
  if (name == "inverse_euclid") return Similarity::inverse_euclid;
  return name == "dot" ? Similarity::dot : Similarity::cauchy;
}

struct ZetaKernel {
  Similarity kind = Similarity::cauchy;
  float width = 0.25f;  // gamma^2

  // What the kernel is a function of: D, or q . k.
  bool of_product() const { return kind == Similarity::dot; }

  // x [count] of such numbers, whole vectors readable -> weights [count] that sum to one, whole
  // vectors written, zeros behind the last. Returns 1 / sum of u where that has meaning.
  float weights(const float* x, Index count, float* w) const {
    using namespace engine;
    const Index whole = whole_vectors(count);
    float shift = 0;
    if (kind == Similarity::neg_euclid || kind == Similarity::dot) {
      const float sign = of_product() ? 1.0f : -1.0f;
      shift = sign * x[0];
      for (Index j = 1; j < count; ++j) shift = std::max(shift, sign * x[j]);
    }
    Vec sum{};
    for (Index j = 0; j < whole; j += kLanes) {
      const Vec value = load(x + j);
      Vec u;
      switch (kind) {
        case Similarity::cauchy:
          u = 1.0f / (value + width);
          break;
        case Similarity::inverse_euclid: {
          float lanes[kLanes];
          store(lanes, value + width);
          for (float& lane : lanes) lane = 1.0f / std::sqrt(lane);
          u = load(lanes);
          break;
        }
        case Similarity::neg_euclid:
          u = exp2_nonpositive((-shift - value) * (kLog2e / width));
          break;
        case Similarity::dot:
          u = exp2_nonpositive((value - shift) * (kLog2e / width));
          break;
      }
      if (j + kLanes > count) {
        float lanes[kLanes];
        store(lanes, u);
        for (Index i = count - j; i < kLanes; ++i) lanes[i] = 0;
        u = load(lanes);
      }
      store(w + j, u);
      sum += u;
    }
    const float factor = 1.0f / across_lanes(sum, [](Vec a, Vec b) { return a + b; })[0];
    for (Index j = 0; j < whole; j += kLanes) store(w + j, load(w + j) * factor);
    return factor;
  }

  // d log u / dx
  float slope(float x) const {
    switch (kind) {
      case Similarity::cauchy:
        return -1.0f / (x + width);
      case Similarity::inverse_euclid:
        return -0.5f / (x + width);
      case Similarity::neg_euclid:
        return -1.0f / width;
      default:
        return 1.0f / width;
    }
  }
  // d log u / d gamma^2, up to what is the same for all keys of a query
  float width_slope(float x) const {
    const bool added = kind == Similarity::cauchy || kind == Similarity::inverse_euclid;
    return added ? slope(x) : -slope(x) * x / width;  // x + width, or x / width
  }

 private:
  static constexpr float kLog2e = 1.44269504088896340736f;
};

}  // namespace subquad
