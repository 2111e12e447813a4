// Factorised block-sparse attention: a local part and a summary part in one softmax.
// Source: Sparse Transformers (Child, Gray, Radford, Sutskever 2019, arXiv 1904.10509), section 4,
// in blocks. With blocks numbered x (queries) and y (keys) and stride s blocks, causal:
//   strided: x - s < y <= x  or  (x - y) mod s = 0
//   fixed:   floor(y / s) = floor(x / s)  or  y mod s >= s - c
// and of these, the keys that are not after the query. Bidirectional: |x - y| < s in the first.
// The paper splits the two parts over heads or layers or merges them; ours merges (its third way).

#include "harness/core/registry.h"
#include "methods/engines/pattern_method.h"

namespace subquad {
namespace {

struct Params {
  std::string pattern = "strided";
  Index block = 64;
  Index stride = 8;
  Index summary = 1;
};

class BlockSparse final : public PatternMethod {
 public:
  explicit BlockSparse(const Params& params) : params_(params) {}

  std::string unsupported(const Problem&, Pass) const override {
    if (params_.summary > params_.stride)
      return fmt::format("summary={} is more than stride={}", params_.summary, params_.stride);
    return "";
  }

  Pattern pattern(const Problem& p, Seed) const override {
    const Index b = params_.block, far = 2 * p.n;
    Pattern pattern;
    pattern.query_block = b;
    pattern.blocks = (p.n + b - 1) / b;
    for (Index x = 0; x < pattern.blocks; ++x) {
      pattern.starts.push_back(static_cast<Index>(pattern.listed.size()));
      const Index end = p.causal ? x + 1 : pattern.blocks;
      for (Index y = 0; y < end; ++y) {  // runs of neighbours become one stripe
        if (!sees(x, y)) continue;
        const Index first = y;
        while (y < end && sees(x, y)) ++y;
        pattern.listed.push_back({x * b, std::min(p.n, (x + 1) * b), first * b,
                                  std::min(p.n, y * b), -far, p.causal ? 1 : far});
      }
    }
    pattern.starts.push_back(static_cast<Index>(pattern.listed.size()));
    pattern.listed.shrink_to_fit();
    pattern.starts.shrink_to_fit();
    return pattern;
  }

  Budget budget(const Problem& p) const override {
    Index most = 0;
    const Index blocks = (p.n + params_.block - 1) / params_.block;
    for (Index x = std::max<Index>(0, blocks - params_.stride - 1); x < blocks; ++x) {
      Index count = 0;
      for (Index y = 0; y < (p.causal ? x + 1 : blocks); ++y) count += sees(x, y);
      most = std::max(most, count);
    }
    return {.keys_per_query = static_cast<double>(std::min(most * params_.block, p.n_kv))};
  }

 private:
  bool sees(Index x, Index y) const {
    const Index s = params_.stride;
    if (params_.pattern == "strided") return std::abs(x - y) < s || (x - y) % s == 0;
    return y / s == x / s || y % s >= s - params_.summary;
  }

  Params params_;
};

const RegisterMethod<BlockSparse, Params> kRegistration{
    {.name = "block_sparse",
     .family = "sparse_fixed",
     .source = "Sparse Transformers, arXiv 1904.10509",
     .summary = "exact softmax attention over strided or fixed blocks",
     .causality = Causality::strict,
     .key_padding = true,
     .passes = {Pass::forward, Pass::backward},
     .exact_limit =
         [](const Problem&) {
           return Settings{{"stride", Index{1}}};
         },
     .notes =
         {"with stride = sqrt(n / block) blocks the cost grows as n^1.5; at a fixed stride it is a "
          "constant fraction of dense"}},
    {choice("pattern", &Params::pattern, {"strided", "fixed"}, "which blocks carry the far past"),
     param("block", &Params::block, {1, 1 << 20}, "queries and keys of a block"),
     param("stride", &Params::stride, {1, 1 << 20},
           "blocks of the local part, and between far ones"),
     param("summary", &Params::summary, {1, 1 << 20},
           "last blocks of a stride that all later ones see (fixed)")}};

}  // namespace
}  // namespace subquad
