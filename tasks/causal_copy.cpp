// The copy task of Linear Transformers: a word of random symbols, a separator, the word again.
// Source: Katharopoulos et al. 2020, arXiv 2006.16236, section 4.1.1; script causal-copy of the
// authors' examples.
//
// m uniform over [L/4, (L-1)/2) (integer divisions; L = 128: 32 .. 62), symbols uniform in 1 .. 10:
//   x = w_1 .. w_m, 0, w_1 .. w_m, 0, ...,   label y[t] = x[t+1] for t = m-1 .. 2m-1.
// The first label is the separator, always 0 there, so that the loss can reach 0.

#include "tasks/sequences.h"

namespace subquad {
namespace {

struct Params {
  Index symbols = 10;
};

class CausalCopy final : public SequenceTask {
 public:
  explicit CausalCopy(const Params& params) : SequenceTask("causal_copy"), params_(params) {}

  LabelSpec labels(Index) const override {
    return {LabelKind::per_token, params_.symbols + 1, params_.symbols + 1, 1};
  }

  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    if (n < kShortest) refuse("n={}, expected at least {}", n, kShortest);
    return make_batch(first, batch, n, 1,
                      [&](Index e) { return generate(example_seed(seed, owner_, split, e), n); });
  }

  // A random symbol, and the separator at its place; of all labels, averaged over the lengths.
  std::vector<Floor> floors(Index n, Seed) const override {
    if (n < kShortest) refuse("n={}, expected at least {}", n, kShortest);
    double right = 0, labels = 0;
    for (Index m = n / 4; m < (n - 1) / 2; ++m) {
      right += 1 + static_cast<double>(m) / static_cast<double>(params_.symbols);
      labels += static_cast<double>(m + 1);
    }
    return {{"random symbol", "accuracy", right / labels}};
  }

 private:
  static constexpr Index kShortest = 8;  // one length at least: 2 <= m < 3

  Tokens sequence(Index length, Seed, Seed draw) const override {
    Tokens all = generate(draw, std::max(length, kShortest)).tokens;
    all.resize(static_cast<std::size_t>(length));
    return all;
  }

  Example generate(Seed seed, Index n) const {
    Random random(seed);
    const Index low = n / 4, high = (n - 1) / 2;
    const std::size_t m =
        static_cast<std::size_t>(low) + random.below(static_cast<std::uint64_t>(high - low));
    Example out;
    out.tokens.assign(static_cast<std::size_t>(n), 0);
    out.labels.assign(static_cast<std::size_t>(n), kIgnore);
    for (std::size_t i = 0; i < m; ++i)
      out.tokens[i] = out.tokens[m + 1 + i] =
          static_cast<std::int32_t>(1 + random.below(static_cast<std::uint64_t>(params_.symbols)));
    for (std::size_t t = m - 1; t < 2 * m; ++t) out.labels[t] = out.tokens[t + 1];
    return out;
  }

  Params params_;
};

const RegisterTask<CausalCopy, Params> kRegistration{
    {.name = "causal_copy",
     .source = "Katharopoulos et al. 2020 (Linear Transformers), arXiv 2006.16236",
     .summary = "copy a word of random symbols after a separator, as a language model",
     .labelled = true,
     .notes = {"words are n/4 to (n-1)/2 - 1 symbols long; tokens need n >= 8"}},
    {param("symbols", &Params::symbols, {1, 1 << 20}, "symbols; id 0 separates and pads")}};

}  // namespace
}  // namespace subquad
