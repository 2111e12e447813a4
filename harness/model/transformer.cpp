#include "harness/model/transformer.h"

#include <cmath>

namespace subquad {

using autodiff::Dims;
using autodiff::Tape;
using autodiff::Var;

namespace {

constexpr double kConvStd = 0.3;  // MQAR set-up: taps start at N(0, 0.3)

}  // namespace

void initialise(const ParameterLayout& layout, Seed seed, float* weights) {
  std::fill_n(weights, layout.size(), 0.0f);
  for (const ParameterEntry& entry : layout.entries()) {
    float* const to = weights + entry.offset;
    const Index count = entry.dims.count();
    if (entry.init_std > 0 || entry.first_std > 0)
      fill_normal(derive(seed, "weights " + entry.name), to, count);
    const Index first = entry.first_rows * (count / std::max<Index>(1, entry.dims[0]));
    for (Index i = 0; i < count; ++i)
      to[i] = static_cast<float>(entry.init_mean + (i < first ? entry.first_std : entry.init_std) *
                                                       static_cast<double>(to[i]));
  }
}

template <class T>
typename Transformer<T>::Norm Transformer<T>::add_norm(const std::string& name, Index width) {
  return {layout_.add(name + ".weight", {width}, false, 0, 1),
          layout_.add(name + ".bias", {width}, false, 0)};
}

template <class T>
typename Transformer<T>::Linear Transformer<T>::add_linear(const std::string& name, Index out,
                                                           Index in, double std) {
  return {layout_.add(name + ".weight", {out, in}, true, std),
          layout_.add(name + ".bias", {out}, false, 0)};
}

template <class T>
Transformer<T>::Transformer(const TrainOptions& options, const ModelSizes& sizes)
    : options_(options), sizes_(sizes) {
  const Index d = sizes.d_model, n = sizes.attention_n(options);
  const double std = options.init_std;
  // Branches that are added to the residual stream start smaller (GPT-2).
  const double branch =
      std / std::sqrt(2.0 * static_cast<double>(std::max<Index>(1, sizes.layers)));
  const bool concat = options.positions == "sinusoidal_concat",
             classifier = sizes.labels.kind == LabelKind::per_sequence;
  if (concat && d % 2 != 0)
    throw UserError(
        fmt::format("train: positions sinusoidal_concat needs an even d_model, got {}", d));
  if (options.positions == "rope" && sizes.d_k % 2 != 0)
    throw UserError(fmt::format("train: positions rope needs an even d_k, got {}", sizes.d_k));
  const Index width = concat ? d / 2 : d;
  const bool cls = classifier && options.pool == "cls";
  const Index parts = options.merge == "sum" ? 1 : sizes.labels.tokens_per_position;
  if (width % parts != 0)
    throw UserError(
        fmt::format("train: {} tokens in a position share {} columns, expected a "
                    "multiple of {} (or merge: sum)",
                    parts, width, parts));
  embed_ = layout_.add("embed.weight", {sizes.labels.vocabulary + (cls ? 1 : 0), width / parts},
                       true, std);
  if (options.positions == "learned") position_ = layout_.add("pos.weight", {n, d}, true, std);
  if (options.positions == "sinusoidal" || concat)
    sinusoid_ = sinusoid_table<T>(n, concat ? d - width : d);
  if (options.positions == "rope") rotation_ = {n, sizes.d_k / 2};
  if (options.conv > 0) {
    conv_norm_ = add_norm("front.ln", d);
    conv_ = layout_.add("front.conv.weight", {options.conv, d}, true, kConvStd);
  }
  const Index qk = sizes.heads * sizes.d_k, v = sizes.heads * sizes.d_v;
  for (Index i = 0; i < sizes.layers; ++i) {
    const std::string name = fmt::format("layers.{}.", i);
    Layer layer{};
    layer.ln1 = add_norm(name + "ln1", d);
    layer.qkv_weight = layout_.add(name + "attn.qkv.weight", {2 * qk + v, d}, true, std);
    if (options.qk_std > 0) layout_.set_first_rows(layer.qkv_weight, 2 * qk, options.qk_std);
    layer.qkv_bias = layout_.add(name + "attn.qkv.bias", {2 * qk + v}, false, 0);
    layer.out = add_linear(name + "attn.out", d, v, branch);
    if (sizes.hidden > 0) {
      layer.ln2 = add_norm(name + "ln2", d);
      layer.up = add_linear(name + "mlp.up", sizes.hidden, d, std);
      layer.down = add_linear(name + "mlp.down", d, sizes.hidden, branch);
    }
    blocks_.push_back(layer);
  }
  final_norm_ = add_norm("ln_f", d);
  if (classifier) {
    const Index features = sizes.labels.inputs == 2 ? 4 * d : d;
    head_hidden_ = add_linear("head.hidden", 2 * d, features,
                              std::max(std, 1 / std::sqrt(static_cast<double>(features))));
    head_ = add_linear("head", sizes.labels.classes, 2 * d, std);
  } else if (!options.tied || concat || parts > 1 ||
             sizes.labels.classes != sizes.labels.vocabulary) {
    head_ = add_linear("head", sizes.labels.classes, d, std);
  }
}

// One forward: the arguments, and shorthand for the ops.
template <class T>
struct Transformer<T>::Pass {
  const Transformer& model;
  Tape<T>& tape;
  const T* weights;
  T* grads;
  const ModelInput& input;
  LayerAttention<T>& attention;
  ModelWork& work;
  Index dropped = 0;

