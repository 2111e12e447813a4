// ZETA attention as a method: everything but the parameters. A method derives from it and says
// which keys its queries may choose from.
#pragma once

#include <cmath>

#include "harness/core/registry.h"
#include "methods/engines/morton.h"
#include "methods/engines/zeta_attention.h"
#include "methods/engines/zeta_projection.h"

namespace subquad {

// Parameters that ZETA and its references have in common.
struct ZetaParams {
  Index d_key = 3;
  std::string proj = "auto";
  Index proj_hidden = 0;
  double gain = 1;
  std::string bound = "tanh";
  std::string similarity = "cauchy";
  double gamma = 0.5;
  bool gamma_per_head = false;
  bool history = true;

  ZetaOptions options() const {
    ZetaOptions o;
    o.points = {.d_key = d_key,
                .bits = engine::default_morton_bits(d_key),
                .clamp = bound == "clamp",
                .gain = gain};
    o.history = history;
    o.similarity = similarity_named(similarity);
    o.gamma = gamma;
    o.gamma_per_head = gamma_per_head;
    return o;
  }
};

// And those of the methods that choose from the chunks before the query's own.
struct ZetaChunkParams : ZetaParams {
  Index top_k = 32;
  Index chunk = 0;
  Index chunks = 16;
  bool local = false;

  ZetaOptions options(ZetaOptions::Candidates candidates) const {
    ZetaOptions o = ZetaParams::options();
    o.candidates = candidates;
    o.top_k = top_k;
    o.chunk = chunk;
    o.chunks = chunks;
    o.local = local;
    return o;
  }
};

template <class P, class Base, class T>
T P::*inherited(T Base::*member) {
  return member;
}

// Those parameters of a method with parameters P, behind its own.
template <class P>
std::vector<Field<P>> with_zeta_params(std::vector<Field<P>> fields) {
  const Field<P> common[] = {
      param("d_key", inherited<P>(&ZetaParams::d_key), {1, 32},
            "dimensions in which keys are searched"),
      choice("proj", inherited<P>(&ZetaParams::proj), {"auto", "linear", "mlp"},
             "queries and keys to d_key dimensions: auto is none where d_k = d_key, else a seeded "
             "matrix that is not trained; linear and mlp are learned, apart for q and k, per head"),
      param("proj_hidden", inherited<P>(&ZetaParams::proj_hidden), {0, ZetaProjection::kMaxHidden},
            "proj mlp: hidden width; 0: d_k"),
      param("gain", inherited<P>(&ZetaParams::gain), {1e-3, 1e3},
            "factor on queries and keys before the bound"),
      choice("bound", inherited<P>(&ZetaParams::bound), {"tanh", "clamp"},
             "how points come into [-1, 1]"),
      choice("similarity", inherited<P>(&ZetaParams::similarity),
             {"cauchy", "neg_euclid", "inverse_euclid", "dot"},
             "kernel of the weights: 1 / (D + gamma^2), exp(-D / gamma^2), 1 / sqrt(D + gamma^2), "
             "exp(q.k / gamma^2)"),
      param("gamma", inherited<P>(&ZetaParams::gamma), {1e-3, 0.999},
            "width of the kernel, where its training begins"),
      param("gamma_per_head", inherited<P>(&ZetaParams::gamma_per_head),
            "one gamma for every head instead of one"),
      param("history", inherited<P>(&ZetaParams::history),
            "add the mean of all tokens so far as one more key and value")};
  fields.insert(fields.end(), std::begin(common), std::end(common));
  return fields;
}

template <class P>
std::vector<Field<P>> with_chunk_params(std::vector<Field<P>> fields) {
  const Field<P> common[] = {param("top_k", inherited<P>(&ZetaChunkParams::top_k), {1, 1 << 16},
                                   "keys that a query keeps"),
                             param("chunk", inherited<P>(&ZetaChunkParams::chunk), {0, 1 << 24},
                                   "tokens of a chunk; 0: the larger of top_k and n_kv / chunks"),
                             param("chunks", inherited<P>(&ZetaChunkParams::chunks), {1, 1 << 16},
                                   "chunks, where chunk is 0"),
                             param("local", inherited<P>(&ZetaChunkParams::local),
                                   "causal: also attend to the query's own chunk up to itself")};
  fields.insert(fields.end(), std::begin(common), std::end(common));
  return with_zeta_params(std::move(fields));
}

// Decoding with learned projections in front.
class ProjectingDecoder final : public Decoder {
 public:
  ProjectingDecoder(const DecodeConfig& config, std::unique_ptr<Decoder> inner, ZetaProjection f_q,
                    ZetaProjection f_k, Index d_key)
      : config_(config),
        inner_(std::move(inner)),
        f_q_(std::move(f_q)),
        f_k_(std::move(f_k)),
        d_key_(d_key),
        q_(config.batch * config.heads * d_key),
        k_(config.batch * config.heads * d_key) {}

