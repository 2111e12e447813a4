// Kernelised attention with relative positional encoding: a low-rank matrix times a Toeplitz
// matrix. Source: Luo et al. 2021, "Stable, Fast and Accurate: Kernelized Attention with Relative
// Positional Encoding" (arXiv 2106.12566), algorithm 1.
//   Y_t = sum_j c_{j-t} (phi(q_t) . phi(k_j)) V_j / sum_j c_{j-t} (phi(q_t) . phi(k_j)),
//   c_r = exp(b_r), b learned per head; c_r = 0 for r > 0 when causal;
//   phi(x)_a = M^-1/2 exp(w_a . x - |x|^2 / 2), w_a standard normal (prf), x divided by its length.
// fft:      one Toeplitz product of [n, d_v] per feature (engines/conv_partitioned.h): O(M n d_v
// log n) explicit: tiles of the n x n matrix: O(n^2 (M + d_v)), the better way below some ten
// thousand tokens Backward goes by Toeplitz products alone.
//
// Our choices where the paper is silent: no scale inside phi after the normalisation; without it,
// queries and keys are multiplied by sqrt(logit scale); b starts at 0 (bias_std: at random); W and
// b belong to a head. A row whose denominator is small beside the rounding of transforms is
// computed explicitly.

#include <algorithm>
#include <cmath>
#include <limits>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "methods/engines/band.h"
#include "methods/engines/conv_cost.h"
#include "methods/engines/conv_partitioned.h"
#include "methods/engines/kernel_features.h"
#include "methods/engines/masked_product.h"

namespace subquad {
namespace {

constexpr Index kRows = 64;   // rows of a work item
constexpr Index kKeys = 128;  // keys of a tile

struct Params {
  Index features = 32;
  std::string feature_map = "prf";
  bool normalize = true;
  bool rpe = true;
  bool orthogonal = false;
  Index bias_range = 0;
  double bias_std = 0;
  std::string engine = "auto";
};

class Nprf final : public Method {
 public:
  explicit Nprf(const Params& params) : params_(params) {}

  void prepare(const Problem& problem, const Env& env) override {
    problem_ = problem;
    fft_ = uses_fft(problem);
    const Index n = problem.n, width = features(problem);
    features_ = KernelFeatures(feature_options(problem), problem.heads, derive(env.seed, "nprf.w"));
    bias_ = Parameter{};
    bias_.name = "bias";
    bias_.decay = false;
    if (params_.rpe) {
      bias_.shape = {problem.heads, 2 * range(problem) + 1};
      bias_.value = AlignedArray<float>(bias_.shape[0] * bias_.shape[1]);
      bias_.grad = AlignedArray<float>(env.gradients ? bias_.value.size() : 0);
      fill_normal(derive(env.seed, "nprf.bias"), bias_.value.data(), bias_.value.size());
      for (Index e = 0; e < bias_.value.size(); ++e)
        bias_.value[e] *= static_cast<float>(params_.bias_std);
    }
    for (auto* x : {&phi_q_, &phi_k_}) *x = AlignedArray<double>(n * width);
    toeplitz_ = ConvKernels<double>(n, 1, problem.causal);
    sums_ = AlignedArray<double>(n);
    tiles_ = AlignedArray<float>(thread_count() * tile_floats(problem));
    rows_ = AlignedArray<double>(thread_count() * (problem.d_v + problem.d_k));
    skip_ = AlignedArray<std::uint8_t>(n);
    seen_ = AlignedArray<Index>(n);
    if (!fft_ && !env.gradients) return;
    conv_.prepare(conv_sizes(problem, env.gradients), Planner::estimate);
    for (auto* x : {&x_, &y_}) *x = AlignedArray<double>(n * columns(problem));
    total_ = AlignedArray<double>(n * problem.d_v);
    if (!env.gradients) return;
    correlation_ = ConvKernels<double>(n, 1, problem.causal);
    for (auto* x : {&dphi_q_, &dphi_k_}) *x = AlignedArray<double>(n * width);
    dc_ = AlignedArray<double>(2 * n - 1);
    e_ = AlignedArray<double>(n);
  }
  std::vector<Parameter*> parameters() override {
    return params_.rpe ? std::vector<Parameter*>{&bias_} : std::vector<Parameter*>{};
  }