  // Rows [first, first + rows) of a parameter, or all of it.
  Var<T> parameter(std::size_t number, Index first = 0, Index rows = 0) const {
    const ParameterEntry& entry = model.layout_[number];
    Dims dims = entry.dims;
    Index offset = entry.offset;
    if (rows > 0) {
      offset += first * (dims.count() / dims[0]);
      dims.set(0, rows);
    }
    return tape.parameter(weights + offset, grads == nullptr ? nullptr : grads + offset, dims);
  }
  Var<T> norm(const Norm& n, Var<T> x) const {
    return autodiff::layer_norm(x, parameter(n.weight), parameter(n.bias));
  }
  Var<T> linear(const Linear& l, Var<T> x) const {
    return autodiff::linear(x, parameter(l.weight), parameter(l.bias));
  }
  Var<T> drop(Var<T> x) {
    if (!input.training || model.options_.dropout <= 0) return x;
    return autodiff::dropout(
        x, model.options_.dropout,
        derive(input.dropout_seed, "dropout", {static_cast<std::uint64_t>(dropped++)}));
  }
  bool drops() const { return input.training && model.options_.dropout > 0; }

  // x + f: the residual is added inside the last product where nothing is dropped.
  Var<T> attention_branch(Index i, Var<T> u, Var<T> residual) {
    const ModelSizes& s = model.sizes_;
    const Layer& layer = model.blocks_[static_cast<std::size_t>(i)];
    const Index qk = s.heads * s.d_k, v_rows = s.heads * s.d_v;
    const auto project = [&](Index first, Index rows) {
      return autodiff::linear_to_heads(u, parameter(layer.qkv_weight, first, rows),
                                       parameter(layer.qkv_bias, first, rows), s.heads);
    };
    Var<T> q = project(0, qk), k = project(qk, qk);
    const Var<T> v = project(2 * qk, v_rows);
    if (model.options_.positions == "rope") {
      q = autodiff::rotate(q, model.rotation_.cosine.data(), model.rotation_.sine.data());
      k = autodiff::rotate(k, model.rotation_.cosine.data(), model.rotation_.sine.data());
    }
    const Var<T> o = attention.attend(i, q, k, v, u, work.key_mask);
    const Var<T> w = parameter(layer.out.weight), b = parameter(layer.out.bias);
    if (!drops()) return autodiff::linear_from_heads(o, w, b, residual);
    return autodiff::add(residual, drop(autodiff::linear_from_heads(o, w, b)));
  }
  Var<T> mlp_branch(Index i, Var<T> u, Var<T> residual) {
    const Layer& layer = model.blocks_[static_cast<std::size_t>(i)];
    const std::string& kind = model.options_.activation;
    const Var<T> h = kind == "gelu"   ? autodiff::linear_gelu(u, parameter(layer.up.weight),
                                                              parameter(layer.up.bias))
                     : kind == "relu" ? autodiff::relu(linear(layer.up, u))
                                      : autodiff::gelu_tanh(linear(layer.up, u));
    const Var<T> w = parameter(layer.down.weight), b = parameter(layer.down.bias);
    if (!drops()) return autodiff::linear(h, w, b, residual);
    return autodiff::add(residual, drop(autodiff::linear(h, w, b)));
  }
  Var<T> block(Index i, Var<T> x) {
    const Layer& layer = model.blocks_[static_cast<std::size_t>(i)];
    const bool mlp = model.sizes_.hidden > 0;
    if (model.options_.norm == "post") {
      x = norm(layer.ln1, attention_branch(i, x, x));
      return mlp ? norm(layer.ln2, mlp_branch(i, x, x)) : x;
    }
    x = attention_branch(i, norm(layer.ln1, x), x);
    return mlp ? mlp_branch(i, norm(layer.ln2, x), x) : x;
  }

