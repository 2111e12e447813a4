// Conv-Basis attention: the causal logit matrix as a sum of k shrinking Toeplitz blocks.
// Source: Liang et al. 2024/2025, "Conv-Basis: A New Paradigm for Efficient Attention Inference and
// Gradient Computation in Transformers" (arXiv 2405.05219; Findings of EMNLP 2025).
//   1. starts 0 = s_1 < ... < s_k of runs of columns that are shifted copies
//   (engines/conv_segments.h)
//   2. u_i = first column of run i below the diagonal, w_i = exp(u_i - g)
//   3. Y = D^-1 sum_i conv(w_i, V restricted to run i)   (engines/conv_attention.h)
// This is the paper's sum of conv(b_i, m_i) with b_i = u_i - u_{i-1} in another order: every term
// is positive, and columns meet one kernel each. Time O(k n (d_k + log n) + d_v n log n + k d_v B
// log B ...) by engine.
// Extra memory O(k n + n d_v), in numbers of 8 bytes (direct, or precision float: 4), since starts
// may lie anywhere; B is the block, p the threads, F >= n + the longest run, and FFTW's tables take
// 1.6 numbers per point of every length that is prepared:
//   direct       k n + 24 p (256 + d_v)
//   shared       k n + (k + 11 p) F + n d_v / 2 + 1.6 F
//   partitioned  3 k n + p (8 (2 B + 16) + 32 n + 16 k B) + 3.2 B
// and 5.1 n for row sums and the guard, 30 n for band_merge.
//
// Our choices: column 0 starts a run without a test; the search stops early; the logit scale is
// that of the problem (the authors' code divides by d_k: set `scale` of the problem for that);
// without a causal mask, lags < 0 take the last column of a run; automatic delta
// (conv_segments.cpp).

#include <algorithm>
#include <charconv>
#include <cmath>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "methods/engines/conv_attention.h"
#include "methods/engines/conv_decoder.h"
#include "methods/engines/conv_gradient.h"
#include "methods/engines/conv_mean.h"
#include "methods/engines/conv_segments.h"

namespace subquad {
namespace {

struct Params {
  Index k = 16;
  std::string segmentation = "recover";
  Index probe = 16;
  double delta = 0;
  double eps = 0;
  std::string starts = "0";
  std::string representative = "first";
  std::string engine = "auto";
  std::string precision = "double";
  std::string planner = "estimate";
  double guard = 0;
  std::string gradient = "exact";
};

std::vector<Index> parse_starts(const std::string& text) {
  std::vector<Index> starts;
  const char *at = text.data(), *end = at + text.size();
  while (at < end) {
    Index start = 0;
    const auto [stop, error] = std::from_chars(at, end, start);
    const bool more = stop < end && *stop == ',' && stop + 1 < end;
    if (error != std::errc() || (stop < end && !more) ||
        (starts.empty() ? start != 0 : start <= starts.back()))
      throw UserError(fmt::format(
          "conv_basis: starts: got \"{}\", expected ascending integers from 0 on, as in 0,40,100",
          text));
    starts.push_back(start);
    at = more ? stop + 1 : stop;
  }
  if (starts.empty()) throw UserError("conv_basis: starts: got \"\", expected 0,40,100 or alike");
  return starts;
}

struct ConvSaved final : Saved {
  ConvSaved(Index heads, Index k) : starts(heads * k), count(heads) {}
  AlignedArray<Index> starts;  // [heads, k]
  AlignedArray<Index> count;   // [heads]
};

class ConvBasis final : public Method {
 public:
  explicit ConvBasis(const Params& params) : params_(params) {
    rule_.kind = segmentation_from_name(params.segmentation);
    rule_.k = params.k;
    rule_.probe = params.probe;
    rule_.delta = params.delta;
    rule_.eps = params.eps;
    rule_.fixed = parse_starts(params.starts);
    if (rule_.kind == Segmentation::fixed) rule_.k = static_cast<Index>(rule_.fixed.size());
  }

