// Ops that move elements and compute nothing.

#include "harness/autodiff/op_tools.h"

namespace subquad::autodiff {
namespace {

// Copies or adds runs of `width` elements: to[i * to_step ..] (+)= from[i * from_step ..].
template <class T>
void move_runs(const T* from, Index from_step, T* to, Index to_step, Index runs, Index width,
               bool add) {
  for_rows(runs, width, [&](Index r0, Index r1) {
    for (Index r = r0; r < r1; ++r) {
      const T* const source = from + r * from_step;
      T* const place = to + r * to_step;
      if (add) {
        for (Index i = 0; i < width; ++i) place[i] += source[i];
      } else {
        std::copy_n(source, width, place);
      }
    }
  });
}

// to[permuted] (+)= from, over the elements of `dims` (the shape of `from`), whose axis a advances
// `to` by strides[a].
template <class T>
void permute(const T* from, const Dims& dims, const Index* strides, T* to, bool add) {
  const Index width = dims.back(), step = dims.rank() == 0 ? 1 : strides[dims.rank() - 1];
  for_rows(dims.rows(), width, [&](Index r0, Index r1) {
    for (Index r = r0; r < r1; ++r) {
      Index at = 0, rest = r;
      for (int a = dims.rank() - 2; a >= 0; --a) {
        at += rest % dims[a] * strides[a];
        rest /= dims[a];
      }
      const T* const source = from + r * width;
      for (Index i = 0; i < width; ++i) {
        T& place = to[at + i * step];
        place = add ? place + source[i] : source[i];
      }
    }
  });
}

}  // namespace

template <class T>
Var<T> reshape(Var<T> x, Dims dims) {
  return x.tape().alias(x, dims);
}

template <class T>
Var<T> transpose(Var<T> x, std::initializer_list<int> order) {
  const Dims in = x.dims();
  SUBQUAD_CHECK(static_cast<int>(order.size()) == in.rank(), "{} axes for {}", order.size(),
                in.str());
  Dims out;
  std::array<int, kMaxRank> source{};  // axis of x at axis a of the result
  std::array<bool, kMaxRank> seen{};
  for (const int axis : order) {
    const int from = in.axis(axis);
    SUBQUAD_CHECK(!seen[static_cast<std::size_t>(from)], "axis {} stands twice", axis);
    seen[static_cast<std::size_t>(from)] = true;
    source[static_cast<std::size_t>(out.rank())] = from;
    out.push_back(in[from]);
  }
  // Walking x forward scatters into y; walking y forward gathers: both need one set of strides.
  std::array<Index, kMaxRank> y_stride_of_x{}, x_stride_of_y{}, x_stride{};
  Index step = 1;
  for (int a = in.rank() - 1; a >= 0; --a) {
    x_stride[static_cast<std::size_t>(a)] = step;
    step *= in[a];
  }
  step = 1;
  for (int a = out.rank() - 1; a >= 0; --a) {
    const auto from = static_cast<std::size_t>(source[static_cast<std::size_t>(a)]);
    y_stride_of_x[from] = step;
    x_stride_of_y[static_cast<std::size_t>(a)] = x_stride[from];
    step *= out[a];
  }
  const Var<T> y = x.tape().make(out, x.needs_grad());
  permute(x.data(), in, y_stride_of_x.data(), y.data(), false);
  if (!y.needs_grad()) return y;
  y.tape().note(y, [=] {
    const T* const dy = y.tape().out_grad(y);
    const Target<T> dx = x.tape().target(x);
    permute(dy, y.dims(), x_stride_of_y.data(), dx.data, dx.add);
  });
  return y;
}

template <class T>
Var<T> concat(std::initializer_list<Var<T>> parts, int axis) {
  SUBQUAD_CHECK(parts.size() > 0 && parts.size() <= 8, "{} parts, at most 8", parts.size());
  const Var<T> first = *parts.begin();
  const int a = first.dims().axis(axis);
  std::array<Var<T>, 8> list{};
  Index total = 0;
  bool needs_grad = false;
  std::size_t count = 0;
  for (const Var<T>& part : parts) {
    SUBQUAD_CHECK(part.dims().rank() == first.dims().rank() &&
                      part.dims().with(a, 1) == first.dims().with(a, 1),
                  "{} beside {}", part.dims().str(), first.dims().str());
    total += part.dims()[a];
    needs_grad = needs_grad || part.needs_grad();
    list[count++] = part;
  }
  const Dims dims = first.dims().with(a, total);
  const Index outer = dims.count(0, a), inner = dims.count(a + 1, dims.rank());
  const Var<T> y = first.tape().make(dims, needs_grad);
  Index at = 0;
  for (const Var<T>& part : parts) {
    const Index width = part.dims()[a] * inner;
    move_runs(part.data(), width, y.data() + at, total * inner, outer, width, false);
    at += width;
  }
  if (!y.needs_grad()) return y;
  y.tape().note(y, [=] {
    const T* const dy = y.tape().out_grad(y);
    Index start = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const Index width = list[i].dims()[a] * inner;
      if (const Target<T> dx = y.tape().target(list[i]))
        move_runs(dy + start, total * inner, dx.data, width, outer, width, dx.add);
      start += width;
    }
  });
  return y;
}

