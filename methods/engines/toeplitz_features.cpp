#include "methods/engines/toeplitz_features.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "harness/core/parallel.h"
#include "methods/engines/conv_cost.h"
#include "methods/engines/masked_product.h"

namespace subquad {
namespace {

constexpr Index kRows = 64;   // rows of a work item
constexpr Index kKeys = 128;  // keys of a tile
// Longest sequence whose transforms stay on one thread: a gradient makes thousands of products of
// some 100 us, and where processors are short every wait for the other threads costs a time slice.
constexpr Index kAlone = 1024;

ConvSizes conv_cost_sizes(const ToeplitzFeatures::Sizes& s) {
  return {s.n, 1, s.d_v, 1, s.causal, false};
}

}  // namespace

Index ToeplitzFeatures::block(const Sizes& s) {
  return choose_conv_plan(conv_cost_sizes(s), "partitioned").block;
}
PartitionedConv<double>::Sizes ToeplitzFeatures::conv_sizes(const Sizes& s) {
  return {s.n, columns(s), 1, s.causal, block(s), s.gradients, s.n <= kAlone};
}
Index ToeplitzFeatures::tile_floats(const Sizes& s) {
  return (kRows + kKeys) * s.features + kRows * kKeys + (kRows + kKeys) * s.d_v;
}

double ToeplitzFeatures::product_operations(const Sizes& s) {
  return static_cast<double>(s.features) *
         conv_operations(conv_cost_sizes(s), ConvEngine::partitioned, block(s));
}

bool ToeplitzFeatures::transforms_pay(const Sizes& s) {
  constexpr double kTiles = 45e9;  // operations per second of the tiles
  const double width = static_cast<double>(s.features), n = static_cast<double>(s.n);
  const double visible = s.causal ? n * (n + 1) / 2 : n * n;
  return width * conv_seconds(conv_cost_sizes(s), ConvEngine::partitioned, block(s)) <
         2 * visible * (width + static_cast<double>(s.d_v)) / kTiles;
}

double ToeplitzFeatures::bytes(const Sizes& s) {
  const auto n = static_cast<double>(s.n), width = static_cast<double>(s.features);
  double bytes = 16.0 * n * width + 8.0 * (2 * n - 1) + 17.0 * n +
                 ConvKernels<double>::bytes(s.n, 1, s.causal) +
                 static_cast<double>(thread_count()) *
                     (4.0 * static_cast<double>(tile_floats(s)) + 8.0 * static_cast<double>(s.d_v));
  if (!s.transforms && !s.gradients) return bytes;
  bytes += PartitionedConv<double>::bytes(conv_sizes(s)) +
           16.0 * n * static_cast<double>(columns(s)) + 8.0 * n * static_cast<double>(s.d_v);
  if (!s.gradients) return bytes;
  return bytes + ConvKernels<double>::bytes(s.n, 1, s.causal) + 16.0 * n * width + 24.0 * n;
}

void ToeplitzFeatures::prepare(const Sizes& s) {
  sizes_ = s;
  for (auto* x : {&phi_q_, &phi_k_}) *x = AlignedArray<double>(s.n * s.features);
  log_kernel_ = AlignedArray<double>(2 * s.n - 1);
  toeplitz_ = ConvKernels<double>(s.n, 1, s.causal);
  sums_ = AlignedArray<double>(s.n);
  tiles_ = AlignedArray<float>(thread_count() * tile_floats(s));
  rows_ = AlignedArray<double>(thread_count() * s.d_v);
  kinds_ = AlignedArray<std::uint8_t>(s.n);
  seen_ = AlignedArray<Index>(s.n);
  if (!s.transforms && !s.gradients) return;
  conv_.prepare(conv_sizes(s), Planner::estimate);
  for (auto* x : {&x_, &y_}) *x = AlignedArray<double>(s.n * columns(s));
  total_ = AlignedArray<double>(s.n * s.d_v);
  if (!s.gradients) return;
  correlation_ = ConvKernels<double>(s.n, 1, s.causal);
  for (auto* x : {&dphi_q_, &dphi_k_}) *x = AlignedArray<double>(s.n * s.features);
  dc_ = AlignedArray<double>(2 * s.n - 1);
  e_ = AlignedArray<double>(s.n);
}

void ToeplitzFeatures::begin() {
  const Index n = sizes_.n, zero = 0;
  toeplitz_.set_starts({&zero, 1});
  double* c = toeplitz_.profile(0);
  const double* logs = log_kernel_.data() + n - 1;
  double largest = -std::numeric_limits<double>::infinity();
  for (Index lag = toeplitz_.lowest(0); lag <= toeplitz_.highest(0); ++lag)
    largest = std::max(largest, logs[lag]);
  for (Index lag = toeplitz_.lowest(0); lag <= toeplitz_.highest(0); ++lag)
    c[lag] = std::exp(logs[lag] - largest);
  Index count = 0;
  for (Index j = 0; j < n; ++j) seen_[j] = count += kinds_[j] != kPadding ? 1 : 0;
  if (!sizes_.causal) std::fill_n(seen_.data(), n, count);
}

double ToeplitzFeatures::product(Index t, Index j) const {
  const Index width = sizes_.features;
  double dot = 0;
  for (Index a = 0; a < width; ++a) dot += phi_q_[t * width + a] * phi_k_[j * width + a];
  return dot;
}

template <class Body>
void ToeplitzFeatures::for_rows(Body&& body) const {
  if (sizes_.n <= kAlone) {
    for (Index t = 0; t < sizes_.n; ++t) body(t, 0);
    return;
  }
  parallel_for((sizes_.n + kRows - 1) / kRows, [&](Index item, int thread) {
    for (Index t = item * kRows; t < std::min(sizes_.n, (item + 1) * kRows); ++t) body(t, thread);
  });
}

Index ToeplitzFeatures::forward(const float* v, float* out) {
  if (sizes_.transforms) return forward_transforms(v, out);
  forward_tiles(v, out);
  return 0;
}

void ToeplitzFeatures::forward_tiles(const float* v, float* out) {
  const Index n = sizes_.n, width = sizes_.features, d_v = sizes_.d_v;
  const double* c = toeplitz_.profile(0);
  using FeatureMap = Eigen::Map<const MatrixD>;
  parallel_for((n + kRows - 1) / kRows, [&](Index item, int thread) {
    const Index first = item * kRows, rows = std::min(kRows, n - first);
    float* data = tiles_.data() + thread * tile_floats(sizes_);
    MatrixMap q(data, rows, width);
    float* keys = data + kRows * width;
    float* products = keys + kKeys * width;
    float* sums = products + kRows * kKeys;
    float* spare = sums + kRows * d_v;
    MatrixMap o(sums, rows, d_v);
    double total[kRows] = {};
    q = FeatureMap(phi_q_.data() + first * width, rows, width).cast<float>();
    o.setZero();
    const Index last = sizes_.causal ? first + rows : n;
    for (Index j0 = 0; j0 < last; j0 += kKeys) {
      const Index count = std::min(kKeys, last - j0);
      MatrixMap k(keys, count, width), p(products, rows, count);
      k = FeatureMap(phi_k_.data() + j0 * width, count, width).cast<float>();
      p.noalias() = q * k.transpose();
      for (Index r = 0; r < rows; ++r) {
        const Index t = first + r, seen = std::clamp<Index>(visible(t) - j0, 0, count);
        const double* lag = c + (t - j0);
        float sum = 0;
        for (Index j = 0; j < seen; ++j) sum += p(r, j) *= static_cast<float>(lag[-j]);
        for (Index j = seen; j < count; ++j) p(r, j) = 0;
        total[r] += static_cast<double>(sum);
      }
      add_masked_product(p, ConstMatrixMap(v + j0 * d_v, count, d_v), o, spare);
    }
    for (Index r = 0; r < rows; ++r) {
      const Index t = first + r;
      if (seen_[t] > 0 && !(std::fabs(total[r]) > 1e-25)) {  // float weights may have vanished
        exact_row(v, t, thread, out + t * d_v);
        continue;
      }
      for (Index l = 0; l < d_v; ++l)
        out[t * d_v + l] =
            seen_[t] > 0 ? static_cast<float>(static_cast<double>(o(r, l)) / total[r]) : 0.f;
    }
  });
}

// Row t from its own largest kernel value on, in double. O(n (features + d_v)).
void ToeplitzFeatures::exact_row(const float* v, Index t, int thread, float* out) {
  const Index d_v = sizes_.d_v, end = visible(t);
  const double* logs = log_kernel_.data() + sizes_.n - 1 + t;  // logs[-j]
  double* sums = rows_.data() + thread * d_v;
  std::fill_n(sums, d_v, 0.0);
  double largest = -std::numeric_limits<double>::infinity(), total = 0;
  for (Index j = 0; j < end; ++j)
    if (kinds_[j] != kPadding) largest = std::max(largest, logs[-j]);
  for (Index j = 0; j < end; ++j) {
    if (kinds_[j] == kPadding) continue;
    const double w = std::exp(logs[-j] - largest) * product(t, j);
    total += w;
    for (Index l = 0; l < d_v; ++l) sums[l] += w * static_cast<double>(v[j * d_v + l]);
  }
  for (Index l = 0; l < d_v; ++l) out[l] = static_cast<float>(sums[l] / total);
}

// D(t) = sum_a phi(q_t)_a (T phi_k(:, a))_t, from one product with all features; leaves T phi_k in
// y_. A row whose sum is small beside the rounding of the transforms gets 0.
void ToeplitzFeatures::normalizers() {
  const Index n = sizes_.n, width = sizes_.features;
  conv_.set_kernels(toeplitz_);
  conv_.apply(phi_k_.data(), width, nullptr, nullptr, y_.data());
  double kernel = 0;
  for (Index lag = toeplitz_.lowest(0); lag <= toeplitz_.highest(0); ++lag)
    kernel += toeplitz_.profile(0)[lag] * toeplitz_.profile(0)[lag];
  const double energy =
      std::sqrt(kernel * Eigen::Map<const VectorD>(phi_k_.data(), n * width).squaredNorm());
  for_rows([&](Index t, int) {
    double sum = 0, largest = 0;
    for (Index a = 0; a < width; ++a) {
      sum += phi_q_[t * width + a] * y_[t * width + a];
      largest += phi_q_[t * width + a] * phi_q_[t * width + a];
    }
    sums_[t] = std::fabs(sum) > 1e-9 * std::sqrt(largest) * energy ? sum : 0;
  });
}

Index ToeplitzFeatures::forward_transforms(const float* v, float* out) {
  const Index n = sizes_.n, width = sizes_.features, d_v = sizes_.d_v;
  normalizers();
  std::fill_n(total_.data(), n * d_v, 0.0);
  for (Index a = 0; a < width; ++a) {
    for_rows([&](Index j, int) {
      for (Index l = 0; l < d_v; ++l)
        x_[j * d_v + l] =
            kinds_[j] != kKey ? 0 : phi_k_[j * width + a] * static_cast<double>(v[j * d_v + l]);
    });
    conv_.apply(x_.data(), d_v, nullptr, nullptr, y_.data());
    for_rows([&](Index t, int) {
      const double q = phi_q_[t * width + a];
      for (Index l = 0; l < d_v; ++l) total_[t * d_v + l] += q * y_[t * d_v + l];
    });
  }
  Index guarded = 0;
  bool finite = true;
  for (Index t = 0; t < n; ++t) {
    guarded += seen_[t] > 0 && sums_[t] == 0 ? 1 : 0;
    finite = finite && kinds_[t] != kNotFinite;
  }
  for_rows([&](Index t, int thread) {
    float* o = out + t * d_v;
    double* sums = rows_.data() + thread * d_v;
    if (seen_[t] == 0) {
      std::fill_n(o, d_v, 0.f);
      return;
    }
    if (sums_[t] == 0) {
      exact_row(v, t, thread, o);
      return;
    }
    std::copy_n(total_.data() + t * d_v, d_v, sums);
    for (Index j = 0; !finite && j < visible(t); ++j) {
      if (kinds_[j] != kNotFinite) continue;
      const double w = weight(t, j);
      for (Index l = 0; l < d_v; ++l) sums[l] += w * static_cast<double>(v[j * d_v + l]);
    }
    for (Index l = 0; l < d_v; ++l) o[l] = static_cast<float>(sums[l] / sums_[t]);
  });
  return guarded;
}

// With G = dout, Gt = G / D, e_t = <Gt_t, Y_t>, and T the Toeplitz matrix c_{j-t}:
//   dphi_q(:, a) = rowsum(T(phi_k(:, a) V) o Gt) - e o T phi_k(:, a)
//   dphi_k(:, a) = rowsum(T^T(phi_q(:, a) Gt) o V) - T^T (phi_q(:, a) e)
//   dV += phi_k(:, a) T^T(phi_q(:, a) Gt)
//   dc_r = sum over t, j = t + r of phi(q_t) . phi(k_j) (<Gt_t, V_j> - e_t).
void ToeplitzFeatures::backward(const float* v, const float* out, const float* dout,
                                bool with_kernel, float* dv) {
  const Index n = sizes_.n, width = sizes_.features, d_v = sizes_.d_v;
  normalizers();
  for_rows([&](Index t, int) {          // e, and dphi_q(t, a) = - e_t (T phi_k)(t, a)
    if (seen_[t] > 0 && sums_[t] == 0)  // too small for transforms: summed in full
      for (Index j = 0; j < visible(t); ++j) sums_[t] += weight(t, j);
    e_[t] = 0;
    for (Index l = 0; l < d_v && seen_[t] > 0; ++l)
      e_[t] +=
          static_cast<double>(dout[t * d_v + l]) * static_cast<double>(out[t * d_v + l]) / sums_[t];
    for (Index a = 0; a < width; ++a) dphi_q_[t * width + a] = -e_[t] * y_[t * width + a];
  });
  const auto scaled = [&](Index t, Index l) {  // Gt
    return seen_[t] > 0 ? static_cast<double>(dout[t * d_v + l]) / sums_[t] : 0;
  };
  const auto value = [&](Index j, Index l) {
    return kinds_[j] == kPadding ? 0 : static_cast<double>(v[j * d_v + l]);
  };
  const Index low = toeplitz_.lowest(0), high = toeplitz_.highest(0), zero = 0;
  correlation_.set_starts({&zero, 1});
  std::fill_n(dc_.data(), 2 * n - 1, 0.0);
  const auto add_correlation = [&](double sign) {
    for (Index lag = low; lag <= high; ++lag)
      dc_[lag + n - 1] += sign * correlation_.profile(0)[lag];
  };
  for_rows([&](Index t, int) {  // phi_q e
    for (Index a = 0; a < width; ++a) x_[t * width + a] = phi_q_[t * width + a] * e_[t];
  });
  if (with_kernel) {
    conv_.correlate(x_.data(), phi_k_.data(), width, &correlation_);
    add_correlation(-1);
  }
  conv_.apply_transposed(x_.data(), width, y_.data());
  for_rows([&](Index j, int) {
    for (Index a = 0; a < width; ++a) dphi_k_[j * width + a] = -y_[j * width + a];
  });
  std::fill_n(total_.data(), n * d_v, 0.0);  // dV
  for (Index a = 0; a < width; ++a) {
    for_rows([&](Index j, int) {
      for (Index l = 0; l < d_v; ++l) x_[j * d_v + l] = phi_k_[j * width + a] * value(j, l);
    });
    conv_.apply(x_.data(), d_v, nullptr, nullptr, y_.data());
    for_rows([&](Index t, int) {
      double sum = 0;
      for (Index l = 0; l < d_v; ++l) sum += y_[t * d_v + l] * scaled(t, l);
      dphi_q_[t * width + a] += sum;
      for (Index l = 0; l < d_v; ++l) y_[t * d_v + l] = phi_q_[t * width + a] * scaled(t, l);
    });
    if (with_kernel) {
      conv_.correlate(y_.data(), x_.data(), d_v, &correlation_);
      add_correlation(1);
    }
    conv_.apply_transposed(y_.data(), d_v, x_.data());
    for_rows([&](Index j, int) {
      double sum = 0;
      for (Index l = 0; l < d_v; ++l) {
        sum += x_[j * d_v + l] * value(j, l);
        total_[j * d_v + l] += phi_k_[j * width + a] * x_[j * d_v + l];
      }
      dphi_k_[j * width + a] += sum;
    });
  }
  for_rows([&](Index j, int) {
    for (Index l = 0; l < d_v; ++l) dv[j * d_v + l] = static_cast<float>(total_[j * d_v + l]);
  });
}

}  // namespace subquad
