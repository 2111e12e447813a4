// Losses. The sums over rows are taken in double.

#include <cmath>

#include "harness/autodiff/op_tools.h"
#include "harness/core/task.h"

namespace subquad::autodiff {

template <class T>
Var<T> cross_entropy(Var<T> logits, std::span<const std::int32_t> labels, double denominator) {
  const Index classes = logits.dims().back(), rows = logits.dims().rows();
  SUBQUAD_CHECK(static_cast<Index>(labels.size()) == rows, "{} labels for {}", labels.size(),
                logits.dims().str());
  Tape<T>& tape = logits.tape();
  const Var<T> loss = tape.make({}, logits.needs_grad());
  T* const log_sums = tape.save(loss, 0, rows);
  const std::int32_t* const label = labels.data();
  Index scored = 0;
  for (Index r = 0; r < rows; ++r) {
    if (label[r] == kIgnore) continue;
    SUBQUAD_CHECK(label[r] >= 0 && label[r] < classes, "label {} of {} classes", label[r], classes);
    ++scored;
  }
  for_rows(rows, classes, [&](Index r0, Index r1) {
    for (Index r = r0; r < r1; ++r) {
      if (label[r] == kIgnore) continue;
      const T* const x = logits.data() + r * classes;
      T most = x[0];
      for (Index i = 1; i < classes; ++i) most = x[i] > most ? x[i] : most;
      Vec<T> sums{};
      for_vectors<T>(classes, [&](Index i, Index n) {
        Vec<T> e = exp_of<T>(load_some(x + i, n) - most);
        for (Index lane = n; lane < kLanes<T>; ++lane) e[lane] = 0;
        sums += e;
      });
      log_sums[r] = most + std::log(sum_lanes<T>(sums));
    }
  });
  double total = 0;
  for (Index r = 0; r < rows; ++r)
    if (label[r] != kIgnore)
      total += static_cast<double>(log_sums[r]) -
               static_cast<double>(logits.data()[r * classes + label[r]]);
  const double divisor =
      denominator > 0 ? denominator : std::max<double>(1, static_cast<double>(scored));
  *loss.data() = static_cast<T>(total / divisor);
  if (!loss.needs_grad()) return loss;
  tape.note(loss, [=] {
    Tape<T>& t = loss.tape();
    const T factor = static_cast<T>(static_cast<double>(*t.out_grad(loss)) / divisor);
    const T* const sums = t.saved(loss, 0);
    const Target<T> dx = t.target(logits);
    for_rows(rows, classes, [&](Index r0, Index r1) {
      for (Index r = r0; r < r1; ++r) {
        T* const to = dx.data + r * classes;
        if (label[r] == kIgnore) {
          if (!dx.add) std::fill_n(to, classes, T(0));
          continue;
        }
        const T* const x = logits.data() + r * classes;
        for_vectors<T>(classes, [&](Index i, Index n) {
          put(dx, r * classes + i, exp_of<T>(load_some(x + i, n) - sums[r]) * factor, n);
        });
        to[label[r]] -= factor;
      }
    });
  });
  return loss;
}

template <class T>
Var<T> kl_divergence(Var<T> target, Var<T> log_q) {
  SUBQUAD_CHECK(target.dims() == log_q.dims(), "{} against {}", target.dims().str(),
                log_q.dims().str());
  const Index rows = log_q.dims().rows();
  const Var<T> loss = log_q.tape().make({}, log_q.needs_grad());
  double total = 0;
  for (Index i = 0, n = log_q.size(); i < n; ++i) {
    const auto p = static_cast<double>(target.data()[i]);
    if (p > 0) total += p * (std::log(p) - static_cast<double>(log_q.data()[i]));
  }
  *loss.data() = static_cast<T>(total / static_cast<double>(rows));
  if (!loss.needs_grad()) return loss;
  loss.tape().note(loss, [=] {
    const T factor = -*loss.tape().out_grad(loss) / static_cast<T>(rows);
    const Target<T> dq = loss.tape().target(log_q);
    for_vectors<T>(log_q.size(), [&](Index i, Index n) {
      put(dq, i, load_some(target.data() + i, n) * factor, n);
    });
  });
  return loss;
}

template <class T>
Var<T> mse(Var<T> a, Var<T> b) {
  SUBQUAD_CHECK(a.dims() == b.dims(), "{} against {}", a.dims().str(), b.dims().str());
  return mean(square(sub(a, b)));
}

#define INSTANTIATE(T)                                                          \
  template Var<T> cross_entropy(Var<T>, std::span<const std::int32_t>, double); \
  template Var<T> kl_divergence(Var<T>, Var<T>);                                \
  template Var<T> mse(Var<T>, Var<T>);
SUBQUAD_AUTODIFF_BOTH(INSTANTIATE)

}  // namespace subquad::autodiff
