#include "methods/engines/query_clusters.h"

#include <algorithm>
#include <bit>

#include "harness/core/parallel.h"

namespace subquad {

void QueryClusters::prepare(const Problem& problem, const ClusterOptions& options, Seed seed) {
  options_ = options;
  seed_ = seed;
  heads_ = problem.batch * problem.heads;
  n_ = problem.n;
  d_ = problem.d_k;
  clusters_ = clusters(problem, options);
  planes_.prepare(options.bits, d_, options.bias, derive(seed, "clusters.planes"));
  first_ = AlignedArray<std::int32_t>(heads_ * clusters_);
  for (Index h = 0; h < heads_; ++h) {
    Random random(seed, "clusters.first", {static_cast<std::uint64_t>(h)});
    const std::vector<Index> drawn = random.sample_without_replacement(n_, clusters_);
    std::transform(drawn.begin(), drawn.end(), first_.data() + h * clusters_,
                   [](Index i) { return static_cast<std::int32_t>(i); });
  }
  hashes_ = AlignedArray<std::uint64_t>(heads_ * n_);
  centres_ = AlignedArray<std::uint64_t>(heads_ * clusters_);
  ones_ = AlignedArray<std::int32_t>(heads_ * bytes_of_hash() * clusters_ * kByte);
  size_ = AlignedArray<std::int32_t>(heads_ * clusters_);
  scratch_ = {};
  grow_scratch();
}

double QueryClusters::bytes(const Problem& p, const ClusterOptions& o) {
  const Index heads = p.batch * p.heads, count = clusters(p, o);
  const Index ones = (o.bits + kByte - 1) / kByte * kByte;
  return Hyperplanes::bytes(o.bits, p.d_k) +
         static_cast<double>(heads * (8 * p.n + count * (4 + 8 + 4 * ones + 4)) +
                             4 * thread_count() * Hyperplanes::scratch_floats(o.bits, p.d_k));
}

void QueryClusters::grow_scratch() {
  const Index floats = thread_count() * Hyperplanes::scratch_floats(options_.bits, d_);
  if (scratch_.size() < floats) scratch_ = AlignedArray<float>(floats);
}

void QueryClusters::hash(const float* q) {
  const Index items = (n_ + kHashTokens - 1) / kHashTokens;
  parallel_for(heads_ * items, [&](Index item, int thread) {
    const Index h = item / items, first = item % items * kHashTokens;
    const Index tokens = std::min(kHashTokens, n_ - first);
    float* const scratch =
        scratch_.data() + thread * Hyperplanes::scratch_floats(options_.bits, d_);
    const float* const projections =
        planes_.project(q + (h * n_ + first) * d_, tokens, scratch, nullptr);
    std::uint64_t bits[kHashTokens];
    side_bits(projections, options_.bits, bits);
    std::copy_n(bits, tokens, hashes_.data() + h * n_ + first);
  });
}

// The nearest centre of every query, ties to the lower number.
void QueryClusters::assign(QueryGroups& groups) {
  const Index items = (n_ + kBlock - 1) / kBlock;
  parallel_for(heads_ * items, [&](Index item, int) {
    const Index h = item / items, first = item % items * kBlock;
    const Index count = std::min(kBlock, n_ - first);
    std::uint64_t hash[kBlock] = {};
    std::int64_t nearest[kBlock] = {}, distance[kBlock];
    std::copy_n(hashes_.data() + h * n_ + first, count, hash);
    std::fill_n(distance, kBlock, 65);
    for (Index c = 0; c < clusters_; ++c) {
      const std::uint64_t centre = centres_[h * clusters_ + c];
      for (Index i = 0; i < kBlock; ++i) {
        const std::int64_t d = std::popcount(hash[i] ^ centre);
        nearest[i] = d < distance[i] ? c : nearest[i];
        distance[i] = std::min(d, distance[i]);
      }
    }
    for (Index i = 0; i < count; ++i)
      groups.cluster[h * n_ + first + i] = static_cast<std::int32_t>(nearest[i]);
  });
}

// A bit of a centre is set where strictly more members have it than have not; an empty cluster gets
// random bits.
void QueryClusters::move_centres(const QueryGroups& groups, Index iteration) {
  const Index bytes = bytes_of_hash();
  parallel_for(heads_ * bytes, [&](Index item, int) {
    const Index h = item / bytes, byte = item % bytes;
    std::int32_t* const ones = ones_.data() + item * clusters_ * kByte;
    std::int32_t* const size = size_.data() + h * clusters_;
    std::fill_n(ones, clusters_ * kByte, 0);
    if (byte == 0) std::fill_n(size, clusters_, 0);
    for (Index i = h * n_; i < (h + 1) * n_; ++i) {
      const Index c = groups.cluster[i];
      const auto part = static_cast<std::int32_t>(hashes_[i] >> (kByte * byte) & 0xff);
      for (Index b = 0; b < kByte; ++b) ones[c * kByte + b] += part >> b & 1;
      if (byte == 0) ++size[c];
    }
  });
  parallel_for(heads_, [&](Index h, int) {
    for (Index c = 0; c < clusters_; ++c) {
      const std::int32_t size = size_[h * clusters_ + c];
      std::uint64_t centre = 0;
      for (Index bit = 0; bit < options_.bits && size > 0; ++bit) {
        const std::int32_t ones =
            ones_[((h * bytes + bit / kByte) * clusters_ + c) * kByte + bit % kByte];
        centre |= static_cast<std::uint64_t>(2 * ones > size) << bit;
      }
      if (size == 0) {
        Random random(seed_, "clusters.empty",
                      {static_cast<std::uint64_t>(h), static_cast<std::uint64_t>(iteration),
                       static_cast<std::uint64_t>(c)});
        centre = random.bits64() >> (64 - options_.bits);
      }
      centres_[h * clusters_ + c] = centre;
    }
  });
}

void QueryClusters::group(const float* q, QueryGroups& groups) {
  grow_scratch();
  if (clusters_ == n_) {
    for (Index i = 0; i < heads_ * n_; ++i) groups.cluster[i] = static_cast<std::int32_t>(i % n_);
  } else {
    hash(q);
    for (Index h = 0; h < heads_; ++h)
      for (Index c = h * clusters_; c < (h + 1) * clusters_; ++c)
        centres_[c] = hashes_[h * n_ + first_[c]];
    for (Index iteration = 0; iteration < options_.iterations; ++iteration) {
      if (iteration > 0) move_centres(groups, iteration);
      assign(groups);
    }
  }
  parallel_for(heads_, [&](Index h, int) {
    sort_by_bucket(groups.cluster.data() + h * n_, n_, clusters_, groups.order.data() + h * n_,
                   groups.start.data() + h * (clusters_ + 1));
  });
}

}  // namespace subquad
