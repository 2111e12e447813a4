// Ops on single elements.

#include <cmath>

#include "harness/autodiff/op_tools.h"

namespace subquad::autodiff {
namespace {

template <class T, class F>
Vec<T> each(Vec<T> x, F f) {  // libm, lane by lane
  for (int i = 0; i < kLanes<T>; ++i) x[i] = f(x[i]);
  return x;
}

template <class T>
Vec<T> constant_vec(double x) {
  return broadcast(static_cast<T>(x));
}

constexpr double kRootTwoOverPi = 0.79788456080286535588;  // sqrt(2 / pi)
constexpr double kRootTwoPiInverse = 0.39894228040143267794;
constexpr double kGeluCubic = 0.044715;  // Hendrycks and Gimpel 2016, arXiv 1606.08415

// tanh(x) by the exponential: absolute error about 1e-7 in float.
template <class T>
Vec<T> tanh_of(Vec<T> x) {
  if constexpr (sizeof(T) == 8) {
    return each<T>(x, [](T v) { return std::tanh(v); });
  } else {
    const Vec<T> a = x < T(0) ? -x : x;
    const Vec<T> e = exp_of<T>(a * T(-2));
    const Vec<T> far = (T(1) - e) / (T(1) + e);
    // Near 0 the quotient cancels: the series to x^7 is exact to 1e-8 below 0.2.
    const Vec<T> s = x * x;
    const Vec<T> near = x + x * s * (s * (s * T(-17.0 / 315) + T(2.0 / 15)) - T(1.0 / 3));
    return a < T(0.2) ? near : (x < T(0) ? -far : far);
  }
}

template <class T>
Vec<T> sigmoid_of(Vec<T> x) {
  const Vec<T> e = exp_of<T>(x < T(0) ? x : -x);  // of -|x|: never overflows
  const Vec<T> small = e / (T(1) + e);
  return x < T(0) ? small : T(1) - small;
}

}  // namespace

template <class T>
Var<T> scale(Var<T> x, double factor) {
  const Vec<T> f = constant_vec<T>(factor);
  return unary(
      x, [=](Vec<T> v) { return v * f; }, [=](Vec<T>, Vec<T>) { return f; });
}

template <class T>
Var<T> shift(Var<T> x, double constant) {
  const Vec<T> c = constant_vec<T>(constant);
  const Var<T> y = x.tape().make(x.dims(), x.needs_grad());
  map(x.data(), y.data(), x.size(), [&](Vec<T> v) { return v + c; });
  if (y.needs_grad()) y.tape().note(y, [=] { y.tape().pass_on(y, x); });
  return y;
}

template <class T>
Var<T> exp(Var<T> x) {
  return unary(
      x, [](Vec<T> v) { return exp_of<T>(v); }, [](Vec<T>, Vec<T> y) { return y; });
}

template <class T>
Var<T> log(Var<T> x) {
  return unary(
      x, [](Vec<T> v) { return each<T>(v, [](T e) { return std::log(e); }); },
      [](Vec<T> v, Vec<T>) { return T(1) / v; });
}

template <class T>
Var<T> sqrt(Var<T> x) {
  return unary(
      x, [](Vec<T> v) { return each<T>(v, [](T e) { return std::sqrt(e); }); },
      [](Vec<T>, Vec<T> y) { return T(0.5) / y; });
}

template <class T>
Var<T> square(Var<T> x) {
  return unary(
      x, [](Vec<T> v) { return v * v; }, [](Vec<T> v, Vec<T>) { return v + v; });
}

template <class T>
Var<T> relu(Var<T> x) {
  return unary(
      x, [](Vec<T> v) { return v < T(0) ? Vec<T>{} : v; },
      [](Vec<T> v, Vec<T>) { return v > T(0) ? constant_vec<T>(1) : Vec<T>{}; });
}

template <class T>
Var<T> tanh(Var<T> x) {
  return unary(
      x, [](Vec<T> v) { return tanh_of<T>(v); }, [](Vec<T>, Vec<T> y) { return T(1) - y * y; });
}

template <class T>
Var<T> sigmoid(Var<T> x) {
  return unary(
      x, [](Vec<T> v) { return sigmoid_of<T>(v); },
      [](Vec<T>, Vec<T> y) { return y * (T(1) - y); });
}

template <class T>
Var<T> elu(Var<T> x) {
  return unary(
      x,
      [](Vec<T> v) {
        const Vec<T> low = v > T(0) ? Vec<T>{} : v;
        return v > T(0) ? v : exp_of<T>(low) - T(1);
      },
      [](Vec<T> v, Vec<T> y) { return v > T(0) ? constant_vec<T>(1) : y + T(1); });
}

template <class T>
Var<T> gelu(Var<T> x) {
  const auto value = [](Vec<T> v) {
    Vec<T> cdf{}, bell{};
    normal_cdf<T>(v, &cdf, &bell);
    return v * cdf;
  };
  return unary(x, value, [](Vec<T> v, Vec<T>) {
    Vec<T> cdf{}, bell{};
    normal_cdf<T>(v, &cdf, &bell);
    return cdf + v * bell * static_cast<T>(kRootTwoPiInverse);
  });
}

template <class T>
Var<T> gelu_tanh(Var<T> x) {
  const auto bend = [](Vec<T> v) {
    return tanh_of<T>(static_cast<T>(kRootTwoOverPi) *
                      (v + static_cast<T>(kGeluCubic) * v * v * v));
  };
  return unary(
      x, [=](Vec<T> v) { return T(0.5) * v * (T(1) + bend(v)); },
      [=](Vec<T> v, Vec<T>) {
        const Vec<T> t = bend(v);
        const Vec<T> inner =
            static_cast<T>(kRootTwoOverPi) * (T(1) + static_cast<T>(3 * kGeluCubic) * v * v);
        return T(0.5) * (T(1) + t) + T(0.5) * v * (T(1) - t * t) * inner;
      });
}

template <class T>
Var<T> stop_gradient(Var<T> x) {
  return x.tape().constant(x.data(), x.dims());
}

template <class T>
Var<T> masked_fill(Var<T> x, std::span<const std::uint8_t> mask, double value) {
  const auto period = static_cast<Index>(mask.size());
  SUBQUAD_CHECK(period > 0 && x.size() % period == 0, "a mask of {} for {}", period,
                x.dims().str());
  const std::uint8_t* const keep = mask.data();
  const Var<T> y = x.tape().make(x.dims(), x.needs_grad());
  const T *const xs = x.data(), fill = static_cast<T>(value);
  T* const ys = y.data();
  for_blocks(x.size(), kBlock, [&](Index first, Index last) {
    for (Index i = first; i < last; ++i) ys[i] = keep[i % period] != 0 ? xs[i] : fill;
  });
  if (!y.needs_grad()) return y;
  y.tape().note(y, [=] {
    const T* const dy = y.tape().out_grad(y);
    const Target<T> dx = x.tape().target(x);
    for_blocks(x.size(), kBlock, [&](Index first, Index last) {
      for (Index i = first; i < last; ++i) {
        const T g = keep[i % period] != 0 ? dy[i] : T(0);
        dx.data[i] = dx.add ? dx.data[i] + g : g;
      }
    });
  });
  return y;
}

template <class T>
Var<T> dropout(Var<T> x, double p, Seed seed) {
  SUBQUAD_CHECK(p >= 0 && p < 1, "dropout of {}", p);
  if (p == 0) return x;
  const Index size = x.size();
  const Var<T> y = x.tape().make(x.dims(), x.needs_grad());
  T* const factor = x.tape().save(y, 0, size);
  const auto limit = static_cast<std::uint32_t>(std::ldexp(p, 32));
  const T kept = static_cast<T>(1 / (1 - p));
  const std::array<std::uint32_t, 2> key{static_cast<std::uint32_t>(seed),
                                         static_cast<std::uint32_t>(seed >> 32)};
  const T* const xs = x.data();
  T* const ys = y.data();
  for_blocks(size, kBlock, [&](Index first, Index last) {
    for (Index i = first; i < last; i += 4) {
      const auto block = static_cast<std::uint64_t>(i / 4);
      const auto words = philox4x32(
          {static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), 0, 0}, key);
      for (Index j = i; j < std::min(i + 4, last); ++j) {
        factor[j] = words[static_cast<std::size_t>(j - i)] < limit ? T(0) : kept;
        ys[j] = xs[j] * factor[j];
      }
    }
  });
  if (!y.needs_grad()) return y;
  y.tape().note(y, [=] {
    const T *const dy = y.tape().out_grad(y), *const f = y.tape().saved(y, 0);
    const Target<T> dx = x.tape().target(x);
    for_blocks(size, kBlock, [&](Index first, Index last) {
      for (Index i = first; i < last; ++i) {
        const T g = dy[i] * f[i];
        dx.data[i] = dx.add ? dx.data[i] + g : g;
      }
    });
  });
  return y;
}

#define INSTANTIATE(T)                                                        \
  template Var<T> scale(Var<T>, double);                                      \
  template Var<T> shift(Var<T>, double);                                      \
  template Var<T> exp(Var<T>);                                                \
  template Var<T> log(Var<T>);                                                \
  template Var<T> sqrt(Var<T>);                                               \
  template Var<T> square(Var<T>);                                             \
  template Var<T> relu(Var<T>);                                               \
  template Var<T> tanh(Var<T>);                                               \
  template Var<T> sigmoid(Var<T>);                                            \
  template Var<T> elu(Var<T>);                                                \
  template Var<T> gelu(Var<T>);                                               \
  template Var<T> gelu_tanh(Var<T>);                                          \
  template Var<T> stop_gradient(Var<T>);                                      \
  template Var<T> masked_fill(Var<T>, std::span<const std::uint8_t>, double); \
  template Var<T> dropout(Var<T>, double, Seed);
SUBQUAD_AUTODIFF_BOTH(INSTANTIATE)

}  // namespace subquad::autodiff
