// Selective copying: symbols scattered among blanks, to be written out in order at the end.
// Source: athms/mad-lab, mad/data/instances.py (selective copying); Gu and Dao 2023 (Mamba).
//
// m symbols uniform with replacement from V - 2; each of n - 2m - 1 blanks (id V - 2) goes before
// a symbol chosen uniformly, so the last symbol stands directly before the copy token (V - 1);
// then m blanks, whose labels are the symbols in order.

#include "tasks/sequences.h"

namespace subquad {
namespace {

struct Params {
  Index vocabulary = 16;
  Index symbols = 16;
};

class SelectiveCopying final : public SequenceTask {
 public:
  explicit SelectiveCopying(const Params& params)
      : SequenceTask("selective_copying"), params_(params) {}

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
    const auto blank = static_cast<std::int32_t>(params_.vocabulary - 2);
    Random random(seed);
    std::vector<std::size_t> before(m, 0);  // blanks before each symbol
    for (std::size_t i = 2 * m + 1; i < end; ++i) ++before[random.below(m)];
    Example out;
    out.labels.assign(end - m, kIgnore);
    for (std::size_t j = 0; j < m; ++j) {
      out.tokens.insert(out.tokens.end(), before[j], blank);
      out.tokens.push_back(static_cast<std::int32_t>(
          random.below(static_cast<std::uint64_t>(params_.vocabulary - 2))));
      out.labels.push_back(out.tokens.back());
    }
    out.tokens.push_back(static_cast<std::int32_t>(params_.vocabulary - 1));
    out.tokens.resize(end, blank);
    return out;
  }

  Params params_;
};

const RegisterTask<SelectiveCopying, Params> kRegistration{
    {.name = "selective_copying",
     .source =
         "Poli et al. 2024 (MAD), arXiv 2403.17844; Gu and Dao 2023 (Mamba), arXiv 2312.00752",
     .summary = "copy symbols that are scattered among blanks",
     .labelled = true,
     .notes = {"tokens need n >= 2 symbols + 1"}},
    {param("vocabulary", &Params::vocabulary, {3, 1 << 24},
           "token ids; the last two are the blank and the copy token"),
     param("symbols", &Params::symbols, {1, 1 << 20}, "symbols to copy")}};

}  // namespace
}  // namespace subquad
