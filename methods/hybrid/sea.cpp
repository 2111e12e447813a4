// SEA: sparse linear attention with an estimated attention mask.
// Source: Lee et al. 2024, "SEA: Sparse Linear Attention with Estimated Attention Mask"
// (arXiv 2310.01777, ICLR 2024); what its appendices hold is taken from the authors' code
// (github.com/gmlwns2000/sea-attention). The steps are listed in engines/sea_attention.h.
// Untrained, its mask is arbitrary: fit it, load weights, or choose another source of the mask.
// Our additions: input_norm, mask_empty_cells, cell_map absolute, gates one, avg_normalize.

#include "harness/core/learns_matrix.h"
#include "harness/core/registry.h"
#include "methods/engines/sea_fit.h"

namespace subquad {
namespace {

struct Params {
  Index top_k = 32;
  Index cells = 64;
  std::string mask = "learned";
  std::string group = "causal_per_batch";
  std::string kernel = "auto";
  Index features = 0;
  std::string position = "auto";
  Index channels = 0;
  Index stretch = 0;
  bool cnn = true;
  std::string gates = "learned";
  std::string input_norm = "none";
  bool mask_empty_cells = true;
  std::string cell_map = "relative";
  Index n_max = 0;
  bool avg_normalize = false;
  Index query_skip = 1;
  bool repo_quirks = false;
  std::string fit_stages = "estimator_then_gates";
  double fit_kl = 0.1;
  double fit_mse = 1;
};

class Sea final : public Method, public LearnsMatrix, public HasStages {
 public:
  explicit Sea(const Params& params) : params_(params) {}

  std::string unsupported(const Problem& p, Pass pass) const override {
    const SeaOptions o = options(p);
    if (pass == Pass::decode && o.source != SeaOptions::Source::learned &&
        o.source != SeaOptions::Source::local)
      return fmt::format("mask={} does not decode", params_.mask);
    if (o.cells % o.stretch != 0)
      return fmt::format("cells={} is not a multiple of stretch={}", o.cells, o.stretch);
    if (params_.query_skip != 1 && (params_.query_skip & (params_.query_skip - 1)) != 0)
      return fmt::format("query_skip={} is not 1, 2, 4, 8 or 16", params_.query_skip);
    if (p.causal && (o.group == SeaOptions::Group::head || o.group == SeaOptions::Group::batch))
      return fmt::format("group={} chooses over all queries, so it has no causal form",
                         params_.group);
    if (o.max_n > 0 && p.n > o.max_n) return fmt::format("n={} exceeds n_max={}", p.n, o.max_n);
    if (o.source == SeaOptions::Source::identity) {
      if (p.causal) return "mask=identity reads positions of all keys, so it has no causal form";
      if (o.cells != p.d_v)
        return fmt::format("mask=identity needs cells = d_v, got {} and {}", o.cells, p.d_v);
    }
    if (o.source == SeaOptions::Source::identity && o.position == SeaOptions::Position::none)
      return "mask=identity reads the position values: position=none has none";
    if (p.causal && o.position != SeaOptions::Position::learned &&
        o.position != SeaOptions::Position::none)
      return "a resized identity depends on the length: causal attention needs position=learned";
    return "";
  }

  void prepare(const Problem& problem, const Env& env) override {
    const SeaOptions o = options(problem);
    seed_ = env.seed;
    if (o.source == SeaOptions::Source::learned)
      weights_.make(SeaAttention::shape_of(problem, o), env.seed, env.gradients);
    attention_.prepare(problem, o, &weights_, env.seed, env.gradients);
    matrix_loss_.reset();
  }

  std::unique_ptr<Saved> make_saved() const override { return attention_.make_saved(); }
  // Time O(n (features d + d^2 + d cells + heads cells + top_k d)), extra memory O(n d).
  void forward(const Inputs& in, TensorView out, Saved* saved) override {
    attention_.forward(in, out, static_cast<SeaSaved*>(saved));
  }
  void backward(const Inputs& in, ConstTensorView, ConstTensorView dout, const Saved& saved,
                const Gradients& grads) override {
    attention_.backward(in, dout, static_cast<const SeaSaved&>(saved), grads);
  }
  std::vector<Parameter*> parameters() override {
    return attention_.has_estimator() ? weights_.all() : std::vector<Parameter*>{};
  }

  std::unique_ptr<Decoder> make_decoder(const DecodeConfig& c) const override {
    const Problem p{.batch = c.batch,
                    .heads = c.heads,
                    .n = c.capacity,
                    .n_kv = c.capacity,
                    .d_k = c.d_k,
                    .d_v = c.d_v,
                    .causal = true};
    const SeaOptions o = options(p);
    auto weights = std::make_unique<SeaWeights>();
    if (o.source == SeaOptions::Source::learned) {
      weights->make(SeaAttention::shape_of(p, o), c.seed, false);
      weights->take_values(weights_);
    }
    return make_sea_decoder(c, o, std::move(weights), c.seed);
  }

