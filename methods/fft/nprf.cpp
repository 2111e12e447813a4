// Kernelised attention with relative positional encoding: a low-rank matrix times a Toeplitz
// matrix. Source: Luo et al. 2021, "Stable, Fast and Accurate: Kernelized Attention with Relative
// Positional Encoding" (arXiv 2106.12566), algorithm 1.
//   Y_t = sum_j c_{j-t} (phi(q_t) . phi(k_j)) V_j / sum_j c_{j-t} (phi(q_t) . phi(k_j)),
//   c_r = exp(b_r), b learned per head; c_r = 0 for r > 0 when causal;
//   phi(x)_a = M^-1/2 exp(w_a . x - |x|^2 / 2), w_a standard normal (prf), x divided by its length.
// The products are those of engines/toeplitz_features.h:
//   fft       one Toeplitz product of [n, d_v] per feature, O(M n d_v log n)
//   explicit  tiles of the n x n matrix, O(n^2 (M + d_v)), the better way below some ten thousand
//             tokens
//
// Our choices where the paper is silent: no scale inside phi after the normalisation; without it,
// queries and keys are multiplied by sqrt(logit scale); b starts at 0 (bias_std: at random); W and
// b belong to a head.

#include <algorithm>
#include <cmath>
#include <limits>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "methods/engines/band.h"
#include "methods/engines/kernel_features.h"
#include "methods/engines/masked_product.h"
#include "methods/engines/toeplitz_features.h"

namespace subquad {
namespace {

constexpr Index kRows = 64;  // rows of a work item

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
    head_.prepare(head_sizes(problem, env.gradients));
    rows_ = AlignedArray<double>(thread_count() * problem.d_k);
  }
  std::vector<Parameter*> parameters() override {
    return params_.rpe ? std::vector<Parameter*>{&bias_} : std::vector<Parameter*>{};
  }

  // Heads one after the other, threads inside a head.
  void forward(const Inputs& in, TensorView out, Saved*) override {
    guarded_ = 0;
    for (Index bh = 0; bh < problem_.batch * problem_.heads; ++bh) {
      fill_head(in, bh);
      guarded_ += head_.forward(in.v.head(bh).data(), out.head(bh).data());
    }
  }

