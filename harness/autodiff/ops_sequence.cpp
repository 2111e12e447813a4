// Recurrence and rotation by position.

#include <cmath>

#include "harness/autodiff/op_tools.h"

namespace subquad::autodiff {
namespace {

// The gates alone, given the products: xw = W x + b [b, 3 s], zu = U z + b' [b, 3 s], z [b, s].
// Standard form (Cho et al. 2014, arXiv 1406.1078, with the reset after the product).
template <class T>
Var<T> gru_gates(Var<T> xw, Var<T> zu, Var<T> z) {
  Tape<T>& tape = xw.tape();
  const Index batch = z.dims()[0], s = z.dims()[1];
  const Var<T> out = tape.make(z.dims(), xw.needs_grad() || zu.needs_grad() || z.needs_grad());
  T* const gates = tape.save(out, 0, 3 * batch * s);  // r, u, c
  const auto sigmoid_at = [](T v) { return T(1) / (T(1) + std::exp(-v)); };
  for (Index b = 0; b < batch; ++b)
    for (Index i = 0; i < s; ++i) {
      const T *const px = xw.data() + b * 3 * s, *const pz = zu.data() + b * 3 * s;
      T* const g = gates + b * 3 * s;
      g[i] = sigmoid_at(px[i] + pz[i]);
      g[s + i] = sigmoid_at(px[s + i] + pz[s + i]);
      g[2 * s + i] = std::tanh(px[2 * s + i] + g[i] * pz[2 * s + i]);
      out.data()[b * s + i] = (T(1) - g[s + i]) * g[2 * s + i] + g[s + i] * z.data()[b * s + i];
    }
  if (!out.needs_grad()) return out;
  tape.note(out, [=] {
    Tape<T>& t = out.tape();
    const T *const g = t.out_grad(out), *const saved = t.saved(out, 0);
    const Target<T> dx = t.target(xw), dzu = t.target(zu), dz = t.target(z);
    const auto give = [](const Target<T>& to, Index i, T value) {
      if (to) to.data[i] = to.add ? to.data[i] + value : value;
    };
    for (Index b = 0; b < batch; ++b)
      for (Index i = 0; i < s; ++i) {
        const Index row = b * 3 * s;
        const T r = saved[row + i], u = saved[row + s + i], c = saved[row + 2 * s + i];
        const T grad = g[b * s + i], hidden = zu.data()[row + 2 * s + i];
        const T da_c = grad * (T(1) - u) * (T(1) - c * c);
        const T da_u = grad * (z.data()[b * s + i] - c) * u * (T(1) - u);
        const T da_r = da_c * hidden * r * (T(1) - r);
        give(dz, b * s + i, grad * u);
        give(dx, row + i, da_r);
        give(dx, row + s + i, da_u);
        give(dx, row + 2 * s + i, da_c);
        give(dzu, row + i, da_r);
        give(dzu, row + s + i, da_u);
        give(dzu, row + 2 * s + i, da_c * r);
      }
  });
  return out;
}

// y = x turned forward (sign 1) or back (-1).
template <class T>
void turn(const T* x, Target<T> y, Index heads, Index n, Index d, const T* cosine, const T* sine,
          T sign) {
  const Index half = d / 2;
  parallel_for(heads, [&](Index h, int) {
    for (Index t = 0; t < n; ++t) {
      const Index at = (h * n + t) * d;
      for_vectors<T>(half, [&](Index i, Index count) {
        const Vec<T> c = load_some(cosine + t * half + i, count);
        const Vec<T> s = load_some(sine + t * half + i, count) * sign;
        const Vec<T> low = load_some(x + at + i, count), high = load_some(x + at + half + i, count);
        put(y, at + i, low * c - high * s, count);
        put(y, at + half + i, high * c + low * s, count);
      });
    }
  });
}

}  // namespace

template <class T>
Var<T> gru_cell(Var<T> x, Var<T> z, Var<T> w, Var<T> u, Var<T> b_w, Var<T> b_u) {
  SUBQUAD_CHECK(
      z.dims().rank() == 2 && w.dims()[0] == 3 * z.dims()[1] && u.dims()[0] == 3 * z.dims()[1],
      "state {}, weights {} and {}", z.dims().str(), w.dims().str(), u.dims().str());
  return gru_gates(linear(x, w, b_w), linear(z, u, b_u), z);
}

template <class T>
Var<T> rotate(Var<T> x, const T* cosine, const T* sine) {
  const Dims& dims = x.dims();
  SUBQUAD_CHECK(dims.rank() == 4 && dims[3] % 2 == 0, "rotation of {} needs an even width",
                dims.str());
  const Index heads = dims[0] * dims[1], n = dims[2], d = dims[3];
  const Var<T> y = x.tape().make(dims, x.needs_grad());
  turn(static_cast<const T*>(x.data()), Target<T>{y.data(), false}, heads, n, d, cosine, sine,
       T(1));
  if (y.needs_grad())
    y.tape().note(y, [=] {
      turn(y.tape().out_grad(y), x.tape().target(x), heads, n, d, cosine, sine, T(-1));
    });
  return y;
}

#define INSTANTIATE(T)                                                      \
  template Var<T> gru_cell(Var<T>, Var<T>, Var<T>, Var<T>, Var<T>, Var<T>); \
  template Var<T> rotate(Var<T>, const T*, const T*);
SUBQUAD_AUTODIFF_BOTH(INSTANTIATE)

}  // namespace subquad::autodiff