  // Learns L_approx and L_context of the paper from dense attention; see engines/sea_fit.h.
  FitReport fit(FitData& data, const FitOptions& options) override {
    if (!attention_.has_estimator())
      throw Unsupported(fmt::format("mask={} has nothing to fit", params_.mask));
    for (Parameter* p : weights_.all())
      if (p->grad.size() == 0) p->grad = AlignedArray<float>(p->value.size());
    attention_.prepare(attention_.problem(), attention_.options(), &weights_, seed_, true);
    using Stages = SeaFitOptions::Stages;
    SeaFitOptions sea{.kl = params_.fit_kl, .mse = params_.fit_mse};
    sea.stages = params_.fit_stages == "estimator" ? Stages::estimator
                 : params_.fit_stages == "gates"   ? Stages::gates
                 : params_.fit_stages == "joint"   ? Stages::joint
                                                   : Stages::estimator_then_gates;
    return fit_sea(attention_, weights_, data, options, sea);
  }

  bool learns_matrix() const override { return attention_.has_estimator(); }
  double matrix_loss(const Inputs& in, ConstTensorView teacher_q, ConstTensorView teacher_k,
                     double weight, const Gradients& grads) override {
    if (!matrix_loss_)
      matrix_loss_ =
          std::make_unique<SeaMatrixLoss>(attention_, weights_, params_.fit_kl, params_.fit_mse);
    return matrix_loss_->run(in, teacher_q, teacher_k, weight, grads);
  }

  void estimated_matrix(const Inputs& in, Index b, Index h, Eigen::Ref<Matrix> to) override {
    attention_.estimated_matrix(in, b, h, to);
  }

  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    weights.setZero();
    const auto [low, high] = std::minmax_element(rows.begin(), rows.end());
    if (rows.empty()) return true;
    std::vector<float> mix(static_cast<std::size_t>(*high + 1), 1.0f);
    attention_.show(in, b, *low, *high + 1,
                    [&](Index head, Index t, const std::int32_t* keys, Index count,
                        const float* weight, float s_prob, float s_mix) {
                      if (head != h) return;
                      mix[static_cast<std::size_t>(t)] = s_mix;
                      for (std::size_t r = 0; r < rows.size(); ++r)
                        for (Index i = 0; i < count && rows[r] == t; ++i)
                          weights(static_cast<Index>(r), keys[i]) = s_mix * s_prob * weight[i];
                    });
    for (std::size_t r = 0; r < rows.size(); ++r)
      for (Index j = 0; j < weights.cols(); ++j)
        weights(static_cast<Index>(r), j) +=
            (1 - mix[static_cast<std::size_t>(rows[r])]) *
            static_cast<float>(attention_.pool_weight(b, h, rows[r], j));
    return true;
  }

  Budget budget(const Problem& p) const override {
    const SeaOptions o = options(p);
    return {.keys_per_query = static_cast<double>(std::min(o.top_k, p.n)),
            .state_bytes = 4.0 * static_cast<double>(p.batch * p.heads * p.n * (p.d_k + p.d_v))};
  }
  double extra_bytes(const Problem& p, Pass pass) const override {
    return SeaAttention::bytes(p, options(p), pass != Pass::forward);
  }
  double flops(const Problem& p, Pass pass) const override {
    return SeaAttention::flops(p, options(p), pass);
  }
  std::vector<Metric> metrics() const override { return {{"kept_keys", attention_.kept_keys()}}; }
  std::vector<std::string> stages() const override { return sea_stage_names(); }
  void set_probe(StageProbe* probe) override { attention_.set_probe(probe); }

 private:
  SeaOptions options(const Problem& p) const {
    using Source = SeaOptions::Source;
    using Group = SeaOptions::Group;
    using Position = SeaOptions::Position;
    SeaOptions o;
    o.top_k = params_.top_k;
    o.cells = params_.cells;
    o.source = params_.mask == "learned"  ? Source::learned
               : params_.mask == "oracle" ? Source::oracle
               : params_.mask == "random" ? Source::random
               : params_.mask == "local"  ? Source::local
                                          : Source::identity;
    o.group = params_.group == "causal_per_batch" ? Group::row
              : params_.group == "per_query"      ? Group::query
              : params_.group == "per_head"       ? Group::head
                                                  : Group::batch;
    o.position = params_.position == "nearest" ? Position::nearest
                 : params_.position == "none"  ? Position::none
                 : params_.position == "learned" || (params_.position == "auto" && p.causal)
                     ? Position::learned
                     : Position::identity;
    o.relu = params_.kernel == "relu" || (params_.kernel == "auto" && p.causal);
    o.features = params_.features;
    o.channels = params_.channels > 0 ? params_.channels : p.causal ? 2 : 4;
    o.stretch = params_.stretch > 0 ? params_.stretch : p.causal ? 4 : 2;
    o.cnn = params_.cnn;
    if (!o.cnn) o.stretch = 1;
    o.block_norm = params_.input_norm == "block_ln";
    o.quirks = params_.repo_quirks && p.causal;
    o.mask_empty = params_.mask_empty_cells;
    o.absolute = params_.cell_map == "absolute";
    o.normalize_pool = params_.avg_normalize;
    o.gates = params_.gates == "learned";
    o.skip = params_.query_skip;
    o.max_n = params_.n_max;
    return o;
  }

