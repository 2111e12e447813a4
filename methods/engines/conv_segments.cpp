#include "methods/engines/conv_segments.h"

#include <algorithm>
#include <array>

namespace subquad {
namespace {

constexpr Index kSamples = 256;  // neighbouring columns that an automatic threshold looks at

// Distances below the diagonal that band_merge compares. Our choice: dense near the diagonal, where
// most weight lies, sparse out to 128.
constexpr std::array<Index, 15> kLags{0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128};
constexpr Index kLagCount = static_cast<Index>(kLags.size());

Index limited(Index n, const SegmentRule& rule) { return std::min(n, rule.k); }

}  // namespace

Segmentation segmentation_from_name(const std::string& name) {
  if (name == "recover") return Segmentation::recover;
  if (name == "scan_causal") return Segmentation::scan_causal;
  if (name == "fixed") return Segmentation::fixed;
  if (name == "first_k") return Segmentation::first_k;
  if (name == "uniform") return Segmentation::uniform;
  if (name == "band_merge") return Segmentation::band_merge;
  throw InternalError("no segmentation " + name);
}

std::vector<Index> SegmentFinder::known(Index n, const SegmentRule& rule) {
  const Index k = limited(n, rule);
  std::vector<Index> starts;
  switch (rule.kind) {
    case Segmentation::fixed:
      for (const Index start : rule.fixed)
        if (start < n) starts.push_back(start);
      break;
    case Segmentation::first_k:
      for (Index i = 0; i < k; ++i) starts.push_back(i);
      break;
    case Segmentation::uniform:
      for (Index i = 0; i < k; ++i) starts.push_back(i * n / k);
      break;
    default:
      if (k == 1) starts.push_back(0);
  }
  return starts;
}

SegmentFinder::SegmentFinder(Index n, Index d_k, const SegmentRule& rule)
    : n_(n), d_k_(d_k), rule_(rule), starts_(known(n, rule)) {
  if (!starts_.empty()) return;
  starts_.resize(static_cast<std::size_t>(limited(n, rule)));
  if (rule.kind == Segmentation::band_merge) {
    work_ = AlignedArray<double>(n * kLagCount);
    links_ = AlignedArray<Index>(3 * n);
    heap_.reserve(static_cast<std::size_t>(3 * n));
  } else {
    work_ = AlignedArray<double>(3 * std::min(n, rule.probe) + kSamples);
  }
}

double SegmentFinder::bytes(Index n, const SegmentRule& rule) {
  const std::vector<Index> starts = known(n, rule);
  if (!starts.empty()) return 8.0 * static_cast<double>(starts.size());
  const double list = 8.0 * static_cast<double>(limited(n, rule));
  if (rule.kind == Segmentation::band_merge)
    return list + static_cast<double>(n) *
                      (8.0 * kLagCount + 24.0 + 3.0 * static_cast<double>(sizeof(Candidate)));
  return list + 8.0 * static_cast<double>(3 * std::min(n, rule.probe) + kSamples);
}

double SegmentFinder::logit(Index t, Index j) const {
  const Eigen::Map<const Eigen::VectorXf> q(q_ + t * d_k_, d_k_), k(k_ + j * d_k_, d_k_);
  return scale_ * q.cast<double>().dot(k.cast<double>());
}

std::span<const Index> SegmentFinder::find(const float* q, const float* k, double scale) {
  q_ = q, k_ = k, scale_ = scale;
  probed_ = 0;
  if (work_.size() == 0) return starts_;
  Index count = 1;
  if (rule_.kind == Segmentation::recover) {
    const Index probe = std::min(n_, rule_.probe);
    const double delta = rule_.delta > 0 ? rule_.delta : automatic_delta(probe);
    threshold_ = delta - 2 * static_cast<double>(probe) * rule_.eps;
    count = recover_starts(
        n_, limited(n_, rule_), probe, threshold_,
        [&](Index t, Index j) {
          ++probed_;
          return logit(t, j);
        },
        work_.data(), starts_.data());
  } else if (rule_.kind == Segmentation::scan_causal) {
    count = scan();
  } else {
    count = merge();
  }
  return {starts_.data(), static_cast<std::size_t>(count)};
}

// Twice the 0.9-quantile of the distance of neighbouring columns' first T logits, at evenly spaced
// places. Our choice: most neighbours belong to one segment, so that this is what noise does;
// twice, because one column of a segment in ten would otherwise pass for a start.
double SegmentFinder::automatic_delta(Index probe) {
  const Index places = std::min(kSamples, n_ - probe);
  if (places <= 0) return 0;
  double* distance = work_.data() + 3 * probe;
  for (Index s = 0; s < places; ++s) {
    const Index j = 1 + s * (n_ - probe) / places;
    distance[s] = 0;
    for (Index l = 0; l < probe; ++l)
      distance[s] += std::fabs(logit(j + l, j) - logit(j - 1 + l, j - 1));
    if (!(distance[s] == distance[s])) distance[s] = 0;
  }
  const auto rank = static_cast<Index>(rule_.quantile * static_cast<double>(places - 1));
  std::nth_element(distance, distance + rank, distance + places);
  return 2 * distance[rank];
}

// Our choice: without a delta, a diagonal logit that differs by 1 starts a segment.
Index SegmentFinder::scan() {
  threshold_ = (rule_.delta > 0 ? rule_.delta : 1) - 2 * rule_.eps;
  const Index k = limited(n_, rule_);
  Index count = 1;
  starts_[0] = 0;
  double current = logit(0, 0);
  for (Index j = 1; j < n_ && count < k; ++j) {
    const double here = logit(j, j);
    ++probed_;
    if (std::fabs(here - current) < threshold_) continue;
    starts_[static_cast<std::size_t>(count++)] = j;
    current = here;
  }
  return count;
}

// Ward's criterion: merging a and b raises the sum of squares within segments by
//   sum over lags of n_a n_b / (n_a + n_b) (mean_a - mean_b)^2,
// where n counts the columns that have the lag. O(n lags d_k + n lags log n).
Index SegmentFinder::merge() {
  double* sums = work_.data();  // [n, lags] of the segment that starts here
  Index *const next = links_.data(), *const previous = next + n_, *const stamp = next + 2 * n_;
  const Index k = limited(n_, rule_);
  for (Index j = 0; j < n_; ++j) {
    for (Index l = 0; l < kLagCount; ++l) {
      const Index lag = kLags[static_cast<std::size_t>(l)];
      sums[j * kLagCount + l] = j + lag < n_ ? logit(j + lag, j) : 0;
    }
    next[j] = j + 1, previous[j] = j - 1, stamp[j] = 0;
  }
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.cost != b.cost ? a.cost > b.cost : a.left > b.left;
  };
  const auto propose = [&](Index left, Index right) {
    double cost = 0;
    for (Index l = 0; l < kLagCount; ++l) {
      const Index bound = n_ - kLags[static_cast<std::size_t>(l)];
      const auto a = static_cast<double>(std::min(right, bound) - std::min(left, bound));
      const auto b = static_cast<double>(std::min(next[right], bound) - std::min(right, bound));
      if (a == 0 || b == 0) continue;
      const double gap = sums[left * kLagCount + l] / a - sums[right * kLagCount + l] / b;
      cost += a * b / (a + b) * gap * gap;
    }
    heap_.push_back({cost == cost ? cost : 1e300, left, right, stamp[left] + stamp[right]});
    std::push_heap(heap_.begin(), heap_.end(), later);
  };
  heap_.clear();
  for (Index j = 0; j + 1 < n_; ++j) propose(j, j + 1);
  for (Index count = n_; count > k;) {
    const Candidate best = heap_.front();
    std::pop_heap(heap_.begin(), heap_.end(), later);
    heap_.pop_back();
    const auto [cost, left, right, stamps] = best;
    if (stamp[left] < 0 || stamp[right] < 0 || next[left] != right ||
        stamps != stamp[left] + stamp[right])
      continue;
    for (Index l = 0; l < kLagCount; ++l) sums[left * kLagCount + l] += sums[right * kLagCount + l];
    next[left] = next[right];
    if (next[left] < n_) previous[next[left]] = left;
    stamp[right] = -1;
    ++stamp[left];
    --count;
    if (previous[left] >= 0) propose(previous[left], left);
    if (next[left] < n_) propose(left, next[left]);
  }
  Index count = 0;
  for (Index j = 0; j < n_; j = next[j]) starts_[static_cast<std::size_t>(count++)] = j;
  return count;
}

}  // namespace subquad
