// Locality-sensitive hashing by random hyperplanes, and sorting by bucket: what Reformer and
// clustered attention share.
#pragma once

#include <cstdint>

#include "harness/core/random.h"
#include "harness/core/tensor.h"
#include "methods/engines/score_tile.h"

namespace subquad {

// Tokens that are projected together.
inline constexpr Index kHashTokens = engine::kPanel;

// Random planes through the origin, or beside it when tokens count as [x, 1].
class Hyperplanes {
 public:
  // planes [count, d (+ 1 with bias)], standard normal from the stream of `seed`.
  void prepare(Index count, Index d, bool bias, Seed seed);
  Index count() const { return count_; }
  static double bytes(Index count, Index d);

  // Work space of one thread.
  static Index scratch_floats(Index count, Index d);
  // Distances of up to kHashTokens tokens x [tokens, d] from every plane -> scratch [count,
  // kHashTokens], where columns beyond `tokens` are those of x = 0. Squared lengths of the tokens
  // -> squares [kHashTokens] unless null. Time O(tokens count d).
  const float* project(const float* x, Index tokens, float* scratch, float* squares) const;

 private:
  Index count_ = 0, d_ = 0, wide_ = 0;
  AlignedArray<float> planes_;   // [count, wide], zero beyond d
  AlignedArray<float> offsets_;  // [count], 0 without bias
};

// Cross-polytope-like hash of each column of projections [planes, kHashTokens]: p where plane p is
// the farthest and lies on the positive side, planes + p on the negative one: the place of the
// maximum of [x P^T, -x P^T]. Ties go to the lower plane, then to the positive side.
void farthest_plane(const float* projections, Index planes, std::int32_t* bucket);

// One bit per plane, set on the positive side; planes <= 64.
void side_bits(const float* projections, Index planes, std::uint64_t* bits);

// order [n]: token numbers sorted by (bucket, number). starts [buckets + 1]: the place of each
// bucket's first token, and n.
void sort_by_bucket(const std::int32_t* bucket, Index n, Index buckets, std::int32_t* order,
                    std::int32_t* starts);

// The same order cut into chunks, with the tokens of a chunk in ascending order: order [n], work
// space starts [buckets + 1] and filled [chunks]. Branches on nothing that depends on the data.
void sort_into_chunks(const std::int32_t* bucket, Index n, Index buckets, Index chunk,
                      std::int32_t* order, std::int32_t* starts, std::int32_t* filled);

}  // namespace subquad
