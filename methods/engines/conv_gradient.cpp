#include "methods/engines/conv_gradient.h"

#include <cmath>
#include <limits>

#include "harness/core/parallel.h"

namespace subquad {
namespace {

constexpr Index kDirect = 256;  // longest sequence that is worked on without transforms
constexpr Index kRows = 64;

// Row sums (the largest kernel value is 1) below which a row is left out. 1 / D multiplies what
// goes through a transform, whose error of 1e-16 sqrt(B) of the largest input all rows of a block
// share.
constexpr double kSmallDirect = 1e-280, kSmallTransformed = 1e-7;

}  // namespace

ConvPlan ConvGradient::plan(const Sizes& s) {
  if (s.n <= kDirect || s.max_segments > s.n / 8) return {ConvEngine::direct, 0, 0};
  return choose_conv_plan({s.n, s.d_k, columns(s), s.max_segments, s.causal, false}, "partitioned");
}

void ConvGradient::prepare(const Sizes& s, Planner planner) {
  sizes_ = s;
  plan_ = plan(s);
  profiles_.prepare(s.n, s.d_k, s.max_segments, s.causal);
  w_ = ConvKernels<double>(s.n, s.max_segments, s.causal);
  if (!s.plug_in) correlation_ = ConvKernels<double>(s.n, s.max_segments, s.causal);
  if (plan_.engine == ConvEngine::direct) {
    direct_.prepare(s.n, columns(s));
  } else {
    partitioned_.prepare({s.n, columns(s), s.max_segments, s.causal, plan_.block, !s.plug_in},
                         planner);
  }
  for (auto* x : {&sums_, &rounding_, &inverse_, &dl_}) *x = AlignedArray<double>(s.n);
  e_before_ = AlignedArray<double>(s.n + 1);
  weights_ = AlignedArray<double>(s.n);
  for (auto* x : {&x_, &y_, &values_}) *x = AlignedArray<double>(s.n * columns(s));
}

double ConvGradient::bytes(const Sizes& s) {
  const ConvPlan p = plan(s);
  return ConvProfiles<double>::bytes(s.n, s.d_k, s.max_segments, s.causal) +
         ConvKernels<double>::bytes(s.n, s.max_segments, s.causal) * (s.plug_in ? 1 : 2) +
         (p.engine == ConvEngine::direct
              ? DirectConv<double>::bytes(s.n, columns(s))
              : PartitionedConv<double>::bytes(
                    {s.n, columns(s), s.max_segments, s.causal, p.block, !s.plug_in})) +
         8.0 * static_cast<double>(s.n * (6 + 3 * columns(s)) + 1);
}

void ConvGradient::apply(const double* x, double* y) {
  if (plan_.engine == ConvEngine::direct) {
    direct_.apply(w_, x, columns(sizes_), inverse_.data(), y);
  } else {
    partitioned_.apply(x, columns(sizes_), inverse_.data(), nullptr, y);
  }
}

void ConvGradient::transposed(const double* x, double* y) {
  if (plan_.engine == ConvEngine::direct) {
    direct_transposed(w_, x, columns(sizes_), y);
  } else {
    partitioned_.apply_transposed(x, columns(sizes_), y);
  }
}

void ConvGradient::run(std::span<const Index> starts, const float* q, const float* k,
                       const float* v, double scale, const float* out, const float* dout, float* dq,
                       float* dk, float* dv) {
  const Index n = sizes_.n, d_v = sizes_.d_v, width = columns(sizes_);
  w_.set_starts(starts);
  profiles_.logits(q, k, scale, &w_);
  profiles_.exponentiate(&w_);
  profiles_.normalizers(w_, sums_.data(), rounding_.data());
  if (plan_.engine == ConvEngine::partitioned) partitioned_.set_kernels(w_);
  const double small = plan_.engine == ConvEngine::direct ? kSmallDirect : kSmallTransformed;
  parallel_for((n + kRows - 1) / kRows, [&](Index item, int) {
    for (Index t = item * kRows; t < std::min(n, (item + 1) * kRows); ++t) {
      inverse_[t] = sums_[t] > small && rounding_[t] < 1e-6 * sums_[t] ? 1 / sums_[t] : 0;
      dl_[t] = 0;
      for (Index c = 0; c < d_v; ++c) {
        const auto g = static_cast<double>(dout[t * d_v + c]);
        dl_[t] += g * static_cast<double>(out[t * d_v + c]);
        x_[t * width + c] = g * inverse_[t];
        values_[t * width + c] = static_cast<double>(v[t * d_v + c]);
      }
      if (width > d_v) x_[t * width + d_v] = values_[t * width + d_v] = 0;
    }
  });
  transposed(x_.data(), y_.data());
  for (Index j = 0; j < n; ++j)
    for (Index c = 0; c < d_v; ++c) dv[j * d_v + c] = static_cast<float>(y_[j * width + c]);
  if (sizes_.plug_in) {
    plug_in(q, k, v, scale, dout, dq, dk);
  } else {
    exact(q, k, scale, dq, dk);
  }
  add_rows(q, k, v, scale, dout, dq, dk, dv);
}

// The rows that were left out: dS(t, j) = a p_tj (<G_t, V_j> - dl_t) goes to the logit that stands
// for (t, j), or to that of (t, j) itself for the plug-in gradient. O(n (d_k + d_v)) each, one
// after the other.
void ConvGradient::add_rows(const float* q, const float* k, const float* v, double scale,
                            const float* dout, float* dq, float* dk, float* dv) {
  const Index n = sizes_.n, d_k = sizes_.d_k, d_v = sizes_.d_v;
  double* weights = weights_.data();
  const auto dot = [](const float* a, const float* b, Index d) {
    double sum = 0;
    for (Index c = 0; c < d; ++c) sum += static_cast<double>(a[c]) * static_cast<double>(b[c]);
    return sum;
  };
  const auto add = [](double factor, const float* x, Index d, float* to) {
    for (Index c = 0; c < d; ++c)
      to[c] = static_cast<float>(static_cast<double>(to[c]) + factor * static_cast<double>(x[c]));
  };
  for (Index t = 0; t < n; ++t) {
    if (inverse_[t] != 0) continue;
    const Index seen = w_.causal() ? t + 1 : n;
    const auto each = [&](auto&& body) {
      for (Index i = 0, j = 0; j < seen; ++i)
        for (; j < std::min(w_.end(i), seen); ++j)
          body(j, ConvProfiles<double>::column(w_, i, t < j));
    };
    double largest = -std::numeric_limits<double>::infinity(), total = 0;
    each([&](Index j, Index column) {
      weights[j] = scale * dot(q + (t - j + column) * d_k, k + column * d_k, d_k);
      largest = weights[j] > largest ? weights[j] : largest;
    });
    for (Index j = 0; j < seen; ++j) total += weights[j] = std::exp(weights[j] - largest);
    each([&](Index j, Index column) {
      const double p = weights[j] / total;
      const double ds = scale * p * (dot(dout + t * d_v, v + j * d_v, d_v) - dl_[t]);
      const Index key = sizes_.plug_in ? j : column, query = t - j + key;
      add(p, dout + t * d_v, d_v, dv + j * d_v);
      add(ds, k + key * d_k, d_k, dq + query * d_k);
      add(ds, q + query * d_k, d_k, dk + key * d_k);
    });
  }
}

void ConvGradient::exact(const float* q, const float* k, double scale, float* dq, float* dk) {
  const Index n = sizes_.n, d_k = sizes_.d_k, count = w_.count();
  correlation_.set_starts(w_.starts());
  if (plan_.engine == ConvEngine::direct) {
    direct_correlate(x_.data(), values_.data(), sizes_.d_v, &correlation_);
  } else {
    partitioned_.correlate(x_.data(), values_.data(), sizes_.d_v, &correlation_);
  }
  e_before_[0] = 0;
  for (Index t = 0; t < n; ++t) e_before_[t + 1] = e_before_[t] + dl_[t] * inverse_[t];
  std::fill_n(dk, n * d_k, 0.0f);
  parallel_for(count, [&](Index i, int) {
    double* g = correlation_.profile(i);  // becomes a gu_i
    const double* w = w_.profile(i);
    for (Index lag = w_.lowest(i); lag <= w_.highest(i); ++lag) {
      const Index first = std::max<Index>(0, w_.start(i) + lag),
                  last = std::min(n, w_.end(i) + lag);
      g[lag] = scale * w[lag] * (g[lag] - (e_before_[last] - e_before_[first]));
    }
    // Segments own their columns, so no two items write the same row.
    for (const bool negative : {false, true}) {
      const Index j = ConvProfiles<double>::column(w_, i, negative);
      for (Index c = 0; c < d_k; ++c) {
        double sum = 0;
        for (Index lag = negative ? w_.lowest(i) : 0; lag <= (negative ? -1 : w_.highest(i)); ++lag)
          sum += g[lag] * static_cast<double>(q[(j + lag) * d_k + c]);
        dk[j * d_k + c] += static_cast<float>(sum);
      }
    }
  });
  parallel_for((n + kRows - 1) / kRows, [&](Index item, int) {
    for (Index t = item * kRows; t < std::min(n, (item + 1) * kRows); ++t)
      for (Index c0 = 0; c0 < d_k; c0 += kRows) {
        const Index width = std::min(kRows, d_k - c0);
        double sums[kRows] = {};
        for (Index i = 0; i < count; ++i) {
          const bool negative = t < w_.start(i);
          if (negative && w_.causal()) break;
          const auto add = [&](Index j) {
            const double g = correlation_.profile(i)[t - j];
            for (Index c = 0; c < width; ++c)
              sums[c] += g * static_cast<double>(k[j * d_k + c0 + c]);
          };
          // Row t meets both columns of a segment that it lies in.
          if (!negative) add(w_.start(i));
          if (!w_.causal() && t < w_.end(i) - 1) add(w_.end(i) - 1);
        }
        for (Index c = 0; c < width; ++c) dq[t * d_k + c0 + c] = static_cast<float>(sums[c]);
      }
  });
}

void ConvGradient::plug_in(const float* q, const float* k, const float* v, double scale,
                           const float* dout, float* dq, float* dk) {
  const Index n = sizes_.n, d_k = sizes_.d_k, d_v = sizes_.d_v, width = d_v + 1;
  const auto rows = [&](auto&& body) {
    parallel_for((n + kRows - 1) / kRows, [&](Index item, int) {
      for (Index t = item * kRows; t < std::min(n, (item + 1) * kRows); ++t) body(t);
    });
  };
  for (Index c = 0; c < d_k; ++c) {
    rows([&](Index j) {
      const auto key = static_cast<double>(k[j * d_k + c]);
      for (Index l = 0; l < d_v; ++l)
        values_[j * width + l] = static_cast<double>(v[j * d_v + l]) * key;
      values_[j * width + d_v] = key;
    });
    apply(values_.data(), y_.data());
    rows([&](Index t) {
      double sum = -dl_[t] * y_[t * width + d_v];
      for (Index l = 0; l < d_v; ++l)
        sum += static_cast<double>(dout[t * d_v + l]) * y_[t * width + l];
      dq[t * d_k + c] = static_cast<float>(scale * sum);
      const double query = static_cast<double>(q[t * d_k + c]) * inverse_[t];
      for (Index l = 0; l < d_v; ++l)
        values_[t * width + l] = static_cast<double>(dout[t * d_v + l]) * query;
      values_[t * width + d_v] = dl_[t] * query;
    });
    transposed(values_.data(), y_.data());
    rows([&](Index j) {
      double sum = -y_[j * width + d_v];
      for (Index l = 0; l < d_v; ++l)
        sum += static_cast<double>(v[j * d_v + l]) * y_[j * width + l];
      dk[j * d_k + c] = static_cast<float>(scale * sum);
    });
  }
}

}  // namespace subquad
