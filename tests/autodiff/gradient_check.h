// Gradients of ops against central differences in double.
#pragma once

#include <catch2/catch.hpp>
#include <functional>
#include <vector>

#include "harness/autodiff/ops.h"
#include "harness/core/random.h"

namespace subquad::autodiff {

using Function = std::function<Var<double>(Tape<double>&, const std::vector<Var<double>>&)>;

struct GradientCheck {
  Seed seed = 1;
  double low = -1.5, high = 1.5;  // range of the inputs
  double step = 1e-6;
  double tolerance = 2e-8;  // of the largest difference, relative to the gradient's largest entry:
                            // step^2 of truncation and 1e-16 / step of rounding, times ten
};

// d sum(c * f(inputs)) / d inputs for a random c, element by element.
inline void check_gradient(const std::vector<Dims>& shapes, const Function& f,
                           const GradientCheck& options = {}) {
  Random random(options.seed);
  std::vector<std::vector<double>> inputs, gradients;
  for (const Dims& dims : shapes) {
    inputs.emplace_back(static_cast<std::size_t>(dims.count()));
    for (double& x : inputs.back()) x = random.uniform(options.low, options.high);
  }
  Tape<double> tape;
  std::vector<double> cotangent;
  const auto leaves = [&] {
    std::vector<Var<double>> list;
    for (std::size_t i = 0; i < shapes.size(); ++i)
      list.push_back(tape.leaf(inputs[i].data(), shapes[i]));
    return list;
  };
  const auto value = [&] {
    tape.clear();
    const Var<double> out = f(tape, leaves());
    double sum = 0;
    for (Index i = 0; i < out.size(); ++i)
      sum += out.data()[i] * cotangent[static_cast<std::size_t>(i)];
    return sum;
  };

  {
    const auto list = leaves();
    const Var<double> out = f(tape, list);
    for (Index i = 0; i < out.size(); ++i) cotangent.push_back(random.uniform(-1, 1));
    tape.backward(out, cotangent.data());
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      const double* const g = tape.grad(list[i]);
      gradients.emplace_back(inputs[i].size());
      if (g != nullptr) std::copy_n(g, inputs[i].size(), gradients.back().begin());
    }
  }
  double largest = 1e-3;
  for (const auto& g : gradients)
    for (const double x : g) largest = std::max(largest, std::abs(x));
  for (std::size_t i = 0; i < inputs.size(); ++i)
    for (std::size_t j = 0; j < inputs[i].size(); ++j) {
      double& x = inputs[i][j];
      const double at = x;
      x = at + options.step;
      const double above = value();
      x = at - options.step;
      const double below = value();
      x = at;
      const double difference = (above - below) / (2 * options.step);
      INFO("input " << i << " " << shapes[i].str() << " element " << j << ": gradient "
                    << gradients[i][j] << ", difference quotient " << difference);
      const double error = std::abs(gradients[i][j] - difference);
      REQUIRE(error <= options.tolerance * largest);
    }
}

}  // namespace subquad::autodiff
