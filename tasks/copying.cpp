// Copying: a few symbols, a long gap, then the symbols in order.
// Source: athms/mad-lab, mad/data/instances.py (copying).
//
// m symbols uniform with replacement from V - 2, then n - 2m - 1 blanks (id V - 2), the copy token
// (V - 1) and m blanks; the labels of the last m positions are the symbols in order.

#include "tasks/sequences.h"

namespace subquad {
namespace {

struct Params {
  Index vocabulary = 16;
  Index symbols = 16;
};

class Copying final : public SequenceTask {
 public:
  explicit Copying(const Params& params) : SequenceTask("copying"), params_(params) {}

  LabelSpec labels(Index) const override {
    return {LabelKind::per_token, params_.vocabulary, params_.vocabulary, 1};
  }

  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    if (n < shortest()) refuse("{} symbols need n >= {}, got n={}", params_.symbols, shortest(), n);
    return make_batch(first, batch, n, 1,
                      [&](Index e) { return generate(example_seed(seed, owner_, split, e), n); });
  }

  std::vector<Floor> floors(Index, Seed) const override {
    return {{"random symbol", "accuracy", 1.0 / static_cast<double>(params_.vocabulary - 2)}};
  }

 private:
  Index shortest() const { return 2 * params_.symbols + 1; }

  Tokens sequence(Index length, Seed, Seed draw) const override {
    Tokens all = generate(draw, std::max(length, shortest())).tokens;
    all.resize(static_cast<std::size_t>(length));
    return all;
  }

  Example generate(Seed seed, Index n) const {
    const auto m = static_cast<std::size_t>(params_.symbols), end = static_cast<std::size_t>(n);
    Example out;
    out.tokens.assign(end, static_cast<std::int32_t>(params_.vocabulary - 2));
    out.labels.assign(end, kIgnore);
    out.tokens[end - m - 1] = static_cast<std::int32_t>(params_.vocabulary - 1);
    Random random(seed);
    for (std::size_t j = 0; j < m; ++j)
      out.tokens[j] = out.labels[end - m + j] = static_cast<std::int32_t>(
          random.below(static_cast<std::uint64_t>(params_.vocabulary - 2)));
    return out;
  }

  Params params_;
};

const RegisterTask<Copying, Params> kRegistration{
    {.name = "copying",
     .source = "Poli et al. 2024 (MAD), arXiv 2403.17844",
     .summary = "copy the first symbols after a long gap",
     .labelled = true,
     .notes = {"tokens need n >= 2 symbols + 1"}},
    {param("vocabulary", &Params::vocabulary, {3, 1 << 24},
           "token ids; the last two are the blank and the copy token"),
     param("symbols", &Params::symbols, {1, 1 << 20}, "symbols to copy")}};

}  // namespace
}  // namespace subquad
