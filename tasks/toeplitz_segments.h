// Where the keys of the task `toeplitz` change from one profile to the next. Apart from the task so
// that tests know the true starts.
//
// For task sources and tests, with internal linkage: see common.h.
#pragma once

#include "tasks/common.h"

namespace subquad {
namespace {

// Ascending starts in [0, n_kv), the first one 0; `segments` of them, or fewer where n_kv is short.
//   random: drawn without replacement     even: floor(i n_kv / segments)
//   edges:  even, but for the second at 1 and the last at n_kv - 1 (runs of one key)
[[maybe_unused]] std::vector<Index> toeplitz_starts(const std::string& layout, Index segments,
                                                    Index n_kv, Seed seed, Index set, Index b,
                                                    Index h) {
  const Index k = std::min(segments, n_kv);
  std::vector<Index> starts{0};
  if (layout == "random") {
    Random random = head_random(seed, "toeplitz.starts", set, b, h);
    for (const Index start : random.sample_without_replacement(n_kv - 1, k - 1))
      starts.push_back(start + 1);
  } else {
    for (Index i = 1; i < k; ++i) starts.push_back(i * n_kv / k);
    if (layout == "edges" && k > 1) {
      if (k > 2) starts[1] = 1;
      starts.back() = n_kv - 1;
    }
  }
  std::sort(starts.begin(), starts.end());
  starts.erase(std::unique(starts.begin(), starts.end()), starts.end());
  return starts;
}

}  // namespace
}  // namespace subquad
