// Loss of the controller on one sequence, and its gradient by hand: through the MLP to all z_i,
// then back through time. For float, which trains, and double, which tests.
#pragma once

#include <cmath>
#include <span>
#include <vector>

#include "methods/engines/adore_controller.h"

namespace subquad {

// The tensors of AdoreController, or their gradients; null where the form has none.
template <class T>
struct ControllerTensors {
  T *w = nullptr, *u = nullptr, *b_w = nullptr, *b_u = nullptr, *distance = nullptr;
  T *w1 = nullptr, *w1_now = nullptr, *b1 = nullptr, *w2 = nullptr, *b2 = nullptr;
};

// "Is token i among the top K of token n?"
struct PairSample {
  std::int32_t n, i;
  float label;  // 1 or 0
};

// Work space that is kept between calls.
template <class T>
struct ControllerWork {
  MatrixT<T> by_x, gates, hidden_part, z, dgates, dby_z, dz, a, da, now, dnow, by_distance,
      dby_distance;
};

// Mean over the samples of -[y log s + (1 - y) log(1 - s)] for the tokens x [length, d_e]; adds its
// gradient to `grads` unless null. O(length d_z (d_e + d_z) + samples hidden).
template <class T>
double controller_loss(const ControllerOptions& o, Index d_e, const ControllerTensors<const T>& p,
                       const T* x_data, Index length, std::span<const PairSample> samples,
                       const ControllerTensors<T>* grads, ControllerWork<T>* work) {
  using Map = Eigen::Map<const MatrixT<T>>;
  using Out = Eigen::Map<MatrixT<T>>;
  using Column = Eigen::Map<const VectorT<T>>;
  const Index s = o.d_z, h = o.hidden, gates = o.gru ? 3 * s : s;
  const Index buckets = distance_bucket(o.distances - 1, o.distances) + 1;
  ControllerWork<T>& k = *work;
  const Map x(x_data, length, d_e), w(p.w, gates, d_e), w1(p.w1, h, s),
      distance(p.distance, buckets, s);
  const auto sigmoid = [](T v) { return T(1) / (T(1) + std::exp(-v)); };

  // ---- states ----
  k.by_x.noalias() = x * w.transpose();
  k.by_x.rowwise() += Column(p.b_w, gates).transpose();
  k.z.resize(length, s);
  if (o.gru) {
    const Map u(p.u, gates, s);
    k.gates.resize(length, gates);
    k.hidden_part.resize(length, s);
    VectorT<T> state = VectorT<T>::Zero(s), by_z(gates);
    for (Index t = 0; t < length; ++t) {
      by_z = Column(p.b_u, gates);
      by_z.noalias() += u * state;
      for (Index c = 0; c < s; ++c) {
        const T reset = sigmoid(k.by_x(t, c) + by_z[c]);
        const T update = sigmoid(k.by_x(t, s + c) + by_z[s + c]);
        const T candidate = std::tanh(k.by_x(t, 2 * s + c) + reset * by_z[2 * s + c]);
        k.hidden_part(t, c) = by_z[2 * s + c];
        k.gates(t, c) = reset, k.gates(t, s + c) = update, k.gates(t, 2 * s + c) = candidate;
        state[c] = (T(1) - update) * candidate + update * state[c];
      }
      k.z.row(t) = state.transpose();
    }
  } else {
    k.z = k.by_x.array().tanh();
  }

  // ---- scores ----
  k.a.noalias() = k.z * w1.transpose();
  k.by_distance.noalias() = distance * w1.transpose();
  if (o.pairwise) k.now.noalias() = k.z * Map(p.w1_now, h, s).transpose();
  if (grads != nullptr) {
    k.da.setZero(length, h);
    k.dby_distance.setZero(buckets, h);
    if (o.pairwise) k.dnow.setZero(length, h);
  }
  double loss = 0;
  const auto count = static_cast<T>(samples.size());
  std::vector<T> unit(static_cast<std::size_t>(h));
  for (const PairSample& pair : samples) {
    const Index bucket = distance_bucket(pair.n - pair.i, o.distances);
    T logit = p.b2[0];
    for (Index j = 0; j < h; ++j) {
      T v = k.a(pair.i, j) + k.by_distance(bucket, j) + p.b1[j];
      if (o.pairwise) v += k.now(pair.n, j);
      unit[static_cast<std::size_t>(j)] = v > T(0) ? v : T(0);
      logit += p.w2[j] * unit[static_cast<std::size_t>(j)];
    }
    const T label = static_cast<T>(pair.label);
    const T positive = logit > T(0) ? logit : T(0);
    loss += static_cast<double>(positive - label * logit + std::log1p(std::exp(-std::abs(logit))));
    if (grads == nullptr) continue;
    const T g = (sigmoid(logit) - label) / count;
    grads->b2[0] += g;
    for (Index j = 0; j < h; ++j) {
      const T active = unit[static_cast<std::size_t>(j)];
      grads->w2[j] += g * active;
      if (!(active > T(0))) continue;
      const T d = g * p.w2[j];
      grads->b1[j] += d;
      k.da(pair.i, j) += d;
      k.dby_distance(bucket, j) += d;
      if (o.pairwise) k.dnow(pair.n, j) += d;
    }
  }
  loss /= static_cast<double>(samples.size());
  if (grads == nullptr) return loss;

  // ---- to the states, then back through time ----
  Out(grads->w1, h, s) += k.da.transpose() * k.z + k.dby_distance.transpose() * distance;
  Out(grads->distance, buckets, s).noalias() += k.dby_distance * w1;
  k.dz.noalias() = k.da * w1;
  if (o.pairwise) {
    Out(grads->w1_now, h, s).noalias() += k.dnow.transpose() * k.z;
    k.dz.noalias() += k.dnow * Map(p.w1_now, h, s);
  }
  k.dgates.resize(length, gates);
  if (o.gru) {
    const Map u(p.u, gates, s);
    k.dby_z.resize(length, gates);
    VectorT<T> carried = VectorT<T>::Zero(s);
    for (Index t = length - 1; t >= 0; --t) {
      for (Index c = 0; c < s; ++c) {
        const T reset = k.gates(t, c), update = k.gates(t, s + c),
                candidate = k.gates(t, 2 * s + c);
        const T before = t > 0 ? k.z(t - 1, c) : T(0), g = k.dz(t, c) + carried[c];
        const T to_candidate = g * (T(1) - update) * (T(1) - candidate * candidate);
        const T to_update = g * (before - candidate) * update * (T(1) - update);
        const T to_reset = to_candidate * k.hidden_part(t, c) * reset * (T(1) - reset);
        k.dgates(t, c) = k.dby_z(t, c) = to_reset;
        k.dgates(t, s + c) = k.dby_z(t, s + c) = to_update;
        k.dgates(t, 2 * s + c) = to_candidate;
        k.dby_z(t, 2 * s + c) = to_candidate * reset;
        carried[c] = g * update;
      }
      carried.noalias() += u.transpose() * k.dby_z.row(t).transpose();
    }
    if (length > 1)
      Out(grads->u, gates, s).noalias() +=
          k.dby_z.bottomRows(length - 1).transpose() * k.z.topRows(length - 1);
    Eigen::Map<VectorT<T>>(grads->b_u, gates) += k.dby_z.colwise().sum().transpose();
  } else {
    k.dgates = k.dz.array() * (T(1) - k.z.array().square());
  }
  Out(grads->w, gates, d_e).noalias() += k.dgates.transpose() * x;
  Eigen::Map<VectorT<T>>(grads->b_w, gates) += k.dgates.colwise().sum().transpose();
  return loss;
}

}  // namespace subquad