  // Heads one after the other, threads inside a head.
  void forward(const Inputs& in, TensorView out, Saved*) override {
    guarded_ = 0;
    for (Index bh = 0; bh < problem_.batch * problem_.heads; ++bh) {
      make_features(in, bh);
      make_toeplitz(bh % problem_.heads);
      if (fft_) {
        forward_fft(in, bh, out.head(bh).data());
      } else {
        forward_explicit(in, bh, out.head(bh).data());
      }
    }
  }

  // With G = dout, Gt = G / D, e_t = <Gt_t, Y_t>, and T the Toeplitz matrix c_{j-t}:
  //   dphi_q(:, a) = rowsum(T(phi_k(:, a) V) o Gt) - e o T phi_k(:, a)
  //   dphi_k(:, a) = rowsum(T^T(phi_q(:, a) Gt) o V) - T^T (phi_q(:, a) e)
  //   dV += phi_k(:, a) T^T(phi_q(:, a) Gt)
  //   dc_r = sum over t, j = t + r of phi(q_t) . phi(k_j) (<Gt_t, V_j> - e_t), db_r = c_r dc_r.
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved&,
                const Gradients& grads) override {
    for (Index bh = 0; bh < problem_.batch * problem_.heads; ++bh)
      backward_head(in, bh, out.head(bh).data(), dout.head(bh).data(), grads);
  }

  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    make_features(in, b * problem_.heads + h);
    make_toeplitz(h);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      double sum = 0;
      VectorD row = VectorD::Zero(problem_.n);
      for (Index j = 0; j < problem_.visible(rows[r]); ++j) sum += row[j] = weight(rows[r], j);
      weights.row(static_cast<Index>(r)) =
          (seen_[rows[r]] > 0 ? VectorD(row / sum) : row).template cast<float>();
    }
    return true;
  }

  Budget budget(const Problem& p) const override {
    // A general bias leaves no constant-size state: all features and values are kept.
    return {.keys_per_query = static_cast<double>(features(p)),
            .state_bytes = 4.0 * static_cast<double>(p.batch * p.heads * p.n_kv) *
                           static_cast<double>(features(p) + p.d_v)};
  }
  double extra_bytes(const Problem& p, Pass pass) const override {
    const bool gradients = pass != Pass::forward;
    const auto n = static_cast<double>(p.n), width = static_cast<double>(features(p));
    const double bias =
        params_.rpe ? static_cast<double>(p.heads * (2 * range(p) + 1)) * (gradients ? 8 : 4) : 0;
    const double directions = params_.feature_map == "elu"
                                  ? 0
                                  : 8.0 * static_cast<double>(p.heads * params_.features * p.d_k);
    double bytes =
        bias + directions + 16.0 * n * width + 17.0 * n +
        ConvKernels<double>::bytes(p.n, 1, p.causal) +
        static_cast<double>(thread_count()) *
            (4.0 * static_cast<double>(tile_floats(p)) + 8.0 * static_cast<double>(p.d_v + p.d_k));
    if (!uses_fft(p) && !gradients) return bytes;
    bytes += PartitionedConv<double>::bytes(conv_sizes(p, gradients)) +
             16.0 * n * static_cast<double>(columns(p)) + 8.0 * n * static_cast<double>(p.d_v);
    if (!gradients) return bytes;
    return bytes + ConvKernels<double>::bytes(p.n, 1, p.causal) + 16.0 * n * width + 24.0 * n;
  }
  double flops(const Problem& p, Pass pass) const override {
    const double heads = static_cast<double>(p.batch * p.heads);
    const auto width = static_cast<double>(features(p));
    const ConvSizes sizes{p.n, 1, p.d_v, 1, p.causal, false};
    const double product = width * conv_operations(sizes, ConvEngine::partitioned, conv_block(p));
    const double forward =
        uses_fft(p) ? product : 2 * p.visible_entries() * (width + static_cast<double>(p.d_v));
    if (pass == Pass::forward) return heads * forward;
    return heads * (pass == Pass::backward ? 3 * product : forward + 3 * product);
  }
  std::vector<Metric> metrics() const override {
    return {{"guarded_rows", static_cast<double>(guarded_)}, {"fft", fft_ ? 1.0 : 0.0}};
  }

 private:
  // ---- sizes ----
  KernelFeatures::Options feature_options(const Problem& p) const {
    return {.map = KernelFeatures::map_from_name(params_.feature_map),
            .d = p.d_k,
            .directions = params_.features,
            .orthogonal = params_.orthogonal,
            .normalize = params_.normalize,
            .factor = std::sqrt(std::fabs(p.logit_scale()))};
  }
  Index features(const Problem& p) const { return KernelFeatures::count(feature_options(p)); }
  Index range(const Problem& p) const {
    return params_.bias_range > 0 ? std::min(params_.bias_range, p.n - 1) : p.n - 1;
  }
  Index columns(const Problem& p) const { return std::max(p.d_v, features(p)); }
  static Index conv_block(const Problem& p) {
    return choose_conv_plan({p.n, 1, p.d_v, 1, p.causal, false}, "partitioned").block;
  }
  PartitionedConv<double>::Sizes conv_sizes(const Problem& p, bool gradients) const {
    return {p.n, columns(p), 1, p.causal, conv_block(p), gradients};
  }
  Index tile_floats(const Problem& p) const {
    const Index width = features(p);
    return (kRows + kKeys) * width + kRows * kKeys + (kRows + kKeys) * p.d_v;
  }
  bool uses_fft(const Problem& p) const {
    if (params_.engine != "auto") return params_.engine == "fft";
    constexpr double kExplicit = 45e9;  // operations per second of the explicit tiles
    const double width = static_cast<double>(features(p));
    const ConvSizes sizes{p.n, 1, p.d_v, 1, p.causal, false};
    return width * conv_seconds(sizes, ConvEngine::partitioned, conv_block(p)) <
           2 * p.visible_entries() * (width + static_cast<double>(p.d_v)) / kExplicit;
  }

  // ---- features and bias ----
  // phi_q_, phi_k_ [n, features]. prf: exponents are shifted by the query's largest, and by the
  // largest of all keys, both of which cancel in Y.
  void make_features(const Inputs& in, Index bh) {
    const Index n = problem_.n, width = features(problem_), head = bh % problem_.heads;
    const auto real = keys_of_batch(in, bh / problem_.heads);
    const bool prf = params_.feature_map == "prf";
    const double norm = 1 / std::sqrt(static_cast<double>(params_.features));
    parallel_for((n + kRows - 1) / kRows, [&](Index item, int thread) {
      double* x = rows_.data() + thread * (problem_.d_v + problem_.d_k);
      for (Index t = item * kRows; t < std::min(n, (item + 1) * kRows); ++t) {
        double* q = phi_q_.data() + t * width;
        features_.log_features(head, in.q.head(bh).data() + t * problem_.d_k, x, q);
        if (prf) {
          const double shift = *std::max_element(q, q + width);
          for (Index a = 0; a < width; ++a) q[a] = norm * std::exp(q[a] - shift);
        }
        double* k = phi_k_.data() + t * width;
        if (!real.empty() && real[static_cast<std::size_t>(t)] == 0) continue;
        features_.log_features(head, in.k.head(bh).data() + t * problem_.d_k, x, k);
      }
    });
    const auto is_real = [&](Index j) {
      return real.empty() || real[static_cast<std::size_t>(j)] != 0;
    };
    double shift = -std::numeric_limits<double>::infinity();
    Index count = 0;
    for (Index j = 0; j < n; ++j) {
      if (is_real(j)) {
        ++count;
        for (Index a = 0; prf && a < width; ++a)
          if (phi_k_[j * width + a] > shift) shift = phi_k_[j * width + a];
      }
      seen_[j] = count;
    }
    if (!problem_.causal) std::fill_n(seen_.data(), n, count);
    const ConstMatrixMap v = in.v.head(bh);
    const bool finite = all_finite(v);
    parallel_for((n + kRows - 1) / kRows, [&](Index item, int) {
      for (Index j = item * kRows; j < std::min(n, (item + 1) * kRows); ++j) {
        skip_[j] = !is_real(j) ? 2 : finite || all_finite(v.row(j)) ? 0 : 1;
        double* k = phi_k_.data() + j * width;
        for (Index a = 0; a < width; ++a)
          k[a] = !is_real(j) ? 0 : prf ? norm * std::exp(k[a] - shift) : k[a];
      }
    });
  }

  double bias(Index head, Index r) const {
    if (!params_.rpe) return 0;
    const Index reach = range(problem_);
    return static_cast<double>(
        bias_.value[head * (2 * reach + 1) + reach + std::clamp(r, -reach, reach)]);
  }
  // c_{j-t} = exp(b_{j-t} - max b) at lag t - j.
  void make_toeplitz(Index head) {
    const Index zero = 0;
    toeplitz_.set_starts({&zero, 1});
    double* c = toeplitz_.profile(0);
    double largest = -std::numeric_limits<double>::infinity();
    for (Index lag = toeplitz_.lowest(0); lag <= toeplitz_.highest(0); ++lag)
      largest = std::max(largest, bias(head, -lag));
    for (Index lag = toeplitz_.lowest(0); lag <= toeplitz_.highest(0); ++lag)
      c[lag] = std::exp(bias(head, -lag) - largest);
  }

  double feature_product(Index t, Index j) const {
    const Index width = features(problem_);
    double dot = 0;
    for (Index a = 0; a < width; ++a) dot += phi_q_[t * width + a] * phi_k_[j * width + a];
    return dot;
  }
  // c_{j-t} phi(q_t) . phi(k_j)
  double weight(Index t, Index j) const {
    return toeplitz_.profile(0)[t - j] * feature_product(t, j);
  }

  // ---- forward ----
  void forward_explicit(const Inputs& in, Index bh, float* out) {
    const Index n = problem_.n, width = features(problem_), d_v = problem_.d_v;
    const double* c = toeplitz_.profile(0);
    using FeatureMap = Eigen::Map<const MatrixD>;
    parallel_for((n + kRows - 1) / kRows, [&](Index item, int thread) {
      const Index first = item * kRows, rows = std::min(kRows, n - first);
      float* data = tiles_.data() + thread * tile_floats(problem_);
      MatrixMap q(data, rows, width);
      float* keys = data + kRows * width;
      float* products = keys + kKeys * width;
      float* sums = products + kRows * kKeys;
      float* spare = sums + kRows * d_v;
      MatrixMap o(sums, rows, d_v);
      double total[kRows] = {};
      q = FeatureMap(phi_q_.data() + first * width, rows, width).cast<float>();
      o.setZero();
      const Index last = problem_.causal ? first + rows : n;
      for (Index j0 = 0; j0 < last; j0 += kKeys) {
        const Index count = std::min(kKeys, last - j0);
        MatrixMap k(keys, count, width), p(products, rows, count);
        k = FeatureMap(phi_k_.data() + j0 * width, count, width).cast<float>();
        p.noalias() = q * k.transpose();
        for (Index r = 0; r < rows; ++r) {
          const Index t = first + r, seen = std::clamp<Index>(problem_.visible(t) - j0, 0, count);
          const double* lag = c + (t - j0);
          float sum = 0;
          for (Index j = 0; j < seen; ++j) sum += p(r, j) *= static_cast<float>(lag[-j]);
          for (Index j = seen; j < count; ++j) p(r, j) = 0;
          total[r] += static_cast<double>(sum);
        }
        add_masked_product(p, in.v.head(bh).middleRows(j0, count), o, spare);
      }
      for (Index r = 0; r < rows; ++r) {
        const Index t = first + r;
        if (seen_[t] > 0 && !(std::fabs(total[r]) > 1e-25)) {  // float weights may have vanished
          exact_row(in, bh, t, thread, out + t * d_v);
          continue;
        }
        for (Index l = 0; l < d_v; ++l)
          out[t * d_v + l] =
              seen_[t] > 0 ? static_cast<float>(static_cast<double>(o(r, l)) / total[r]) : 0.f;
      }
    });
  }

  // Row t from its own largest bias on, in double. O(n (features + d_v)).
  void exact_row(const Inputs& in, Index bh, Index t, int thread, float* out) {
    const Index head = bh % problem_.heads, d_v = problem_.d_v, seen = problem_.visible(t);
    double* sums = rows_.data() + thread * (d_v + problem_.d_k);
    std::fill_n(sums, d_v, 0.0);
    double largest = -std::numeric_limits<double>::infinity(), total = 0;
    for (Index j = 0; j < seen; ++j)
      if (skip_[j] != 2) largest = std::max(largest, bias(head, j - t));
    for (Index j = 0; j < seen; ++j) {
      if (skip_[j] == 2) continue;
      const double w = std::exp(bias(head, j - t) - largest) * feature_product(t, j);
      total += w;
      for (Index l = 0; l < d_v; ++l)
        sums[l] += w * static_cast<double>(in.v.head(bh).data()[j * d_v + l]);
    }
    for (Index l = 0; l < d_v; ++l) out[l] = static_cast<float>(sums[l] / total);
  }

  template <class Body>
  void for_rows(Body&& body) {
    parallel_for((problem_.n + kRows - 1) / kRows, [&](Index item, int thread) {
      for (Index t = item * kRows; t < std::min(problem_.n, (item + 1) * kRows); ++t)
        body(t, thread);
    });
  }

  // D(t) = sum_a phi(q_t)_a (T phi_k(:, a))_t, from one product with all features; leaves T phi_k
  // in y_. A row whose sum is small beside the rounding of the transforms gets 0.
  void normalizers() {
    const Index n = problem_.n, width = features(problem_);
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

  void forward_fft(const Inputs& in, Index bh, float* out) {
    const Index n = problem_.n, width = features(problem_), d_v = problem_.d_v;
    const float* v = in.v.head(bh).data();
    normalizers();
    std::fill_n(total_.data(), n * d_v, 0.0);
    for (Index a = 0; a < width; ++a) {
      for_rows([&](Index j, int) {
        for (Index l = 0; l < d_v; ++l)
          x_[j * d_v + l] =
              skip_[j] != 0 ? 0 : phi_k_[j * width + a] * static_cast<double>(v[j * d_v + l]);
      });
      conv_.apply(x_.data(), d_v, nullptr, nullptr, y_.data());
      for_rows([&](Index t, int) {
        const double q = phi_q_[t * width + a];
        for (Index l = 0; l < d_v; ++l) total_[t * d_v + l] += q * y_[t * d_v + l];
      });
    }
    for (Index t = 0; t < n; ++t) guarded_ += seen_[t] > 0 && sums_[t] == 0 ? 1 : 0;
    bool finite = true;
    for (Index j = 0; j < n; ++j) finite = finite && skip_[j] != 1;
    for_rows([&](Index t, int thread) {
      float* o = out + t * d_v;
      double* sums = rows_.data() + thread * (d_v + problem_.d_k);
      if (seen_[t] == 0) {
        std::fill_n(o, d_v, 0.f);
        return;
      }
      if (sums_[t] == 0) {
        exact_row(in, bh, t, thread, o);
        return;
      }
      std::copy_n(total_.data() + t * d_v, d_v, sums);
      for (Index j = 0; !finite && j < problem_.visible(t); ++j) {
        if (skip_[j] != 1) continue;  // 1: the transforms left this value out
        const double w = weight(t, j);
        for (Index l = 0; l < d_v; ++l) sums[l] += w * static_cast<double>(v[j * d_v + l]);
      }
      for (Index l = 0; l < d_v; ++l) o[l] = static_cast<float>(sums[l] / sums_[t]);
    });
  }

  // ---- backward ----
  void backward_head(const Inputs& in, Index bh, const float* out, const float* dout,
                     const Gradients& grads) {
    const Index n = problem_.n, width = features(problem_), d_v = problem_.d_v;
    const float* v = in.v.head(bh).data();
    float* dv = grads.dv.head(bh).data();
    make_features(in, bh);
    make_toeplitz(bh % problem_.heads);
    normalizers();
    for_rows([&](Index t, int) {          // e, and dphi_q(t, a) = - e_t (T phi_k)(t, a)
      if (seen_[t] > 0 && sums_[t] == 0)  // too small for transforms: summed in full
        for (Index j = 0; j < problem_.visible(t); ++j) sums_[t] += weight(t, j);
      e_[t] = 0;
      for (Index l = 0; l < d_v && seen_[t] > 0; ++l)
        e_[t] += static_cast<double>(dout[t * d_v + l]) * static_cast<double>(out[t * d_v + l]) /
                 sums_[t];
      for (Index a = 0; a < width; ++a) dphi_q_[t * width + a] = -e_[t] * y_[t * width + a];
    });
    const auto scaled = [&](Index t, Index l) {  // Gt
      return seen_[t] > 0 ? static_cast<double>(dout[t * d_v + l]) / sums_[t] : 0;
    };
    const auto value = [&](Index j, Index l) {
      return skip_[j] == 2 ? 0 : static_cast<double>(v[j * d_v + l]);
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
    if (params_.rpe) {
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
      if (params_.rpe) {
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
    for_rows([&](Index j, int thread) {
      for (Index l = 0; l < d_v; ++l) dv[j * d_v + l] = static_cast<float>(total_[j * d_v + l]);
      double* x = rows_.data() + thread * (d_v + problem_.d_k);
      const auto input_gradient = [&](ConstTensorView raw, const double* phi, const double* dphi,
                                      TensorView gradient) {
        features_.gradient(bh % problem_.heads, raw.head(bh).data() + j * problem_.d_k,
                           phi + j * width, dphi + j * width, x,
                           gradient.head(bh).data() + j * problem_.d_k);
      };
      input_gradient(in.q, phi_q_.data(), dphi_q_.data(), grads.dq);
      if (skip_[j] == 2) {
        std::fill_n(grads.dk.head(bh).data() + j * problem_.d_k, problem_.d_k, 0.f);
      } else {
        input_gradient(in.k, phi_k_.data(), dphi_k_.data(), grads.dk);
      }
    });
    if (!params_.rpe) return;
    const Index reach = range(problem_), head = bh % problem_.heads;
    for (Index lag = low; lag <= high; ++lag)
      bias_.grad[head * (2 * reach + 1) + reach + std::clamp(-lag, -reach, reach)] +=
          static_cast<float>(dc_[lag + n - 1] * toeplitz_.profile(0)[lag]);
  }

  Params params_;
  Problem problem_;
  bool fft_ = false;
  Index guarded_ = 0;
  Parameter bias_;  // [heads, 2 range + 1], r = j - t from -range to range
  KernelFeatures features_;
  AlignedArray<double> phi_q_, phi_k_, dphi_q_, dphi_k_;  // [n, features] of one head
  ConvKernels<double> toeplitz_, correlation_;
  PartitionedConv<double> conv_;
  AlignedArray<double> x_, y_;       // [n, columns]
  AlignedArray<double> total_;       // [n, d_v]
  AlignedArray<double> sums_, e_;    // [n]
  AlignedArray<double> dc_;          // [2 n - 1] by lag + n - 1
  AlignedArray<float> tiles_;        // per thread
  AlignedArray<double> rows_;        // [threads, d_v + d_k]
  AlignedArray<std::uint8_t> skip_;  // [n] 1: value not finite, 2: padding
  AlignedArray<Index> seen_;         // [n] real keys that a row sees
};

const RegisterMethod<Nprf, Params> kRegistration{
    {.name = "nprf",
     .family = "fft",
     .source = "Luo et al. 2021, arXiv 2106.12566",
     .summary = "random-feature attention times a learned function of the distance, by FFT",
     .approximates = Approximates::own_kernel,
     .causality = Causality::weights,
     .key_padding = true,
     .passes = {Pass::forward, Pass::backward},
     .random = true,
     .learned = true,
     .time_exponent = 1,
     .memory_exponent = 1,
     .notes =
         {"its kernel is exp(q . k) of normalised q and k times exp(b): error against dense is "
          "descriptive",
          "not strictly causal bit for bit: the shift of the key features, and rounding in the "
          "transforms, depend on later tokens",
          "engine auto takes the explicit n x n tiles where they are cheaper, up to about ten "
          "thousand tokens; metric fft says which ran",
          "without normalize, q and k are multiplied by sqrt(logit scale); with it the scale has "
          "no "
          "effect",
          "a bias without structure needs all keys for decoding, so there is no decode pass"}},
    {param("features", &Params::features, {1, 4096}, "random directions m (trf: 2 m features)"),
     choice("feature_map", &Params::feature_map, {"prf", "trf", "elu"},
            "positive random, trigonometric random, or elu + 1"),
     param("normalize", &Params::normalize, "divide q and k by their lengths"),
     param("rpe", &Params::rpe, "multiply with exp(b) of the distance"),
     param("orthogonal", &Params::orthogonal, "directions in orthogonal blocks"),
     param("bias_range", &Params::bias_range, {0, 1 << 24},
           "distances beyond share one bias; 0 = every distance has its own"),
     param("bias_std", &Params::bias_std, {0, 100}, "standard deviation of the initial bias"),
     choice("engine", &Params::engine, {"auto", "explicit", "fft"}, "how products are computed")}};

}  // namespace
}  // namespace subquad
