// Softmax attention of a tile of queries over a list of keys that they share, all of them picked by
// index: chunks of hashed tokens, clusters with their best keys, blocks found by a search. The row
// log-sum-exp is kept, so parts over several lists can be merged; backward recomputes the weights
// from it. Rows are copied together once per list and then multiplied as dense tiles.
//
// Work space of one thread and one list at a time:
//   load_keys, then for every tile of queries attend (or differentiate); then read dk and dv.
#pragma once

#include <cstdint>

#include "methods/engines/score_tile.h"

namespace subquad {

// One head. Rows of k may have a factor of their own (keys divided by their length), which counts
// as part of the key.
struct GatheredHead {
  const float* q = nullptr;           // [*, d_k]
  const float* k = nullptr;           // [*, d_k]
  const float* v = nullptr;           // [*, d_v]
  const float* key_factor = nullptr;  // of every row of k, or null: 1
  float scale = 1;                    // on the logits
};

// Queries that share the loaded keys. A query sees the first visible[r] of them, never fewer than
// the query before it; in order of position that is the causal mask. What it must not see is never
// read for it, not even to be multiplied by zero.
struct GatheredTile {
  const std::int32_t* query = nullptr;    // [rows] rows of q
  Index rows = 0;                         // at most kGatheredRows
  const std::int32_t* visible = nullptr;  // [rows], or null: every key
  const std::int32_t* hidden = nullptr;   // [rows] one key that is left out, or -1; may be null
};

// Asks for rows index[0 .. count) of x [*, d] ahead of need: nothing else can know where they lie.
inline void request_rows(const float* x, Index d, const std::int32_t* index, Index count) {
  constexpr Index kLine = 16;  // floats
  for (Index r = 0; r < count; ++r)
    for (Index c = 0; c < d; c += kLine)
      __builtin_prefetch(x + static_cast<Index>(index[r]) * d + c);
}

inline constexpr Index kGatheredRows = 64;  // scores of a tile stay in L2 up to 2,000 keys

class GatheredAttention {
 public:
  // `rows` and `keys`: the largest tile and list. `memory`: floats(...) of them, aligned.
  GatheredAttention(Index rows, Index keys, Index d_k, Index d_v, bool gradients, float* memory);
  static Index floats(Index rows, Index keys, Index d_k, Index d_v, bool gradients);

  // Copies the keys and values; with gradients clears dk and dv.
  void load_keys(const GatheredHead& head, const std::int32_t* index, Index count);

  // out(r) and lse(r) of every query of the tile; -infinity and zeros where none is seen.
  void attend(const GatheredHead& head, const GatheredTile& tile);
  const float* out(Index r) const { return out_ + r * wide_v_; }  // [d_v]
  float lse(Index r) const { return lse_[r]; }                    // natural, of the scaled logits

  // Gradients that pass through the tile: dq(r) is overwritten, dk(j) and dv(j) are added up.
  // Arrays of the whole head: dout [*, d_v] counts `factor` times; lse and delta by query. The
  // weights are exp(logit - lse). delta is sum_j weight_ij (dout_i . v_j) over all that the query
  // meets; null: over this list alone.
  void differentiate(const GatheredHead& head, const GatheredTile& tile, const float* dout,
                     float factor, const float* lse, const float* delta);
  const float* dq(Index r) const { return dq_ + r * wide_k_; }     // [d_k]
  const float* dk(Index j) const { return dk_ + j * wide_k_; }     // [d_k], of k times its factor
  const float* dv(Index j) const { return dv_ + j * wide_v_; }     // [d_v]
  const float* key(Index j) const { return keys_ + j * wide_k_; }  // [d_k], times its factor

 private:
  Index seen(const GatheredTile& tile, Index r) const;
  void score(const GatheredHead& head, const GatheredTile& tile);

  Index d_k_, d_v_, wide_k_, wide_v_;
  Index room_;       // keys, rounded up to whole vectors
  Index count_ = 0;  // keys that are loaded
  Index ld_ = 0;     // the same in whole vectors
  bool gradients_;
  float* queries_;     // [rows, wide_k], times scale * log2(e)
  float* keys_;        // [keys, wide_k]
  float* key_cols_;    // [wide_k, ld]
  float* values_;      // [keys, wide_v]
  float* value_cols_;  // [wide_v, ld]; gradients
  float* scores_;      // [rows, ld]
  float* dscores_;     // [rows, ld]; gradients
  float* out_;         // [rows, wide_v]; with gradients dout
  float* dq_;          // [rows, wide_k]; gradients, as below
  float* dk_;          // [keys, wide_k]
  float* dv_;          // [keys, wide_v]
  float lse_[kGatheredRows];
  float sum_[kGatheredRows];
};

}  // namespace subquad
