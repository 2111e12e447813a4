#include "methods/engines/sea_fit.h"

#include <cmath>
#include <numbers>

#include "harness/core/parallel.h"
#include "methods/engines/sea_graph.h"
#include "methods/engines/sea_teacher.h"

namespace subquad {

using namespace engine;

namespace {

class AdamW {  // Loshchilov and Hutter 2019 (arXiv 1711.05101), usual constants
 public:
  explicit AdamW(std::vector<Parameter*> parameters) : parameters_(std::move(parameters)) {
    for (const Parameter* p : parameters_) {
      first_.emplace_back(p->value.size());
      second_.emplace_back(p->value.size());
    }
  }
  void step(double rate, double decay, double clip) {
    ++steps_;
    double norm = 0;
    for (const Parameter* p : parameters_)
      for (Index i = 0; i < p->grad.size(); ++i)
        norm += static_cast<double>(p->grad[i]) * static_cast<double>(p->grad[i]);
    const auto factor = static_cast<float>(norm > clip * clip ? clip / std::sqrt(norm) : 1.0);
    const double unbias1 = 1 - std::pow(0.9, steps_), unbias2 = 1 - std::pow(0.999, steps_);
    for (std::size_t k = 0; k < parameters_.size(); ++k) {
      Parameter& p = *parameters_[k];
      const auto shrink = static_cast<float>(p.decay ? 1 - rate * decay : 1.0),
                 size = static_cast<float>(rate / unbias1), root = static_cast<float>(1 / unbias2);
      for (Index i = 0; i < p.value.size(); ++i) {
        const float g = factor * p.grad[i];
        first_[k][i] += 0.1f * (g - first_[k][i]);
        second_[k][i] += 0.001f * (g * g - second_[k][i]);
        p.value[i] =
            shrink * p.value[i] - size * first_[k][i] / (std::sqrt(second_[k][i] * root) + 1e-8f);
      }
    }
  }

 private:
  std::vector<Parameter*> parameters_;
  std::vector<AlignedArray<float>> first_, second_;
  int steps_ = 0;
};

class Fit {
 public:
  Fit(SeaAttention& attention, SeaWeights& weights, const SeaFitOptions& options)
      : attention_(attention),
        weights_(weights),
        options_(options),
        p_(attention.problem()),
        saved_(attention.make_saved()) {
    const SeaShape& s = attention.shape();
    const Index heads = p_.batch * p_.heads;
    out_ = Tensor(p_.batch, p_.heads, p_.n, p_.d_v);
    dout_ = Tensor(out_.shape());
    dq_ = Tensor(p_.batch, p_.heads, p_.n, p_.d_k);
    dk_ = Tensor(dq_.shape());
    dv_ = Tensor(out_.shape());
    dkernel_ = Tensor(p_.batch, p_.heads, p_.n, 2 * p_.d_v);
    dvalues_ = Tensor(dkernel_.shape());
    dscores_ = AlignedArray<float>(heads * s.rows() * s.cells);
    losses_ = AlignedArray<double>(heads * s.rows());
    picked_kernel_ = Tensor(p_.batch, p_.heads, s.rows(), 2 * p_.d_v);
    picked_v_ = Tensor(p_.batch, p_.heads, s.rows(), p_.d_v);
  }

  // L_approx: gradients of everything in front of the scores.
  double approximate(const Inputs& in) { return approximate(in, in.q, in.k, 1, nullptr); }

