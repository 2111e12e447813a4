#include "methods/engines/zeta_projection.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "harness/core/parallel.h"
#include "harness/core/random.h"

namespace subquad {
namespace {

constexpr Index kRowBlock = 64;          // rows of a work item
constexpr double kGeluVariance = 0.425;  // E[gelu(x)^2] of a standard normal x

double gelu(double x) { return 0.5 * x * (1 + std::erf(x * std::numbers::sqrt2 / 2)); }
double gelu_slope(double x) {
  return 0.5 * (1 + std::erf(x * std::numbers::sqrt2 / 2)) +
         x * std::exp(-0.5 * x * x) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
}

void make(Parameter* p, std::string name, std::vector<Index> shape, bool decay, bool gradients) {
  *p = Parameter{};
  p->name = std::move(name);
  p->decay = decay;
  Index size = 1;
  for (const Index extent : shape) size *= extent;
  p->shape = std::move(shape);
  p->value = AlignedArray<float>(size);
  p->grad = AlignedArray<float>(gradients ? size : 0);
  std::fill_n(p->value.data(), size, 0.0f);
  std::fill_n(p->grad.data(), p->grad.size(), 0.0f);
}

void fill(Parameter* p, Seed seed, double deviation) {
  fill_normal(seed, p->value.data(), p->value.size());
  for (Index i = 0; i < p->value.size(); ++i)
    p->value[i] = static_cast<float>(deviation * static_cast<double>(p->value[i]));
}

}  // namespace

void ZetaProjection::prepare(const Options& options, const std::string& prefix, Index heads,
                             Index d, Seed seed, bool gradients) {
  options_ = options;
  heads_ = heads;
  d_ = d;
  hidden_ = hidden_size(options, d);
  const Index inner = options.mlp ? hidden_ : d;
  const std::string down = prefix + (options.mlp ? "down." : "");
  make(&down_, down + "weight", {heads, inner, options.d_key}, true, gradients);
  make(&down_bias_, down + "bias", {heads, options.d_key}, false, gradients);
  fill(&down_, derive(seed, "zeta.proj.down"),
       1 / std::sqrt(static_cast<double>(inner) * (options.mlp ? kGeluVariance : 1)));
  if (options.mlp) make(&up_, prefix + "up.weight", {heads, d, hidden_}, true, gradients);
  if (options.mlp) make(&up_bias_, prefix + "up.bias", {heads, hidden_}, false, gradients);
  if (options.mlp) fill(&up_, derive(seed, "zeta.proj.up"), 1 / std::sqrt(static_cast<double>(d)));
  sums_.clear();
  for (const Parameter* p : parameters()) sums_.emplace_back(p->grad.size());
}

std::vector<Parameter*> ZetaProjection::parameters() {
  if (!options_.mlp) return {&down_, &down_bias_};
  return {&up_, &up_bias_, &down_, &down_bias_};
}

ZetaProjection ZetaProjection::copy() const {
  ZetaProjection made;
  made.prepare(options_, "", heads_, d_, 0, false);
  const auto take = [](const Parameter& from, Parameter* to) {
    std::copy_n(from.value.data(), from.value.size(), to->value.data());
  };
  take(down_, &made.down_);
  take(down_bias_, &made.down_bias_);
  take(up_, &made.up_);
  take(up_bias_, &made.up_bias_);
  return made;
}

// z = W1 x + b1 [hidden]
void ZetaProjection::hidden_row(Index h, const float* x, double* z) const {
  for (Index j = 0; j < hidden_; ++j) z[j] = static_cast<double>(up_bias_.value[h * hidden_ + j]);
  for (Index i = 0; i < d_; ++i) {
    const double xi = static_cast<double>(x[i]);
    const float* const w = up_.value.data() + (h * d_ + i) * hidden_;
    for (Index j = 0; j < hidden_; ++j) z[j] += xi * static_cast<double>(w[j]);
  }
}

void ZetaProjection::map_row(Index h, const float* x, float* y) const {
  const Index d_key = options_.d_key, inner = options_.mlp ? hidden_ : d_;
  double z[kMaxHidden], sum[kMaxKey];
  if (options_.mlp) hidden_row(h, x, z);
  for (Index c = 0; c < d_key; ++c) sum[c] = static_cast<double>(down_bias_.value[h * d_key + c]);
  const float* w = down_.value.data() + h * inner * d_key;
  for (Index i = 0; i < inner; ++i, w += d_key) {
    const double a = options_.mlp ? gelu(z[i]) : static_cast<double>(x[i]);
    for (Index c = 0; c < d_key; ++c) sum[c] += a * static_cast<double>(w[c]);
  }
  for (Index c = 0; c < d_key; ++c) y[c] = static_cast<float>(sum[c]);
}

void ZetaProjection::forward(ConstTensorView x, TensorView y) const {
  const Index n = x.n(), blocks = (n + kRowBlock - 1) / kRowBlock;
  parallel_for(x.batch() * heads_ * blocks, [&](Index item, int) {
    const Index bh = item / blocks, first = item % blocks * kRowBlock;
    const float* const from = x.head(bh).data();
    float* const to = y.head(bh).data();
    for (Index i = first; i < std::min(n, first + kRowBlock); ++i)
      map_row(bh % heads_, from + i * d_, to + i * options_.d_key);
  });
}

void ZetaProjection::backward(ConstTensorView x, ConstTensorView dy, TensorView dx) {
  const Index n = x.n(), d_key = options_.d_key, inner = options_.mlp ? hidden_ : d_;
  for (AlignedArray<double>& sum : sums_) std::fill_n(sum.data(), sum.size(), 0.0);
  double *const all_dw2 = sums_[sums_.size() - 2].data(), *const all_db2 = sums_.back().data();
  parallel_for(heads_, [&](Index h, int) {
    double z[kMaxHidden], dz[kMaxHidden];
    const float* const w2 = down_.value.data() + h * inner * d_key;
    double *const dw2 = all_dw2 + h * inner * d_key, *const db2 = all_db2 + h * d_key;
    for (Index b = 0; b < x.batch(); ++b)
      for (Index i = 0; i < n; ++i) {
        const float* const row = x.head_data(b, h) + i * d_;
        const float* const g = dy.head_data(b, h) + i * d_key;
        float* const to = dx.head_data(b, h) + i * d_;
        if (std::all_of(g, g + d_key, [](float e) { return e == 0; })) {
          std::fill_n(to, d_, 0.0f);
          continue;
        }
        if (options_.mlp) hidden_row(h, row, z);
        for (Index c = 0; c < d_key; ++c) db2[c] += static_cast<double>(g[c]);
        for (Index j = 0; j < inner; ++j) {
          const double a = options_.mlp ? gelu(z[j]) : static_cast<double>(row[j]);
          double sum = 0;
          for (Index c = 0; c < d_key; ++c) {
            dw2[j * d_key + c] += a * static_cast<double>(g[c]);
            sum += static_cast<double>(w2[j * d_key + c]) * static_cast<double>(g[c]);
          }
          if (options_.mlp) {
            dz[j] = sum * gelu_slope(z[j]);
          } else {
            to[j] = static_cast<float>(sum);
          }
        }
        if (options_.mlp) backward_up(h, row, dz, to);
      }
  });
  std::size_t number = 0;
  for (Parameter* p : {&up_, &up_bias_, &down_, &down_bias_}) {
    if (p->grad.size() == 0) continue;  // linear has the last two
    const AlignedArray<double>& sum = sums_[number++];
    for (Index e = 0; e < sum.size(); ++e) p->grad[e] += static_cast<float>(sum[e]);
  }
}

// Gradients of W1, b1 and of one row.
void ZetaProjection::backward_up(Index h, const float* x, const double* dz, float* dx) {
  double *const dw1 = sums_[0].data() + h * d_ * hidden_, *const db1 =
                                                              sums_[1].data() + h * hidden_;
  for (Index j = 0; j < hidden_; ++j) db1[j] += dz[j];
  for (Index e = 0; e < d_; ++e) {
    const float* const w = up_.value.data() + (h * d_ + e) * hidden_;
    double* const dw = dw1 + e * hidden_;
    const auto value = static_cast<double>(x[e]);
    double sum = 0;
    for (Index j = 0; j < hidden_; ++j) {
      dw[j] += value * dz[j];
      sum += static_cast<double>(w[j]) * dz[j];
    }
    dx[e] = static_cast<float>(sum);
  }
}

double ZetaProjection::bytes(const Options& options, Index heads, Index d, bool gradients) {
  const Index hidden = hidden_size(options, d), inner = options.mlp ? hidden : d;
  const Index numbers =
      heads * ((inner + 1) * options.d_key + (options.mlp ? (d + 1) * hidden : 0));
  return (gradients ? 16.0 : 4.0) * static_cast<double>(numbers);
}

double ZetaProjection::flops(const Options& options, double rows, Index d) {
  const Index hidden = hidden_size(options, d), inner = options.mlp ? hidden : d;
  return 2 * rows * static_cast<double>(inner * options.d_key + (options.mlp ? d * hidden : 0));
}

}  // namespace subquad