  Index sequences() const { return input.batch * model.sizes_.labels.inputs; }
  Index tokens_per_position() const { return model.sizes_.labels.tokens_per_position; }
  bool classifier() const { return model.sizes_.labels.kind == LabelKind::per_sequence; }

  // Tokens with a CLS in front where the classifier wants one, and the key mask.
  void prepare_tokens(Index n) {
    const Index from = model.sizes_.n, extra = n - from, each = tokens_per_position();
    work.tokens.resize(static_cast<std::size_t>(sequences() * n * each));
    work.key_mask.clear();
    bool padded = false;
    for (const std::int32_t length : input.lengths) padded = padded || length < from;
    if (padded) work.key_mask.assign(static_cast<std::size_t>(sequences() * n), 1);
    for (Index s = 0; s < sequences(); ++s) {
      const auto start = static_cast<std::size_t>(s * n);
      const auto to = work.tokens.begin() + s * n * each;
      if (extra == 1)
        std::fill_n(to, each, static_cast<std::int32_t>(model.sizes_.labels.vocabulary));
      std::copy_n(input.tokens.begin() + s * from * each, from * each, to + extra * each);
      for (Index t = 0; t < from; ++t) {
        const auto at = start + static_cast<std::size_t>(t + extra);
        if (padded && t >= input.lengths[static_cast<std::size_t>(s)]) work.key_mask[at] = 0;
      }
    }
  }

  Var<T> embedded(Index n) {
    const Index d = model.sizes_.d_model;
    const std::string& positions = model.options_.positions;
    const Index each = tokens_per_position();
    const Var<T> table = parameter(model.embed_);
    const std::span<const std::int32_t> ids(work.tokens);
    Var<T> x = each == 1 ? autodiff::embedding(table, ids, {sequences(), n})
                         : autodiff::embedding(table, ids, {sequences(), n, each});
    if (each > 1 && model.options_.merge == "sum") x = autodiff::sum(x, 2);
    if (each > 1) x = autodiff::reshape(x, {sequences(), n, x.size() / (sequences() * n)});
    if (positions == "learned") x = autodiff::add(x, parameter(model.position_));
    if (positions == "sinusoidal")
      x = autodiff::add(x, tape.constant(model.sinusoid_.data(), {n, d}));
    if (positions == "sinusoidal_concat") {
      const Index width = d - x.dims().back();
      const Var<T> waves = tape.room({sequences(), n, width});
      for (Index s = 0; s < sequences(); ++s)
        std::copy_n(model.sinusoid_.data(), n * width, waves.data() + s * n * width);
      x = autodiff::concat<T>({x, waves}, 2);
    }
    x = drop(x);
    if (model.options_.conv > 0)
      x = autodiff::add(
          x, autodiff::depthwise_conv(norm(model.conv_norm_, x), parameter(model.conv_)));
    return x;
  }