  // The same against a teacher's q and k, times `weight`; with `grads` also those of this call's q,
  // k and v, overwritten.
  double approximate(const Inputs& in, ConstTensorView teacher_q, ConstTensorView teacher_k,
                     double weight, const Gradients* grads) {
    attention_.kernel(in, saved_->kernel, saved_->scan.get());
    const SeaShape& s = attention_.shape();
    const Index rows = s.rows(), d = p_.d_v;
    for (Index bh = 0; bh < p_.batch * p_.heads; ++bh)
      for (Index r = 0; r < rows; ++r) {
        picked_kernel_.view().head(bh).row(r) = saved_->kernel.view().head(bh).row(r * s.skip);
        picked_v_.view().head(bh).row(r) = in.v.head(bh).row(r * s.skip);
      }
    tape_.clear();
    const auto kernel = tape_.leaf(picked_kernel_.data(), {p_.batch, p_.heads, rows, 2 * d});
    const autodiff::Dims v_dims{p_.batch, p_.heads, rows, d};
    const auto v = grads != nullptr ? tape_.leaf(picked_v_.data(), v_dims)
                                    : tape_.constant(picked_v_.data(), v_dims);
    const auto graph = record_sea<float>(s, weights_, kernel, v, true, [&](Parameter& p) {
      autodiff::Dims dims;
      for (const Index size : p.shape) dims.push_back(size);
      return tape_.parameter(p.value.data(), p.grad.data(), dims);
    });
    const double loss = score_gradients(teacher_q, teacher_k, weight, graph.scores.data());
    tape_.backward(graph.scores, dscores_.data());
    if (s.positions > 0 || grads != nullptr) {
      dkernel_.fill(0);
      if (const float* const grad = tape_.grad(kernel))
        for (Index bh = 0; bh < p_.batch * p_.heads; ++bh)
          for (Index r = 0; r < rows; ++r)
            std::copy_n(grad + (bh * rows + r) * 2 * d, 2 * d,
                        dkernel_.view().head(bh).row(r * s.skip).data());
      attention_.kernel_backward(in, saved_->kernel, dkernel_, *saved_->scan, dq_, dk_, dvalues_);
    }
    if (grads == nullptr) return loss;
    std::copy_n(dq_.data(), dq_.size(), grads->dq.data());
    std::copy_n(dk_.data(), dk_.size(), grads->dk.data());
    const float* const dv = tape_.grad(v);
    for (Index bh = 0; bh < p_.batch * p_.heads; ++bh) {
      for (Index t = 0; t < p_.n; ++t)  // the second half of the values of kernel attention is v
        std::copy_n(dvalues_.view().head(bh).row(t).data() + d, d,
                    grads->dv.head(bh).row(t).data());
      for (Index r = 0; r < rows && dv != nullptr; ++r)
        for (Index c = 0; c < d; ++c)
          grads->dv.head(bh)(r * s.skip, c) += dv[(bh * rows + r) * d + c];
    }
    return loss;
  }

  // L_prob: the exact attention of q and k against the teacher's, times `weight`; adds to dq, dk.
  double probabilities(ConstTensorView q, ConstTensorView k, ConstTensorView teacher_q,
                       ConstTensorView teacher_k, double weight, TensorView dq, TensorView dk) {
    constexpr Index kRows = 64;
    const Index n = p_.n, blocks = (n + kRows - 1) / kRows, all = p_.batch * p_.heads;
    const double rows = static_cast<double>(all * n), entries = rows * static_cast<double>(n);
    const auto tau = static_cast<float>(p_.logit_scale());
    const auto kl = static_cast<float>(weight * options_.kl / rows),
               mse = static_cast<float>(weight * options_.mse / entries);
    double loss = 0;
    for (Index bh = 0; bh < all; ++bh)
      for (Index block = 0; block < blocks; ++block) {
        const Index first = block * kRows, count = std::min(kRows, n - first),
                    seen = p_.causal ? first + count : n;
        exact_rows(q.head(bh), k.head(bh), first, count, seen, tau, &mine_);
        exact_rows(teacher_q.head(bh), teacher_k.head(bh), first, count, seen, tau, &other_);
        for (Index r = 0; r < count; ++r) {
          auto a = mine_.row(r);
          const auto t = other_.row(r);
          double inner = 0;
          for (Index j = 0; j < seen; ++j) {
            const auto x = static_cast<double>(a(j)), y = static_cast<double>(t(j));
            if (y > 0) loss += static_cast<double>(kl) * y * std::log(y / std::max(x, 1e-37));
            loss += static_cast<double>(mse) * (x - y) * (x - y);
            inner += 2 * x * (x - y);
          }
          const auto shift = static_cast<float>(inner);
          for (Index j = 0; j < seen; ++j) {
            const float difference = a(j) - t(j);
            a(j) = kl * difference + mse * a(j) * (2 * difference - shift);
          }
        }
        const auto slope = mine_.topLeftCorner(count, seen);
        dq.head(bh).middleRows(first, count).noalias() += tau * (slope * k.head(bh).topRows(seen));
        dk.head(bh).topRows(seen).noalias() +=
            tau * (slope.transpose() * q.head(bh).middleRows(first, count));
      }
    return loss;
  }

