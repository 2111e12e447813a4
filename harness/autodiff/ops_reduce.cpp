// Sums, means, maxima and running sums along an axis.
//
// A tensor is seen as [outer, size, inner] around the axis. Sums are taken in double.

#include "harness/autodiff/op_tools.h"

namespace subquad::autodiff {
namespace {

struct Around {
  Index outer, size, inner;
  Around(const Dims& dims, int axis)
      : outer(dims.count(0, axis)), size(dims[axis]), inner(dims.count(axis + 1, dims.rank())) {}
};

template <class T>
Var<T> scaled_sum(Var<T> x, double factor) {
  const Var<T> y = x.tape().make({}, x.needs_grad());
  double total = 0;
  for (Index i = 0, n = x.size(); i < n; ++i) total += static_cast<double>(x.data()[i]);
  *y.data() = static_cast<T>(total * factor);
  if (!y.needs_grad()) return y;
  y.tape().note(y, [=] {
    const Vec<T> g = broadcast(static_cast<T>(static_cast<double>(*y.tape().out_grad(y)) * factor));
    const Target<T> dx = x.tape().target(x);
    for_vectors<T>(x.size(), [&](Index i, Index count) { put(dx, i, g, count); });
  });
  return y;
}

template <class T>
Var<T> scaled_sum(Var<T> x, int axis, double factor) {
  const int a = x.dims().axis(axis);
  const Around around(x.dims(), a);
  const Var<T> y = x.tape().make(x.dims().with(a, 1), x.needs_grad());
  parallel_for(around.outer, [&](Index o, int) {
    const T* const from = x.data() + o * around.size * around.inner;
    for (Index i = 0; i < around.inner; ++i) {
      double total = 0;
      for (Index s = 0; s < around.size; ++s)
        total += static_cast<double>(from[s * around.inner + i]);
      y.data()[o * around.inner + i] = static_cast<T>(total * factor);
    }
  });
  if (!y.needs_grad()) return y;
  y.tape().note(y, [=] {
    const T *const dy = y.tape().out_grad(y), f = static_cast<T>(factor);
    const Target<T> dx = x.tape().target(x);
    parallel_for(around.outer, [&](Index o, int) {
      for (Index s = 0; s < around.size; ++s)
        for (Index i = 0; i < around.inner; ++i) {
          T& to = dx.data[(o * around.size + s) * around.inner + i];
          const T g = dy[o * around.inner + i] * f;
          to = dx.add ? to + g : g;
        }
    });
  });
  return y;
}

}  // namespace

template <class T>
Var<T> sum(Var<T> x) {
  return scaled_sum(x, 1);
}
template <class T>
Var<T> mean(Var<T> x) {
  return scaled_sum(x, 1 / static_cast<double>(x.size()));
}
template <class T>
Var<T> sum(Var<T> x, int axis) {
  return scaled_sum(x, axis, 1);
}
template <class T>
Var<T> mean(Var<T> x, int axis) {
  return scaled_sum(x, axis, 1 / static_cast<double>(x.dims()[x.dims().axis(axis)]));
}

template <class T>
Var<T> max(Var<T> x, int axis) {
  const int a = x.dims().axis(axis);
  const Around around(x.dims(), a);
  SUBQUAD_CHECK(around.size > 0, "the maximum of nothing");
  const Var<T> y = x.tape().make(x.dims().with(a, 1), x.needs_grad());
  parallel_for(around.outer, [&](Index o, int) {
    const T* const from = x.data() + o * around.size * around.inner;
    for (Index i = 0; i < around.inner; ++i) {
      T most = from[i];
      for (Index s = 1; s < around.size; ++s) most = std::max(most, from[s * around.inner + i]);
      y.data()[o * around.inner + i] = most;
    }
  });
  if (!y.needs_grad()) return y;
  y.tape().note(y, [=] {
    const T* const dy = y.tape().out_grad(y);
    const Target<T> dx = x.tape().target(x);
    if (!dx.add) std::fill_n(dx.data, x.size(), T(0));
    parallel_for(around.outer, [&](Index o, int) {
      for (Index i = 0; i < around.inner; ++i)
        for (Index s = 0; s < around.size; ++s) {
          const Index at = (o * around.size + s) * around.inner + i;
          if (x.data()[at] != y.data()[o * around.inner + i]) continue;
          dx.data[at] += dy[o * around.inner + i];
          break;
        }
    });
  });
  return y;
}

template <class T>
Var<T> cumsum(Var<T> x, int axis) {
  const Around around(x.dims(), x.dims().axis(axis));
  const Var<T> y = x.tape().make(x.dims(), x.needs_grad());
  parallel_for(around.outer, [&](Index o, int) {
    const T* const from = x.data() + o * around.size * around.inner;
    T* const to = y.data() + o * around.size * around.inner;
    for (Index i = 0; i < around.size * around.inner; ++i)
      to[i] = from[i] + (i < around.inner ? T(0) : to[i - around.inner]);
  });
  if (!y.needs_grad()) return y;
  y.tape().note(y, [=] {
    const T* const dy = y.tape().out_grad(y);
    const Target<T> dx = x.tape().target(x);
    parallel_for(around.outer, [&](Index o, int) {
      const Index base = o * around.size * around.inner;
      for (Index i = 0; i < around.inner; ++i) {
        T total = 0;
        for (Index s = around.size - 1; s >= 0; --s) {
          const Index at = base + s * around.inner + i;
          total += dy[at];
          dx.data[at] = dx.add ? dx.data[at] + total : total;
        }
      }
    });
  });
  return y;
}

#define INSTANTIATE(T)               \
  template Var<T> sum(Var<T>);       \
  template Var<T> mean(Var<T>);      \
  template Var<T> sum(Var<T>, int);  \
  template Var<T> mean(Var<T>, int); \
  template Var<T> max(Var<T>, int);  \
  template Var<T> cumsum(Var<T>, int);
SUBQUAD_AUTODIFF_BOTH(INSTANTIATE)

}  // namespace subquad::autodiff
