// Training of ADORE's controller.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "methods/engines/adore_gradient.h"

namespace subquad {
namespace {

// Adam (Kingma and Ba 2015, arXiv 1412.6980) with its usual constants, gradients cut to norm 1.
class Adam {
 public:
  explicit Adam(const std::vector<Parameter*>& parameters) : parameters_(parameters) {
    for (const Parameter* p : parameters) {
      mean_.push_back(VectorD::Zero(p->value.size()));
      square_.push_back(VectorD::Zero(p->value.size()));
    }
  }

  void step(double learning_rate) {
    double norm2 = 0;
    for (const Parameter* p : parameters_)
      for (Index e = 0; e < p->grad.size(); ++e)
        norm2 += static_cast<double>(p->grad[e]) * static_cast<double>(p->grad[e]);
    const double cut = norm2 > 1 ? 1 / std::sqrt(norm2) : 1;
    ++steps_;
    const double unbias_mean = 1 - std::pow(kMean, steps_),
                 unbias_square = 1 - std::pow(kSquare, steps_);
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      Parameter& p = *parameters_[i];
      for (Index e = 0; e < p.value.size(); ++e) {
        const double g = cut * static_cast<double>(p.grad[e]);
        double &m = mean_[i][e], &v = square_[i][e];
        m = kMean * m + (1 - kMean) * g;
        v = kSquare * v + (1 - kSquare) * g * g;
        p.value[e] -= static_cast<float>(learning_rate * (m / unbias_mean) /
                                         (std::sqrt(v / unbias_square) + 1e-8));
        p.grad[e] = 0;
      }
    }
  }

 private:
  static constexpr double kMean = 0.9, kSquare = 0.999;
  std::vector<Parameter*> parameters_;
  std::vector<VectorD> mean_, square_;
  int steps_ = 0;
};

template <class T>
ControllerTensors<T> tensors(AdoreController& net, bool grads) {
  const auto data = [grads](Parameter& p) -> T* { return grads ? p.grad.data() : p.value.data(); };
  return {data(net.w),  data(net.u),      data(net.b_w), data(net.b_u), data(net.distance),
          data(net.w1), data(net.w1_now), data(net.b1),  data(net.w2),  data(net.b2)};
}

// Head mean of the causal attention weights of every stride-th query of batch item b, those with
// more than K past tokens -> the K past tokens of largest weight as positives, and as many others:
// half of them the next K / 2 in rank, which are hard to tell apart, half any.
void draw_samples(const Inputs& in, Index b, double scale, const ControllerTraining& o,
                  Random& random, std::vector<PairSample>* samples) {
  const Index heads = in.q.heads(), length = in.q.n();
  samples->clear();
  std::vector<Index> queries;
  const auto offset = static_cast<Index>(random.below(static_cast<std::uint64_t>(o.stride)));
  for (Index n = o.top_k + 1 + offset; n < length; n += o.stride) queries.push_back(n);
  const auto rows = static_cast<Index>(queries.size());
  Matrix mean = Matrix::Zero(rows, length), picked(rows, in.q.d()), weights(rows, length);
  for (Index h = 0; h < heads; ++h) {
    for (Index r = 0; r < rows; ++r)
      picked.row(r) = in.q.head(b, h).row(queries[static_cast<std::size_t>(r)]);
    weights.noalias() = static_cast<float>(scale) * picked * in.k.head(b, h).transpose();
    for (Index r = 0; r < rows; ++r) {
      const Index seen = queries[static_cast<std::size_t>(r)] + 1;
      auto row = weights.row(r).head(seen);
      const float max = row.maxCoeff();
      row = (row.array() - max).exp();
      mean.row(r).head(seen) += row / row.sum();
    }
  }
  std::vector<std::int32_t> order;
  for (Index r = 0; r < rows; ++r) {
    const Index n = queries[static_cast<std::size_t>(r)], others = n - o.top_k;
    order.resize(static_cast<std::size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](std::int32_t x, std::int32_t y) {
      return mean(r, x) > mean(r, y) || (mean(r, x) == mean(r, y) && x > y);
    });
    const Index negatives = std::min(o.top_k, others), hard = std::min(negatives, o.top_k / 2);
    const auto add = [&](Index rank, float label) {
      samples->push_back(
          {static_cast<std::int32_t>(n), order[static_cast<std::size_t>(rank)], label});
    };
    for (Index e = 0; e < o.top_k; ++e) add(e, 1);
    for (Index e = 0; e < hard; ++e) add(o.top_k + e, 0);
    for (Index e = hard; e < negatives; ++e)
      add(o.top_k + static_cast<Index>(random.below(static_cast<std::uint64_t>(others))), 0);
  }
}

}  // namespace

FitReport train_controller(AdoreController& net, double scale, FitData& data,
                           const ControllerTraining& options) {
  const std::vector<Parameter*> parameters = net.all();
  for (Parameter* p : parameters) std::fill_n(p->grad.data(), p->grad.size(), 0.0f);
  const ControllerTensors<float> values = tensors<float>(net, false),
                                 grads = tensors<float>(net, true);
  const ControllerTensors<const float> read{values.w,        values.u,  values.b_w,    values.b_u,
                                            values.distance, values.w1, values.w1_now, values.b1,
                                            values.w2,       values.b2};
  Adam adam(parameters);
  ControllerWork<float> work;
  std::vector<PairSample> samples;
  std::vector<float> keys;
  Random random(options.seed, "adore.samples");
  FitReport report;
  Inputs in;
  ConstTensorView dense;
  for (Index update = 0, item = 0; update < options.updates; ++update, ++item) {
    if (update == 0 || item == in.q.batch()) data.next(&in, &dense), item = 0;
    const Index length = in.q.n();
    if (length <= options.top_k + options.stride)
      throw Unsupported(
          fmt::format("adore: fitting needs sequences of more than m + 4 = {} tokens, got {}",
                      options.top_k + options.stride, length));
    draw_samples(in, item, scale, options, random, &samples);
    const float* x = nullptr;
    if (!in.x.empty()) {
      x = in.x.head_data(item, 0);
    } else {  // keys of all heads side by side
      const Index d_k = in.k.d();
      keys.resize(static_cast<std::size_t>(length * net.d_e));
      for (Index h = 0; h < in.k.heads(); ++h)
        for (Index t = 0; t < length; ++t)
          std::copy_n(in.k.head_data(item, h) + t * d_k, d_k, keys.data() + t * net.d_e + h * d_k);
      x = keys.data();
    }
    report.last_loss =
        controller_loss<float>(net.options, net.d_e, read, x, length, samples, &grads, &work);
    if (update == 0) report.first_loss = report.last_loss;
    adam.step(options.learning_rate);
    if (options.progress) options.progress(update + 1, report.last_loss);
  }
  report.steps = options.updates;
  return report;
}

}  // namespace subquad
