// Linear attention: softmax replaced by a product of feature maps.
// Source: Katharopoulos et al. 2020, "Transformers are RNNs" (arXiv 2006.16236), equations 5-20.
//   out_i = phi(q_i)^T S / (phi(q_i)^T z + eps),  S = sum_j phi(k_j) v_j^T,  z = sum_j phi(k_j),
// sums over all keys, or over j <= i + n_kv - n when causal. Logits are not scaled. Padding is
// applied after phi, because phi(0) = 1.
//
// The chunked form is engines/linear_scan; the sequential form, one token after the other as in the
// paper's equations, is kept as its reference, and is what decoding does.

#include "harness/core/registry.h"
#include "methods/engines/linear_recurrence.h"
#include "methods/engines/linear_scan.h"

namespace subquad {
namespace {

struct Params {
  std::string feature_map = "elu1";
  double relu_shift = 1e-3;
  double eps = 1e-6;
  std::string form = "chunked";
  Index chunk = 0;
};

class Linear final : public Method {
 public:
  explicit Linear(const Params& params) : params_(params) {}

  std::string unsupported(const Problem& p, Pass) const override {
    if (params_.chunk % 16 != 0)
      return fmt::format("chunk={} is not a multiple of 16", params_.chunk);
    if (sequential() && !p.causal) return "form: sequential is causal: set causal: true";
    return "";
  }

  void prepare(const Problem& problem, const Env& env) override {
    problem_ = problem;
    map_ = make_map(problem.d_k);
    if (sequential()) {
      recurrence_.prepare(problem, map_, options());
    } else {
      scan_.prepare(problem, map_, options(), env.gradients);
    }
  }

  std::unique_ptr<Saved> make_saved() const override {
    if (!sequential()) return scan_.make_saved();
    auto saved = std::make_unique<LinearScanSaved>();
    saved->inverse_norm = AlignedArray<float>(problem_.batch * problem_.heads * problem_.n);
    return saved;
  }
  // Time O((n + n_kv) f d_v), f features; extra memory: states of f d_v floats,
  // a few per thread; for gradients one for some 650 tokens of a head too, and rows of as many
  // tokens per thread.
  void forward(const Inputs& in, TensorView out, Saved* saved) override {
    auto* const own = static_cast<LinearScanSaved*>(saved);
    if (!sequential()) return scan_.forward(in, out, own);
    recurrence_.forward(in, out, own == nullptr ? nullptr : own->inverse_norm.data());
  }
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved& saved,
                const Gradients& grads) override {
    const auto& own = static_cast<const LinearScanSaved&>(saved);
    if (!sequential()) return scan_.backward(in, out, dout, own, grads);
    recurrence_.backward(in, out, dout, own.inverse_norm.data(), grads);
  }
  std::unique_ptr<Decoder> make_decoder(const DecodeConfig& config) const override {
    return make_linear_decoder(config, make_map(config.d_k), options());
  }

  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    linear_attention_rows(in, problem_, *map_, options(), b, h, rows, weights);
    return true;
  }

  Budget budget(const Problem& p) const override {
    return {.keys_per_query = static_cast<double>(features(p.d_k)),
            .state_bytes =
                4.0 * static_cast<double>(p.batch * p.heads * features(p.d_k) * (p.d_v + 1))};
  }
  double extra_bytes(const Problem& p, Pass pass) const override {
    if (pass == Pass::decode) return linear_decoder_bytes(p, *make_map(p.d_k));
    const bool gradients = pass != Pass::forward;
    const auto map = make_map(p.d_k);
    if (sequential())
      return LinearRecurrence::work_bytes(p, *map) +
             (gradients ? 4.0 * static_cast<double>(p.batch * p.heads * p.n) : 0);
    return LinearScan::work_bytes(p, *map, options(), gradients) +
           (gradients ? LinearScan::saved_bytes(p, *map, options()) : 0);
  }
  double flops(const Problem& p, Pass pass) const override {
    return LinearScan::flops(p, features(p.d_k), true, pass);
  }

 private:
  bool sequential() const { return params_.form == "sequential"; }
  LinearScanOptions options() const {
    return {.normalize = true, .eps = params_.eps, .chunk = params_.chunk, .decay = {}};
  }
  std::shared_ptr<FeatureMap> make_map(Index) const {
    return make_elementwise_map(params_.feature_map, params_.relu_shift);
  }
  Index features(Index d) const { return make_map(d)->features(d); }

  Params params_;
  Problem problem_;
  std::shared_ptr<FeatureMap> map_;
  LinearScan scan_;
  LinearRecurrence recurrence_;
};

const RegisterMethod<Linear, Params> kRegistration{
    {.name = "linear",
     .family = "linear",
     .source = "Katharopoulos et al. 2020, arXiv 2006.16236",
     .summary = "linear attention with feature map elu(x) + 1, or another",
     .approximates = Approximates::own_kernel,
     .causality = Causality::strict,
     .cross_attention = true,
     .key_padding = true,
     .passes = {Pass::forward, Pass::backward, Pass::decode},
     .bounded_by = {"svd_rank", "block_rank_causal"},
     .time_exponent = 1,
     .memory_exponent = 1,
     .notes = {"another function than softmax attention on purpose: its error against dense is "
               "descriptive only",
               "logits are not scaled: Problem::scale has no effect",
               "eps is added to the normaliser, so rows of weights sum to slightly less than one",
               "form: sequential is the reference of the chunked form, one token at a time"}},
    {choice("feature_map", &Params::feature_map, {"elu1", "relu", "exp"},
            "phi: elu(x) + 1, max(x, 0) + relu_shift, exp(x)"),
     param("relu_shift", &Params::relu_shift, {0, 1}, "added by feature_map: relu"),
     param("eps", &Params::eps, {0, 1e-2}, "added to the normaliser"),
     choice("form", &Params::form, {"chunked", "sequential"},
            "matrix products over chunks, or one token after the other (causal only)"),
     param("chunk", &Params::chunk, {0, 256},
           "tokens of a chunk, a multiple of 16; 0: chosen by the size of the state")}};

}  // namespace
}  // namespace subquad
