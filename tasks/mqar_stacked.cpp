// Stacked MQAR: key and value stand in one position, so that one attention layer solves it without
// any shift by a token: the recall capacity of a mixer alone.
// Source: zoology/data/stacked_mqar.py (HazyResearch/zoology).
//
// Every position holds two tokens, whose embeddings are concatenated: (key_j, value_j) for the n
// pairs, P times, then each key once more as (key_j, 0), whose label is value_j. n (P + 1)
// positions; what is left of the sequence is (0, 0) without a label.
//
// Q, K, V (our choice): q_t = r C[key_t], k_t = r C[key_t], v_t = U[value_t] with U[0] = 0, C and U
// as in sequences.h. Exact attention gives a query P / (P + 1) of its value: its own position, with
// the value 0, takes the rest.

#include "tasks/recall.h"

namespace subquad {
namespace {

struct Params {
  Index vocabulary = 8192;
  Index pairs = 0;
  Index passes = 1;
  double power_a = 0.01;
};

class MqarStacked final : public Task {
 public:
  explicit MqarStacked(const Params& params) : params_(params) {}

  std::string unsupported(const Problem& p) const override {
    if (p.n_kv >= p.n) return "";
    return fmt::format("mqar_stacked needs n_kv >= n, got n={} and n_kv={}", p.n, p.n_kv);
  }

  void fill(const Problem& p, Seed seed, Index set, QKV* out) const override {
    const Index length = std::max(p.n_kv, params_.passes + 1);
    const Index pairs = std::min({pairs_for(length), length / (params_.passes + 1), most_pairs()});
    const std::vector<double> waits = mean_waits(pairs, params_.power_a);
    std::vector<Tokens> sequences;
    for (Index b = 0; b < p.batch; ++b)
      sequences.push_back(
          generate(qkv_seed(seed, "mqar_stacked", set, b), length, pairs, waits).tokens);
    fill_two_token_rows(p, seed, "mqar_stacked", sequences, kSharpness, true, out);
  }

  LabelSpec labels(Index) const override {
    return {.kind = LabelKind::per_token,
            .vocabulary = params_.vocabulary,
            .classes = params_.vocabulary,
            .tokens_per_position = 2};
  }

  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    const Index pairs = pairs_for(n), needed = pairs * (params_.passes + 1);
    if (needed > n || pairs == 0)
      throw Unsupported(fmt::format("mqar_stacked: {} pairs in {} passes need n >= {}, got n={}",
                                    std::max<Index>(pairs, 1), params_.passes,
                                    std::max(needed, params_.passes + 1), n));
    if (pairs > most_pairs())
      throw Unsupported(fmt::format("mqar_stacked: vocabulary={} has {} keys, n={} needs {}",
                                    params_.vocabulary, most_pairs(), n, pairs));
    const std::vector<double> waits = mean_waits(pairs, params_.power_a);
    TokenBatch out = make_batch(first, batch, n, 1, [&](Index e) {
      return generate(example_seed(seed, "mqar_stacked", split, e), n, pairs, waits);
    });
    out.tokens_per_position = 2;
    return out;
  }

  std::vector<Floor> floors(Index n, Seed) const override {
    return {{"random value", "accuracy", random_value_floor(params_.vocabulary)},
            {"any value of the sequence", "accuracy",
             1.0 / static_cast<double>(std::max<Index>(pairs_for(n), 1))}};
  }

 private:
  Index pairs_for(Index n) const {
    return params_.pairs > 0 ? params_.pairs : n / (params_.passes + 1);
  }
  Index most_pairs() const { return params_.vocabulary / 2 - 1; }

  Example generate(Seed seed, Index n, Index pairs, const std::vector<double>& waits) const {
    Example out;
    out.tokens.assign(static_cast<std::size_t>(2 * n), 0);  // [n, 2]
    out.labels.assign(static_cast<std::size_t>(n), kIgnore);
    const auto [keys, values] = draw_pairs(seed, params_.vocabulary, pairs);
    Random random(seed, "slots");
    const std::vector<Index> slots = draw_slots(random, waits, pairs);  // no slot stays free
    for (std::size_t j = 0; j < keys.size(); ++j) {
      for (Index pass = 0; pass < params_.passes; ++pass) {
        const auto at = 2 * (static_cast<std::size_t>(pass * pairs) + j);
        out.tokens[at] = keys[j];
        out.tokens[at + 1] = values[j];
      }
      const auto query = static_cast<std::size_t>(params_.passes * pairs + slots[j]);
      out.tokens[2 * query] = keys[j];
      out.labels[query] = values[j];
    }
    return out;
  }

  Params params_;
};

const RegisterTask<MqarStacked, Params> kRegistration{
    {.name = "mqar_stacked",
     .source = "Arora et al. 2024 (Zoology), arXiv 2312.04927: stacked_mqar",
     .summary = "associative recall with key and value in one position: one layer solves it",
     .labelled = true,
     .notes = {"every position holds two tokens, whose embeddings are concatenated; a query's "
               "second token is 0",
               "Q and K are the same code of the key, V that of the value (0 at queries): exact "
               "attention finds the value, weakened by the query's own position"}},
    {param("vocabulary", &Params::vocabulary, {4, 1 << 24},
           "token ids; keys are the lower half, values the upper"),
     param("pairs", &Params::pairs, {0, 1 << 20}, "key-value pairs; 0 = n / (passes + 1)"),
     param("passes", &Params::passes, {1, 1024}, "times the pairs are repeated"),
     param("power_a", &Params::power_a, {0, 1},
           "order of the queries: near 0 = as the pairs, 1 = any")}};

}  // namespace
}  // namespace subquad
