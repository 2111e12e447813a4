#include "harness/model/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "harness/core/parallel.h"

namespace subquad {
namespace {

constexpr double kEpsilon = 1e-8;  // of all three papers
constexpr Index kBlock = 1 << 14;  // elements per item of a loop

double sum_of_squares(const float* x, Index count) {
  double lanes[8] = {};
  Index i = 0;
  for (; i + 8 <= count; i += 8)
    for (int l = 0; l < 8; ++l)
      lanes[l] += static_cast<double>(x[i + l]) * static_cast<double>(x[i + l]);
  double sum = 0;
  for (; i < count; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  for (const double lane : lanes) sum += lane;
  return sum;
}

}  // namespace

double learning_rate_at(const TrainOptions& o, Index step) {
  const double at = static_cast<double>(step), warmup = static_cast<double>(o.warmup);
  if (step <= o.warmup) return o.learning_rate * at / std::max(1.0, warmup);
  const double rest = std::max(1.0, static_cast<double>(o.steps) - warmup);
  const double done = std::clamp((at - warmup) / rest, 0.0, 1.0);
  if (o.schedule == "cosine")
    return o.learning_rate * 0.5 * (1 + std::cos(std::numbers::pi * done));
  if (o.schedule == "linear") return o.learning_rate * (1 - done);
  if (o.schedule == "step") return o.learning_rate * (step > o.decay_at ? o.decay_factor : 1.0);
  return o.learning_rate;
}

Optimizer::Optimizer(const TrainOptions& options, const ParameterLayout& layout)
    : options_(options), layout_(layout), mean_(layout.size()), square_(layout.size()) {}

double Optimizer::clip(float* grads) const {
  double total = 0;
  for (const ParameterEntry& entry : layout_.entries()) {
    if (entry.rate == 0) continue;  // it does not move, so it must not shrink the others' steps
    const double sum = sum_of_squares(grads + entry.offset, entry.dims.count());
    total += sum;
    if (!options_.clip_each || options_.clip <= 0) continue;
    const double norm = std::sqrt(sum);
    if (norm > options_.clip)
      for (Index i = 0; i < entry.dims.count(); ++i)
        grads[entry.offset + i] *= static_cast<float>(options_.clip / norm);
  }
  return std::sqrt(total);
}

double Optimizer::step(Index step, float* weights, float* grads) {
  const double norm = clip(grads);
  const bool scale = !options_.clip_each && options_.clip > 0 && norm > options_.clip;
  const float factor = scale ? static_cast<float>(options_.clip / norm) : 1.0f;

  const double rate = learning_rate_at(options_, step), t = static_cast<double>(step);
  const double b1 = options_.beta1, b2 = options_.beta2;
  const double fix1 = 1 - std::pow(b1, t), fix2 = 1 - std::pow(b2, t);
  const bool radam = options_.optimizer == "radam", adam = options_.optimizer == "adam";
  // radam: how far the variance of the step can be trusted; below 5 the step is the plain mean.
  const double rho_most = 2 / (1 - b2) - 1, rho = rho_most - 2 * t * std::pow(b2, t) / fix2;
  const bool adaptive = !radam || rho >= 5;
  double size = rate / fix1;  // of m / (sqrt(v) * root + eps)
  double root = 1 / std::sqrt(fix2);
  if (radam && adaptive) {
    size = rate / fix1 *
           std::sqrt(fix2 * (rho - 4) * (rho - 2) * rho_most /
                     ((rho_most - 4) * (rho_most - 2) * rho));
    root = 1;
  }
  const auto s = static_cast<float>(size), r = static_cast<float>(root);
  const auto m1 = static_cast<float>(b1), m2 = static_cast<float>(b2);
  const auto eps = static_cast<float>(kEpsilon);

  for (const ParameterEntry& entry : layout_.entries()) {
    if (entry.rate == 0) continue;
    const double decay = entry.decay ? options_.weight_decay : 0;
    const auto shrink = static_cast<float>(adam ? 1 : 1 - entry.rate * rate * decay);
    const auto added = static_cast<float>(adam ? decay : 0),
               own = static_cast<float>(entry.rate) * s;
    const Index count = entry.dims.count(), blocks = (count + kBlock - 1) / kBlock;
    parallel_for(blocks, [&](Index block, int) {
      const Index first = entry.offset + block * kBlock,
                  last = entry.offset + std::min(count, (block + 1) * kBlock);
      float *const w = weights, *const m = mean_.data(), *const v = square_.data();
      for (Index i = first; i < last; ++i) {
        const float g = grads[i] * factor + added * w[i];
        m[i] = m1 * m[i] + (1 - m1) * g;
        v[i] = m2 * v[i] + (1 - m2) * g * g;
        const float move = adaptive ? m[i] / (std::sqrt(v[i]) * r + eps) : m[i];
        w[i] = w[i] * shrink - own * move;
      }
    });
  }
  return norm;
}

}  // namespace subquad
