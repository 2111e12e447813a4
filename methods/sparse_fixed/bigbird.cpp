// Block-sparse attention: a window of three blocks, the first and last block for all, and random
// blocks.
// Source: BigBird (Zaheer et al. 2020, arXiv 2007.14062), its block form. With n_b = ceil(n / b)
// blocks, queries of block x see the key blocks
//   x in {0, n_b - 1}: all;        else: {0, x - 1, x, x + 1, n_b - 1} and R_x,
// R_x: r distinct other blocks drawn once per head. Blocks are counted once.
// Our choice: R_x is drawn from every legal block (`plan: all`); the published code draws from the
// first 1024 tokens when n is in 1024 .. 4096, and else from the first 2 r + 5 blocks
// (`plan: paper`). The last block may be short; with too few blocks all legal ones are taken.

#include "harness/core/registry.h"
#include "methods/engines/pattern_method.h"

namespace subquad {
namespace {

struct Params {
  Index block = 64;
  Index random_blocks = 3;
  std::string plan = "all";
};

class BigBird final : public PatternMethod {
 public:
  explicit BigBird(const Params& params) : params_(params) {}

  Pattern pattern(const Problem& p, Seed seed) const override {
    const Index b = params_.block, far = 2 * p.n;
    Pattern pattern;
    pattern.query_block = b;
    pattern.blocks = (p.n + b - 1) / b;
    pattern.listed_heads = params_.random_blocks > 0 ? p.heads : 1;
    for (Index h = 0; h < pattern.listed_heads; ++h)
      for (Index x = 0; x < pattern.blocks; ++x) {
        pattern.starts.push_back(static_cast<Index>(pattern.listed.size()));
        const std::vector<char> sees = seen_blocks(p.n, x, h, seed);
        for (Index y = 0; y < pattern.blocks; ++y) {  // runs of neighbours become one stripe
          if (!sees[static_cast<std::size_t>(y)]) continue;
          const Index first = y;
          while (y < pattern.blocks && sees[static_cast<std::size_t>(y)]) ++y;
          pattern.listed.push_back(
              {x * b, std::min(p.n, (x + 1) * b), first * b, std::min(p.n, y * b), -far, far});
        }
      }
    pattern.starts.push_back(static_cast<Index>(pattern.listed.size()));
    pattern.listed.shrink_to_fit();
    pattern.starts.shrink_to_fit();
    return pattern;
  }

  Budget budget(const Problem& p) const override {
    const Index keys = (5 + params_.random_blocks) * params_.block;
    return {.keys_per_query = static_cast<double>(std::min(keys, p.n_kv))};
  }

 private:
  // [blocks]: which key blocks the queries of block x of head h see.
  std::vector<char> seen_blocks(Index n, Index x, Index h, Seed seed) const {
    const Index blocks = (n + params_.block - 1) / params_.block;
    std::vector<char> sees(static_cast<std::size_t>(blocks), x == 0 || x == blocks - 1);
    if (sees[0]) return sees;
    for (const Index y : {Index{0}, x - 1, x, x + 1, blocks - 1})
      sees[static_cast<std::size_t>(y)] = 1;
    Index candidates = blocks;
    if (params_.plan == "paper")
      candidates = n >= 1024 && n <= 4096 ? std::min(blocks, 1024 / params_.block)
                                          : std::min(blocks, 2 * params_.random_blocks + 5);
    std::vector<Index> legal;
    for (Index y = 0; y < candidates; ++y) {
      const bool twins = (x == 1 && y == blocks - 2) || (x == blocks - 2 && y == 1);
      if (!sees[static_cast<std::size_t>(y)] && !twins) legal.push_back(y);
    }
    const auto count = static_cast<Index>(legal.size());
    Random random(seed, "bigbird", {static_cast<std::uint64_t>(h), static_cast<std::uint64_t>(x)});
    for (const Index pick :
         random.sample_without_replacement(count, std::min(params_.random_blocks, count)))
      sees[static_cast<std::size_t>(legal[static_cast<std::size_t>(pick)])] = 1;
    return sees;
  }

  Params params_;
};

const RegisterMethod<BigBird, Params> kRegistration{
    {.name = "bigbird",
     .family = "sparse_fixed",
     .source = "BigBird, arXiv 2007.14062",
     .summary = "exact softmax attention over window, global and random blocks",
     .key_padding = true,
     .passes = {Pass::forward, Pass::backward},
     .random = true,
     .exact_limit =
         [](const Problem& p) {
           return Settings{{"block", p.n_kv}};
         },
     .time_exponent = 1,
     .memory_exponent = 1,
     .notes =
         {"the block form has no causal version",
          "the budget is that of a query outside the first and last block, which see every key",
          "touches (5 + random_blocks) block keys: no gain below that length"}},
    {param("block", &Params::block, {1, 1 << 24}, "queries and keys of a block"),
     param("random_blocks", &Params::random_blocks, {0, 1 << 16},
           "random key blocks of a query block"),
     choice("plan", &Params::plan, {"all", "paper"}, "where random blocks are drawn from")}};

}  // namespace
}  // namespace subquad