  // L_context: mean squared distance of the outputs.
  double reproduce(const Inputs& in, ConstTensorView dense) {
    attention_.forward(in, out_, saved_.get());
    double loss = 0;
    const double share = 1 / static_cast<double>(out_.size());
    for (Index i = 0; i < out_.size(); ++i) {
      const double difference =
          static_cast<double>(out_.data()[i]) - static_cast<double>(dense.data()[i]);
      loss += share * difference * difference;
      dout_.data()[i] = static_cast<float>(2 * share * difference);
    }
    attention_.backward(in, dout_, *saved_, {dq_, dk_, dv_, {}});
    return loss;
  }

 private:
  // Exact attention of rows [first, first + count) over keys [0, seen) -> the corner of *to.
  template <class Rows>
  void exact_rows(const Rows& q, const Rows& k, Index first, Index count, Index seen, float tau,
                  Matrix* to) const {
    if (to->rows() < count || to->cols() < p_.n) to->resize(64, p_.n);
    auto part = to->topLeftCorner(count, seen);
    part.noalias() = tau * (q.middleRows(first, count) * k.topRows(seen).transpose());
    for (Index r = 0; r < count; ++r) {
      const Index visible = p_.causal ? first + r + 1 : seen;
      auto row = part.row(r).head(visible).array();
      row = (row - row.maxCoeff()).exp();
      row /= row.sum();
      part.row(r).tail(seen - visible).setZero();
    }
  }

  // O(n^2 d) for the teacher's rows; beyond them O(n K_c).
  double score_gradients(ConstTensorView teacher_q, ConstTensorView teacher_k, double weight,
                         const float* scores) {
    const SeaShape& s = attention_.shape();
    const Index rows = s.rows(), heads = p_.batch * p_.heads, wide_d = round_up(p_.d_k, kLanes);
    ApproximationWeights weights{.kl = weight * options_.kl, .mse = weight * options_.mse};
    weights.rows = static_cast<double>(heads * rows);
    weights.entries = weights.rows * static_cast<double>(p_.n);
    const Index room = wide_d + kLanes + round_up(p_.n, kLanes) + round_up(s.cells, kLanes);
    if (teacher_work_.size() < thread_count() * room)
      teacher_work_ = AlignedArray<float>(thread_count() * room);
    const auto factor = static_cast<float>(p_.logit_scale() * 1.4426950408889634073599);
    parallel_for(heads * rows, [&](Index item, int thread) {
      const Index bh = item / rows, t = item % rows * s.skip, seen = p_.causal ? t + 1 : p_.n;
      float *const q = teacher_work_.data() + thread * room, *const tail = q + wide_d,
                   *const row = tail + kLanes, *const masses = row + round_up(p_.n, kLanes);
      const float* const from = teacher_q.head(bh).data() + t * p_.d_k;
      for (Index c = 0; c < p_.d_k; ++c) q[c] = from[c] * factor;
      const auto keys = [&](Index c) { return attention_.cell_keys(c, t); };
      const TeacherRow teacher =
          teacher_masses(RowQuery(q, p_.d_k, tail), teacher_k.head(bh).data(), p_.d_k, seen,
                         s.cells, keys, row, masses);
      losses_[item] = approximation_loss(
          scores + item * s.cells, masses, teacher, s.cells,
          [&](Index c) { return keys(c).second - keys(c).first; }, weights,
          dscores_.data() + item * s.cells);
    });
    double loss = 0;
    for (Index i = 0; i < losses_.size(); ++i) loss += losses_[i];
    return loss;
  }

