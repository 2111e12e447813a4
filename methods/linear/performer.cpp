// Performer: softmax attention through random features, FAVOR+.
// Source: Choromanski et al. 2021, "Rethinking attention with Performers" (arXiv 2009.14794).
//   out_i = phi(q_i)^T S / (phi(q_i)^T z + eps),  S = sum_j phi(k_j) v_j^T,  z = sum_j phi(k_j),
// with E[phi(q).phi(k)] = exp(scale q.k): features in engines/favor, scan in engines/linear_scan.
// Our choices: hyperbolic features (the same mean as positive ones, less variance), orthogonal rows
// without the sign bias of a plain QR, features = 2 d_k, feature_eps 0 (a constant would bias the
// estimate), eps 1e-6 in the normaliser. One W for all heads, as in the authors' code.

#include "harness/core/registry.h"
#include "methods/engines/favor.h"
#include "methods/engines/linear_recurrence.h"
#include "methods/engines/linear_scan.h"

namespace subquad {
namespace {

struct Params {
  Index features = 0;
  std::string form = "hyperbolic";
  bool orthogonal = true;
  std::string norms = "chi";
  bool stabiliser = true;
  double feature_eps = 0;
  double eps = 1e-6;
  Index redraw = 0;
  Index chunk = 0;
};

class Performer final : public Method {
 public:
  explicit Performer(const Params& params) : params_(params) {}

  std::string unsupported(const Problem& p, Pass) const override {
    if (params_.chunk % 16 != 0)
      return fmt::format("chunk={} is not a multiple of 16", params_.chunk);
    if (p.scale < 0) return "random features need a positive scale";
    return "";
  }

  void prepare(const Problem& problem, const Env& env) override {
    problem_ = problem;
    seed_ = env.seed;
    map_ = make_map(problem.logit_scale());
    draw(0);
    scan_.prepare(problem, map_, options(), env.gradients);
  }

  std::unique_ptr<Saved> make_saved() const override { return scan_.make_saved(); }
  // Time O((n + n_kv) f (d_k + d_v)), f features; extra memory: states of f d_v floats,
  // a few per thread; for gradients one for some 650 tokens of a head too, and rows of as many
  // tokens per thread.
  void forward(const Inputs& in, TensorView out, Saved* saved) override {
    draw(round_of(in));
    scan_.forward(in, out, static_cast<LinearScanSaved*>(saved));
  }
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved& saved,
                const Gradients& grads) override {
    draw(round_of(in));
    scan_.backward(in, out, dout, static_cast<const LinearScanSaved&>(saved), grads);
  }
  std::unique_ptr<Decoder> make_decoder(const DecodeConfig& config) const override {
    std::shared_ptr<FeatureMap> map = make_map(config.logit_scale());
    map->prepare(config.d_k, seed_of(config.seed, 0), config.batch * config.heads, 0);
    return make_linear_decoder(config, std::move(map), options());
  }

  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    draw(round_of(in));
    linear_attention_rows(in, problem_, *map_, options(), b, h, rows, weights);
    return true;
  }

  Budget budget(const Problem& p) const override {
    return {
        .keys_per_query = static_cast<double>(features(p)),
        .state_bytes = 4.0 * static_cast<double>(p.batch * p.heads * features(p) * (p.d_v + 1))};
  }
  double extra_bytes(const Problem& p, Pass pass) const override {
    const auto map = make_map(p.logit_scale());
    const Index heads = p.batch * p.heads;
    if (pass == Pass::decode) return linear_decoder_bytes(p, *map) + map->bytes(p.d_k, heads, 0);
    const bool gradients = pass != Pass::forward;
    return LinearScan::work_bytes(p, *map, options(), gradients) +
           map->bytes(p.d_k, heads, p.n_kv) +
           (gradients ? LinearScan::saved_bytes(p, *map, options()) : 0);
  }
  double flops(const Problem& p, Pass pass) const override {
    const double rows = static_cast<double>(p.batch * p.heads * (p.n + p.n_kv));
    const double projections = pass == Pass::forward_backward ? 3 : pass == Pass::backward ? 2 : 1;
    const Index draws = params_.form == "positive" ? features(p) : features(p) / 2;
    return LinearScan::flops(p, features(p), true, pass) +
           2 * projections * rows * static_cast<double>(draws * p.d_k);
  }

