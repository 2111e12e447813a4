// Fused MQAR: recall by content alone. A pair stands in one position, as the sum of two embeddings;
// pairs and queries are shuffled together, so that no fixed pattern of attention earns anything.
// Our own, after MQAR (Arora et al. 2024, arXiv 2312.04927): what separates attention that looks at
// the data from static masks, in one layer and without positions.
//
// Token ids: 0 asks, 1 .. n_values are values, then n_keys keys. A sequence has `pairs` positions
// (key_j, value_j) and as many (key_j, 0), whose label is the number of value_j; keys are distinct,
// values are not. What is left of the sequence is (0, 0) without a label, shuffled with the rest.
//
// Q, K, V until a model supplies them: q_t = r C[key_t], k_t = r C[key_t] at pairs and 0 elsewhere,
// v_t = U[value_t] at pairs and 0 elsewhere; C, U as in sequences.h, r^2 scale = sharpness. Exact
// attention of a query, and of a pair, finds the pair.

#include "tasks/recall.h"

namespace subquad {
namespace {

struct Params {
  Index pairs = 0;
  Index n_keys = 1024;
  Index n_values = 64;
  double sharpness = 16;
};

class MqarFused final : public Task {
 public:
  explicit MqarFused(const Params& params) : params_(params) {}

  std::string unsupported(const Problem& p) const override {
    if (p.n_kv >= p.n) return "";
    return fmt::format("mqar_fused needs n_kv >= n, got n={} and n_kv={}", p.n, p.n_kv);
  }

  void fill(const Problem& p, Seed seed, Index set, QKV* out) const override {
    const Index pairs = std::min({pairs_for(p.n_kv), p.n_kv / 2, params_.n_keys});
    std::vector<Tokens> sequences;
    for (Index b = 0; b < p.batch; ++b)
      sequences.push_back(generate(qkv_seed(seed, "mqar_fused", set, b), p.n_kv, pairs).tokens);
    fill_two_token_rows(p, seed, "mqar_fused", sequences, params_.sharpness, false, out);
  }

  LabelSpec labels(Index) const override {
    return {.kind = LabelKind::per_token,
            .vocabulary = 1 + params_.n_values + params_.n_keys,
            .classes = params_.n_values,
            .tokens_per_position = 2};
  }

  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    const Index pairs = pairs_for(n);
    if (pairs == 0 || 2 * pairs > n)
      throw Unsupported(fmt::format("mqar_fused: {} pairs need n >= {}, got n={}",
                                    std::max<Index>(pairs, 1), std::max<Index>(2 * pairs, 2), n));
    if (pairs > params_.n_keys)
      throw Unsupported(
          fmt::format("mqar_fused: {} pairs of distinct keys, n_keys={}", pairs, params_.n_keys));
    TokenBatch out = make_batch(first, batch, n, 1, [&](Index e) {
      return generate(example_seed(seed, "mqar_fused", split, e), n, pairs);
    });
    out.tokens_per_position = 2;
    return out;
  }

  // A predictor that sees no pair, and one that sees all values but no key.
  std::vector<Floor> floors(Index n, Seed) const override {
    return {
        {"random value", "accuracy", 1.0 / static_cast<double>(params_.n_values)},
        {"any value of the sequence", "accuracy",
         1.0 / static_cast<double>(std::max<Index>(1, std::min(pairs_for(n), params_.n_values)))}};
  }

 private:
  Index pairs_for(Index n) const { return params_.pairs > 0 ? params_.pairs : n / 2; }

  Example generate(Seed seed, Index n, Index pairs) const {
    Example out;
    out.tokens.assign(static_cast<std::size_t>(2 * n), 0);  // [n, 2]
    out.labels.assign(static_cast<std::size_t>(n), kIgnore);
    const std::vector<Index> keys =
        Random(seed, "keys").sample_without_replacement(params_.n_keys, pairs);
    std::vector<std::size_t> places(static_cast<std::size_t>(n));
    for (std::size_t t = 0; t < places.size(); ++t) places[t] = t;
    Random order(seed, "places"), values(seed, "values");
    order.shuffle(places);
    for (std::size_t j = 0; j < static_cast<std::size_t>(pairs); ++j) {
      const auto key = static_cast<std::int32_t>(1 + params_.n_values + keys[j]);
      const auto value =
          static_cast<std::int32_t>(values.below(static_cast<std::uint64_t>(params_.n_values)));
      const std::size_t pair = places[2 * j], query = places[2 * j + 1];
      out.tokens[2 * pair] = key;
      out.tokens[2 * pair + 1] = value + 1;
      out.tokens[2 * query] = key;
      out.labels[query] = value;
    }
    return out;
  }

  Params params_;
};

const RegisterTask<MqarFused, Params> kRegistration{
    {.name = "mqar_fused",
     .source = "ours, after Arora et al. 2024 (Zoology), arXiv 2312.04927",
     .summary = "associative recall in one position, pairs and queries shuffled: content alone "
                "helps",
     .labelled = true,
     .notes = {"every position holds two tokens, a query's second token is 0; train with "
               "merge: sum, or their embeddings stand side by side",
               "a pair may follow its query, so the task wants bidirectional attention: a causal "
               "model can answer about half of the queries",
               "classes are the numbers of values, apart from the vocabulary",
               "Q, K, V: keys and values are 0 at queries, so exact attention finds the pair"}},
    {param("pairs", &Params::pairs, {0, 1 << 20}, "key-value pairs, as many queries; 0 = n / 2"),
     param("n_keys", &Params::n_keys, {1, 1 << 20}, "keys to draw from, without replacement"),
     param("n_values", &Params::n_values, {2, 1 << 20}, "values to draw from"),
     param("sharpness", &Params::sharpness, {0, 1000},
           "logit of a query at its pair, above unrelated keys (Q, K, V only)")}};

}  // namespace
}  // namespace subquad
