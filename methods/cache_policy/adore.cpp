// ADORE: adaptive token release with rebuilding of key-value states. A re-implementation from the
// published description; the authors' code is not public.
// Source: Zhang et al. 2024 (arXiv 2407.02328, Findings of ACL 2024). A controller (GRU and MLP)
// that reads token embeddings scores how important each past token is now; the cache keeps the m
// best, and every step fetches the r best of those that were released. All heads share one set of
// tokens. The machinery is in engines/rebuilding_plan, the controller in engines/adore_controller.
//
// Rebuilding: `copy` takes keys and values from a cold store, which isolates the choice of tokens;
// `project` computes them from the layer's input, which needs the layer's projections and so a
// decoder of a model. `model`, the paper's, recomputes them through all layers together with the
// current token: a single layer cannot, the decoder of a model can (engines/token_plan.h). Our
// choices: all tokens compete by score, none is protected but the current one; a rebuilt token sees
// what is cached or rebuilt and lies before it.

#include "methods/engines/adore_controller.h"
#include "methods/engines/rebuilding_cache.h"
#include "methods/engines/token_scorers.h"

namespace subquad {
namespace {

struct Params {
  Index m = 128;
  Index r = 4;
  std::string score = "gru";
  std::string score_form = "additive";
  std::string rebuild = "copy";
  bool keep_rebuilt = true;
  bool rebuild_gate = false;
  Index protect_recent = 0;
  Index protect_sinks = 0;
  std::string prefill = "stream";
  Index d_z = 32;
  Index hidden = 16;
  Index distances = 512;

  bool learned() const { return score == "gru" || score == "mlp"; }
  ControllerOptions controller() const {
    return {.gru = score == "gru",
            .pairwise = score_form == "pairwise",
            .d_z = d_z,
            .hidden = hidden,
            .distances = distances};
  }
  RebuildOptions options() const {
    return {.m = m,
            .r = r,
            .keep_rebuilt = keep_rebuilt,
            .rebuild_gate = rebuild_gate,
            .protect_recent = protect_recent,
            .protect_sinks = protect_sinks,
            .prompt = prefill == "prompt",
            .project = rebuild == "project"};
  }
};

// The plan of a whole model: the controller reads the tokens' embeddings.
class AdorePlan final : public TokenPlan {
 public:
  AdorePlan(Index capacity, Index d_e, const RebuildOptions& options,
            std::unique_ptr<TokenScorer> scorer)
      : plan_(capacity, options, std::move(scorer)), d_e_(d_e) {
    reset();
  }
  void reset() override { plan_.reset(); }
  std::span<const std::int32_t> prefill(const float* x, Index length) override {
    plan_.read_prompt(length, [&](Index t) { return token(x + t * d_e_); });
    return {plan_.positions(), static_cast<std::size_t>(plan_.count())};
  }
  std::span<const std::int32_t> begin(const float* x) override {
    plan_.begin(token(x));
    return {plan_.positions(), static_cast<std::size_t>(plan_.total())};
  }
  std::span<const Move> end() override { return plan_.end(); }
  Index count() const override { return plan_.count(); }
  Index slots() const override { return plan_.slots(); }
  double aux_bytes() const override { return plan_.aux_bytes(); }

 private:
  static StreamTokens token(const float* x) {
    StreamTokens one;
    one.x = x;
    one.length = 1;
    return one;
  }

  RebuildingPlan plan_;
  Index d_e_;
};

class Adore final : public PolicyMethod, public PlansTokens {
 public:
  explicit Adore(const Params& params) : params_(params) {}

  std::string unsupported(const Problem&, Pass pass) const override {
    if (params_.rebuild == "model")
      return "rebuild: model needs all layers of a model (decode, from: CHECKPOINT, layer: -1), "
             "this "
             "is one layer";
    if (params_.rebuild == "project" && params_.r > 0)
      return "rebuild: project needs the projections of the layer, which nobody gives here";
    if (params_.prefill == "prompt" && params_.score == "h2o")
      return "score: h2o needs prefill: stream, for it collects what is attended to";
    if (pass == Pass::fit && !params_.learned())
      return fmt::format("score: {} has nothing to fit", params_.score);
    return "";
  }

  void prepare(const Problem& problem, const Env& env) override {
    if (params_.learned()) net_ = make_net(stream_config(problem, env));
    PolicyMethod::prepare(problem, env);
  }

  std::unique_ptr<TokenPlan> make_token_plan(const DecodeConfig& config) const override {
    if (params_.rebuild != "model") return nullptr;
    if (params_.score == "h2o")
      throw Unsupported("rebuild: model chooses before attention, score: h2o needs its weights");
    const StreamConfig stream{.heads = config.heads,
                              .capacity = config.capacity,
                              .d_k = config.d_k,
                              .d_v = config.d_v,
                              .d_e = config.d_e,
                              .seed = config.seed};
    RebuildOptions options = params_.options();
    options.prompt = true;  // a prompt is read at once: its keys and values are there
    return std::make_unique<AdorePlan>(config.capacity, config.d_e, options, make_scorer(stream));
  }