  // Logits at the labelled positions; work.labels are theirs.
  Var<T> token_logits(Var<T> x, Index n) {
    const Index d = model.sizes_.d_model;
    work.rows.clear();
    work.labels.clear();
    for (Index i = 0; i < sequences() * n; ++i) {
      const std::int32_t label = input.labels[static_cast<std::size_t>(i)];
      if (label == kIgnore) continue;
      work.rows.push_back(static_cast<std::int32_t>(i));
      work.labels.push_back(label);
    }
    x = autodiff::reshape(x, {sequences() * n, d});
    if (static_cast<Index>(work.rows.size()) < sequences() * n)
      x = autodiff::gather(x, std::span<const std::int32_t>(work.rows));
    x = norm(model.final_norm_, x);
    const bool own = model.head_.weight != 0;  // entry 0 is the embedding
    return own ? linear(model.head_, x) : autodiff::linear(x, parameter(model.embed_));
  }

  // [sequences, n, d] -> [sequences, d]
  Var<T> pooled(Var<T> x, Index n) {
    const std::string& pool = model.options_.pool;
    const Index d = model.sizes_.d_model;
    if (pool == "cls") return autodiff::reshape(autodiff::slice(x, 1, 0, 1), {sequences(), d});
    // A row of weights per sequence, times x.
    const Var<T> weights_of = tape.room({sequences(), 1, n});
    for (Index s = 0; s < sequences(); ++s) {
      const Index length = input.lengths.empty()
                               ? n
                               : std::max<Index>(1, input.lengths[static_cast<std::size_t>(s)]);
      for (Index t = 0; t < n; ++t) {
        const bool counts = pool == "last" ? t == length - 1 : t < length;
        weights_of.data()[s * n + t] =
            counts ? T(1) / static_cast<T>(pool == "last" ? 1 : length) : T(0);
      }
    }
    return autodiff::reshape(autodiff::matmul(weights_of, x), {sequences(), d});
  }

  Var<T> class_logits(Var<T> x, Index n) {
    const Index d = model.sizes_.d_model;
    work.labels.assign(input.labels.begin(), input.labels.end());
    Var<T> e = pooled(norm(model.final_norm_, x), n);
    if (model.sizes_.labels.inputs == 2) {
      e = autodiff::reshape(e, {input.batch, 2, d});
      const Var<T> a = autodiff::reshape(autodiff::slice(e, 1, 0, 1), {input.batch, d}),
                   b = autodiff::reshape(autodiff::slice(e, 1, 1, 1), {input.batch, d});
      e = autodiff::concat<T>({a, b, autodiff::mul(a, b), autodiff::sub(a, b)}, 1);
    }
    return linear(model.head_, autodiff::relu(linear(model.head_hidden_, e)));
  }
};

template <class T>
ModelOutput<T> Transformer<T>::forward(Tape<T>& tape, const T* weights, T* grads,
                                       const ModelInput& input, double denominator,
                                       LayerAttention<T>& attention, ModelWork* work) const {
  Pass pass{*this, tape, weights, grads, input, attention, *work};
  const Index n = sizes_.attention_n(options_);
  pass.prepare_tokens(n);
  Var<T> x = pass.embedded(n);
  for (Index i = 0; i < sizes_.layers; ++i) x = pass.block(i, x);
  ModelOutput<T> out;
  out.logits = pass.classifier() ? pass.class_logits(x, n) : pass.token_logits(x, n);
  out.labels = work->labels;
  out.loss = autodiff::cross_entropy(out.logits, out.labels, denominator);
  return out;
}

template class Transformer<float>;
template class Transformer<double>;

}  // namespace subquad