  std::string unsupported(const Problem&, Pass pass) const override {
    const bool mean = params_.representative == "mean";
    if (mean && pass != Pass::forward) return "representative mean has a forward pass only";
    if (pass == Pass::decode && rule_.kind != Segmentation::scan_causal &&
        rule_.kind != Segmentation::first_k && rule_.kind != Segmentation::fixed)
      return fmt::format("segmentation {} looks ahead; scan_causal, first_k and fixed can decode",
                         params_.segmentation);
    return "";
  }

  void prepare(const Problem& problem, const Env& env) override {
    problem_ = problem;
    plan_ = plan(problem);
    const Planner planner = params_.planner == "measure" ? Planner::measure : Planner::estimate;
    finder_ = SegmentFinder(problem.n, problem.d_k, rule_);
    if (in_float()) {
      single_.prepare(sizes(problem), plan_, planner);
    } else {
      double_.prepare(sizes(problem), plan_, planner);
    }
    if (params_.representative == "mean")
      mean_.prepare(problem.n, problem.d_k, segments(problem), problem.causal, planner);
    if (env.gradients) gradient_.prepare(gradient_sizes(problem), planner);
  }
  std::unique_ptr<Saved> make_saved() const override {
    return std::make_unique<ConvSaved>(problem_.batch * problem_.heads, segments(problem_));
  }

  // Heads come one after the other and share the work space; threads divide a head.
  void forward(const Inputs& in, TensorView out, Saved* saved) override {
    segments_found_ = guarded_ = probed_ = 0;
    for (Index bh = 0; bh < problem_.batch * problem_.heads; ++bh) {
      const float *q = in.q.head(bh).data(), *k = in.k.head(bh).data();
      const std::span<const Index> starts = finder_.find(q, k, problem_.logit_scale());
      if (auto* own = static_cast<ConvSaved*>(saved)) {
        std::copy(starts.begin(), starts.end(), own->starts.data() + bh * segments(problem_));
        own->count[bh] = static_cast<Index>(starts.size());
      }
      segments_found_ += static_cast<Index>(starts.size());
      probed_ += finder_.probed_logits();
      float* o = out.head(bh).data();
      guarded_ += in_float() ? head(single_, starts, q, k, in.v.head(bh).data(), o)
                             : head(double_, starts, q, k, in.v.head(bh).data(), o);
    }
  }

  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved& saved,
                const Gradients& grads) override {
    const auto& own = static_cast<const ConvSaved&>(saved);
    for (Index bh = 0; bh < problem_.batch * problem_.heads; ++bh)
      gradient_.run(
          {own.starts.data() + bh * segments(problem_), static_cast<std::size_t>(own.count[bh])},
          in.q.head(bh).data(), in.k.head(bh).data(), in.v.head(bh).data(), problem_.logit_scale(),
          out.head(bh).data(), dout.head(bh).data(), grads.dq.head(bh).data(),
          grads.dk.head(bh).data(), grads.dv.head(bh).data());
  }

  std::unique_ptr<Decoder> make_decoder(const DecodeConfig& config) const override {
    return make_conv_decoder(config, rule_);
  }