  // The controller and its gradient besides the streams.
  double extra_bytes(const Problem& p, Pass pass) const override {
    double floats = 0;
    if (net_)
      for (const Parameter* x : net_->all()) floats += 2 * static_cast<double>(x->value.size());
    return PolicyMethod::extra_bytes(p, pass) + 4 * floats;
  }

  std::vector<Parameter*> parameters() override {
    return net_ ? net_->all() : std::vector<Parameter*>{};
  }

  // 2000 updates on 500 tokens take about 20 seconds.
  FitReport fit(FitData& data, const FitOptions& options) override {
    return train_controller(*net_, problem_.logit_scale(), data,
                            {.top_k = params_.m,
                             .updates = options.steps,
                             .learning_rate = options.learning_rate,
                             .seed = options.seed,
                             .progress = options.progress});
  }

 protected:
  std::unique_ptr<PolicyStream> make_stream(const StreamConfig& config) const override {
    return std::make_unique<RebuildingCache>(config, params_.options(), make_scorer(config));
  }
  double stream_bytes(const StreamConfig& config) const override {
    const double tokens = static_cast<double>(config.capacity);
    const double scorer =
        params_.learned()
            ? controller_scorer_bytes(config.capacity, params_.controller(), params_.r > 0)
        : params_.score == "h2o" ? 8.0 * tokens
                                 : 0;
    return RebuildingCache::allocated(config, params_.options()) + scorer;
  }
  Index stored() const override { return params_.m; }
  Index fetched() const override { return params_.r; }
  bool heads_share() const override { return true; }

 private:
  std::unique_ptr<TokenScorer> make_scorer(const StreamConfig& config) const {
    if (params_.score == "recency") return std::make_unique<RecencyScorer>();
    if (params_.score == "random") return std::make_unique<RandomScorer>(config);
    if (params_.score == "h2o") return std::make_unique<CollectedScorer>(config.capacity);
    return make_controller_scorer(config, net_ ? net_ : make_net(config), params_.r > 0);
  }
  std::shared_ptr<AdoreController> make_net(const StreamConfig& config) const {
    return std::make_shared<AdoreController>(params_.controller(), controller_width(config),
                                             config.seed);
  }

  Params params_;
  std::shared_ptr<AdoreController> net_;
};

MethodInfo info() {
  MethodInfo i = policy_info("adore", "ADORE, arXiv 2407.02328; from the published description",
                             "cache that releases tokens by a learned score and fetches them back");
  i.passes.push_back(Pass::fit);
  i.random = true;
  i.learned = true;
  i.memory_exponent = 1;
  i.notes = {
      "m tokens are kept between steps; a step sees r fetched ones and the current one besides",
      "without weights or the fit pass the controller is untrained: random by the seed",
      "the controller reads the task's token embeddings; where there are none, the keys of all "
      "heads",
      "score_form: additive is the published one; pairwise, which also reads the current token's "
      "state, is ours",
      "memory is not constant: aux_bytes grows by 4 hidden + 4 bytes a token, and rebuild: copy "
      "keeps "
      "every token in a cold store",
      "prefill: stream feeds a history token by token, as forward does; prompt reads it and keeps "
      "the "
      "m best at its end",
      "rebuild: model, the paper's, decodes a whole model: from: CHECKPOINT, layer: -1; a prompt "
      "is "
      "then read at once, and the controller reads the tokens' embeddings",
      "forward is the stream fed token by token, as in decoding"};
  return i;
}

const RegisterMethod<Adore, Params> kRegistration{
    info(),
    {param("m", &Params::m, {1, 1 << 25}, "tokens kept between steps"),
     param("r", &Params::r, {0, 1 << 25}, "released tokens that a step fetches"),
     choice("score", &Params::score, {"gru", "mlp", "recency", "h2o", "random"},
            "importance: the controller, with or without history, or a heuristic"),
     choice("score_form", &Params::score_form, {"additive", "pairwise"},
            "whether the controller's MLP also reads the current token's state"),
     choice("rebuild", &Params::rebuild, {"copy", "project", "model"},
            "where keys and values of fetched tokens come from"),
     param("keep_rebuilt", &Params::keep_rebuilt, "fetched tokens compete for places in the cache"),
     param("rebuild_gate", &Params::rebuild_gate,
           "fetch only tokens scored above the lowest of the cache"),
     param("protect_recent", &Params::protect_recent, {0, 1 << 24},
           "last tokens that stay whatever their score"),
     param("protect_sinks", &Params::protect_sinks, {0, 1 << 24},
           "first tokens that stay whatever their score"),
     choice("prefill", &Params::prefill, {"stream", "prompt"}, "how a history comes in"),
     param("d_z", &Params::d_z, {1, 1024}, "width of the controller's state"),
     param("hidden", &Params::hidden, {1, 1024}, "width of its MLP"),
     param("distances", &Params::distances, {2, 1 << 16},
           "distances that it tells apart; larger ones are alike")}};

}  // namespace
}  // namespace subquad
