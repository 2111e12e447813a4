// In-context recall with noise: pairs of key and value, keys again and again, some pairs replaced
// by noise.
// Source: athms/mad-lab, mad/data/instances.py (in-context recall and its noisy version).
//
// n / 2 pairs. A pair's key is uniform with replacement from the lower half of the vocabulary; its
// value, uniform from the upper half, is fixed at the key's first occurrence. With probability
// `noise` a pair is replaced by two tokens of a noise vocabulary of its own. The label of a
// repeated key is its value (the token that follows); the last pair always holds a key that was
// seen. Our choice: the ids of the noise follow those of the vocabulary.

#include "tasks/sequences.h"

namespace subquad {
namespace {

struct Params {
  Index vocabulary = 16;
  double noise = 0.2;
  Index noise_vocabulary = 16;
};

class NoisyRecall final : public SequenceTask {
 public:
  explicit NoisyRecall(const Params& params) : SequenceTask("noisy_recall"), params_(params) {}

  LabelSpec labels(Index) const override {
    const Index all = params_.vocabulary + params_.noise_vocabulary;
    return {LabelKind::per_token, all, all, 1};
  }

  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    if (n % 2 != 0 || n < 4) refuse("n={}, expected an even n of at least 4", n);
    return make_batch(first, batch, n, 1,
                      [&](Index e) { return generate(example_seed(seed, owner_, split, e), n); });
  }

  std::vector<Floor> floors(Index, Seed) const override {
    return {{"random value", "accuracy",
             1.0 / static_cast<double>(params_.vocabulary - params_.vocabulary / 2)}};
  }

 private:
  Tokens sequence(Index length, Seed, Seed draw) const override {
    Tokens all = generate(draw, std::max<Index>(4, length + length % 2)).tokens;
    all.resize(static_cast<std::size_t>(length));
    return all;
  }

  Example generate(Seed seed, Index n) const {
    Example out;
    out.tokens.reserve(static_cast<std::size_t>(n));
    out.labels.assign(static_cast<std::size_t>(n), kIgnore);
    const auto keys = static_cast<std::uint64_t>(params_.vocabulary / 2);
    const auto values = static_cast<std::uint64_t>(params_.vocabulary) - keys;
    std::vector<std::int32_t> value_of(keys, -1);
    std::vector<std::uint64_t> seen;
    Random random(seed);
    for (Index j = 0; j < n / 2; ++j) {
      // The pair before the last is no noise if nothing was seen: the last needs a seen key.
      const bool last = j == n / 2 - 1, needed = j == n / 2 - 2 && seen.empty();
      const bool noisy = random.uniform() < params_.noise;
      if (noisy && !last && !needed) {
        for (int i = 0; i < 2; ++i)
          out.tokens.push_back(static_cast<std::int32_t>(
              params_.vocabulary + static_cast<Index>(random.below(
                                       static_cast<std::uint64_t>(params_.noise_vocabulary)))));
        continue;
      }
      const std::uint64_t key = last ? seen[random.below(seen.size())] : random.below(keys);
      if (value_of[key] < 0) {
        value_of[key] = static_cast<std::int32_t>(keys + random.below(values));
        seen.push_back(key);
      } else {
        out.labels[out.tokens.size()] = value_of[key];
      }
      out.tokens.push_back(static_cast<std::int32_t>(key));
      out.tokens.push_back(value_of[key]);
    }
    return out;
  }

  Params params_;
};

const RegisterTask<NoisyRecall, Params> kRegistration{
    {.name = "noisy_recall",
     .source = "Poli et al. 2024 (MAD), arXiv 2403.17844",
     .summary = "in-context recall: the value of a key seen before, with noise between the pairs",
     .labelled = true,
     .notes = {"tokens need an even n >= 4; noise: 0 is the plain in-context recall of the source",
               "only repeated keys are scored, in training too"}},
    {param("vocabulary", &Params::vocabulary, {4, 1 << 24},
           "token ids of keys (lower half) and values (upper half)"),
     param("noise", &Params::noise, {0, 0.95}, "share of the pairs that are replaced by noise"),
     param("noise_vocabulary", &Params::noise_vocabulary, {1, 1 << 20},
           "further token ids, of the noise")}};

}  // namespace
}  // namespace subquad
