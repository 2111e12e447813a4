// The optimizers against their papers' equations in double, and the schedules.

#include "harness/model/optimizer.h"

#include <catch2/catch.hpp>
#include <cmath>

namespace subquad {
namespace {

ParameterLayout two_tensors() {
  ParameterLayout layout;
  layout.add("w", {2, 3}, true, 0);
  layout.add("b", {5}, false, 0);
  return layout;
}

// 30 steps on the gradients g_t = w / 2 + cos(i + t), written out in double.
std::vector<double> reference(const TrainOptions& o, const ParameterLayout& layout) {
  std::vector<double> w(static_cast<std::size_t>(layout.size())), m = w, v = w;
  for (std::size_t i = 0; i < w.size(); ++i) w[i] = 0.1 * static_cast<double>(i);
  for (Index t = 1; t <= 30; ++t) {
    std::vector<double> g(w.size(), 0.0);
    double total = 0;
    for (const ParameterEntry& e : layout.entries()) {
      double sum = 0;
      for (Index j = 0; j < e.dims.count(); ++j) {
        const auto i = static_cast<std::size_t>(e.offset + j);
        g[i] = w[i] / 2 + std::cos(static_cast<double>(i) + static_cast<double>(t));
        sum += g[i] * g[i];
      }
      total += sum;
      if (o.clip_each && std::sqrt(sum) > o.clip)
        for (Index j = 0; j < e.dims.count(); ++j)
          g[static_cast<std::size_t>(e.offset + j)] *= o.clip / std::sqrt(sum);
    }
    if (!o.clip_each && o.clip > 0 && std::sqrt(total) > o.clip)
      for (double& x : g) x *= o.clip / std::sqrt(total);
    const double rate = learning_rate_at(o, t), time = static_cast<double>(t);
    const double f1 = 1 - std::pow(o.beta1, time), f2 = 1 - std::pow(o.beta2, time);
    const double rho_inf = 2 / (1 - o.beta2) - 1,
                 rho = rho_inf - 2 * time * std::pow(o.beta2, time) / f2;
    for (const ParameterEntry& e : layout.entries())
      for (Index j = 0; j < e.dims.count(); ++j) {
        const auto i = static_cast<std::size_t>(e.offset + j);
        const double decay = e.decay ? o.weight_decay : 0;
        if (o.optimizer == "adam") g[i] += decay * w[i];
        m[i] = o.beta1 * m[i] + (1 - o.beta1) * g[i];
        v[i] = o.beta2 * v[i] + (1 - o.beta2) * g[i] * g[i];
        if (o.optimizer != "adam") w[i] -= rate * decay * w[i];
        if (o.optimizer != "radam") {
          w[i] -= rate * (m[i] / f1) / (std::sqrt(v[i] / f2) + 1e-8);
        } else if (rho >= 5) {
          const double rect = std::sqrt(f2 * (rho - 4) * (rho - 2) * rho_inf /
                                        ((rho_inf - 4) * (rho_inf - 2) * rho)) /
                              f1;
          w[i] -= rate * rect * m[i] / (std::sqrt(v[i]) + 1e-8);
        } else {
          w[i] -= rate * m[i] / f1;
        }
      }
  }
  return w;
}

TEST_CASE("the optimizers follow their equations", "[model]") {
  const ParameterLayout layout = two_tensors();
  for (const char* name : {"adamw", "adam", "radam"})
    for (const bool each : {false, true}) {
      TrainOptions o;
      o.optimizer = name;
      o.clip_each = each;
      o.learning_rate = 0.03;
      o.weight_decay = 0.2;
      o.warmup = 5;
      o.steps = 40;
      Optimizer optimizer(o, layout);
      AlignedArray<float> w(layout.size()), g(layout.size());
      for (Index i = 0; i < w.size(); ++i) w[i] = 0.1f * static_cast<float>(i);
      for (Index t = 1; t <= 30; ++t) {
        for (Index i = 0; i < g.size(); ++i) g[i] = 0;
        for (const ParameterEntry& e : layout.entries())
          for (Index i = e.offset; i < e.offset + e.dims.count(); ++i)
            g[i] = w[i] / 2 + std::cos(static_cast<float>(i + t));
        optimizer.step(t, w.data(), g.data());
      }
      const std::vector<double> exact = reference(o, layout);
      for (const ParameterEntry& e : layout.entries())
        for (Index i = e.offset; i < e.offset + e.dims.count(); ++i) {
          INFO(name << " " << e.name << " " << i);
          const double off =
              std::abs(static_cast<double>(w[i]) - exact[static_cast<std::size_t>(i)]);
          REQUIRE(off <= 2e-5);  // 30 steps of float rounding on values below 2
        }
    }
}

TEST_CASE("what does not move does not shrink the steps of what does", "[model]") {
  TrainOptions o;
  o.clip = 0.1;  // 0.2 is clipped
  const auto moved = [&](float still) {
    ParameterLayout layout = two_tensors();
    layout.set_rate(0, 0);
    Optimizer optimizer(o, layout);
    // Tensors begin at multiples of a cache line: what lies between them stays 0.
    std::vector<float> w(static_cast<std::size_t>(layout.size()), 0.0f), g(w);
    const ParameterEntry &first = layout[0], &second = layout[1];
    for (const ParameterEntry* e : {&first, &second})
      for (Index i = e->offset; i < e->offset + e->dims.count(); ++i) {
        w[static_cast<std::size_t>(i)] = 0.5f;
        g[static_cast<std::size_t>(i)] = e == &first ? still : 0.2f;
      }
    const double norm = 0.2 * std::sqrt(static_cast<double>(second.dims.count()));
    CHECK(optimizer.step(1, w.data(), g.data()) == Approx(norm));
    CHECK(w[static_cast<std::size_t>(first.offset)] == 0.5f);
    const float last = w[static_cast<std::size_t>(second.offset + second.dims.count() - 1)];
    CHECK(last < 0.5f);
    return last;
  };
  CHECK(moved(1000) == moved(0));
}

TEST_CASE("schedules", "[model]") {
  TrainOptions o;
  o.learning_rate = 2;
  o.warmup = 10;
  o.steps = 110;
  CHECK(learning_rate_at(o, 5) == Approx(1));
  CHECK(learning_rate_at(o, 10) == Approx(2));
  CHECK(learning_rate_at(o, 60) == Approx(1));
  CHECK(std::abs(learning_rate_at(o, 110)) <= 1e-12);
  o.schedule = "linear";
  CHECK(learning_rate_at(o, 35) == Approx(1.5));
  o.schedule = "constant";
  CHECK(learning_rate_at(o, 110) == 2);
  o.schedule = "step";
  o.decay_at = 50;
  CHECK(learning_rate_at(o, 50) == 2);
  CHECK(learning_rate_at(o, 51) == Approx(0.2));
}

}  // namespace
}  // namespace subquad