 private:
  LinearScanOptions options() const {
    return {.normalize = true, .eps = params_.eps, .chunk = params_.chunk, .decay = {}};
  }
  std::shared_ptr<FeatureMap> make_map(double scale) const {
    return make_favor_map({.form = params_.form,
                           .features = params_.features,
                           .orthogonal = params_.orthogonal,
                           .norms = params_.norms,
                           .stabiliser = params_.stabiliser,
                           .feature_eps = params_.feature_eps},
                          scale);
  }
  Index features(const Problem& p) const { return make_map(p.logit_scale())->features(p.d_k); }

  // W of round r of redrawing; a call outside training uses round 0.
  static Seed seed_of(Seed seed, std::uint64_t round) {
    return derive(seed, "performer.projection", {round});
  }
  std::uint64_t round_of(const Inputs& in) const {
    return in.training && params_.redraw > 0 ? in.step / static_cast<std::uint64_t>(params_.redraw)
                                             : 0;
  }
  void draw(std::uint64_t round) {
    if (drawn_ == static_cast<std::int64_t>(round)) return;
    map_->prepare(problem_.d_k, seed_of(seed_, round), problem_.batch * problem_.heads,
                  problem_.n_kv);
    drawn_ = static_cast<std::int64_t>(round);
  }

  Params params_;
  Problem problem_;
  Seed seed_ = 0;
  std::int64_t drawn_ = -1;  // round of the present W
  std::shared_ptr<FeatureMap> map_;
  LinearScan scan_;
};

const RegisterMethod<Performer, Params> kRegistration{
    {.name = "performer",
     .family = "linear",
     .source = "Choromanski et al. 2021, arXiv 2009.14794",
     .summary = "softmax attention estimated by orthogonal random features (FAVOR+)",
     .approximates = Approximates::softmax,
     .causality = Causality::strict,
     .cross_attention = true,
     .key_padding = true,
     .passes = {Pass::forward, Pass::backward, Pass::decode},
     .random = true,
     .time_exponent = 1,
     .memory_exponent = 1,
     .notes = {"the variance of an entry grows as exp(|q + k|^2 / sqrt(d_k)): expect it to fail "
               "where logits are large",
               "the stabiliser of the keys is a maximum over all of them, so that causal attention "
               "and decoding go without",
               "form: trigonometric may have negative normalisers: unstable, for comparison"}},
    {param("features", &Params::features, {0, 4096}, "width of phi; 0: 2 d_k"),
     choice("form", &Params::form, {"hyperbolic", "positive", "trigonometric"},
            "exp(+-Wx), exp(Wx), or cosines and sines"),
     param("orthogonal", &Params::orthogonal, "blocks of d_k orthogonal rows in W"),
     choice("norms", &Params::norms, {"chi", "sqrt_d"},
            "lengths of orthogonal rows: of Gaussian rows, or sqrt(d_k)"),
     param("stabiliser", &Params::stabiliser, "subtract the largest exponent"),
     param("feature_eps", &Params::feature_eps, {0, 1e-2}, "added to every feature; biases"),
     param("eps", &Params::eps, {0, 1e-2}, "added to the normaliser"),
     param("redraw", &Params::redraw, {0, 1e6}, "training steps between draws of W; 0: never"),
     param("chunk", &Params::chunk, {0, 256},
           "tokens of a chunk, a multiple of 16; 0: chosen by the size of the state")}};

}  // namespace
}  // namespace subquad
