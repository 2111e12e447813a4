// Associative recall with one query, or a few: pairs first, later one of the keys again.
// Source: zoology/data/associative_recall.py (HazyResearch/zoology).
//
// The context is that of mqar: n pairs, c = 2 n tokens. Then q of the keys, chosen uniformly, stand
// at uniformly random distinct positions >= c; the label at each is the key's value. (The source
// shifts its labels by one against its inputs; here a label stands at the query.)

#include "tasks/recall.h"

namespace subquad {
namespace {

struct Params {
  Index vocabulary = 8192;
  Index pairs = 0;
  Index queries = 1;
  bool random_non_queries = true;
};

class SingleQueryRecall final : public SequenceTask {
 public:
  explicit SingleQueryRecall(const Params& params)
      : SequenceTask("single_query_recall"), params_(params) {}

  LabelSpec labels(Index) const override {
    return {LabelKind::per_token, params_.vocabulary, params_.vocabulary, 1};
  }

  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    const Index pairs = pairs_for(n), needed = 2 * pairs + params_.queries;
    if (params_.queries > pairs)
      refuse("{} queries, expected at most {} pairs", params_.queries, pairs);
    if (needed > n)
      refuse("{} pairs and {} queries need n >= {}, got n={}", pairs, params_.queries, needed, n);
    if (pairs >= params_.vocabulary / 2)
      refuse("{} pairs, expected fewer than half of vocabulary={}", pairs, params_.vocabulary);
    return make_batch(first, batch, n, 1, [&](Index e) {
      return generate(example_seed(seed, owner_, split, e), n, pairs, params_.queries);
    });
  }

  std::vector<Floor> floors(Index n, Seed) const override {
    return {{"random value", "accuracy", random_value_floor(params_.vocabulary)},
            {"any value of the sequence", "accuracy", 1.0 / static_cast<double>(pairs_for(n))}};
  }

 private:
  Index pairs_for(Index n) const {
    return params_.pairs > 0 ? params_.pairs : std::max<Index>(1, n / 4);
  }

  Tokens sequence(Index length, Seed, Seed draw) const override {
    const Index n = std::max<Index>(3, length);
    const Index pairs = std::min({pairs_for(n), (n - 1) / 2, params_.vocabulary / 2 - 1});
    const Index queries = std::min({params_.queries, pairs, n - 2 * pairs});
    Tokens all = generate(draw, n, pairs, queries).tokens;
    all.resize(static_cast<std::size_t>(length));
    return all;
  }

  Example generate(Seed seed, Index n, Index pairs, Index queries) const {
    Example out;
    out.tokens.assign(static_cast<std::size_t>(n), 0);
    out.labels.assign(static_cast<std::size_t>(n), kIgnore);
    fill_rest(seed, params_.vocabulary, params_.random_non_queries, 2 * pairs, &out.tokens);
    const auto [keys, values] = draw_pairs(seed, params_.vocabulary, pairs);
    for (std::size_t j = 0; j < keys.size(); ++j) {
      out.tokens[2 * j] = keys[j];
      out.tokens[2 * j + 1] = values[j];
    }
    const auto asked = Random(seed, "asked").sample_without_replacement(pairs, queries);
    const auto places = Random(seed, "places").sample_without_replacement(n - 2 * pairs, queries);
    for (std::size_t i = 0; i < asked.size(); ++i) {
      const auto at = static_cast<std::size_t>(2 * pairs + places[i]);
      const auto pair = static_cast<std::size_t>(asked[i]);
      out.tokens[at] = keys[pair];
      out.labels[at] = values[pair];
    }
    return out;
  }

  Params params_;
};

const RegisterTask<SingleQueryRecall, Params> kRegistration{
    {.name = "single_query_recall",
     .source = "Arora et al. 2024 (Zoology), arXiv 2312.04927: associative_recall",
     .summary = "associative recall of one value, or a few, asked for anywhere after the pairs",
     .labelled = true,
     .notes = {"tokens need 2 pairs + queries <= n and queries <= pairs < vocabulary / 2"}},
    {param("vocabulary", &Params::vocabulary, {4, 1 << 24},
           "token ids; keys are the lower half, values the upper"),
     param("pairs", &Params::pairs, {0, 1 << 20}, "key-value pairs; 0 = n / 4"),
     param("queries", &Params::queries, {1, 1 << 20}, "keys that are asked for"),
     param("random_non_queries", &Params::random_non_queries,
           "fill the rest with random tokens instead of 0")}};

}  // namespace
}  // namespace subquad
