// Induction heads: a trigger stands once among random tokens and once more at the end, where the
// token that followed it is asked for.
// Source: Gu and Dao 2023 (Mamba), arXiv 2312.00752, section 4.1.
//
// Tokens are uniform over V symbols; the trigger (id V: our choice) replaces one at a uniform
// position 0 .. n-3, and the last. The only label is at the last position: the token after the
// first trigger.

#include "tasks/sequences.h"

namespace subquad {
namespace {

struct Params {
  Index vocabulary = 16;
};

class Induction final : public SequenceTask {
 public:
  explicit Induction(const Params& params) : SequenceTask("induction"), params_(params) {}

  LabelSpec labels(Index) const override {
    return {LabelKind::per_token, params_.vocabulary + 1, params_.vocabulary + 1, 1};
  }

  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    if (n < 3) refuse("n={}, expected at least 3", n);
    return make_batch(first, batch, n, 1,
                      [&](Index e) { return generate(example_seed(seed, owner_, split, e), n); });
  }

  std::vector<Floor> floors(Index, Seed) const override {
    return {{"random token", "accuracy", 1.0 / static_cast<double>(params_.vocabulary)}};
  }

 private:
  Tokens sequence(Index length, Seed, Seed draw) const override {
    const Index n = std::max<Index>(3, length);
    Tokens all = generate(draw, n).tokens;
    return {all.end() - length, all.end()};  // the last token is the trigger
  }

  Example generate(Seed seed, Index n) const {
    Example out;
    Random random(seed);
    for (Index t = 0; t < n; ++t)
      out.tokens.push_back(
          static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(params_.vocabulary))));
    const std::size_t place = random.below(static_cast<std::uint64_t>(n - 2));
    const auto trigger = static_cast<std::int32_t>(params_.vocabulary);
    out.tokens[place] = out.tokens.back() = trigger;
    out.labels.assign(static_cast<std::size_t>(n), kIgnore);
    out.labels.back() = out.tokens[place + 1];
    return out;
  }

  Params params_;
};

const RegisterTask<Induction, Params> kRegistration{
    {.name = "induction",
     .source = "Gu and Dao 2023 (Mamba), arXiv 2312.00752",
     .summary = "induction head: the token that followed the trigger the first time",
     .labelled = true,
     .notes = {"one label per sequence, at the last position; train at 256, test at any length"}},
    {param("vocabulary", &Params::vocabulary, {2, 1 << 24},
           "symbols; the trigger is one more id")}};

}  // namespace
}  // namespace subquad
