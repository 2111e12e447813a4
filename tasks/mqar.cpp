// MQAR, multi-query associative recall: key-value pairs first, later each key once more, where its
// value has to be recalled.
// Source: Arora et al. 2024 (Zoology), arXiv 2312.04927; generator zoology/data/multiquery_ar.py.
//
// A sequence of even length N with n pairs, passes P and context c = 2 n P:
//   keys distinct in [1, V/2), values distinct in [V/2, V), fresh for every sequence;
//   x[2j] = key_j, x[2j+1] = value_j, repeated P times;
//   slot s = 0 .. (N - c)/2 - 1 is position c + 2s; n distinct slots are drawn one after another
//   with weights p_s proportional to (s+1)^(a-1), the j-th holds key_j again, and the label there
//   is value_j. All else is filler: 0, or uniform over the vocabulary.
// Slots are drawn as the n smallest of T_s = E_s / p_s with E_s exponential: the same law.
//
// Q, K, V until a model supplies them (our choice): those of an induction head, see sequences.h.

#include "tasks/recall.h"

namespace subquad {
namespace {

struct Params {
  Index vocabulary = 8192;
  Index pairs = 0;
  double power_a = 0.01;
  Index passes = 1;
  bool random_non_queries = true;
  double sharpness = 16;
};

class Mqar final : public Task {
 public:
  explicit Mqar(const Params& params) : params_(params) {}

  std::string unsupported(const Problem& p) const override {
    if (p.n_kv < p.n) return fmt::format("mqar needs n_kv >= n, got n={} and n_kv={}", p.n, p.n_kv);
    if (p.n_kv < min_length())
      return fmt::format("mqar with passes={} needs n_kv >= {}, got n_kv={}", params_.passes,
                         min_length(), p.n_kv);
    return "";
  }

  void fill(const Problem& p, Seed seed, Index set, QKV* out) const override {
    const Index length = p.n_kv, even = length - length % 2;
    const Index pairs =
        std::min({wanted_pairs(even), even / (2 * params_.passes + 2), params_.vocabulary / 2 - 1});
    const std::vector<double> waits = waits_for(even, pairs);
    std::vector<Tokens> sequences;
    for (Index b = 0; b < p.batch; ++b)
      sequences.push_back(generate(qkv_seed(seed, "mqar", set, b), length, pairs, waits).tokens);

    fill_from_tokens(p, seed, "mqar", params_.sharpness, params_.vocabulary, sequences, out);
  }

  LabelSpec labels(Index) const override {
    return {LabelKind::per_token, params_.vocabulary, params_.vocabulary, 1};
  }

  // Unsupported where the generator is not defined: n odd, too short for the pairs and their
  // queries, or not below the vocabulary.
  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    const Index pairs = wanted_pairs(n), needed = 2 * pairs * params_.passes + 2 * pairs;
    if (n % 2 != 0) throw Unsupported(fmt::format("mqar: n={} is odd, expected an even n", n));
    if (needed > n)
      throw Unsupported(fmt::format("mqar: {} pairs in {} passes need n >= {}, got n={}", pairs,
                                    params_.passes, needed, n));
    if (params_.vocabulary <= n)
      throw Unsupported(
          fmt::format("mqar: vocabulary={}, expected more than n={}", params_.vocabulary, n));
    const std::vector<double> waits = waits_for(n, pairs);
    return make_batch(first, batch, n, 1, [&](Index e) {
      return generate(example_seed(seed, "mqar", split, e), n, pairs, waits);
    });
  }

  std::vector<Floor> floors(Index n, Seed) const override {
    return {{"random value", "accuracy", random_value_floor(params_.vocabulary)},
            {"any value of the sequence", "accuracy", 1.0 / static_cast<double>(wanted_pairs(n))}};
  }

 private:
  Index min_length() const { return 2 * params_.passes + 2; }  // one pair and its query

  // Pairs for length n; 0 in the parameters means n / 16, as in the paper up to n = 256.
  Index wanted_pairs(Index n) const {
    return params_.pairs > 0 ? params_.pairs : std::max<Index>(1, n / 16);
  }

  std::vector<double> waits_for(Index n, Index pairs) const {
    return mean_waits((n - 2 * pairs * params_.passes) / 2, params_.power_a);
  }

  // One sequence of length n (of the last even length and one more filler if n is odd). Keys,
  // values, slots and filler have streams of their own: a switch moves nothing else.
  Example generate(Seed seed, Index n, Index pairs, const std::vector<double>& waits) const {
    const Index context = 2 * pairs * params_.passes;
    Example out;
    out.tokens.assign(static_cast<std::size_t>(n), 0);
    out.labels.assign(static_cast<std::size_t>(n), kIgnore);
    fill_rest(seed, params_.vocabulary, params_.random_non_queries, context, &out.tokens);
    const auto [keys, values] = draw_pairs(seed, params_.vocabulary, pairs);
    Random random(seed, "slots");
    const std::vector<Index> slots = draw_slots(random, waits, pairs);
    for (std::size_t j = 0; j < keys.size(); ++j) {
      for (Index pass = 0; pass < params_.passes; ++pass) {
        const auto at = static_cast<std::size_t>(2 * pass * pairs) + 2 * j;
        out.tokens[at] = keys[j];
        out.tokens[at + 1] = values[j];
      }
      const auto query = static_cast<std::size_t>(context + 2 * slots[j]);
      out.tokens[query] = keys[j];
      out.labels[query] = values[j];
    }
    return out;
  }

  Params params_;
};

const RegisterTask<Mqar, Params> kRegistration{
    {.name = "mqar",
     .source = "Arora et al. 2024 (Zoology), arXiv 2312.04927",
     .summary = "multi-query associative recall: the value of each key, later in the sequence",
     .labelled = true,
     .notes =
         {"tokens need an even n, 2 pairs (passes + 1) <= n and vocabulary > n",
          "Q, K, V come from a fixed random embedding (ours): q holds its token, k the token "
          "before, v its token, so exact attention finds the value after the key; d_k of 16 or "
          "more keeps the random codes apart",
          "Q, K, V take any n_kv >= 2 passes + 2: pairs are reduced to what fits into n_kv and the "
          "vocabulary, an odd n_kv ends in one more filler token; queries are the last n tokens",
          "without a causal mask a query also finds the token that follows itself, which takes "
          "about half of its mass",
          "random_non_queries is false in figure 2 of the paper and true in its later protocol",
          "sets differ in their sequences; the embedding depends on the seed alone"}},
    {param("vocabulary", &Params::vocabulary, {4, 1 << 24},
           "token ids; keys are the lower half, values the upper"),
     param("pairs", &Params::pairs, {0, 1 << 20}, "key-value pairs; 0 = n / 16"),
     param("power_a", &Params::power_a, {0, 1},
           "where queries stand: near 0 = soon after the context, 1 = anywhere"),
     param("passes", &Params::passes, {1, 1024}, "times the pairs are repeated"),
     param("random_non_queries", &Params::random_non_queries,
           "fill the rest with random tokens instead of 0"),
     param("sharpness", &Params::sharpness, {0, 1000},
           "logit of a query at its value, above unrelated keys (Q, K, V only)")}};

}  // namespace
}  // namespace subquad
