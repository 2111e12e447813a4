// The matrix that the convolution engines multiply with, held as one kernel per run of columns.
//
// Columns [0, n) are cut into segments [s_i, s_{i+1}) with s_0 = 0 and s_count = n; inside a
// segment every column is the same profile, shifted:
//   W(t, j) = w_i(t - j) for j in segment i, and t >= j when causal.
// A profile has the lags [lowest(i), highest(i)]: from 0 (causal) or 1 - s_{i+1} to n - 1 - s_i.
// This is the segment form of a k-conv basis (arXiv 2405.05219): the generators b_i of the paper
// are differences of neighbouring profiles, and all terms here are positive.
#pragma once

#include <algorithm>
#include <span>

#include "harness/core/tensor.h"

namespace subquad {

template <class T>
class ConvKernels {
 public:
  static constexpr Index kSlack = 32;  // readable values after the last lag of every profile

  ConvKernels() = default;
  // Room for up to max_segments <= n segments in any place.
  ConvKernels(Index n, Index max_segments, bool causal)
      : n_(n),
        causal_(causal),
        starts_(max_segments + 1),
        offsets_(max_segments + 1),
        values_(capacity(n, max_segments, causal) + kSlack) {
    SUBQUAD_CHECK(n >= 1 && max_segments >= 1 && max_segments <= n, "{} segments of {} columns",
                  max_segments, n);
    starts_[1] = n;  // one segment until set_starts
    count_ = 1;
  }

  // Values that the profiles of any max_segments distinct starts may have together.
  static Index capacity(Index n, Index max_segments, bool causal) {
    return causal ? max_segments * n - max_segments * (max_segments - 1) / 2
                  : (max_segments + 1) * n - max_segments;
  }
  static double bytes(Index n, Index max_segments, bool causal) {
    return static_cast<double>(sizeof(T)) *
               static_cast<double>(capacity(n, max_segments, causal) + kSlack) +
           16.0 * static_cast<double>(max_segments + 1);
  }

  // starts: ascending, the first one 0. The values become meaningless.
  void set_starts(std::span<const Index> starts) {
    count_ = static_cast<Index>(starts.size());
    SUBQUAD_CHECK(count_ >= 1 && count_ < starts_.size() && starts[0] == 0, "{} segments", count_);
    std::copy(starts.begin(), starts.end(), starts_.data());
    starts_[count_] = n_;
    Index next = 0;
    for (Index i = 0; i < count_; ++i) {
      offsets_[i] = next - lowest(i);
      next += highest(i) - lowest(i) + 1;
    }
  }

  Index n() const { return n_; }
  bool causal() const { return causal_; }
  Index count() const { return count_; }
  Index start(Index i) const { return starts_[i]; }    // s_i; start(count) = n
  Index end(Index i) const { return starts_[i + 1]; }  // one past the segment
  std::span<const Index> starts() const {
    return {starts_.data(), static_cast<std::size_t>(count_)};
  }
  Index lowest(Index i) const { return causal_ ? 0 : 1 - starts_[i + 1]; }
  Index highest(Index i) const { return n_ - 1 - starts_[i]; }
  // profile(i)[lag] for lag in [lowest(i), highest(i)].
  T* profile(Index i) { return values_.data() + offsets_[i]; }
  const T* profile(Index i) const { return values_.data() + offsets_[i]; }

 private:
  Index n_ = 0;
  bool causal_ = true;
  Index count_ = 0;
  AlignedArray<Index> starts_;   // [count + 1]
  AlignedArray<Index> offsets_;  // [count] of lag 0
  AlignedArray<T> values_;
};

}  // namespace subquad
