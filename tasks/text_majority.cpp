// Byte-level text classification without a download (ours): which polarity do most keywords of a
// document have? A stand-in for the Text task of Long Range Arena (arXiv 2011.04006).
//
// A document of n bytes (id = byte + 1) is cut into K equal stretches, each with one keyword; for
// label y, (K+g)/2 keywords have polarity y and (K-g)/2 the other, in uniform order. A reader of
// one keyword is right in (K+g)/2K of the cases: evidence has to be collected over the whole
// document. With `negation` p a keyword is written as "not " and one of the other polarity with
// probability p, so that words have to be combined, too.

#include "tasks/words.h"

namespace subquad {
namespace {

struct Params {
  Index keywords = 0;
  Index gap = 1;
  double negation = 0;
};

constexpr std::size_t kPolarity = 16;  // keywords of each

class TextMajority final : public SequenceTask {
 public:
  explicit TextMajority(const Params& params)
      : SequenceTask("text_majority"),
        params_(params),
        lexicon_(make_lexicon("text_majority", 2 * kPolarity)) {
    if (params.gap % 2 == 0 || (params.keywords > 0 && params.keywords % 2 == 0))
      throw UserError(fmt::format("text_majority: keywords={} and gap={}, expected odd numbers",
                                  params.keywords, params.gap));
    if (params.keywords > 0 && params.gap > params.keywords)
      throw UserError(fmt::format("text_majority: gap={}, expected at most keywords={}", params.gap,
                                  params.keywords));
  }

  LabelSpec labels(Index) const override {
    return {LabelKind::per_sequence, kByteVocabulary, 2, 1};
  }

  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    if (n < shortest(n))
      refuse("{} keywords need n >= {}, got n={}", keywords_for(n), shortest(n), n);
    return make_batch(first, batch, n, 1, [&](Index e) {
      Random random(example_seed(seed, owner_, split, e));
      std::int32_t label = 0;
      const std::string text = document(random, n, &label);
      Example out;
      append_bytes(text, &out.tokens);
      out.labels = {label};
      return out;
    });
  }

  // Exact: labels are uniform, and a reader that sees s keywords draws without replacement.
  std::vector<Floor> floors(Index n, Seed) const override {
    return {{"majority class", "accuracy", 0.5},
            {"one keyword", "accuracy", reader(n, 1)},
            {"half of the keywords", "accuracy", reader(n, keywords_for(n) / 2)}};
  }

 private:
  Index keywords_for(Index n) const {
    return params_.keywords > 0 ? params_.keywords : n >= 512 ? 15 : n >= 128 ? 7 : 5;
  }
  // Each stretch holds "not ", a keyword, and a space.
  Index shortest(Index n) const {
    return keywords_for(n) * (kLongestWord + 1 + (params_.negation > 0 ? 4 : 0));
  }

  // Accuracy of the majority of `seen` of the K keywords; a tie is right in half of the cases.
  // Hypergeometric, by recursion over the draws.
  double reader(Index n, Index seen) const {
    const Index all = keywords_for(n), right = (all + std::min(params_.gap, all)) / 2;
    std::vector<double> chance(static_cast<std::size_t>(seen) + 1, 0.0);  // of i right ones
    chance[0] = 1;
    for (Index drawn = 0; drawn < seen; ++drawn)
      for (Index i = drawn; i >= 0; --i) {
        const double p = chance[static_cast<std::size_t>(i)];
        const double hit =
            static_cast<double>(std::max<Index>(0, right - i)) / static_cast<double>(all - drawn);
        chance[static_cast<std::size_t>(i + 1)] += p * hit;
        chance[static_cast<std::size_t>(i)] = p * (1 - hit);
      }
    double accuracy = 0;
    for (Index i = 0; i <= seen; ++i)
      accuracy += chance[static_cast<std::size_t>(i)] * (2 * i > seen    ? 1.0
                                                         : 2 * i == seen ? 0.5
                                                                         : 0.0);
    return accuracy;
  }

  std::string document(Random& random, Index n, std::int32_t* label) const {
    const Index count = keywords_for(n);
    *label = static_cast<std::int32_t>(random.below(2));
    std::vector<std::int32_t> polarity(static_cast<std::size_t>(count), 1 - *label);
    std::fill(polarity.begin(), polarity.begin() + (count + std::min(params_.gap, count)) / 2,
              *label);
    random.shuffle(polarity);
    std::string text;
    for (Index i = 0; i < count; ++i) {
      const bool negated = params_.negation > 0 && random.uniform() < params_.negation;
      const bool positive = (polarity[static_cast<std::size_t>(i)] == 1) != negated;
      const std::string& word = lexicon_.keys[random.below(kPolarity) + (positive ? 0 : kPolarity)];
      append_stretch(random, lexicon_, stretch_begin(n, count, i + 1) - stretch_begin(n, count, i),
                     negated ? "not " + word : word, &text);
    }
    return text;
  }

  Tokens sequence(Index length, Seed, Seed draw) const override {
    Random random(draw);
    std::int32_t unused = 0;
    Tokens all;
    const Index n = std::max(length, std::max(shortest(length), shortest(128)));
    append_bytes(document(random, n, &unused), &all);
    all.resize(static_cast<std::size_t>(length));
    return all;
  }

  Params params_;
  Lexicon lexicon_;  // keys: positive, then negative
};

const RegisterTask<TextMajority, Params> kRegistration{
    {.name = "text_majority",
     .source = "ours, a stand-in for the Text task of Long Range Arena, arXiv 2011.04006",
     .summary = "bytes of a document: which polarity do most of its keywords have?",
     .labelled = true,
     .notes = {"token id = byte + 1; documents fill all n bytes",
               "for real reviews use byte_text"}},
    {param("keywords", &Params::keywords, {0, 9999},
           "in a document, an odd number; 0 = 15 (7 below n = 512, 5 below 128)"),
     param("gap", &Params::gap, {1, 9999}, "keywords of the label less those of the other, odd"),
     param("negation", &Params::negation, {0, 1},
           "share of the keywords that are written as \"not\" and one of the other polarity")}};

}  // namespace
}  // namespace subquad
