#include "harness/core/fit.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "harness/core/error.h"

namespace subquad {
namespace {

constexpr double kBeta1 = 0.9, kBeta2 = 0.999, kEpsilon = 1e-8;
constexpr double kDecay = 0.01;
constexpr double kLargestNorm = 1;

double rate_at(const FitOptions& options, Index warmup, Index step) {
  if (step <= warmup)
    return options.learning_rate * static_cast<double>(step) / static_cast<double>(warmup);
  const double part = static_cast<double>(step - warmup) /
                      static_cast<double>(std::max<Index>(1, options.steps - warmup));
  return options.learning_rate * 0.5 * (1 + std::cos(std::numbers::pi * part));
}

// Buffers of one call, made again when the shape changes.
struct Call {
  Tensor out, dout, dq, dk, dv, dx;
  void fit_to(const Inputs& in, const Shape& shape) {
    if (!(out.shape() == shape)) {
      out = Tensor(shape);
      dout = Tensor(shape);
    }
    for (auto& [to, from] : {std::pair{&dq, &in.q}, {&dk, &in.k}, {&dv, &in.v}, {&dx, &in.x}})
      if (!from->empty() && !(to->shape() == from->shape())) *to = Tensor(from->shape());
  }
};

// The loss; its gradient to dout.
double relative_square(ConstTensorView out, ConstTensorView dense, TensorView dout) {
  double square = 0, error = 0;
  for (Index i = 0; i < out.size(); ++i) {
    const double d = static_cast<double>(dense.data()[i]);
    const double e = static_cast<double>(out.data()[i]) - d;
    square += d * d;
    error += e * e;
  }
  square = std::max(square, 1e-30);  // all padding: a loss of zero over zero
  for (Index i = 0; i < out.size(); ++i)
    dout.data()[i] = static_cast<float>(
        2 * (static_cast<double>(out.data()[i]) - static_cast<double>(dense.data()[i])) / square);
  return error / square;
}

struct Moments {
  AlignedArray<double> mean, square;
};

}  // namespace

FitReport fit_by_gradient(Method& method, FitData& data, const FitOptions& options) {
  const std::vector<Parameter*> parameters = method.parameters();
  if (parameters.empty()) throw Unsupported("the method has nothing to fit at these settings");
  std::vector<Moments> moments;
  for (const Parameter* p : parameters) {
    SUBQUAD_CHECK(p->grad.size() == p->value.size(), "{}: {} values, {} gradients", p->name,
                  p->value.size(), p->grad.size());
    moments.push_back(
        {AlignedArray<double>(p->value.size()), AlignedArray<double>(p->value.size())});
    std::fill_n(moments.back().mean.data(), p->value.size(), 0.0);
    std::fill_n(moments.back().square.data(), p->value.size(), 0.0);
  }
  const Index warmup = std::max<Index>(1, options.steps / 10);
  const Index counted = std::max<Index>(1, options.steps / 10);
  const std::unique_ptr<Saved> saved = method.make_saved();
  Call call;
  FitReport report;
  double last_sum = 0;
  Index last_count = 0;
  for (Index step = 1; step <= options.steps; ++step) {
    Inputs in;
    ConstTensorView dense;
    data.next(&in, &dense);
    in.training = true;
    in.step = static_cast<std::uint64_t>(step);
    call.fit_to(in, dense.shape());
    for (Parameter* p : parameters) std::fill_n(p->grad.data(), p->grad.size(), 0.0f);
    method.forward(in, call.out, saved.get());
    const double loss = relative_square(call.out, dense, call.dout);
    report.steps = step;
    if (step == 1) report.first_loss = loss;
    if (step > options.steps - counted) {
      last_sum += loss;
      ++last_count;
    }
    if (options.progress) options.progress(step, loss);
    if (!std::isfinite(loss)) {
      report.last_loss = loss;
      return report;
    }
    Gradients grads{call.dq, call.dk, call.dv, {}};
    if (!in.x.empty()) grads.dx = call.dx;
    method.backward(in, call.out, call.dout, *saved, grads);

    double norm = 0;
    for (const Parameter* p : parameters)
      for (Index i = 0; i < p->grad.size(); ++i)
        norm += static_cast<double>(p->grad[i]) * static_cast<double>(p->grad[i]);
    norm = std::sqrt(norm);
    const double factor = norm > kLargestNorm ? kLargestNorm / norm : 1;
    const double rate = rate_at(options, warmup, step);
    const double c1 = 1 - std::pow(kBeta1, static_cast<double>(step));
    const double c2 = 1 - std::pow(kBeta2, static_cast<double>(step));
    for (std::size_t t = 0; t < parameters.size(); ++t) {
      Parameter& p = *parameters[t];
      const double kept = p.decay ? 1 - rate * kDecay : 1;
      for (Index i = 0; i < p.value.size(); ++i) {
        const double g = factor * static_cast<double>(p.grad[i]);
        double &m = moments[t].mean[i], &v = moments[t].square[i];
        m = kBeta1 * m + (1 - kBeta1) * g;
        v = kBeta2 * v + (1 - kBeta2) * g * g;
        p.value[i] = static_cast<float>(kept * static_cast<double>(p.value[i]) -
                                        rate * (m / c1) / (std::sqrt(v / c2) + kEpsilon));
      }
    }
  }
  if (last_count > 0) report.last_loss = last_sum / static_cast<double>(last_count);
  return report;
}

FitReport Method::fit(FitData& data, const FitOptions& options) {
  return fit_by_gradient(*this, data, options);
}

}  // namespace subquad
