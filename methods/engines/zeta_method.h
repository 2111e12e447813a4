// ZETA attention as a method: everything but the parameters. A method derives from it and says
// which keys its queries may choose from.
#pragma once

#include <cmath>

#include "harness/core/registry.h"
#include "methods/engines/morton.h"
#include "methods/engines/zeta_attention.h"

namespace subquad {

// Parameters that ZETA and its references have in common.
struct ZetaParams {
  Index d_key = 3;
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
            "dimensions in which keys are searched; where d_k differs, a seeded projection"),
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

class ZetaMethod : public Method {
 public:
  explicit ZetaMethod(const ZetaOptions& options) : options_(options) {}

  std::string unsupported(const Problem&, Pass) const override {
    if (options_.points.bits * options_.points.d_key <= 63) return "";
    return fmt::format("bits={} d_key={} need a code of {} bits, 63 fit", options_.points.bits,
                       options_.points.d_key, options_.points.bits * options_.points.d_key);
  }

  void prepare(const Problem& problem, const Env& env) override {
    problem_ = problem;
    attention_.prepare(problem, options_, env);
    theta_ = Parameter{};
    theta_.name = "theta";
    theta_.decay = false;
    theta_.shape = {thetas(problem.heads)};
    theta_.value = AlignedArray<float>(thetas(problem.heads));
    theta_.grad = AlignedArray<float>(env.gradients ? thetas(problem.heads) : 0);
    std::fill_n(theta_.value.data(), theta_.value.size(), initial_theta());
  }
  std::vector<Parameter*> parameters() override { return {&theta_}; }
  std::unique_ptr<Saved> make_saved() const override {
    return std::make_unique<ZetaSaved>(problem_.batch * problem_.heads * problem_.n,
                                       attention_.saved_list());
  }

  void forward(const Inputs& in, TensorView out, Saved* saved) override {
    attention_.forward(in, theta_.value.data(), out, static_cast<ZetaSaved*>(saved));
  }
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved& saved,
                const Gradients& grads) override {
    attention_.backward(in, theta_.value.data(), out, dout, static_cast<const ZetaSaved&>(saved),
                        grads, theta_.grad.data());
  }
  std::unique_ptr<Decoder> make_decoder(const DecodeConfig& config) const override {
    std::vector<float> theta(static_cast<std::size_t>(thetas(config.heads)), initial_theta());
    if (theta_.value.size() == thetas(config.heads))
      theta.assign(theta_.value.data(), theta_.value.data() + theta_.value.size());
    return make_zeta_decoder(config, options_, std::move(theta));
  }
  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    attention_.rows(in, theta_.value.data(), b * problem_.heads + h, rows, weights);
    return true;
  }

  Budget budget(const Problem& p) const override {
    const Index keys = options_.list_size(p.n_kv) + options_.range_size(p.n_kv, p.causal) +
                       (options_.history ? 1 : 0);
    return {.keys_per_query = static_cast<double>(std::min(keys, p.n_kv)),
            .state_bytes = zeta_decoder_bytes(p, options_)};
  }
  double extra_bytes(const Problem& p, Pass pass) const override {
    if (pass == Pass::decode) return zeta_decoder_bytes(p, options_);
    const bool gradients = pass != Pass::forward;
    const auto rows = static_cast<double>(p.batch * p.heads * p.n);
    const double saved =
        gradients ? rows * (8 + 4 * static_cast<double>(options_.list_size(p.n_kv))) : 0;
    return ZetaAttention::work_bytes(p, options_, gradients) + saved;
  }
  std::vector<Metric> metrics() const override {
    const ZetaAttention::Recall recall = attention_.recall();
    return {{"pool_recall", recall.pool}, {"past_recall", recall.past}};
  }
  double flops(const Problem& p, Pass pass) const override {
    return ZetaAttention::flops(p, options_, pass);
  }

 protected:
  const ZetaOptions& options() const { return options_; }

 private:
  Index thetas(Index heads) const { return options_.gamma_per_head ? heads : 1; }
  float initial_theta() const {
    return static_cast<float>(std::log(options_.gamma / (1 - options_.gamma)));
  }

  ZetaOptions options_;
  Problem problem_;
  ZetaAttention attention_;
  Parameter theta_;  // [1] or [heads]: gamma = sigmoid(theta)
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