  // Weights from logits of the columns that stand for the runs, each row with its own maximum.
  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    if (params_.representative == "mean") return false;
    const auto q = in.q.head(b, h), k = in.k.head(b, h);
    const auto found = finder_.find(q.data(), k.data(), problem_.logit_scale());
    std::vector<Index> starts(found.begin(), found.end());
    starts.push_back(problem_.n);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const Index t = rows[r];
      VectorD row = VectorD::Constant(problem_.n, -std::numeric_limits<double>::infinity());
      for (std::size_t i = 0; i + 1 < starts.size(); ++i)
        for (Index j = starts[i]; j < std::min(starts[i + 1], problem_.visible(t)); ++j) {
          const Index column = t >= j ? starts[i] : starts[i + 1] - 1;
          row[j] = problem_.logit_scale() *
                   q.row(t - j + column).cast<double>().dot(k.row(column).cast<double>());
        }
      row = (row.array() - row.maxCoeff()).exp();
      weights.row(static_cast<Index>(r)) = (row / row.sum()).cast<float>();
    }
    return true;
  }

  Budget budget(const Problem& p) const override {
    // One profile value per run and query; decoding keeps the profiles, the runs' keys and V.
    const auto k = static_cast<double>(segments(p)), n = static_cast<double>(p.n);
    return {.keys_per_query = k,
            .state_bytes = 4.0 * static_cast<double>(p.batch * p.heads) *
                           (n * static_cast<double>(p.d_v) + k * (n + static_cast<double>(p.d_k)))};
  }
  double extra_bytes(const Problem& p, Pass pass) const override {
    const Index k = segments(p);
    if (pass == Pass::decode) return conv_decoder_bytes(p, rule_);
    double bytes = SegmentFinder::bytes(p.n, rule_);
    bytes += plan(p).engine == ConvEngine::direct || params_.precision == "float"
                 ? ConvAttention<float>::bytes(sizes(p), plan(p))
                 : ConvAttention<double>::bytes(sizes(p), plan(p));
    if (params_.representative == "mean") bytes += MeanProfiles::bytes(p.n, p.d_k, k, p.causal);
    if (pass == Pass::forward) return bytes;
    return bytes + ConvGradient::bytes(gradient_sizes(p)) +
           8.0 * static_cast<double>(p.batch * p.heads * (k + 1));
  }
  double flops(const Problem& p, Pass pass) const override {
    if (pass == Pass::decode) return 0;
    const ConvPlan forward = plan(p);
    const double heads = static_cast<double>(p.batch * p.heads);
    const double one = heads * conv_operations(conv_sizes(p), forward.engine, forward.block);
    // Backward: three products like the one forward (dv, correlation, profiles again), or d_k
    // pairs.
    const double back = one * (params_.gradient == "plug_in" ? 2 * static_cast<double>(p.d_k) : 3);
    return pass == Pass::forward ? one : pass == Pass::backward ? back : one + back;
  }
  std::vector<Metric> metrics() const override {
    const auto heads = static_cast<double>(std::max<Index>(1, problem_.batch * problem_.heads));
    return {{"segments", static_cast<double>(segments_found_) / heads},
            {"guarded_rows", static_cast<double>(guarded_)},
            {"probed_logits", static_cast<double>(probed_) / heads},
            {"engine", static_cast<double>(plan_.engine)},
            {"block", static_cast<double>(plan_.block)}};
  }

 private:
  Index segments(const Problem& p) const { return std::min(rule_.k, p.n); }
  bool in_float() const {
    return plan_.engine == ConvEngine::direct || params_.precision == "float";
  }
  ConvSizes conv_sizes(const Problem& p) const {
    return {p.n, p.d_k, p.d_v, segments(p), p.causal, params_.precision == "float"};
  }
  ConvPlan plan(const Problem& p) const { return choose_conv_plan(conv_sizes(p), params_.engine); }
  ConvHeadSizes sizes(const Problem& p) const {
    return {p.n, p.d_k, p.d_v, segments(p), p.causal, SegmentFinder::known(p.n, rule_)};
  }
  ConvGradient::Sizes gradient_sizes(const Problem& p) const {
    return {p.n, p.d_k, p.d_v, segments(p), p.causal, params_.gradient == "plug_in"};
  }
  // Estimated error of a row above which it is computed directly. Our choice: far above what an
  // ordinary row has, far below what matters.
  double guard() const {
    return params_.guard > 0 ? params_.guard : params_.precision == "float" ? 1e-4 : 1e-6;
  }

  template <class T>
  Index head(ConvAttention<T>& attention, std::span<const Index> starts, const float* q,
             const float* k, const float* v, float* out) {
    const double scale = problem_.logit_scale();
    if (params_.representative != "mean")
      return attention.forward(starts, q, k, v, scale, guard(), out);
    attention.kernels().set_starts(starts);
    mean_.fill(q, k, scale, &attention.kernels());
    return attention.forward_from_logits(q, k, v, scale, guard(), out);
  }

  Params params_;
  SegmentRule rule_;
  Problem problem_;
  ConvPlan plan_;
  SegmentFinder finder_;
  ConvAttention<float> single_;
  ConvAttention<double> double_;
  MeanProfiles mean_;
  ConvGradient gradient_;
  Index segments_found_ = 0, guarded_ = 0, probed_ = 0;  // of the last forward
};

