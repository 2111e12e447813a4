// Convolutions and interpolation.

#include <cmath>

#include "harness/autodiff/gemm.h"
#include "harness/autodiff/op_tools.h"

namespace subquad::autodiff {
namespace {

struct Sizes2d {
  Index batch, c_in, h, w, c_out, k_h, k_w, out_h, out_w;
};

// Columns of one image: [out_h * out_w, c_in * k_h * k_w], zero outside the image; or back, adding.
template <class T, bool BACK>
void image_columns(T* image, T* columns, const Sizes2d& s, const Conv2d& o) {
  Index at = 0;
  for (Index y = 0; y < s.out_h; ++y)
    for (Index x = 0; x < s.out_w; ++x)
      for (Index c = 0; c < s.c_in; ++c)
        for (Index i = 0; i < s.k_h; ++i)
          for (Index j = 0; j < s.k_w; ++j, ++at) {
            const Index iy = y * o.stride_y + i * o.dilation_y - o.pad_top;
            const Index ix = x * o.stride_x + j * o.dilation_x - o.pad_left;
            const bool inside = iy >= 0 && iy < s.h && ix >= 0 && ix < s.w;
            if constexpr (BACK) {
              if (inside) image[(c * s.h + iy) * s.w + ix] += columns[at];
            } else {
              columns[at] = inside ? image[(c * s.h + iy) * s.w + ix] : T(0);
            }
          }
}

// Output i of an axis is a weighted mean of the inputs [first, first + count): nearest and area
// have equal weights, linear has two.
struct Taps {
  Index first = 0, count = 1;
  double weight0 = 1, weight1 = 0;
};

Taps taps_of(Index i, Index in, Index out, Interpolation kind) {
  const double ratio = static_cast<double>(in) / static_cast<double>(out);
  switch (kind) {
    case Interpolation::nearest:
      return {i * in / out, 1, 1, 0};
    case Interpolation::linear: {
      const double at = std::clamp((static_cast<double>(i) + 0.5) * ratio - 0.5, 0.0,
                                   static_cast<double>(in - 1));
      const auto low = static_cast<Index>(at);
      const double part = at - static_cast<double>(low);
      if (low + 1 >= in) return {low, 1, 1, 0};
      return {low, 2, 1 - part, part};
    }
    case Interpolation::area: {
      const Index first = i * in / out, last = ((i + 1) * in + out - 1) / out;
      const double weight = 1 / static_cast<double>(last - first);
      return {first, last - first, weight, weight};
    }
  }
  throw InternalError("an unknown interpolation");
}

double weight_of(const Taps& t, Index j) { return j == 0 ? t.weight0 : t.weight1; }

}  // namespace

template <class T>
Var<T> depthwise_conv(Var<T> x, Var<T> taps, Index offset) {
  const Dims& dims = x.dims();
  SUBQUAD_CHECK(dims.rank() == 3 && taps.dims().rank() == 2 && taps.dims()[1] == dims[2],
                "{} with taps {}", dims.str(), taps.dims().str());
  const Index batch = dims[0], n = dims[1], d = dims[2], k = taps.dims()[0];
  const Var<T> y = x.tape().make(dims, x.needs_grad() || taps.needs_grad());
  // Positions t for which t + offset - j lies inside.
  const auto first = [=](Index j) { return std::clamp<Index>(j - offset, 0, n); };
  const auto last = [=](Index j) { return std::clamp<Index>(n + j - offset, 0, n); };
  parallel_for(batch, [&](Index b, int) {
    const T* const from = x.data() + b * n * d;
    T* const to = y.data() + b * n * d;
    for (Index t = 0; t < n; ++t)
      for_vectors<T>(d, [&](Index i, Index count) {
        Vec<T> sum{};
        for (Index j = 0; j < k; ++j) {
          const Index s = t + offset - j;
          if (s < 0 || s >= n) continue;
          sum += load_some(taps.data() + j * d + i, count) * load_some(from + s * d + i, count);
        }
        store_some(to + t * d + i, sum, count);
      });
  });
  if (!y.needs_grad()) return y;
  y.tape().note(y, [=] {
    const T* const dy = y.tape().out_grad(y);
    if (const Target<T> dx = x.tape().target(x))
      parallel_for(batch, [&](Index b, int) {
        const Index base = b * n * d;
        for (Index s = 0; s < n; ++s)
          for_vectors<T>(d, [&](Index i, Index count) {
            Vec<T> sum{};
            for (Index j = 0; j < k; ++j) {
              const Index t = s - offset + j;
              if (t < 0 || t >= n) continue;
              sum += load_some(taps.data() + j * d + i, count) *
                     load_some(dy + base + t * d + i, count);
            }
            put(dx, base + s * d + i, sum, count);
          });
      });
    if (const Target<T> dt = y.tape().target(taps))
      parallel_for(k, [&](Index j, int) {
        for_vectors<T>(d, [&](Index i, Index count) {
          Vec<T> sum{};
          for (Index b = 0; b < batch; ++b)
            for (Index t = first(j); t < last(j); ++t)
              sum += load_some(dy + (b * n + t) * d + i, count) *
                     load_some(x.data() + (b * n + t + offset - j) * d + i, count);
          put(dt, j * d + i, sum, count);
        });
      });
  });
  return y;
}

template <class T>
Var<T> conv2d(Var<T> x, Var<T> weight, Var<T> bias, const Conv2d& o) {
  const Dims &dx = x.dims(), &dw = weight.dims();
  SUBQUAD_CHECK(dx.rank() == 4 && dw.rank() == 4 && dw[1] == dx[1], "{} with weight {}", dx.str(),
                dw.str());
  SUBQUAD_CHECK(bias.empty() || bias.size() == dw[0], "a bias of {}", bias.size());
  Sizes2d s{dx[0], dx[1], dx[2], dx[3], dw[0], dw[2], dw[3], 0, 0};
  const auto extent = [](Index size, Index pad, Index k, Index dilation, Index stride) {
    return (size + pad - dilation * (k - 1) - 1) / stride + 1;
  };
  s.out_h = extent(s.h, o.pad_top + o.pad_bottom, s.k_h, o.dilation_y, o.stride_y);
  s.out_w = extent(s.w, o.pad_left + o.pad_right, s.k_w, o.dilation_x, o.stride_x);
  SUBQUAD_CHECK(s.out_h > 0 && s.out_w > 0, "the kernel is larger than the image");
  Tape<T>& tape = x.tape();
  const Index pixels = s.out_h * s.out_w, terms = s.c_in * s.k_h * s.k_w;
  const bool needs = x.needs_grad() || weight.needs_grad() || (!bias.empty() && bias.needs_grad());
  const Var<T> y = tape.make({s.batch, s.c_out, s.out_h, s.out_w}, needs);
  {
    const typename Tape<T>::Scratch columns(tape, pixels * terms),
        work(tape, gemm_work(std::max(pixels, terms), std::max(terms, pixels)));
    for (Index b = 0; b < s.batch; ++b) {
      image_columns<T, false>(x.data() + b * s.c_in * s.h * s.w, columns.data(), s, o);
      Gemm<T> g;
      g.m = s.c_out;
      g.n = pixels;
      g.k = terms;
      g.a = plain<const T>(weight.data(), terms);
      g.b = plain<const T>(columns.data(), terms).transposed();
      g.c = plain(y.data() + b * s.c_out * pixels, pixels);
      gemm(g, work.data());
      for (Index c = 0; c < s.c_out && !bias.empty(); ++c)
        for (Index i = 0; i < pixels; ++i)
          y.data()[(b * s.c_out + c) * pixels + i] += bias.data()[c];
    }
  }
  if (!y.needs_grad()) return y;
  tape.note(y, [=] {
    Tape<T>& t = y.tape();
    const T* const dy = t.out_grad(y);
    const Target<T> to_x = t.target(x), to_w = t.target(weight);
    const Target<T> to_b = bias.empty() ? Target<T>{} : t.target(bias);
    if (to_x && !to_x.add) std::fill_n(to_x.data, x.size(), T(0));
    if (to_b && !to_b.add) std::fill_n(to_b.data, s.c_out, T(0));
    const typename Tape<T>::Scratch columns(t, pixels * terms),
        work(t, gemm_work(std::max(pixels, terms), std::max(terms, pixels)));
    for (Index b = 0; b < s.batch; ++b) {
      const T* const g_out = dy + b * s.c_out * pixels;
      for (Index c = 0; c < s.c_out && to_b; ++c)
        for (Index i = 0; i < pixels; ++i) to_b.data[c] += g_out[c * pixels + i];
      Gemm<T> g;
      if (to_w) {  // dw = dy columns
        image_columns<T, false>(x.data() + b * s.c_in * s.h * s.w, columns.data(), s, o);
        g.m = s.c_out;
        g.n = terms;
        g.k = pixels;
        g.a = plain<const T>(g_out, pixels);
        g.b = plain<const T>(columns.data(), terms);
        g.c = plain(to_w.data, terms);
        g.accumulate = to_w.add || b > 0;
        gemm(g, work.data());
      }
      if (!to_x) continue;
      g.m = pixels;  // dcolumns = dy^T weight
      g.n = terms;
      g.k = s.c_out;
      g.a = plain<const T>(g_out, pixels).transposed();
      g.b = plain<const T>(weight.data(), terms);
      g.c = plain(columns.data(), terms);
      g.accumulate = false;
      gemm(g, work.data());
      image_columns<T, true>(to_x.data + b * s.c_in * s.h * s.w, columns.data(), s, o);
    }
  });
  return y;
}

template <class T>
Var<T> interpolate(Var<T> x, int axis, Index size, Interpolation kind) {
  const int a = x.dims().axis(axis);
  const Index in = x.dims()[a], outer = x.dims().count(0, a),
              inner = x.dims().count(a + 1, x.dims().rank());
  SUBQUAD_CHECK(in > 0 && size > 0, "from {} to {}", in, size);
  const Var<T> y = x.tape().make(x.dims().with(a, size), x.needs_grad());
  parallel_for(outer, [&](Index o, int) {
    for (Index i = 0; i < size; ++i) {
      const Taps taps = taps_of(i, in, size, kind);
      T* const to = y.data() + (o * size + i) * inner;
      std::fill_n(to, inner, T(0));
      for (Index j = 0; j < taps.count; ++j) {
        const T* const from = x.data() + (o * in + taps.first + j) * inner;
        const T w = static_cast<T>(weight_of(taps, j));
        for (Index l = 0; l < inner; ++l) to[l] += w * from[l];
      }
    }
  });
  if (!y.needs_grad()) return y;
  y.tape().note(y, [=] {
    const T* const dy = y.tape().out_grad(y);
    const Target<T> dx = x.tape().target(x);
    if (!dx.add) std::fill_n(dx.data, x.size(), T(0));
    parallel_for(outer, [&](Index o, int) {
      for (Index i = 0; i < size; ++i) {
        const Taps taps = taps_of(i, in, size, kind);
        const T* const from = dy + (o * size + i) * inner;
        for (Index j = 0; j < taps.count; ++j) {
          T* const to = dx.data + (o * in + taps.first + j) * inner;
          const T w = static_cast<T>(weight_of(taps, j));
          for (Index l = 0; l < inner; ++l) to[l] += w * from[l];
        }
      }
    });
  });
  return y;
}

#define INSTANTIATE(T)                                           \
  template Var<T> depthwise_conv(Var<T>, Var<T>, Index);         \
  template Var<T> conv2d(Var<T>, Var<T>, Var<T>, const Conv2d&); \
  template Var<T> interpolate(Var<T>, int, Index, Interpolation);
SUBQUAD_AUTODIFF_BOTH(INSTANTIATE)

}  // namespace subquad::autodiff