  void reset() override { inner_->reset(); }
  void step(const DecodeStep& in, float* out) override {
    for (Index bh = 0; bh < config_.batch * config_.heads; ++bh) {
      const Index h = bh % config_.heads;
      f_q_.map_row(h, in.q + bh * config_.d_k, q_.data() + bh * d_key_);
      f_k_.map_row(h, in.k + bh * config_.d_k, k_.data() + bh * d_key_);
    }
    inner_->step({q_.data(), k_.data(), in.v, in.x}, out);
  }
  void prefill(ConstTensorView, ConstTensorView k, ConstTensorView v, ConstTensorView x) override {
    Tensor mapped(k.batch(), k.heads(), k.n(), d_key_);
    f_k_.forward(k, mapped);
    inner_->prefill(mapped, mapped, v, x);  // queries of the past have no part in the state
  }
  CacheBytes bytes() const override { return inner_->bytes(); }
  std::vector<VisibleKey> visible(Index b, Index h) const override { return inner_->visible(b, h); }

 private:
  DecodeConfig config_;
  std::unique_ptr<Decoder> inner_;
  ZetaProjection f_q_, f_k_;
  Index d_key_;
  AlignedArray<float> q_, k_;  // [batch, heads, d_key]
};

class ZetaMethod : public Method {
 public:
  ZetaMethod(const ZetaOptions& options, const ZetaParams& params)
      : options_(options),
        learned_(params.proj != "auto"),
        proj_{params.proj == "mlp", params.proj_hidden, params.d_key} {}

  std::string unsupported(const Problem& p, Pass) const override {
    if (learned_ && ZetaProjection::hidden_size(proj_, p.d_k) > ZetaProjection::kMaxHidden)
      return fmt::format("proj mlp with d_k={} needs proj_hidden, at most {}", p.d_k,
                         ZetaProjection::kMaxHidden);
    if (options_.points.bits * options_.points.d_key <= 63) return "";
    return fmt::format("bits={} d_key={} need a code of {} bits, 63 fit", options_.points.bits,
                       options_.points.d_key, options_.points.bits * options_.points.d_key);
  }

  void prepare(const Problem& problem, const Env& env) override {
    problem_ = problem;
    attention_.prepare(searched(problem), options_, env);
    if (learned_) prepare_projections(env);
    theta_ = Parameter{};
    theta_.name = "theta";
    theta_.decay = false;
    theta_.shape = {thetas(problem.heads)};
    theta_.value = AlignedArray<float>(thetas(problem.heads));
    theta_.grad = AlignedArray<float>(env.gradients ? thetas(problem.heads) : 0);
    std::fill_n(theta_.value.data(), theta_.value.size(), initial_theta());
  }
  std::vector<Parameter*> parameters() override {
    std::vector<Parameter*> all{&theta_};
    for (ZetaProjection* f : {&f_q_, &f_k_})
      if (learned_)
        for (Parameter* p : f->parameters()) all.push_back(p);
    return all;
  }
  std::unique_ptr<Saved> make_saved() const override {
    return std::make_unique<ZetaSaved>(problem_.batch * problem_.heads * problem_.n,
                                       attention_.saved_list());
  }