  // Through b, phi and the normalisation; a padded key gets no gradient.
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved&,
                const Gradients& grads) override {
    for (Index bh = 0; bh < problem_.batch * problem_.heads; ++bh)
      backward_head(in, bh, out.head(bh).data(), dout.head(bh).data(), grads);
  }

  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    fill_head(in, b * problem_.heads + h);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      double sum = 0;
      VectorD row = VectorD::Zero(problem_.n);
      for (Index j = 0; j < problem_.visible(rows[r]); ++j)
        sum += row[j] = head_.weight(rows[r], j);
      weights.row(static_cast<Index>(r)) =
          (head_.seen(rows[r]) > 0 ? VectorD(row / sum) : row).template cast<float>();
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
    const double bias =
        params_.rpe ? static_cast<double>(p.heads * (2 * range(p) + 1)) * (gradients ? 8 : 4) : 0;
    const double directions = params_.feature_map == "elu"
                                  ? 0
                                  : 8.0 * static_cast<double>(p.heads * params_.features * p.d_k);
    return bias + directions + ToeplitzFeatures::bytes(head_sizes(p, gradients)) +
           8.0 * static_cast<double>(thread_count() * p.d_k);
  }
  double flops(const Problem& p, Pass pass) const override {
    const double heads = static_cast<double>(p.batch * p.heads);
    const auto width = static_cast<double>(features(p));
    const double product = ToeplitzFeatures::product_operations(head_sizes(p, false));
    const double forward = head_sizes(p, false).transforms
                               ? product
                               : 2 * p.visible_entries() * (width + static_cast<double>(p.d_v));
    if (pass == Pass::forward) return heads * forward;
    return heads * (pass == Pass::backward ? 3 * product : forward + 3 * product);
  }
  std::vector<Metric> metrics() const override {
    return {{"guarded_rows", static_cast<double>(guarded_)},
            {"fft", head_sizes(problem_, false).transforms ? 1.0 : 0.0}};
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
  ToeplitzFeatures::Sizes head_sizes(const Problem& p, bool gradients) const {
    ToeplitzFeatures::Sizes sizes{p.n, features(p), p.d_v, p.causal, false, gradients};
    sizes.transforms = params_.engine == "auto" ? ToeplitzFeatures::transforms_pay(sizes)
                                                : params_.engine == "fft";
    return sizes;
  }

  // ---- features and bias ----
  // Everything of a head that is not its values. prf: exponents are shifted by the query's largest,
  // and by the largest of all keys, both of which cancel in Y.
  void fill_head(const Inputs& in, Index bh) {
    double *const phi_q = head_.phi_q(), *const phi_k = head_.phi_k();
    const Index n = problem_.n, width = features(problem_), head = bh % problem_.heads;
    const auto real = keys_of_batch(in, bh / problem_.heads);
    const bool prf = params_.feature_map == "prf";
    const double norm = 1 / std::sqrt(static_cast<double>(params_.features));
    parallel_for((n + kRows - 1) / kRows, [&](Index item, int thread) {
      double* x = rows_.data() + thread * problem_.d_k;
      for (Index t = item * kRows; t < std::min(n, (item + 1) * kRows); ++t) {
        double* q = phi_q + t * width;
        features_.log_features(head, in.q.head(bh).data() + t * problem_.d_k, x, q);
        if (prf) {
          const double shift = *std::max_element(q, q + width);
          for (Index a = 0; a < width; ++a) q[a] = norm * std::exp(q[a] - shift);
        }
        double* k = phi_k + t * width;
        if (!real.empty() && real[static_cast<std::size_t>(t)] == 0) continue;
        features_.log_features(head, in.k.head(bh).data() + t * problem_.d_k, x, k);
      }
    });
    const auto is_real = [&](Index j) {
      return real.empty() || real[static_cast<std::size_t>(j)] != 0;
    };
    double shift = -std::numeric_limits<double>::infinity();
    for (Index j = 0; prf && j < n; ++j)
      for (Index a = 0; is_real(j) && a < width; ++a)
        if (phi_k[j * width + a] > shift) shift = phi_k[j * width + a];
    const ConstMatrixMap v = in.v.head(bh);
    const bool finite = all_finite(v);
    parallel_for((n + kRows - 1) / kRows, [&](Index item, int) {
      for (Index j = item * kRows; j < std::min(n, (item + 1) * kRows); ++j) {
        head_.kinds()[j] = !is_real(j)                      ? ToeplitzFeatures::kPadding
                           : finite || all_finite(v.row(j)) ? ToeplitzFeatures::kKey
                                                            : ToeplitzFeatures::kNotFinite;
        double* k = phi_k + j * width;
        for (Index a = 0; a < width; ++a)
          k[a] = !is_real(j) ? 0 : prf ? norm * std::exp(k[a] - shift) : k[a];
      }
    });
    double* log_kernel = head_.log_kernel() + n - 1;  // by t - j
    for (Index lag = 1 - n; lag < n; ++lag) log_kernel[lag] = bias(head, -lag);
    head_.begin();
  }

  double bias(Index head, Index r) const {
    if (!params_.rpe) return 0;
    const Index reach = range(problem_);
    return static_cast<double>(
        bias_.value[head * (2 * reach + 1) + reach + std::clamp(r, -reach, reach)]);
  }
  void backward_head(const Inputs& in, Index bh, const float* out, const float* dout,
                     const Gradients& grads) {
    const Index n = problem_.n, width = features(problem_), head = bh % problem_.heads;
    fill_head(in, bh);
    head_.backward(in.v.head(bh).data(), out, dout, params_.rpe, grads.dv.head(bh).data());
    parallel_for((n + kRows - 1) / kRows, [&](Index item, int thread) {
      double* x = rows_.data() + thread * problem_.d_k;
      const auto through = [&](ConstTensorView raw, Index j, const double* phi, const double* dphi,
                               TensorView gradient) {
        features_.gradient(head, raw.head(bh).data() + j * problem_.d_k, phi + j * width,
                           dphi + j * width, x, gradient.head(bh).data() + j * problem_.d_k);
      };
      for (Index j = item * kRows; j < std::min(n, (item + 1) * kRows); ++j) {
        through(in.q, j, head_.phi_q(), head_.dphi_q(), grads.dq);
        if (head_.kinds()[j] == ToeplitzFeatures::kPadding) {
          std::fill_n(grads.dk.head(bh).data() + j * problem_.d_k, problem_.d_k, 0.f);
        } else {
          through(in.k, j, head_.phi_k(), head_.dphi_k(), grads.dk);
        }
      }
    });
    if (!params_.rpe) return;
    const Index reach = range(problem_);
    for (Index lag = head_.lowest_lag(); lag < n; ++lag)
      bias_.grad[head * (2 * reach + 1) + reach + std::clamp(-lag, -reach, reach)] +=
          static_cast<float>(head_.dlog_kernel(lag));
  }

  Params params_;
  Problem problem_;
  Index guarded_ = 0;
  Parameter bias_;  // [heads, 2 range + 1], r = j - t from -range to range
  KernelFeatures features_;
  ToeplitzFeatures head_;
  AlignedArray<double> rows_;  // [threads, d_k]
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