  Params params_;
  Seed seed_ = 0;
  SeaWeights weights_;
  SeaAttention attention_;
  std::unique_ptr<SeaMatrixLoss> matrix_loss_;  // made when first asked for
};

const RegisterMethod<Sea, Params> kRegistration{
    {.name = "sea",
     .family = "hybrid",
     .source = "Lee et al. 2024, arXiv 2310.01777",
     .summary = "exact attention to the keys that an attention map estimated by kernel attention "
                "and a CNN points to",
     .approximates = Approximates::softmax,
     .causality = Causality::strict,
     .passes = {Pass::forward, Pass::backward, Pass::decode, Pass::fit},
     .random = true,
     .learned = true,
     .structure_from_v = true,
     .exact_limit =
         [](const Problem& p) {
           return Settings{{"top_k", p.n_kv}, {"gates", std::string("one")}};
         },
     .time_exponent = 1,
     .memory_exponent = 1,
     .notes = {"untrained, the learned mask is arbitrary: column learned_from tells",
               "masks other than the learned one need no training and have gates of one",
               "causal_per_batch lets the heads of a query compete: one may get no key at all",
               "repo_quirks: the causal code pads its 1 x 1 convolution and pools it back"}},
    {param("top_k", &Params::top_k, {1, 1 << 24}, "keys per query and head, on average (k)"),
     param("cells", &Params::cells, {1, 4096}, "width of the compressed mask (K_c)"),
     choice(
         "mask", &Params::mask, {"learned", "oracle", "random", "local", "identity"},
         "scores of cells: estimated, exact masses, drawn, nearest, position bins of the kernel"),
     choice("group", &Params::group, {"causal_per_batch", "per_query", "per_head", "per_batch"},
            "cells compete over the heads of a query, in each head and query, in a head, in all"),
     choice("kernel", &Params::kernel, {"auto", "favor", "relu"},
            "features of the kernel attention; auto: relu where causal"),
     param("features", &Params::features, {0, 4096}, "their number; 0: d_k ln(d_k) / 8"),
     choice(
         "position", &Params::position, {"auto", "identity", "nearest", "learned", "none"},
         "value beside v: the identity resized to n rows, or a table; auto: a table where causal; "
         "none: zeros (ours, an ablation)"),
     param("channels", &Params::channels, {0, 64}, "CNN channels per head; 0: 4, causal 2"),
     param("stretch", &Params::stretch, {0, 64}, "cells per CNN column; 0: 2, causal 4"),
     param("cnn", &Params::cnn, "off: cells are read out linearly"),
     choice("gates", &Params::gates, {"learned", "one"},
            "one: no rescaling and no pooled values (ours)"),
     choice("input_norm", &Params::input_norm, {"none", "block_ln"},
            "normalise each d_v-wide block before the MLP (ours)"),
     param("mask_empty_cells", &Params::mask_empty_cells,
           "cells without a key cannot be chosen (ours)"),
     choice("cell_map", &Params::cell_map, {"relative", "absolute"},
            "cells divide the visible keys, or n_max positions (ours)"),
     param("n_max", &Params::n_max, {0, 1 << 24},
           "longest sequence: rows of the position table, range of absolute cells; 0: n"),
     param("avg_normalize", &Params::avg_normalize,
           "bidirectional: pooled values weigh one in all (ours)"),
     param("query_skip", &Params::query_skip, {1, 16},
           "estimate every so many queries: 1, 2, 4, 8 or 16"),
     param("repo_quirks", &Params::repo_quirks, "details of the authors' code, see the notes"),
     choice("fit_stages", &Params::fit_stages,
            {"estimator_then_gates", "estimator", "gates", "joint"},
            "what a fit trains: the scores, the gates, one after the other, or at once"),
     param("fit_kl", &Params::fit_kl, {0, 100}, "weight of KL in the loss of the scores"),
     param("fit_mse", &Params::fit_mse, {0, 1e6}, "weight of the squared distance in it")}};

}  // namespace
}  // namespace subquad
