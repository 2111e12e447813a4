// Generated checks of the backward pass.
#include "harness/measure/conformance_checks.h"

namespace subquad::conformance {
namespace {

struct GradientTensors {
  Tensor dq, dk, dv, dx;
  explicit GradientTensors(const QKV& in)
      : dq(in.q.shape()), dk(in.k.shape()), dv(in.v.shape()), dx(in.x.shape()) {
    for (Tensor* x : {&dq, &dk, &dv, &dx}) x->fill(kNaN);
  }
  Gradients views() { return {dq, dk, dv, dx.empty() ? TensorView() : dx.view()}; }
};

}  // namespace

void check_backward_bits(const Runner& run) {
  if (!run.entry.info.supports(Pass::backward)) throw Skip{"no backward pass declared"};
  const ThreadCount restore;
  for (const Problem& p : problems(run, {}, Pass::backward)) {
    const QKV in = make_inputs(run.entry.info, p, run.seed), copy = in;
    Tensor dout(p.batch, p.heads, p.n, p.d_v);
    fill_normal(derive(run.seed, "conformance.dout"), dout.data(), dout.size());
    std::unique_ptr<GradientTensors> first;
    for (const int threads : {1, 2, 3}) {
      omp_set_num_threads(threads);
      const auto method = run.prepared(p, {}, true);
      const auto saved = method->make_saved();
      Tensor out(p.batch, p.heads, p.n, p.d_v);
      out.fill(kNaN);
      method->forward(in.inputs(), out, saved.get());
      require_same(run.forward(p, in), out, p.n, p.str() + ": forward with and without saving");
      auto grads = std::make_unique<GradientTensors>(in);
      method->backward(in.inputs(), out, dout, *saved, grads->views());
      for (const Tensor* x : {&grads->dq, &grads->dk, &grads->dv, &grads->dx})
        require_finite(*x, p.str() + ": gradient");
      require_untouched(in, copy, p.str());
      if (first) {
        const std::string what = fmt::format("{}: {} threads", p.str(), threads);
        require_same(grads->dq, first->dq, p.n, what + ", dq");
        require_same(grads->dk, first->dk, p.n_kv, what + ", dk");
        require_same(grads->dv, first->dv, p.n_kv, what + ", dv");
      } else {
        first = std::move(grads);
      }
    }
  }
}

// Directional derivatives by central differences of the method's own forward. That forward works
// in float32: with a step h its rounding (6e-8 of the output) is amplified by 1/h, while the
// truncation error grows with h^2, so about 1e-3 is what the best step can show; 1e-2 is allowed.
// It finds a wrong factor, sign, transposition or a forgotten term, not a lost digit. Where a
// method chooses keys, forward jumps between choices: most directions have to agree, not all. The
// last steps are too small for precision: there, few choices change on both sides at once.
void check_directions(const Runner& run, int rounds) {
  if (!run.entry.info.supports(Pass::backward)) throw Skip{"no backward pass declared"};
  constexpr double kTolerance = 1e-2;
  constexpr double kSteps[] = {3e-2, 1e-2, 3e-3, 1e-3, 1e-4, 1e-5};
  std::vector<Problem> small = problems(run, {}, Pass::backward);
  std::erase_if(small, [](const Problem& p) { return p.n == 64 || p.n == 2; });
  if (small.empty()) small = problems(run, {}, Pass::backward);
  for (const Problem& p : small) {
    QKV in = make_inputs(run.entry.info, p, run.seed);
    Tensor out(p.batch, p.heads, p.n, p.d_v), dout = out;
    fill_normal(derive(run.seed, "conformance.dout"), dout.data(), dout.size());
    const auto method = run.prepared(p, {}, true);
    const auto saved = method->make_saved();
    for (Parameter* parameter : method->parameters())
      std::fill_n(parameter->grad.data(), parameter->grad.size(), 0.f);
    method->forward(in.inputs(), out, saved.get());
    GradientTensors grads(in);
    method->backward(in.inputs(), out, dout, *saved, grads.views());
    double output_size = 0;  // || out * dout ||_F
    for (Index e = 0; e < out.size(); ++e)
      output_size += std::pow(static_cast<double>(out.data()[e] * dout.data()[e]), 2);
    output_size = std::sqrt(output_size);

    const auto check = [&](const std::string& what, float* values, const float* gradient,
                           Index size, double least = 1e-3) {
      std::vector<float> kept(values, values + size), direction(kept);
      double norm = 0;
      for (Index e = 0; e < size; ++e) norm += std::pow(static_cast<double>(gradient[e]), 2);
      int failures = 0;
      for (int round = 0; round < rounds; ++round) {
        const Seed seed = derive(run.seed, what, {static_cast<std::uint64_t>(round)});
        fill_normal(seed, direction.data(), size);
        const auto loss = [&](double step) {
          for (std::size_t e = 0; e < kept.size(); ++e)
            values[e] = static_cast<float>(static_cast<double>(kept[e]) +
                                           step * static_cast<double>(direction[e]));
          Tensor moved(out.shape());
          method->forward(in.inputs(), moved, nullptr);
          double sum = 0;
          for (Index e = 0; e < out.size(); ++e)
            sum += static_cast<double>(moved.data()[e]) * static_cast<double>(dout.data()[e]);
          std::copy(kept.begin(), kept.end(), values);
          return sum;
        };
        double analytic = 0;
        for (std::size_t e = 0; e < kept.size(); ++e)
          analytic += static_cast<double>(gradient[e]) * static_cast<double>(direction[e]);
        double best = std::numeric_limits<double>::infinity(), best_numeric = kNaN;
        bool conclusive = false;
        double lowest = std::numeric_limits<double>::infinity(), highest = -lowest;
        const double here = loss(0);
        for (const double step : kSteps) {
          const double up = loss(step), down = loss(-step);
          const double numeric = (up - down) / (2 * step);
          // The derivative has the standard deviation `norm`; one that happens to be near zero
          // must not blow up the relative error. The last term is the forward's rounding.
          const double scale = std::max({std::fabs(numeric), std::fabs(analytic),
                                         0.1 * std::sqrt(norm), least * output_size});
          const double error = std::fabs(numeric - analytic) / scale;
          if (!(error >= best)) best = error, best_numeric = numeric;
          // A jump (another choice of keys) shows as a difference between the two sides; what it
          // may explain proves nothing. The verdict is that of the last, smallest step.
          conclusive = !(std::fabs(up - 2 * here + down) / step > std::fabs(numeric - analytic));
          // Where larger steps disagree wildly, choices change at all of them: only the last one
          // is left, and what the rounding of the outputs explains there proves nothing.
          const bool wild = highest - lowest > 3 * scale;
          if (wild && 4e-7 * output_size / step > std::fabs(numeric - analytic)) conclusive = false;
          lowest = std::min(lowest, numeric);
          highest = std::max(highest, numeric);
        }
        if (best <= kTolerance || !conclusive) continue;
        if (++failures * 2 > rounds)
          fail(
              "{}: derivative along {} (seed {}) is {:.6g}, central differences give {:.6g}: "
              "relative error {:.3g}, allowed {:.3g}",
              p.str(), what, seed, analytic, best_numeric, best, kTolerance);
      }
    };
    check("q", in.q.data(), grads.dq.data(), in.q.size());
    check("k", in.k.data(), grads.dk.data(), in.k.size());
    check("v", in.v.data(), grads.dv.data(), in.v.size());
    if (!in.x.empty()) check("x", in.x.data(), grads.dx.data(), in.x.size());
    for (Parameter* parameter : method->parameters())
      // A learned tensor may hardly matter, and ReLUs behind it need steps so small that rounding
      // shows: its derivative is judged by the size of the output.
      check("parameter " + parameter->name, parameter->value.data(), parameter->grad.data(),
            parameter->value.size(), 3e-2);
  }
}

}  // namespace subquad::conformance
