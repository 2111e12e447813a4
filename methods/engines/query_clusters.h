// Queries grouped by their hashes: sign bits against random planes, then Lloyd's algorithm in
// Hamming space. Source: Vyas et al. 2020 (arXiv 2007.04825), with the rules of its authors' code.
#pragma once

#include <cstdint>

#include "harness/core/problem.h"
#include "methods/engines/lsh.h"

namespace subquad {

struct ClusterOptions {
  Index clusters = 100;
  Index bits = 63;
  Index iterations = 10;
  bool bias = true;  // planes need not pass through the origin
};

// A grouping of the queries of every head.
struct QueryGroups {
  QueryGroups() = default;
  QueryGroups(Index heads, Index n, Index clusters)
      : cluster(heads * n), order(heads * n), start(heads * (clusters + 1)) {}
  static double bytes(Index heads, Index n, Index clusters) {
    return 4.0 * static_cast<double>(heads * (2 * n + clusters + 1));
  }
  AlignedArray<std::int32_t> cluster;  // [heads, n]
  AlignedArray<std::int32_t> order;    // [heads, n] queries by cluster, ascending inside
  AlignedArray<std::int32_t> start;    // [heads, clusters + 1] places of each cluster in order
};

class QueryClusters {
 public:
  // Draws planes (common to all heads) and the queries whose hashes are the first centres.
  void prepare(const Problem& problem, const ClusterOptions& options, Seed seed);
  // Never more than queries.
  static Index clusters(const Problem& p, const ClusterOptions& o) {
    return std::min(o.clusters, p.n);
  }
  static double bytes(const Problem& problem, const ClusterOptions& options);

  // q [heads, n, d_k]. With as many clusters as queries each query is one by itself. Time
  // O(n bits (d_k + iterations) + n clusters iterations).
  void group(const float* q, QueryGroups& groups);

 private:
  static constexpr Index kByte = 8;    // bits that one work item counts
  static constexpr Index kBlock = 64;  // queries that are compared with a centre together

  void hash(const float* q);
  void assign(QueryGroups& groups);
  void move_centres(const QueryGroups& groups, Index iteration);
  void grow_scratch();
  Index bytes_of_hash() const { return (options_.bits + kByte - 1) / kByte; }

  ClusterOptions options_;
  Seed seed_ = 0;
  Index heads_ = 0, n_ = 0, d_ = 0, clusters_ = 0;
  Hyperplanes planes_;                   // [bits, d_k]
  AlignedArray<std::int32_t> first_;     // [heads, clusters] queries
  AlignedArray<std::uint64_t> hashes_;   // [heads, n]
  AlignedArray<std::uint64_t> centres_;  // [heads, clusters]
  AlignedArray<std::int32_t> ones_;      // [heads, bytes of a hash, clusters, kByte]
  AlignedArray<std::int32_t> size_;      // [heads, clusters] members
  AlignedArray<float> scratch_;          // [threads, scratch_floats of planes_]
};

}  // namespace subquad
