// What tasks of tokens share: batches of examples, and Q, K, V of token sequences until a model
// supplies them.
//
// Q, K, V (our choice): what a trained induction head computes. With a unit vector C[token] and a
// normal vector U[token] per head,
//   q_t = r C[x_t],   k_t = r C[x_{t-1}],   v_t = U[x_t],   scale r^2 = sharpness,
// so that a query's logit is `sharpness` at what follows an earlier copy of its token, and near 0
// elsewhere. C and U depend on the seed alone.
//
// For task sources alone, with internal linkage: see common.h.
#pragma once

#include "tasks/common.h"

namespace subquad {
namespace {

using Tokens = std::vector<std::int32_t>;

// One labelled example: tokens [inputs, n], labels [n] or [1], lengths [inputs] or none.
struct Example {
  Tokens tokens, labels, lengths;
};

// Examples first .. first + batch - 1, made in parallel by make(number) -> Example.
template <class Make>
TokenBatch make_batch(Index first, Index batch, Index n, Index inputs, Make&& make) {
  std::vector<Example> examples(static_cast<std::size_t>(batch));
  parallel_for(batch,
               [&](Index e, int) { examples[static_cast<std::size_t>(e)] = make(first + e); });
  TokenBatch out;
  out.batch = batch;
  out.inputs = inputs;
  out.n = n;
  for (const Example& e : examples) {
    out.tokens.insert(out.tokens.end(), e.tokens.begin(), e.tokens.end());
    out.labels.insert(out.labels.end(), e.labels.begin(), e.labels.end());
    out.lengths.insert(out.lengths.end(), e.lengths.begin(), e.lengths.end());
  }
  return out;
}

// Seed of an example: `owner` is the task's name.
[[maybe_unused]] Seed example_seed(Seed seed, const std::string& owner, Split split, Index number) {
  return derive(seed, owner + ".tokens",
                {static_cast<std::uint64_t>(split), static_cast<std::uint64_t>(number)});
}
[[maybe_unused]] Seed qkv_seed(Seed seed, const std::string& owner, Index set, Index b) {
  return derive(seed, owner + ".qkv",
                {static_cast<std::uint64_t>(set), static_cast<std::uint64_t>(b)});
}

// The first `length` tokens of next(), next(), ... laid end to end.
template <class Next>
Tokens laid_end_to_end(Index length, Next&& next) {
  Tokens all;
  while (static_cast<Index>(all.size()) < length) {
    const Tokens more = next();
    all.insert(all.end(), more.begin(), more.end());
  }
  all.resize(static_cast<std::size_t>(length));
  return all;
}

// `to` = factor times the unit vector C of a token. `owner` names the task: tasks have codes of
// their own.
[[maybe_unused]] void token_code(Seed seed, const std::string& owner, Index head,
                                 std::int32_t token, double factor, Index d, float* to) {
  fill_normal(derive(seed, owner + ".code",
                     {static_cast<std::uint64_t>(head), static_cast<std::uint64_t>(token)}),
              to, d);
  const double scale = factor / std::sqrt(dot(to, to, d));
  for (Index c = 0; c < d; ++c) to[c] = static_cast<float>(scale * static_cast<double>(to[c]));
}
[[maybe_unused]] void token_value(Seed seed, const std::string& owner, Index head,
                                  std::int32_t token, Index d, float* to) {
  fill_normal(derive(seed, owner + ".value",
                     {static_cast<std::uint64_t>(head), static_cast<std::uint64_t>(token)}),
              to, d);
}

constexpr double kSharpness = 16;  // exp(16): the copy outweighs any sequence below 10^6 tokens

// Q, K, V of one token sequence [n_kv] per batch element; query i stands at position
// i + n_kv - n. Token id `vocabulary` stands before the first.
[[maybe_unused]] void fill_from_tokens(const Problem& p, Seed seed, const std::string& owner,
                                       double sharpness, Index vocabulary,
                                       const std::vector<Tokens>& sequences, QKV* out) {
  const Index length = p.n_kv, offset = p.causal_offset();
  const double scale = p.logit_scale();
  const double r = std::sqrt(sharpness / std::fabs(scale));
  const float sign = scale < 0 ? -1.0f : 1.0f;
  for_rows(p.batch, p.heads, length, [&](Index b, Index h, Index begin, Index end) {
    const Tokens& x = sequences[static_cast<std::size_t>(b)];
    float* q = out->q.view().head_data(b, h);
    float* k = out->k.view().head_data(b, h);
    float* v = out->v.view().head_data(b, h);
    std::vector<float> row(static_cast<std::size_t>(p.d_k));
    if (begin == 0) token_code(seed, owner, h, static_cast<std::int32_t>(vocabulary), r, p.d_k, k);
    for (Index t = begin; t < end; ++t) {
      const std::int32_t token = x[static_cast<std::size_t>(t)];
      token_code(seed, owner, h, token, r, p.d_k, row.data());
      if (t + 1 < length) std::copy(row.begin(), row.end(), k + (t + 1) * p.d_k);
      if (t >= offset)
        for (Index c = 0; c < p.d_k; ++c)
          q[(t - offset) * p.d_k + c] = sign * row[static_cast<std::size_t>(c)];
      token_value(seed, owner, h, token, p.d_v, v + t * p.d_v);
    }
  });
}

// A labelled task whose Q, K, V are those of its own token sequences.
class SequenceTask : public Task {
 public:
  std::string unsupported(const Problem& p) const override {
    if (p.n_kv >= p.n) return "";
    return fmt::format("{} needs n_kv >= n, got n={} and n_kv={}", owner_, p.n, p.n_kv);
  }

  void fill(const Problem& p, Seed seed, Index set, QKV* out) const override {
    std::vector<Tokens> sequences(static_cast<std::size_t>(p.batch));
    parallel_for(p.batch, [&](Index b, int) {
      sequences[static_cast<std::size_t>(b)] =
          sequence(p.n_kv, seed, qkv_seed(seed, owner_, set, b));
    });
    fill_from_tokens(p, seed, owner_, kSharpness, labels(p.n_kv).vocabulary, sequences, out);
  }

 protected:
  explicit SequenceTask(std::string owner) : owner_(std::move(owner)) {}

  // `length` tokens as training examples have them, from the random stream `draw`. `seed` is for
  // what is fixed under a seed.
  virtual Tokens sequence(Index length, Seed seed, Seed draw) const = 0;

  // Throws Unsupported with the reason; every message names the task.
  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    throw Unsupported(owner_ + ": " + fmt::format(format, std::forward<Args>(args)...));
  }

  const std::string owner_;  // the task's name
};

}  // namespace
}  // namespace subquad
