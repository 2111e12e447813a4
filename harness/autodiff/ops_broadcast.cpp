// Arithmetic of two tensors with broadcasting.
//
// Axes are aligned at the end; an axis of size 1 is repeated. The result is walked row by row (its
// last axis); where in `a` and `b` a row starts follows from the other axes.

#include "harness/autodiff/op_tools.h"

namespace subquad::autodiff {
namespace {

struct Walk {
  Dims out;                                      // of the result
  Index a_stride[kMaxRank], b_stride[kMaxRank];  // by axis of the result; 0 where repeated
};

void strides_of(const Dims& in, const Dims& out, Index* strides) {
  Index step = 1;
  for (int axis = out.rank() - 1; axis >= 0; --axis) {
    const int own = axis - (out.rank() - in.rank());
    const Index size = own < 0 ? 1 : in[own];
    strides[axis] = size == 1 ? 0 : step;
    step *= size;
  }
}

Walk walk_of(const Dims& a, const Dims& b) {
  Walk walk;
  const int rank = std::max(a.rank(), b.rank());
  for (int axis = 0; axis < rank; ++axis) {
    const int ia = axis - (rank - a.rank()), ib = axis - (rank - b.rank());
    const Index sa = ia < 0 ? 1 : a[ia], sb = ib < 0 ? 1 : b[ib];
    SUBQUAD_CHECK(sa == sb || sa == 1 || sb == 1, "{} and {} do not fit", a.str(), b.str());
    walk.out.push_back(sa == 1 ? sb : sa);
  }
  strides_of(a, walk.out, walk.a_stride);
  strides_of(b, walk.out, walk.b_stride);
  return walk;
}

// Where row `row` of the result starts.
Index row_start(const Dims& out, const Index* strides, Index row) {
  Index at = 0;
  for (int axis = out.rank() - 2; axis >= 0; --axis) {
    at += row % out[axis] * strides[axis];
    row /= out[axis];
  }
  return at;
}

// out = f(a, b) row by row.
template <class T, class F>
void apply(const Walk& walk, const T* a, const T* b, T* out, F f) {
  const Index width = walk.out.back(), last = walk.out.rank() - 1;
  const bool a_moves = last >= 0 && walk.a_stride[last] != 0,
             b_moves = last >= 0 && walk.b_stride[last] != 0;
  for_rows(walk.out.rows(), width, [&](Index r0, Index r1) {
    for (Index r = r0; r < r1; ++r) {
      const T* const pa = a + row_start(walk.out, walk.a_stride, r);
      const T* const pb = b + row_start(walk.out, walk.b_stride, r);
      T* const to = out + r * width;
      for_vectors<T>(width, [&](Index i, Index count) {
        const Vec<T> x = a_moves ? load_some(pa + i, count) : broadcast(*pa);
        const Vec<T> y = b_moves ? load_some(pb + i, count) : broadcast(*pb);
        store_some(to + i, f(x, y), count);
      });
    }
  });
}

// target += sum over repeated axes of g(dout, a, b); rows in order, in double for a single element.
template <class T, class G>
void reduce(const Walk& walk, const T* dout, const T* a, const T* b, const Index* strides,
            const Dims& dims, Target<T> target, G g) {
  if (!target) return;
  const Index width = walk.out.back(), last = walk.out.rank() - 1;
  const bool a_moves = last >= 0 && walk.a_stride[last] != 0,
             b_moves = last >= 0 && walk.b_stride[last] != 0,
             moves = last >= 0 && strides[last] != 0;
  const bool once = dims == walk.out;  // nothing is repeated
  if (!once && !target.add) std::fill_n(target.data, dims.count(), T(0));
  const auto row = [&](Index r) {
    const T* const pa = a + row_start(walk.out, walk.a_stride, r);
    const T* const pb = b + row_start(walk.out, walk.b_stride, r);
    const Index at = once ? r * width : row_start(walk.out, strides, r);
    double total = 0;
    for_vectors<T>(width, [&](Index i, Index count) {
      const Vec<T> x = a_moves ? load_some(pa + i, count) : broadcast(*pa);
      const Vec<T> y = b_moves ? load_some(pb + i, count) : broadcast(*pb);
      const Vec<T> value = g(load_some(dout + r * width + i, count), x, y);
      if (once) {
        put(target, at + i, value, count);
      } else if (moves) {
        put(Target<T>{target.data, true}, at + i, value, count);
      } else {
        for (Index lane = 0; lane < count; ++lane) total += static_cast<double>(value[lane]);
      }
    });
    if (!once && !moves) target.data[at] += static_cast<T>(total);
  };
  if (once) {
    for_rows(walk.out.rows(), width, [&](Index r0, Index r1) {
      for (Index r = r0; r < r1; ++r) row(r);
    });
  } else {
    for (Index r = 0, rows = walk.out.rows(); r < rows; ++r) row(r);
  }
}

template <class T, class F, class Ga, class Gb>
Var<T> binary(Var<T> a, Var<T> b, F f, Ga ga, Gb gb) {
  const Walk walk = walk_of(a.dims(), b.dims());
  Tape<T>& tape = a.tape();
  const Var<T> out = tape.make(walk.out, a.needs_grad() || b.needs_grad());
  apply(walk, a.data(), b.data(), out.data(), f);
  if (!out.needs_grad()) return out;
  tape.note(out, [=] {
    const Walk w = walk_of(a.dims(), b.dims());
    Tape<T>& t = out.tape();
    const T* const dout = t.out_grad(out);
    reduce(w, dout, a.data(), b.data(), w.a_stride, a.dims(), t.target(a), ga);
    reduce(w, dout, a.data(), b.data(), w.b_stride, b.dims(), t.target(b), gb);
  });
  return out;
}

}  // namespace

template <class T>
Var<T> add(Var<T> a, Var<T> b) {
  if (a.dims() == b.dims()) {  // the common case: gradients are shared, not copied
    Tape<T>& tape = a.tape();
    const Var<T> out = tape.make(a.dims(), a.needs_grad() || b.needs_grad());
    const T *const x = a.data(), *const y = b.data();
    T* const to = out.data();
    for_blocks(a.size(), kBlock, [&](Index first, Index last) {
      for (Index i = first; i < last; ++i) to[i] = x[i] + y[i];
    });
    if (out.needs_grad())
      tape.note(out, [=] {
        out.tape().pass_on(out, a);
        out.tape().pass_on(out, b);
      });
    return out;
  }
  const auto pass = [](Vec<T> g, Vec<T>, Vec<T>) { return g; };
  return binary(
      a, b, [](Vec<T> x, Vec<T> y) { return x + y; }, pass, pass);
}

template <class T>
Var<T> sub(Var<T> a, Var<T> b) {
  return binary(
      a, b, [](Vec<T> x, Vec<T> y) { return x - y; }, [](Vec<T> g, Vec<T>, Vec<T>) { return g; },
      [](Vec<T> g, Vec<T>, Vec<T>) { return -g; });
}

template <class T>
Var<T> mul(Var<T> a, Var<T> b) {
  return binary(
      a, b, [](Vec<T> x, Vec<T> y) { return x * y; },
      [](Vec<T> g, Vec<T>, Vec<T> y) { return g * y; },
      [](Vec<T> g, Vec<T> x, Vec<T>) { return g * x; });
}

template <class T>
Var<T> div(Var<T> a, Var<T> b) {
  return binary(
      a, b, [](Vec<T> x, Vec<T> y) { return x / y; },
      [](Vec<T> g, Vec<T>, Vec<T> y) { return g / y; },
      [](Vec<T> g, Vec<T> x, Vec<T> y) { return -g * x / (y * y); });
}

#define INSTANTIATE(T)                 \
  template Var<T> add(Var<T>, Var<T>); \
  template Var<T> sub(Var<T>, Var<T>); \
  template Var<T> mul(Var<T>, Var<T>); \
  template Var<T> div(Var<T>, Var<T>);
SUBQUAD_AUTODIFF_BOTH(INSTANTIATE)

}  // namespace subquad::autodiff
