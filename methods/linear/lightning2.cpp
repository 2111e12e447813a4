// Lightning Attention-2: causal linear attention with a fixed decay per head, no normaliser.
// Source: Qin et al. 2024 (arXiv 2401.04658); slopes as in TransNormerLLM.
//   out_i = sum_{j <= i} lambda_h^(i - j) (q_i.k_j) v_j,  lambda_h = exp(-slope_h)
// in tiles: a masked product inside a chunk, the decayed state for what lies before it
// (engines/linear_scan). No scale, no feature map. A decoder hands over the recurrent form's state,
// S_t = lambda S_{t-1} + k_t v_t^T (the paper's tiles carry lambda times that).

#include <cmath>

#include "harness/core/registry.h"
#include "methods/engines/linear_recurrence.h"
#include "methods/engines/linear_scan.h"

namespace subquad {
namespace {

struct Params {
  std::string decay = "alibi";
  double lambda = 0.99;
  Index layer = 0;
  Index layers = 1;
  Index chunk = 0;
};

// 2^(-8 (h + 1) / heads) for a power of two; otherwise those of the next lower power, then every
// second one of twice that.
std::vector<double> alibi_slopes(Index heads) {
  const auto regular = [](Index count) {
    std::vector<double> slopes;
    for (Index h = 0; h < count; ++h)
      slopes.push_back(std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(count)));
    return slopes;
  };
  Index power = 1;
  while (2 * power <= heads) power *= 2;
  std::vector<double> slopes = regular(power);
  const std::vector<double> finer = regular(2 * power);
  for (Index h = 0; h < heads - power; ++h)
    slopes.push_back(finer[static_cast<std::size_t>(2 * h)]);
  return slopes;
}

class Lightning2 final : public Method {
 public:
  explicit Lightning2(const Params& params) : params_(params) {
    if (params.layer >= params.layers)
      throw UserError(fmt::format("lightning2: layer={} with layers={}; expected layer < layers",
                                  params.layer, params.layers));
  }

  std::string unsupported(const Problem&, Pass) const override {
    return params_.chunk % 16 == 0 ? ""
                                   : fmt::format("chunk={} is not a multiple of 16", params_.chunk);
  }

  void prepare(const Problem& problem, const Env& env) override {
    problem_ = problem;
    map_ = make_elementwise_map("identity");
    scan_.prepare(problem, map_, options(problem.heads), env.gradients);
  }
  std::unique_ptr<Saved> make_saved() const override { return scan_.make_saved(); }
  // Time O((n + n_kv) d_k d_v), extra memory: states of d_k d_v floats,
  // a few per thread; for gradients one for some 650 tokens of a head too, and rows of as many
  // tokens per thread.
  void forward(const Inputs& in, TensorView out, Saved* saved) override {
    scan_.forward(in, out, static_cast<LinearScanSaved*>(saved));
  }
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved& saved,
                const Gradients& grads) override {
    scan_.backward(in, out, dout, static_cast<const LinearScanSaved&>(saved), grads);
  }
  std::unique_ptr<Decoder> make_decoder(const DecodeConfig& config) const override {
    return make_linear_decoder(config, make_elementwise_map("identity"), options(config.heads));
  }
  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    linear_attention_rows(in, problem_, *map_, options(problem_.heads), b, h, rows, weights);
    return true;
  }

  Budget budget(const Problem& p) const override {
    return {.keys_per_query = static_cast<double>(p.d_k),
            .state_bytes = 4.0 * static_cast<double>(p.batch * p.heads * p.d_k * p.d_v)};
  }
  double extra_bytes(const Problem& p, Pass pass) const override {
    const auto map = make_elementwise_map("identity");
    if (pass == Pass::decode) return linear_decoder_bytes(p, *map);
    const bool gradients = pass != Pass::forward;
    return LinearScan::work_bytes(p, *map, options(p.heads), gradients) +
           (gradients ? LinearScan::saved_bytes(p, *map, options(p.heads)) : 0);
  }
  double flops(const Problem& p, Pass pass) const override {
    return LinearScan::flops(p, p.d_k, false, pass);
  }

 private:
  LinearScanOptions options(Index heads) const {
    LinearScanOptions o{.normalize = false, .eps = 0, .chunk = params_.chunk, .decay = {}};
    if (params_.decay == "none") return o;
    // Deeper layers decay less (TransNormerLLM); a model of one layer has factor 1.
    const double depth = params_.layers == 1 ? 0
                                             : static_cast<double>(params_.layer) /
                                                   static_cast<double>(params_.layers - 1);
    const double factor = params_.layers == 1 ? 1 : 1 - depth + 1e-5;
    const std::vector<double> alibi = alibi_slopes(heads);
    for (Index h = 0; h < heads; ++h) {
      const double linear =
          8.0 * static_cast<double>(h) / static_cast<double>(heads) *
          (1 - static_cast<double>(params_.layer) / static_cast<double>(params_.layers));
      o.decay.push_back(params_.decay == "constant" ? params_.lambda
                        : params_.decay == "linear"
                            ? std::exp(-linear)
                            : std::exp(-factor * alibi[static_cast<std::size_t>(h)]));
    }
    return o;
  }

  Params params_;
  Problem problem_;
  std::shared_ptr<FeatureMap> map_;
  LinearScan scan_;
};

const RegisterMethod<Lightning2, Params> kRegistration{
    {.name = "lightning2",
     .family = "linear",
     .source = "Qin et al. 2024, arXiv 2401.04658",
     .summary = "causal linear attention with a decay per head, in tiles",
     .approximates = Approximates::own_kernel,
     .causality = Causality::strict,
     .bidirectional = false,
     .cross_attention = true,
     .key_padding = true,
     .passes = {Pass::forward, Pass::backward, Pass::decode},
     .time_exponent = 1,
     .memory_exponent = 1,
     .notes = {"no normaliser and no scale: Problem::scale has no effect, and models put a norm "
               "behind it"}},
    {choice("decay", &Params::decay, {"alibi", "linear", "constant", "none"},
            "slopes 2^(-8 (h + 1) / heads), 8 h / heads (1 - layer / layers), lambda, or no decay"),
     param("lambda", &Params::lambda, {0, 1}, "the factor per token of decay: constant"),
     param("layer", &Params::layer, {0, 1000}, "which layer of a model: deeper ones decay less"),
     param("layers", &Params::layers, {1, 1000}, "layers of the model"),
     param("chunk", &Params::chunk, {0, 256},
           "tokens of a chunk, a multiple of 16; 0: chosen by the size of the state")}};

}  // namespace
}  // namespace subquad
