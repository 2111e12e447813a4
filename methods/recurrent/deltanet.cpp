// DeltaNet: linear attention with the delta rule, which replaces the value stored under a key.
// Source: Yang et al. 2024 (arXiv 2406.06484); rule of Schlag et al. 2021 (arXiv 2102.11174).
//   u_t = beta (v_t - S_{t-1}^T k_t),  S_t = S_{t-1} + k_t u_t^T,  out_t = scale S_t^T q_t
// with q and k of length one. The attention alone: the layer's short convolution, its output norm
// and rates beta_t computed from the input belong to a model around it; here beta is a constant.
// The chunkwise form is engines/delta_scan; decoding is the recurrence itself.

#include "harness/core/registry.h"
#include "methods/engines/delta_scan.h"

namespace subquad {
namespace {

struct Params {
  double beta = 0.5;
  bool normalize = true;
  Index chunk = 0;
};

struct DeltaSaved final : Saved {
  explicit DeltaSaved(Index floats) : states(floats) {}
  AlignedArray<float> states;  // [batch * heads, chunks, d_k, d_v]: before every chunk
};

class DeltaNet final : public Method {
 public:
  explicit DeltaNet(const Params& params) : params_(params) {}

  std::string unsupported(const Problem&, Pass) const override {
    return params_.chunk % 16 == 0 ? ""
                                   : fmt::format("chunk={} is not a multiple of 16", params_.chunk);
  }
  void prepare(const Problem& problem, const Env& env) override {
    scan_.prepare(problem, options(), env.gradients);
  }
  std::unique_ptr<Saved> make_saved() const override {
    return std::make_unique<DeltaSaved>(scan_.saved_floats());
  }
  // Time O(n_kv (d_k d_v + chunk (d_k + d_v))); extra memory one state per thread, and one per
  // chunk for backward.
  void forward(const Inputs& in, TensorView out, Saved* saved) override {
    scan_.forward(in, nullptr, out,
                  saved == nullptr ? nullptr : static_cast<DeltaSaved&>(*saved).states.data());
  }
  void backward(const Inputs& in, ConstTensorView, ConstTensorView dout, const Saved& saved,
                const Gradients& grads) override {
    scan_.backward(in, nullptr, dout, static_cast<const DeltaSaved&>(saved).states.data(), grads,
                   nullptr);
  }
  std::unique_ptr<Decoder> make_decoder(const DecodeConfig& config) const override {
    return make_delta_decoder(config, options());
  }

  Budget budget(const Problem& p) const override {
    return {.keys_per_query = static_cast<double>(p.d_k),
            .state_bytes = 4.0 * static_cast<double>(p.batch * p.heads * p.d_k * p.d_v)};
  }
  double extra_bytes(const Problem& p, Pass pass) const override {
    if (pass == Pass::decode) return delta_decoder_bytes(p);
    const bool gradients = pass != Pass::forward;
    const double saved =
        gradients ? 4.0 * static_cast<double>(DeltaScan::saved_floats(p, options())) : 0;
    return DeltaScan::work_bytes(p, options(), gradients) + saved;
  }
  double flops(const Problem& p, Pass pass) const override { return DeltaScan::flops(p, pass); }

 private:
  DeltaOptions options() const {
    return {.beta = params_.beta, .normalize = params_.normalize, .chunk = params_.chunk};
  }

  Params params_;
  DeltaScan scan_;
};

const RegisterMethod<DeltaNet, Params> kRegistration{
    {.name = "deltanet",
     .family = "recurrent",
     .source = "Yang et al. 2024, arXiv 2406.06484",
     .summary = "linear attention whose state is updated by the delta rule, chunk by chunk",
     .approximates = Approximates::own_kernel,
     .causality = Causality::strict,
     .bidirectional = false,
     .cross_attention = true,
     .key_padding = true,
     .passes = {Pass::forward, Pass::backward, Pass::decode},
     .time_exponent = 1,
     .memory_exponent = 1,
     .notes = {"without normalize the recurrence diverges once beta |k|^2 exceeds 2",
               "a padded key has rate zero"}},
    {param("beta", &Params::beta, {0, 1}, "rate of every update"),
     param("normalize", &Params::normalize, "divide q and k by their length"),
     param("chunk", &Params::chunk, {0, 256}, "tokens of a chunk, a multiple of 16; 0: 32")}};

}  // namespace
}  // namespace subquad