  void forward(const Inputs& in, TensorView out, Saved* saved) override {
    attention_.forward(projected(in), theta_.value.data(), out, static_cast<ZetaSaved*>(saved));
  }
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved& saved,
                const Gradients& grads) override {
    const auto& chosen = static_cast<const ZetaSaved&>(saved);
    if (!learned_) {
      attention_.backward(in, theta_.value.data(), out, dout, chosen, grads, theta_.grad.data());
      return;
    }
    attention_.backward(projected(in), theta_.value.data(), out, dout, chosen,
                        {dq_, dk_, grads.dv, {}}, theta_.grad.data());
    f_q_.backward(in.q, dq_, grads.dq);
    f_k_.backward(in.k, dk_, grads.dk);
  }
  std::unique_ptr<Decoder> make_decoder(const DecodeConfig& config) const override {
    std::vector<float> theta(static_cast<std::size_t>(thetas(config.heads)), initial_theta());
    if (theta_.value.size() == thetas(config.heads))
      theta.assign(theta_.value.data(), theta_.value.data() + theta_.value.size());
    if (!learned_) return make_zeta_decoder(config, options_, std::move(theta));
    DecodeConfig inner = config;
    inner.d_k = proj_.d_key;
    inner.scale = config.logit_scale();
    const bool own = f_q_.d() == config.d_k && theta_.value.size() == thetas(config.heads) &&
                     problem_.heads == config.heads;
    return std::make_unique<ProjectingDecoder>(config,
                                               make_zeta_decoder(inner, options_, std::move(theta)),
                                               copy_of(own ? &f_q_ : nullptr, config),
                                               copy_of(own ? &f_k_ : nullptr, config), proj_.d_key);
  }
  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    attention_.rows(projected(in), theta_.value.data(), b * problem_.heads + h, rows, weights);
    return true;
  }

  Budget budget(const Problem& p) const override {
    const Index keys = options_.list_size(p.n_kv) + options_.range_size(p.n_kv, p.causal) +
                       (options_.history ? 1 : 0);
    return {.keys_per_query = static_cast<double>(std::min(keys, p.n_kv)),
            .state_bytes = zeta_decoder_bytes(searched(p), options_)};
  }
  double extra_bytes(const Problem& p, Pass pass) const override {
    if (pass == Pass::decode)
      return zeta_decoder_bytes(searched(p), options_) +
             (learned_ ? 2 * ZetaProjection::bytes(proj_, p.heads, p.d_k, false) : 0);
    const bool gradients = pass != Pass::forward;
    const auto rows = static_cast<double>(p.batch * p.heads * p.n);
    const double saved =
        gradients ? rows * (8 + 4 * static_cast<double>(options_.list_size(p.n_kv))) : 0;
    return ZetaAttention::work_bytes(searched(p), options_, gradients) + saved +
           projection_bytes(p, gradients);
  }
  std::vector<Metric> metrics() const override {
    const ZetaAttention::Recall recall = attention_.recall();
    std::vector<Metric> all{{"pool_recall", recall.pool}, {"past_recall", recall.past}};
    // Whatever was fitted: a seeded matrix was not.
    if (!learned_ && problem_.d_k != proj_.d_key) all.push_back({"seeded_projection", 1});
    return all;
  }
  double flops(const Problem& p, Pass pass) const override {
    const double own = ZetaAttention::flops(searched(p), options_, pass);
    if (!learned_) return own;
    const auto rows = static_cast<double>(p.batch * p.heads * (p.n + p.n_kv));
    const double maps = ZetaProjection::flops(proj_, rows, p.d_k);
    return own + maps * (pass == Pass::forward ? 1 : pass == Pass::backward ? 3 : 4);
  }

 protected:
  const ZetaOptions& options() const { return options_; }

 private:
  // What the attention itself sees.
  Problem searched(Problem p) const {
    if (learned_) p.d_k = proj_.d_key;
    return p;
  }
  void prepare_projections(const Env& env) {
    const Problem& p = problem_;
    const Seed seed = derive(env.seed, "zeta.learned projection");
    f_q_.prepare(proj_, "q_proj.", p.heads, p.d_k, seed, env.gradients);
    f_k_.prepare(proj_, "k_proj.", p.heads, p.d_k, seed, env.gradients);
    q_ = Tensor(p.batch, p.heads, p.n, proj_.d_key);
    k_ = Tensor(p.batch, p.heads, p.n_kv, proj_.d_key);
    dq_ = env.gradients ? Tensor(q_.shape()) : Tensor();
    dk_ = env.gradients ? Tensor(k_.shape()) : Tensor();
  }
  double projection_bytes(const Problem& p, bool gradients) const {
    if (!learned_) return 0;
    const auto rows = static_cast<double>(p.batch * p.heads * (p.n + p.n_kv));
    return 2 * ZetaProjection::bytes(proj_, p.heads, p.d_k, gradients) +
           (gradients ? 8.0 : 4.0) * rows * static_cast<double>(proj_.d_key);
  }
  // The call with q and k in d_key dimensions.
  Inputs projected(const Inputs& in) {
    if (!learned_) return in;
    f_q_.forward(in.q, q_);
    f_k_.forward(in.k, k_);
    Inputs inner = in;
    inner.q = q_;
    inner.k = k_;
    return inner;
  }
  // Values of a projection, or what prepare() begins with.
  ZetaProjection copy_of(const ZetaProjection* from, const DecodeConfig& config) const {
    if (from != nullptr) return from->copy();
    ZetaProjection made;
    made.prepare(proj_, "", config.heads, config.d_k,
                 derive(config.seed, "zeta.learned projection"), false);
    return made;
  }

  Index thetas(Index heads) const { return options_.gamma_per_head ? heads : 1; }
  float initial_theta() const {
    return static_cast<float>(std::log(options_.gamma / (1 - options_.gamma)));
  }

  ZetaOptions options_;
  bool learned_ = false;  // q and k go through f_q_ and f_k_ first
  ZetaProjection::Options proj_;
  Problem problem_;
  ZetaAttention attention_;
  ZetaProjection f_q_, f_k_;
  Tensor q_, k_, dq_, dk_;  // [batch, heads, n | n_kv, d_key]
  Parameter theta_;         // [1] or [heads]: gamma = sigmoid(theta)
};

// What all of them declare alike.
inline MethodInfo zeta_info(MethodInfo info) {
  info.approximates = Approximates::own_kernel;
  info.causality = Causality::strict;
  info.cross_attention = true;
  info.key_padding = true;
  info.passes = {Pass::forward, Pass::backward, Pass::decode};
  info.random = true;
  info.learned = true;
  info.notes.insert(
      info.notes.end(),
      {"queries and keys are t = tanh(gain W x): W is the identity where d_k = d_key (a model then "
       "learns the projection), else a seeded Gaussian matrix, which is untrained",
       "proj linear or mlp learns W, or a two-layer map, in a model or by the pass fit; columns "
       "learned_from tells fitted rows from untrained ones",
       "the scale of the problem is not used: gamma is the width of the kernel",
       "weights are a function of distance, not of the scaled product: the error against dense "
       "softmax attention is descriptive; compare with cauchy_dense",
       "metrics of 64 queries of the last call: pool_recall and past_recall, the share of the "
       "top_k "
       "nearest keys of earlier chunks, and of all visible keys, that were chosen",
       "the averaged token gives every token so far a small weight; a query that may choose no key "
       "has it alone, and without history a row of zeros"});
  return info;
}

}  // namespace subquad