template <class T>
Var<T> slice(Var<T> x, int axis, Index first, Index count) {
  const int a = x.dims().axis(axis);
  const Index size = x.dims()[a];
  SUBQUAD_CHECK(first >= 0 && count >= 0 && first + count <= size, "[{}, {}) of {}", first,
                first + count, size);
  const Index outer = x.dims().count(0, a), inner = x.dims().count(a + 1, x.dims().rank());
  const Var<T> y = x.tape().make(x.dims().with(a, count), x.needs_grad());
  move_runs(x.data() + first * inner, size * inner, y.data(), count * inner, outer, count * inner,
            false);
  if (!y.needs_grad()) return y;
  y.tape().note(y, [=] {
    const T* const dy = y.tape().out_grad(y);
    const Target<T> dx = x.tape().target(x);
    if (!dx.add) std::fill_n(dx.data, x.size(), T(0));
    move_runs(dy, count * inner, dx.data + first * inner, size * inner, outer, count * inner, true);
  });
  return y;
}

template <class T>
Var<T> embedding(Var<T> table, std::span<const std::int32_t> ids, Dims leading) {
  const Index d = table.dims().back(), rows = table.dims().rows();
  SUBQUAD_CHECK(static_cast<Index>(ids.size()) == leading.count(), "{} indices for {}", ids.size(),
                leading.str());
  for (const std::int32_t id : ids)
    SUBQUAD_CHECK(id >= 0 && id < rows, "index {} into {} rows", id, rows);
  leading.push_back(d);
  const Var<T> y = table.tape().make(leading, table.needs_grad());
  const auto count = static_cast<Index>(ids.size());
  const std::int32_t* const index = ids.data();
  for_rows(count, d, [&](Index r0, Index r1) {
    for (Index r = r0; r < r1; ++r) std::copy_n(table.data() + index[r] * d, d, y.data() + r * d);
  });
  if (!y.needs_grad()) return y;
  y.tape().note(y, [=] {
    const T* const dy = y.tape().out_grad(y);
    const Target<T> dt = table.tape().target(table);
    if (!dt.add) std::fill_n(dt.data, table.size(), T(0));
    for (Index r = 0; r < count; ++r) {  // in order: rows may meet
      T* const to = dt.data + index[r] * d;
      for (Index i = 0; i < d; ++i) to[i] += dy[r * d + i];
    }
  });
  return y;
}

template <class T>
Var<T> gather(Var<T> table, std::span<const std::int32_t> index) {
  return embedding(table, index, {static_cast<Index>(index.size())});
}

template <class T>
Var<T> scatter_add(Var<T> x, std::span<const std::int32_t> ids, Index rows) {
  const Index d = x.dims().back(), count = x.dims().rows();
  SUBQUAD_CHECK(static_cast<Index>(ids.size()) == count, "{} indices for {}", ids.size(),
                x.dims().str());
  for (const std::int32_t id : ids)
    SUBQUAD_CHECK(id >= 0 && id < rows, "index {} into {} rows", id, rows);
  const std::int32_t* const index = ids.data();
  const Var<T> y = x.tape().make({rows, d}, x.needs_grad());
  std::fill_n(y.data(), rows * d, T(0));
  for (Index r = 0; r < count; ++r)
    for (Index i = 0; i < d; ++i) y.data()[index[r] * d + i] += x.data()[r * d + i];
  if (!y.needs_grad()) return y;
  y.tape().note(y, [=] {
    const T* const dy = y.tape().out_grad(y);
    const Target<T> dx = x.tape().target(x);
    for_rows(count, d, [&](Index r0, Index r1) {
      for (Index r = r0; r < r1; ++r)
        for (Index i = 0; i < d; ++i) {
          T& to = dx.data[r * d + i];
          to = dx.add ? to + dy[index[r] * d + i] : dy[index[r] * d + i];
        }
    });
  });
  return y;
}

#define INSTANTIATE(T)                                                    \
  template Var<T> reshape(Var<T>, Dims);                                  \
  template Var<T> transpose(Var<T>, std::initializer_list<int>);          \
  template Var<T> concat(std::initializer_list<Var<T>>, int);             \
  template Var<T> slice(Var<T>, int, Index, Index);                       \
  template Var<T> embedding(Var<T>, std::span<const std::int32_t>, Dims); \
  template Var<T> gather(Var<T>, std::span<const std::int32_t>);          \
  template Var<T> scatter_add(Var<T>, std::span<const std::int32_t>, Index);
SUBQUAD_AUTODIFF_BOTH(INSTANTIATE)

}  // namespace subquad::autodiff