const RegisterMethod<ConvBasis, Params> kRegistration{
    {.name = "conv_basis",
     .family = "fft",
     .source = "Liang et al. 2024, arXiv 2405.05219",
     .summary = "softmax over piecewise Toeplitz logits: k columns stand for all, FFT products",
     .causality = Causality::weights,
     .passes = {Pass::forward, Pass::backward, Pass::decode},
     .exact_limit =
         [](const Problem& p) {
           return Settings{{"k", p.n_kv}, {"segmentation", std::string("first_k")}};
         },
     .time_exponent = 1,
     .memory_exponent = 1,
     .notes =
         {"segmentation recover, fixed and first_k are the paper's (first_k is what the authors' "
          "code does at its own settings); scan_causal, uniform, band_merge and representative "
          "mean "
          "are ours",
          "not strictly causal: recover and band_merge look at later tokens to place the starts. "
          "With scan_causal, fixed or first_k an output depends on no later token, but for the "
          "rounding of transforms (1e-15 relative)",
          "the theorem holds for delta - 2 T eps as threshold with eps <= delta / (5 T); delta 0 "
          "takes twice the 0.9-quantile of neighbouring columns' distances (scan_causal: 1)",
          "the gradient keeps the starts fixed: exact = of what forward computes, only the k "
          "columns "
          "get a key gradient; plug_in = the paper's",
          "backward runs directly or by the partitioned engine, in double",
          "rows whose estimated error exceeds guard are computed directly: metric guarded_rows",
          "metric engine: 0 direct, 1 shared, 2 local, 3 partitioned",
          "planner measure makes transforms 1.2 to 1.5 times faster, set-up up to 2 s longer, and "
          "the last bits differ from run to run"}},
    {param("k", &Params::k, {1, 1 << 24}, "most runs of columns (bases)"),
     choice("segmentation", &Params::segmentation,
            {"recover", "scan_causal", "fixed", "first_k", "uniform", "band_merge"},
            "how the starts are found; all but recover, fixed, first_k are ours"),
     param("probe", &Params::probe, {1, 65536}, "T: logits of a column that recover compares"),
     param("delta", &Params::delta, {0, 1e9},
           "least l1 distance of two runs' probes; 0 = automatic"),
     param("eps", &Params::eps, {0, 1e9}, "noise of a logit; the threshold is delta - 2 T eps"),
     param("starts", &Params::starts, "segmentation fixed: the starts, as in 0,40,100"),
     choice("representative", &Params::representative, {"first", "mean"},
            "profile of a run: its first column, or the mean of all (ours, looks ahead)"),
     choice("engine", &Params::engine, {"auto", "direct", "shared", "local", "partitioned"},
            "how products are computed; auto = cheapest by the cost model"),
     choice("precision", &Params::precision, {"double", "float"},
            "of the transforms; the direct engine is float"),
     choice("planner", &Params::planner, {"estimate", "measure"}, "how FFTW chooses its algorithm"),
     param("guard", &Params::guard, {0, 1},
           "largest estimated error of a row; 0 = 1e-6 in double, 1e-4 in float"),
     choice("gradient", &Params::gradient, {"exact", "plug_in"}, "which backward pass")}};

}  // namespace
}  // namespace subquad
