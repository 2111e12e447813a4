#include "harness/model/token_rows.h"

#include <cmath>

#include "harness/autodiff/vector.h"
#include "methods/engines/row_attention.h"

namespace subquad {

TokenRows::TokenRows(const TrainOptions& options, const ModelSizes& sizes,
                     const ParameterLayout& layout, const float* weights)
    : options_(options), sizes_(sizes) {
  if (sizes.labels.kind != LabelKind::per_token || sizes.labels.inputs != 1 ||
      sizes.labels.tokens_per_position != 1 || !sizes.causal)
    throw Unsupported(fmt::format(
        "only a causal model with a label for every token and one token in a position can be "
        "decoded, got causal={}, a label per {}, {} inputs, {} tokens in a position",
        sizes.causal, sizes.labels.kind == LabelKind::per_token ? "token" : "sequence",
        sizes.labels.inputs, sizes.labels.tokens_per_position));
  const auto find = [&](const std::string& name) -> const float* {
    for (const ParameterEntry& entry : layout.entries())
      if (entry.name == name) return weights + entry.offset;
    return nullptr;
  };
  const auto must = [&](const std::string& name) {
    const float* const at = find(name);
    SUBQUAD_CHECK(at != nullptr, "the model has no {}", name);
    return at;
  };
  const auto linear = [&](const std::string& name) {
    return Linear{must(name + ".weight"), must(name + ".bias")};
  };
  const auto norm = [&](const std::string& name) {
    return Norm{must(name + ".weight"), must(name + ".bias")};
  };
  const Index d = sizes.d_model, n = sizes.n;
  const bool concat = options.positions == "sinusoidal_concat";
  width_ = concat ? d / 2 : d;
  embedding_ = must("embed.weight");
  if (options.positions == "learned") position_ = must("pos.weight");
  if (options.positions == "sinusoidal" || concat)
    sinusoid_ = sinusoid_table<float>(n, concat ? d - width_ : d);
  if (options.positions == "rope") rotation_ = {n, sizes.d_k / 2};
  if (options.conv > 0) {
    conv_norm_ = norm("front.ln");
    conv_ = must("front.conv.weight");
  }
  for (Index i = 0; i < sizes.layers; ++i) {
    const std::string name = fmt::format("layers.{}.", i);
    const Linear qkv = linear(name + "attn.qkv");
    const Index qk = sizes.heads * sizes.d_k;
    Layer layer;
    layer.ln1 = norm(name + "ln1");
    layer.q = qkv;
    layer.k = {qkv.weight + qk * d, qkv.bias + qk};
    layer.v = {qkv.weight + 2 * qk * d, qkv.bias + 2 * qk};
    layer.out = linear(name + "attn.out");
    if (sizes.hidden > 0) {
      layer.ln2 = norm(name + "ln2");
      layer.up = linear(name + "mlp.up");
      layer.down = linear(name + "mlp.down");
    }
    layers_.push_back(layer);
  }
  final_norm_ = norm("ln_f");
  head_.weight = find("head.weight");
  if (head_.weight != nullptr) {
    head_.bias = must("head.bias");
  } else {
    head_.weight = embedding_;
  }
  tail_ = AlignedArray<float>(engine::kLanes);
  for (AlignedArray<float>* buffer : {&row_, &normed_, &branch_}) *buffer = AlignedArray<float>(d);
  hidden_ = AlignedArray<float>(engine::round_up(sizes.hidden, autodiff::kLanes<float>));
}

// y = W x + b. O(in out).
void TokenRows::product(const Linear& l, Index in, Index out, const float* x, float* y) {
  engine::RowQuery(x, in, tail_.data()).score(engine::ContiguousRows{l.weight, in}, out, y);
  if (l.bias == nullptr) return;
  for (Index i = 0; i < out; ++i) y[i] += l.bias[i];
}

void TokenRows::norm(const Norm& n, const float* x, float* y) const {
  constexpr double kEpsilon = 1e-5;  // as autodiff::layer_norm
  const Index d = sizes_.d_model;
  double mean = 0, square = 0;
  for (Index c = 0; c < d; ++c) mean += static_cast<double>(x[c]);
  mean /= static_cast<double>(d);
  for (Index c = 0; c < d; ++c) {
    const double off = static_cast<double>(x[c]) - mean;
    square += off * off;
  }
  const auto factor = static_cast<float>(1 / std::sqrt(square / static_cast<double>(d) + kEpsilon));
  for (Index c = 0; c < d; ++c)
    y[c] = (x[c] - static_cast<float>(mean)) * factor * n.weight[c] + n.bias[c];
}

const float* TokenRows::embedding(std::int32_t token) const {
  SUBQUAD_CHECK(token >= 0 && token < sizes_.labels.vocabulary, "token {} of a vocabulary of {}",
                token, sizes_.labels.vocabulary);
  return embedding_ + static_cast<Index>(token) * width_;
}

void TokenRows::embed(std::int32_t token, Index position, float* x) const {
  const Index d = sizes_.d_model;
  SUBQUAD_CHECK(position < sizes_.n, "position {} of a model for {} tokens", position, sizes_.n);
  std::copy_n(embedding(token), width_, x);
  if (width_ < d) {
    std::copy_n(sinusoid_.data() + position * (d - width_), d - width_, x + width_);
  } else if (sinusoid_.size() > 0 || position_ != nullptr) {
    const float* const table = position_ != nullptr ? position_ : sinusoid_.data();
    for (Index c = 0; c < d; ++c) x[c] += table[position * d + c];
  }
}

void TokenRows::front(std::span<const std::int32_t> history, float* x) {
  const Index d = sizes_.d_model, position = static_cast<Index>(history.size()) - 1;
  embed(history.back(), position, x);
  if (conv_ == nullptr) return;
  std::fill_n(branch_.data(), d, 0.0f);
  for (Index tap = 0; tap < std::min(options_.conv, position + 1); ++tap) {
    embed(history[static_cast<std::size_t>(position - tap)], position - tap, row_.data());
    norm(conv_norm_, row_.data(), normed_.data());
    for (Index c = 0; c < d; ++c) branch_[c] += conv_[tap * d + c] * normed_[c];
  }
  for (Index c = 0; c < d; ++c) x[c] += branch_[c];
}

void TokenRows::turn(Index position, float* rows) const {
  const Index half = sizes_.d_k / 2;
  const float *const cosine = rotation_.cosine.data() + position * half, *const sine =
                                                                             rotation_.sine.data() +
                                                                             position * half;
  for (Index h = 0; h < sizes_.heads; ++h) {
    float *const low = rows + h * sizes_.d_k, *const high = low + half;
    for (Index i = 0; i < half; ++i) {
      const float a = low[i], b = high[i];
      low[i] = a * cosine[i] - b * sine[i];
      high[i] = b * cosine[i] + a * sine[i];
    }
  }
}

void TokenRows::project(Index layer, const float* x, Index position, float* u, float* q, float* k,
                        float* v) {
  const Layer& l = layers_[static_cast<std::size_t>(layer)];
  const Index d = sizes_.d_model, qk = sizes_.heads * sizes_.d_k;
  if (options_.norm == "post") {
    std::copy_n(x, d, u);
  } else {
    norm(l.ln1, x, u);
  }
  product(l.q, d, qk, u, q);
  product(l.k, d, qk, u, k);
  product(l.v, d, sizes_.heads * sizes_.d_v, u, v);
  if (rotation_.cosine.size() == 0) return;
  turn(position, q);
  turn(position, k);
}

void TokenRows::activate(float* x) const {
  using namespace autodiff;
  const auto each = [&](const auto& f) {
    for (Index i = 0; i < hidden_.size(); i += kLanes<float>)
      store<float>(x + i, f(load<float>(x + i)));
  };
  if (options_.activation == "relu") return each([](Vec<float> v) { return v > 0.0f ? v : v * 0; });
  if (options_.activation == "gelu")
    return each([](Vec<float> v) {
      Vec<float> cdf{}, bell{};
      normal_cdf<float>(v, &cdf, &bell);
      return v * cdf;
    });
  each([](Vec<float> v) {
    const Vec<float> inner = 0.79788456f * (v + 0.044715f * v * v * v);  // sqrt(2 / pi)
    const Vec<float> cut = inner > 9.0f ? v * 0 + 9.0f : inner;     // the exponential has an end
    return v * (1.0f - 1.0f / (exp_of<float>(2.0f * cut) + 1.0f));  // v (1 + tanh) / 2
  });
}

void TokenRows::finish(Index layer, const float* attended, float* x) {
  const Layer& l = layers_[static_cast<std::size_t>(layer)];
  const Index d = sizes_.d_model;
  const bool post = options_.norm == "post";
  const auto join = [&](const Norm& n) {
    for (Index c = 0; c < d; ++c) x[c] += branch_[c];
    if (!post) return;
    norm(n, x, row_.data());
    std::copy_n(row_.data(), d, x);
  };
  product(l.out, sizes_.heads * sizes_.d_v, d, attended, branch_.data());
  join(l.ln1);
  if (sizes_.hidden == 0) return;
  if (!post) norm(l.ln2, x, normed_.data());
  product(l.up, d, sizes_.hidden, post ? x : normed_.data(), hidden_.data());
  activate(hidden_.data());
  product(l.down, sizes_.hidden, d, hidden_.data(), branch_.data());
  join(l.ln2);
}

void TokenRows::logits(const float* x, float* out) {
  norm(final_norm_, x, normed_.data());
  product(head_, sizes_.d_model, sizes_.labels.classes, normed_.data(), out);
}

}  // namespace subquad
