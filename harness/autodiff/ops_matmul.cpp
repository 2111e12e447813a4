// Products. What a linear layer does around its product happens while the rows are in the cache:
// bias, residual and GELU are part of it, and heads are read and written in place.

#include "harness/autodiff/gemm.h"
#include "harness/autodiff/op_tools.h"

namespace subquad::autodiff {
namespace {

template <class T>
void run_gemm(Tape<T>& tape, const Gemm<T>& g) {
  const typename Tape<T>::Scratch work(tape, gemm_work(g.n, g.k));
  gemm(g, work.data());
}

template <class T>
GemmMatrix<const T> readable(const GemmMatrix<T>& m) {
  return {m.data, m.rows, m.cols};
}

// target[j] += sum over rows of x[r, j], rows in order.
template <class T>
void add_column_sums(const GemmMatrix<const T>& x, Index rows, Index columns, Target<T> target) {
  if (!target) return;
  if (!target.add) std::fill_n(target.data, columns, T(0));
  constexpr Index kStrip = 64;  // columns that stay in registers
  const bool together = x.cols.stride == 1 && (x.cols.group == 0 || x.cols.group % kLanes<T> == 0);
  if (!together) {
    for (Index r = 0; r < rows; ++r)
      for (Index j = 0; j < columns; ++j) target.data[j] += x.data[x.rows.at(r) + x.cols.at(j)];
    return;
  }
  parallel_for((columns + kStrip - 1) / kStrip, [&](Index strip, int) {
    const Index first = strip * kStrip, last = std::min(columns, first + kStrip);
    Vec<T> sums[kStrip / kLanes<double>] = {};
    Index offset[kStrip / kLanes<double>] = {};
    for (Index j = first, v = 0; j < last; j += kLanes<T>, ++v) offset[v] = x.cols.at(j);
    for (Index r = 0; r < rows; ++r) {
      const T* const row = x.data + x.rows.at(r);
      for (Index j = first, v = 0; j < last; j += kLanes<T>, ++v)
        sums[v] += load_some(row + offset[v], std::min<Index>(kLanes<T>, last - j));
    }
    for (Index j = first, v = 0; j < last; j += kLanes<T>, ++v)
      put(Target<T>{target.data, true}, j, sums[v], std::min<Index>(kLanes<T>, last - j));
  });
}

// Gradients of y = x w^T + b, given dy.
template <class T>
struct LinearBack {
  Index rows, in, out;
  GemmMatrix<const T> x, dy;  // [rows, in], [rows, out]
  const T* weight;
};

template <class T>
void linear_back(Tape<T>& tape, const LinearBack<T>& l, const GemmMatrix<T>& dx, bool add_dx,
                 Target<T> dw, Target<T> db) {
  if (dw) {
    Gemm<T> g;
    g.m = l.out;
    g.n = l.in;
    g.k = l.rows;
    g.a = l.dy.transposed();
    g.b = l.x;
    g.c = plain(dw.data, l.in);
    g.accumulate = dw.add;
    run_gemm(tape, g);
  }
  add_column_sums(l.dy, l.rows, l.out, db);
  if (dx.data == nullptr) return;
  Gemm<T> g;
  g.m = l.rows;
  g.n = l.in;
  g.k = l.out;
  g.a = l.dy;
  g.b = plain(l.weight, l.in);
  g.c = dx;
  g.accumulate = add_dx;
  run_gemm(tape, g);
}

enum class Heads { none, of_output, of_input };

// The common form of the linear ops. heads: the tensor that is [batch, heads, n, d].
template <class T>
Var<T> linear_op(Var<T> x, Var<T> weight, Var<T> bias, Var<T> residual, Heads split, Index heads,
                 bool with_gelu) {
  Tape<T>& tape = x.tape();
  const Dims& dims = x.dims();
  SUBQUAD_CHECK(weight.dims().rank() == 2, "a weight {}", weight.dims().str());
  const Index out = weight.dims()[0], in = weight.dims()[1], rows = x.size() / in;
  Dims y_dims;
  if (split == Heads::of_input) {
    SUBQUAD_CHECK(dims.rank() == 4 && dims[1] * dims[3] == in, "{} times {}", dims.str(),
                  weight.dims().str());
    y_dims = {dims[0], dims[2], out};
  } else if (split == Heads::of_output) {
    SUBQUAD_CHECK(dims.rank() == 3 && dims[2] == in && out % heads == 0, "{} times {}, {} heads",
                  dims.str(), weight.dims().str(), heads);
    y_dims = {dims[0], heads, dims[1], out / heads};
  } else {
    SUBQUAD_CHECK(dims.rank() >= 1 && dims.back() == in, "{} times {}", dims.str(),
                  weight.dims().str());
    y_dims = dims.with(-1, out);
  }
  SUBQUAD_CHECK(bias.empty() || bias.size() == out, "a bias of {}", bias.size());
  SUBQUAD_CHECK(residual.empty() || residual.dims() == y_dims, "a residual {} for {}",
                residual.dims().str(), y_dims.str());
  const bool needs = x.needs_grad() || weight.needs_grad() ||
                     (!bias.empty() && bias.needs_grad()) ||
                     (!residual.empty() && residual.needs_grad());
  const Var<T> y = tape.make(y_dims, needs);
  const auto x_matrix = [=](auto* data) {
    return split == Heads::of_input ? by_heads(data, x.dims()[1], x.dims()[2], x.dims()[3])
                                    : plain(data, in);
  };
  const auto y_matrix = [=](auto* data) {
    return split == Heads::of_output ? by_heads(data, heads, y.dims()[2], y.dims()[3])
                                     : plain(data, out);
  };

  T* const slope = with_gelu ? tape.save(y, 0, rows * out) : nullptr;
  const auto to_gelu = [&](Index r0, Index r1) {  // slope holds the input of the GELU first
    for_vectors<T>((r1 - r0) * out, [&](Index i, Index count) {
      const Index at = r0 * out + i;
      const Vec<T> v = load_some(slope + at, count);
      Vec<T> cdf{}, bell{};
      normal_cdf<T>(v, &cdf, &bell);
      store_some(y.data() + at, v * cdf, count);
      store_some(slope + at, cdf + v * bell * static_cast<T>(0.39894228040143267794), count);
    });
  };
  Gemm<T> g;
  g.m = rows;
  g.n = out;
  g.k = in;
  g.a = readable(x_matrix(static_cast<const T*>(x.data())));
  g.b = plain<const T>(weight.data(), in).transposed();
  g.c = y_matrix(with_gelu ? slope : y.data());
  g.bias = bias.empty() ? nullptr : bias.data();
  g.residual = residual.empty() ? nullptr : residual.data();
  if (with_gelu) g.done = RowsDone::of(to_gelu);
  run_gemm(tape, g);

  if (!y.needs_grad()) return y;
  tape.note(y, [=] {
    Tape<T>& t = y.tape();
    const T* dy = t.out_grad(y);
    if (with_gelu) {
      T* const back = y.node()->saved[0]->data;  // becomes the gradient of the GELU's input
      for_blocks(y.size(), kBlock, [&](Index first, Index last) {
        for (Index i = first; i < last; ++i) back[i] *= dy[i];
      });
      dy = back;
    }
    LinearBack<T> l{rows,         in,           out, x_matrix(static_cast<const T*>(x.data())),
                    y_matrix(dy), weight.data()};
    const Target<T> dw = t.target(weight);
    const Target<T> db = bias.empty() ? Target<T>{} : t.target(bias);
    const Target<T> dx = t.target(x);
    linear_back(t, l, x_matrix(dx.data), dx.add, dw, db);
    if (!residual.empty()) t.pass_on(y, residual);
  });
  return y;
}

}  // namespace

template <class T>
Var<T> linear(Var<T> x, Var<T> weight, Var<T> bias, Var<T> residual) {
  return linear_op(x, weight, bias, residual, Heads::none, 1, false);
}
template <class T>
Var<T> linear_gelu(Var<T> x, Var<T> weight, Var<T> bias) {
  return linear_op(x, weight, bias, Var<T>{}, Heads::none, 1, true);
}
template <class T>
Var<T> linear_to_heads(Var<T> x, Var<T> weight, Var<T> bias, Index heads) {
  return linear_op(x, weight, bias, Var<T>{}, Heads::of_output, heads, false);
}
template <class T>
Var<T> linear_from_heads(Var<T> x, Var<T> weight, Var<T> bias, Var<T> residual) {
  return linear_op(x, weight, bias, residual, Heads::of_input, 1, false);
}

template <class T>
Var<T> matmul(Var<T> a, Var<T> b, bool transpose_a, bool transpose_b) {
  Tape<T>& tape = a.tape();
  const Dims &da = a.dims(), &db = b.dims();
  SUBQUAD_CHECK(da.rank() >= 2 && db.rank() >= 2, "{} times {}", da.str(), db.str());
  const Index rows_a = da[da.rank() - 2], cols_a = da.back();
  const Index rows_b = db[db.rank() - 2], cols_b = db.back();
  const Index m = transpose_a ? cols_a : rows_a, k = transpose_a ? rows_a : cols_a;
  const Index n = transpose_b ? rows_b : cols_b;
  const Index batch = da.count(0, da.rank() - 2), batch_b = db.count(0, db.rank() - 2);
  SUBQUAD_CHECK(k == (transpose_b ? cols_b : rows_b) && (batch_b == batch || batch_b == 1),
                "{}{} times {}{}", da.str(), transpose_a ? "^T" : "", db.str(),
                transpose_b ? "^T" : "");
  const Var<T> c = tape.make(da.with(-2, m).with(-1, n), a.needs_grad() || b.needs_grad());
  const Index size_a = rows_a * cols_a, size_b = batch_b == 1 ? 0 : rows_b * cols_b;
  const auto oriented = [](auto matrix, bool transpose) {
    return transpose ? matrix.transposed() : matrix;
  };
  for (Index i = 0; i < batch; ++i) {
    Gemm<T> g;
    g.m = m;
    g.n = n;
    g.k = k;
    g.a = oriented(plain<const T>(a.data() + i * size_a, cols_a), transpose_a);
    g.b = oriented(plain<const T>(b.data() + i * size_b, cols_b), transpose_b);
    g.c = plain(c.data() + i * m * n, n);
    run_gemm(tape, g);
  }
  if (!c.needs_grad()) return c;
  tape.note(c, [=] {
    Tape<T>& t = c.tape();
    const T* const dc = t.out_grad(c);
    if (const Target<T> to = t.target(a))  // da = dc b^T
      for (Index i = 0; i < batch; ++i) {
        Gemm<T> g;
        g.m = m;
        g.n = k;
        g.k = n;
        g.a = plain<const T>(dc + i * m * n, n);
        g.b = oriented(plain<const T>(b.data() + i * size_b, cols_b), transpose_b).transposed();
        g.c = oriented(plain(to.data + i * size_a, cols_a), transpose_a);
        g.accumulate = to.add;
        run_gemm(t, g);
      }
    if (const Target<T> to = t.target(b))  // db = a^T dc, summed over the batch where b is shared
      for (Index i = 0; i < batch; ++i) {
        Gemm<T> g;
        g.m = k;
        g.n = n;
        g.k = m;
        g.a = oriented(plain<const T>(a.data() + i * size_a, cols_a), transpose_a).transposed();
        g.b = plain<const T>(dc + i * m * n, n);
        g.c = oriented(plain(to.data + i * size_b, cols_b), transpose_b);
        g.accumulate = to.add || (size_b == 0 && i > 0);
        run_gemm(t, g);
      }
  });
  return c;
}

#define INSTANTIATE(T)                                               \
  template Var<T> linear(Var<T>, Var<T>, Var<T>, Var<T>);            \
  template Var<T> linear_gelu(Var<T>, Var<T>, Var<T>);               \
  template Var<T> linear_to_heads(Var<T>, Var<T>, Var<T>, Index);    \
  template Var<T> linear_from_heads(Var<T>, Var<T>, Var<T>, Var<T>); \
  template Var<T> matmul(Var<T>, Var<T>, bool, bool);
SUBQUAD_AUTODIFF_BOTH(INSTANTIATE)

}  // namespace subquad::autodiff
