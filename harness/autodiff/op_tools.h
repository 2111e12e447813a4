// What the ops share: loops with fixed borders, and the bookkeeping of a note.
#pragma once

#include <algorithm>

#include "harness/autodiff/ops.h"
#include "harness/autodiff/vector.h"
#include "harness/core/parallel.h"

namespace subquad::autodiff {

inline constexpr Index kBlock = 1 << 14;  // elements per item of a parallel loop

// body(first, last) over [0, size) in blocks whose borders depend on the size alone.
template <class Body>
void for_blocks(Index size, Index block, Body&& body) {
  const Index blocks = (size + block - 1) / block;
  parallel_for(blocks, [&](Index b, int) { body(b * block, std::min(size, (b + 1) * block)); });
}

// body(r0, r1) over rows of `width` elements.
template <class Body>
void for_rows(Index rows, Index width, Body&& body) {
  for_blocks(rows, std::max<Index>(1, kBlock / std::max<Index>(1, width)), body);
}

template <class T>
inline Vec<T> load_some(const T* p, Index count) {
  return count == kLanes<T> ? load(p) : load_part(p, count);
}
template <class T>
inline void store_some(T* p, Vec<T> v, Index count) {
  if (count == kLanes<T>) {
    store(p, v);
  } else {
    store_part(p, v, count);
  }
}
// to = value, or to += value.
template <class T>
inline void put(const Target<T>& to, Index i, Vec<T> value, Index count) {
  if (to.add) value += load_some(to.data + i, count);
  store_some(to.data + i, value, count);
}

// y[i] = f(x[i]) for vectors.
template <class T, class F>
void map(const T* x, T* y, Index size, F&& f) {
  for_blocks(size, kBlock, [&](Index first, Index last) {
    for_vectors<T>(last - first, [&](Index i, Index count) {
      store_some(y + first + i, f(load_some(x + first + i, count)), count);
    });
  });
}

// The way back of y = f(x) with dx = dy * slope(x, y).
template <class T, class Slope>
void note_unary(Var<T> x, Var<T> y, Slope slope) {
  if (!y.needs_grad()) return;
  y.tape().note(y, [=] {
    const T *const dy = y.tape().out_grad(y), *const xs = x.data(), *const ys = y.data();
    const Target<T> dx = x.tape().target(x);
    for_blocks(x.size(), kBlock, [&](Index first, Index last) {
      for_vectors<T>(last - first, [&](Index i, Index count) {
        const Index at = first + i;
        const Vec<T> s = slope(load_some(xs + at, count), load_some(ys + at, count));
        put(dx, at, load_some(dy + at, count) * s, count);
      });
    });
  });
}

template <class T, class F, class Slope>
Var<T> unary(Var<T> x, F f, Slope slope) {
  const Var<T> y = x.tape().make(x.dims(), x.needs_grad());
  map(x.data(), y.data(), x.size(), f);
  note_unary(x, y, slope);
  return y;
}

// One function for both element types at the end of a file.
#define SUBQUAD_AUTODIFF_BOTH(INSTANTIATE) \
  INSTANTIATE(float)                       \
  INSTANTIATE(double)

}  // namespace subquad::autodiff