  SeaAttention& attention_;
  SeaWeights& weights_;
  SeaFitOptions options_;
  Problem p_;
  std::unique_ptr<SeaSaved> saved_;
  Tensor out_, dout_, dq_, dk_, dv_, dkernel_, dvalues_, picked_kernel_, picked_v_;
  AlignedArray<float> dscores_, teacher_work_;
  AlignedArray<double> losses_;
  Matrix mine_, other_;  // [64, n]
  autodiff::Tape<float> tape_;
};

}  // namespace

class SeaMatrixLoss::Work : public Fit {
  using Fit::Fit;
};

SeaMatrixLoss::SeaMatrixLoss(SeaAttention& attention, SeaWeights& weights, double kl, double mse)
    : work_(std::make_unique<Work>(attention, weights, SeaFitOptions{.kl = kl, .mse = mse})) {}
SeaMatrixLoss::~SeaMatrixLoss() = default;

double SeaMatrixLoss::run(const Inputs& in, ConstTensorView teacher_q, ConstTensorView teacher_k,
                          double weight, const Gradients& grads) {
  SUBQUAD_CHECK(weight > 0, "a loss of weight {}", weight);
  const double estimate = work_->approximate(in, teacher_q, teacher_k, weight, &grads);
  const double exact =
      work_->probabilities(in.q, in.k, teacher_q, teacher_k, weight, grads.dq, grads.dk);
  return (estimate + exact) / weight;
}

FitReport fit_sea(SeaAttention& attention, SeaWeights& weights, FitData& data,
                  const FitOptions& options, const SeaFitOptions& sea) {
  using Stages = SeaFitOptions::Stages;
  Fit fit(attention, weights, sea);
  const std::vector<Parameter*> all = weights.all();
  // The gates and what they read; the scores read it too, so that this stage stays short.
  const std::vector<Parameter*> for_gates{&weights.w1,    &weights.b1, &weights.ln1_w,
                                          &weights.ln1_b, &weights.w3, &weights.b3};
  FitReport report;
  double first = 0, last = 0;
  const auto run = [&](Index steps, bool scores, bool output,
                       const std::vector<Parameter*>& trained) {
    AdamW optimizer(trained);
    const Index tenth = std::max<Index>(1, steps / 10);
    double begin = 0, end = 0;
    for (Index step = 0; step < steps; ++step) {
      for (Parameter* p : all) std::fill_n(p->grad.data(), p->grad.size(), 0.0f);
      Inputs in;
      ConstTensorView dense;
      data.next(&in, &dense);
      double loss = 0;
      if (scores) loss += fit.approximate(in);
      if (output) loss += fit.reproduce(in, dense);
      const double done = static_cast<double>(step) / static_cast<double>(steps);
      optimizer.step(options.learning_rate * 0.5 * (1 + std::cos(std::numbers::pi * done)),
                     sea.decay, sea.clip);
      if (step < tenth) begin += loss / static_cast<double>(tenth);
      if (step >= steps - tenth) end += loss / static_cast<double>(tenth);
      if (options.progress) options.progress(report.steps, loss);
      ++report.steps;
    }
    if (first == 0) first = begin, last = end;
  };
  const Index steps = options.steps;
  // Our choice: one step for the gates to six for the estimator.
  const Index gates = std::max<Index>(1, steps / 7);
  switch (sea.stages) {
    case Stages::estimator_then_gates:
      run(std::max<Index>(1, steps - gates), true, false, all);
      if (attention.options().gates) run(gates, false, true, for_gates);
      break;
    case Stages::estimator:
      run(steps, true, false, all);
      break;
    case Stages::gates:
      run(steps, false, true, for_gates);
      break;
    case Stages::joint:
      run(steps, true, true, all);
      break;
  }
  report.first_loss = first;
  report.last_loss = last;
  return report;
}

}  // namespace subquad
