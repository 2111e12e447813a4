// Forgetting MQAR: some keys get a new value before they are asked for, and the new one counts.
// Source: zoology/data/forgetting_mqar.py (HazyResearch/zoology).
//
// n pairs as in mqar, then u of the keys (a random subset in random order) once more with new
// values; the context is c = 2 (n + u) tokens. Queries and their slots as in mqar; the label is the
// latest value. Our choice: the new values are distinct from each other and from all old ones (the
// source can draw the old value again by mistake).

#include "tasks/recall.h"

namespace subquad {
namespace {

struct Params {
  Index vocabulary = 8192;
  Index pairs = 0;
  Index updates = 4;
  double power_a = 0.01;
  bool random_non_queries = true;
};

class MqarForgetting final : public SequenceTask {
 public:
  explicit MqarForgetting(const Params& params) : SequenceTask("mqar_forgetting"), params_(params) {
    const Index half = params.vocabulary / 2;
    if (params.pairs >= half || params.pairs + params.updates > params.vocabulary - half)
      throw UserError(fmt::format(
          "mqar_forgetting: {} pairs and {} updates, expected fewer pairs than {} and at most {} "
          "values for vocabulary={}",
          params.pairs, params.updates, half, params.vocabulary - half, params.vocabulary));
  }

  LabelSpec labels(Index) const override {
    return {LabelKind::per_token, params_.vocabulary, params_.vocabulary, 1};
  }

  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    const Index pairs = pairs_for(n), updates = updates_for(pairs);
    const Index needed = 4 * pairs + 2 * updates;
    if (n % 2 != 0) refuse("n={} is odd, expected an even n", n);
    if (needed > n)
      refuse("{} pairs and {} updates need n >= {}, got n={}", pairs, updates, needed, n);
    if (params_.vocabulary <= n)
      refuse("vocabulary={}, expected more than n={}", params_.vocabulary, n);
    const std::vector<double> waits = waits_for(n, pairs);
    return make_batch(first, batch, n, 1, [&](Index e) {
      return generate(example_seed(seed, owner_, split, e), n, pairs, waits);
    });
  }

  std::vector<Floor> floors(Index n, Seed) const override {
    const auto pairs = static_cast<double>(pairs_for(n));
    const auto updates = static_cast<double>(updates_for(pairs_for(n)));
    return {{"random value", "accuracy", random_value_floor(params_.vocabulary)},
            {"any value of the sequence", "accuracy", 1 / (pairs + updates)},
            {"the first value of the key", "accuracy", (pairs - updates) / pairs}};
  }

 private:
  Index pairs_for(Index n) const {
    return params_.pairs > 0 ? params_.pairs : std::max<Index>(1, n / 16);
  }
  Index updates_for(Index pairs) const { return std::min(pairs, params_.updates); }
  std::vector<double> waits_for(Index n, Index pairs) const {
    return mean_waits((n - 2 * (pairs + updates_for(pairs))) / 2, params_.power_a);
  }

  Tokens sequence(Index length, Seed, Seed draw) const override {
    const Index even = length + length % 2;
    const Index fitting = std::min(params_.vocabulary / 4, std::max<Index>(1, even / 6));
    const Index pairs = std::min(pairs_for(even), fitting);
    const Index n = std::max(even, 4 * pairs + 2 * updates_for(pairs));
    Tokens all = generate(draw, n, pairs, waits_for(n, pairs)).tokens;
    all.resize(static_cast<std::size_t>(length));
    return all;
  }

  Example generate(Seed seed, Index n, Index pairs, const std::vector<double>& waits) const {
    const Index updates = updates_for(pairs), context = 2 * (pairs + updates);
    Example out;
    out.tokens.assign(static_cast<std::size_t>(n), 0);
    out.labels.assign(static_cast<std::size_t>(n), kIgnore);
    fill_rest(seed, params_.vocabulary, params_.random_non_queries, context, &out.tokens);
    const Index half = params_.vocabulary / 2;
    const auto keys = Random(seed, "keys").sample_without_replacement(half - 1, pairs);
    const auto values = Random(seed, "values")
                            .sample_without_replacement(params_.vocabulary - half, pairs + updates);
    const auto updated = Random(seed, "updates").sample_without_replacement(pairs, updates);
    std::vector<Index> latest(values.begin(), values.begin() + pairs);
    const auto write = [&](Index place, Index pair, Index value) {
      const auto at = static_cast<std::size_t>(2 * place);
      out.tokens[at] = static_cast<std::int32_t>(keys[static_cast<std::size_t>(pair)] + 1);
      out.tokens[at + 1] = static_cast<std::int32_t>(value + half);
      latest[static_cast<std::size_t>(pair)] = value;
    };
    for (Index j = 0; j < pairs; ++j) write(j, j, values[static_cast<std::size_t>(j)]);
    for (Index u = 0; u < updates; ++u)
      write(pairs + u, updated[static_cast<std::size_t>(u)],
            values[static_cast<std::size_t>(pairs + u)]);
    Random random(seed, "slots");
    const std::vector<Index> slots = draw_slots(random, waits, pairs);
    for (std::size_t j = 0; j < slots.size(); ++j) {
      const auto query = static_cast<std::size_t>(context + 2 * slots[j]);
      out.tokens[query] = static_cast<std::int32_t>(keys[j] + 1);
      out.labels[query] = static_cast<std::int32_t>(latest[j] + half);
    }
    return out;
  }

  Params params_;
};

const RegisterTask<MqarForgetting, Params> kRegistration{
    {.name = "mqar_forgetting",
     .source = "Arora et al. 2024 (Zoology), arXiv 2312.04927: forgetting_mqar",
     .summary = "associative recall in which some keys get a new value, and the latest counts",
     .labelled = true,
     .notes = {"tokens need an even n, 4 pairs + 2 updates <= n and vocabulary > n",
               "Q, K, V as in mqar, of one sequence of the length, with fewer pairs where they do "
               "not fit"}},
    {param("vocabulary", &Params::vocabulary, {8, 1 << 24},
           "token ids; keys are the lower half, values the upper"),
     param("pairs", &Params::pairs, {0, 1 << 20}, "key-value pairs; 0 = n / 16"),
     param("updates", &Params::updates, {0, 1 << 20},
           "keys that get a new value; at most all of them"),
     param("power_a", &Params::power_a, {0, 1},
           "where queries stand: near 0 = soon after the context, 1 = anywhere"),
     param("random_non_queries", &Params::random_non_queries,
           "fill the rest with random tokens instead of 0")}};

}  // namespace
}  // namespace subquad
