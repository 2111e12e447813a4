// Byte-level retrieval without a download (ours): do two documents share most of their topics? A
// stand-in for the Retrieval task of Long Range Arena (arXiv 2011.04006).
//
// Two documents of n bytes each (id = byte + 1), each with t = 4 distinct topic words of 64, one in
// each of t equal stretches. The first holds a uniform subset; the second shares exactly 3 of them
// (label 1) or 1 (label 0), the rest come from the others, in uniform order. Each document alone
// has the same distribution for both labels.

#include "tasks/words.h"

namespace subquad {
namespace {

struct Params {
  Index topics = 4;
};

constexpr Index kTopicWords = 64;

class RetrievalMatch final : public SequenceTask {
 public:
  explicit RetrievalMatch(const Params& params)
      : SequenceTask("retrieval_match"),
        params_(params),
        lexicon_(make_lexicon("retrieval_match", kTopicWords)) {}

  LabelSpec labels(Index) const override {
    return {LabelKind::per_sequence, kByteVocabulary, 2, 2};
  }

  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    if (n < shortest()) refuse("{} topics need n >= {}, got n={}", params_.topics, shortest(), n);
    return make_batch(first, batch, n, 2, [&](Index e) {
      Random random(example_seed(seed, owner_, split, e));
      return pair(random, n);
    });
  }

  // Exact: labels are uniform, and one document says nothing.
  std::vector<Floor> floors(Index, Seed) const override {
    return {{"majority class", "accuracy", 0.5}, {"one document", "accuracy", 0.5}};
  }

 private:
  Index shortest() const { return params_.topics * (kLongestWord + 1); }

  Example pair(Random& random, Index n) const {
    const auto label = static_cast<std::int32_t>(random.below(2));
    const Index shared = label == 1 ? params_.topics - 1 : 1;
    // Uniform order: the first `topics` are the first document's, the next fill up the second.
    const std::vector<Index> drawn =
        random.sample_without_replacement(kTopicWords, 2 * params_.topics - shared);
    std::vector<Index> a(drawn.begin(), drawn.begin() + params_.topics);
    std::vector<Index> b(drawn.begin(), drawn.begin() + shared);
    b.insert(b.end(), drawn.begin() + params_.topics, drawn.end());
    random.shuffle(b);
    Example out;
    for (const std::vector<Index>& topics : {a, b}) {
      std::string text;
      for (Index i = 0; i < params_.topics; ++i)
        append_stretch(
            random, lexicon_,
            stretch_begin(n, params_.topics, i + 1) - stretch_begin(n, params_.topics, i),
            lexicon_.keys[static_cast<std::size_t>(topics[static_cast<std::size_t>(i)])], &text);
      append_bytes(text, &out.tokens);
    }
    out.labels = {label};
    return out;
  }

  Tokens sequence(Index length, Seed, Seed draw) const override {
    Random random(draw);
    Tokens all = pair(random, std::max(length, shortest())).tokens;
    all.resize(static_cast<std::size_t>(length));
    return all;
  }

  Params params_;
  Lexicon lexicon_;
};

const RegisterTask<RetrievalMatch, Params> kRegistration{
    {.name = "retrieval_match",
     .source = "ours, a stand-in for the Retrieval task of Long Range Arena, arXiv 2011.04006",
     .summary = "bytes of two documents: do they share most of their topics?",
     .labelled = true,
     .notes = {"two sequences per example, for a two-tower model; token id = byte + 1",
               "for real pairs use byte_retrieval"}},
    {param("topics", &Params::topics, {3, 32},
           "topic words of a document; they share all but one, or one")}};

}  // namespace
}  // namespace subquad
