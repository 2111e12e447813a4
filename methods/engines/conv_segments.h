// Where the columns of a causal logit matrix stop being shifted copies of their left neighbour: the
// starts of a k-conv basis (arXiv 2405.05219).
//
//   recover      the paper's binary search over probes of T logits (algorithm "Recover")
//   scan_causal  left to right by the diagonal entry alone: depends on no later token
//   fixed        given starts
//   first_k      0 .. k-1, what the authors' code does at its own settings (T = 1, delta = 1e-9)
//   uniform      floor(i n / k): a control
//   band_merge   bottom-up merging of neighbouring columns whose band of logits differs least
// scan_causal, uniform and band_merge are ours.
#pragma once

#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "harness/core/tensor.h"

namespace subquad {

enum class Segmentation { recover, scan_causal, fixed, first_k, uniform, band_merge };
Segmentation segmentation_from_name(const std::string& name);

// Recover. logit(t, j) for t >= j; `probe` = T <= n; threshold = delta - 2 T eps. Writes ascending
// starts, the first one 0, and returns how many (at most k); `work` is space for 3 T
// doubles. Asks for at most T (1 + (k - 1) ceil(log2 n) + 1) logits.
// Our choices: column 0 is a start without a test (the exponential of the paper's form needs it), a
// probe takes T logits instead of a whole column, and the search stops where the last candidate
// does not differ either (the paper would return it as a start).
template <class Logit>
Index recover_starts(Index n, Index k, Index probe, double threshold, Logit&& logit, double* work,
                     Index* starts) {
  double *const first = work, *const next = work + probe, *const candidate = work + 2 * probe;
  for (Index l = 0; l < probe; ++l) first[l] = logit(l, 0);
  starts[0] = 0;
  Index count = 1;
  const auto differs = [&](Index j, double* column) {
    double distance = 0;
    for (Index l = 0; l < probe; ++l) {
      column[l] = logit(j + l, j);
      distance += std::fabs(column[l] - first[l]);
    }
    return !(distance < threshold);  // a NaN differs
  };
  while (count < k) {
    Index low = starts[count - 1] + 1, high = n - probe;
    if (low > high) break;
    bool found = false;  // `high` is known to differ, and its logits are in `next`
    while (low < high) {
      const Index middle = (low + high) / 2;
      if (differs(middle, candidate)) {
        high = middle;
        found = true;
        std::copy_n(candidate, probe, next);
      } else {
        low = middle + 1;
      }
    }
    if (!found && !differs(high, next)) break;
    std::copy_n(next, probe, first);
    starts[count++] = high;
  }
  return count;
}

struct SegmentRule {
  Segmentation kind = Segmentation::recover;
  Index k = 16;      // segments at most
  Index probe = 16;  // T
  double delta = 0;  // 0: chosen from the data
  double eps = 0;    // noise of an entry
  double quantile = 0.9;
  std::vector<Index> fixed = {};
};

// Finds the starts of one head. Allocates in the constructor only.
class SegmentFinder {
 public:
  SegmentFinder() = default;
  SegmentFinder(Index n, Index d_k, const SegmentRule& rule);
  static double bytes(Index n, const SegmentRule& rule);

  // The starts if they do not depend on the data, else empty.
  static std::vector<Index> known(Index n, const SegmentRule& rule);
  // q, k [n, d_k]; valid until the next call.
  std::span<const Index> find(const float* q, const float* k, double scale);

  Index probed_logits() const { return probed_; }  // of the last search (recover, scan_causal)
  double threshold() const { return threshold_; }  // of the last search

 private:
  double logit(Index t, Index j) const;
  double automatic_delta(Index probe);
  Index scan();
  Index merge();

  Index n_ = 0, d_k_ = 0;
  SegmentRule rule_;
  const float* q_ = nullptr;
  const float* k_ = nullptr;
  double scale_ = 1, threshold_ = 0;
  Index probed_ = 0;
  std::vector<Index> starts_;  // [k]
  AlignedArray<double> work_;  // probes and samples, or the band [n, lags]
  AlignedArray<Index> links_;  // band_merge: next and previous segment, stamps [3, n]
  struct Candidate {
    double cost;
    Index left, right, stamp;
  };
  std::vector<Candidate> heap_;
};

}  // namespace subquad
