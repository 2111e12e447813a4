#include "methods/engines/lsh.h"

#include <algorithm>
#include <cmath>

#include "methods/engines/chunk_product.h"
#include "methods/engines/pack.h"

namespace subquad {

using namespace engine;

void Hyperplanes::prepare(Index count, Index d, bool bias, Seed seed) {
  count_ = count;
  d_ = d;
  wide_ = round_up(d, kLanes);
  planes_ = AlignedArray<float>(count * wide_);
  offsets_ = AlignedArray<float>(count);
  const Index drawn = d + (bias ? 1 : 0);
  AlignedArray<float> normal(count * drawn);
  fill_normal(seed, normal.data(), count * drawn);
  for (Index p = 0; p < count; ++p) {
    std::copy_n(normal.data() + p * drawn, d, planes_.data() + p * wide_);
    if (bias) offsets_[p] = -normal[p * drawn + d];
  }
}

double Hyperplanes::bytes(Index count, Index d) {
  return 4.0 * static_cast<double>(count * (round_up(d, kLanes) + 1));
}

Index Hyperplanes::scratch_floats(Index count, Index d) {
  return kHashTokens * (count + 2 * round_up(d, kLanes));
}

const float* Hyperplanes::project(const float* x, Index tokens, float* scratch,
                                  float* squares) const {
  float* const projections = scratch;
  float* const rows = projections + count_ * kHashTokens;  // [kHashTokens, wide]
  float* const columns = rows + kHashTokens * wide_;       // [wide, kHashTokens]
  pack_rows(x, tokens, d_, wide_, nullptr, rows);
  std::fill(rows + tokens * wide_, rows + kHashTokens * wide_, 0.0f);
  transpose(rows, wide_, kHashTokens, wide_, columns, kHashTokens);
  product<false>(planes_.data(), wide_, 1, count_, wide_, columns, kHashTokens, kHashTokens,
                 projections, kHashTokens);
  for (Index p = 0; p < count_; ++p) {
    if (offsets_[p] == 0.0f) continue;
    for (Index t = 0; t < kHashTokens; t += kLanes)
      store(projections + p * kHashTokens + t,
            load(projections + p * kHashTokens + t) + offsets_[p]);
  }
  if (squares != nullptr)
    for (Index t = 0; t < kHashTokens; t += kLanes) {
      Vec sum{};
      for (Index c = 0; c < wide_; ++c) {
        const Vec value = load(columns + c * kHashTokens + t);
        sum += value * value;
      }
      store(squares + t, sum);
    }
  return projections;
}

void farthest_plane(const float* projections, Index planes, std::int32_t* bucket) {
  for (Index t = 0; t < kHashTokens; t += kLanes) {
    Vec best = broadcast(-1.0f);
    IntVec at{};
    for (Index p = 0; p < planes; ++p) {
      const Vec x = load(projections + p * kHashTokens + t);
      const Vec distance = max(x, -x);
      const IntVec positive = static_cast<std::int32_t>(p) - IntVec{};
      const IntVec negative = positive + static_cast<std::int32_t>(planes);
      const IntVec side = x >= 0.0f ? positive : negative;
      at = distance > best ? side : at;
      best = max(distance, best);
    }
    std::memcpy(bucket + t, &at, sizeof at);
  }
}

void side_bits(const float* projections, Index planes, std::uint64_t* bits) {
  std::fill_n(bits, kHashTokens, 0);
  for (Index p = 0; p < planes; ++p)
    for (Index t = 0; t < kHashTokens; ++t)
      bits[t] |= static_cast<std::uint64_t>(projections[p * kHashTokens + t] > 0.0f) << p;
}

namespace {

// starts[b]: how many tokens have buckets below b.
void count_buckets(const std::int32_t* bucket, Index n, Index buckets, std::int32_t* starts) {
  std::fill_n(starts, buckets + 1, 0);
  for (Index i = 0; i < n; ++i) ++starts[bucket[i] + 1];
  for (Index b = 0; b < buckets; ++b) starts[b + 1] += starts[b];
}

}  // namespace

void sort_by_bucket(const std::int32_t* bucket, Index n, Index buckets, std::int32_t* order,
                    std::int32_t* starts) {
  count_buckets(bucket, n, buckets, starts);
  for (Index i = 0; i < n; ++i) order[starts[bucket[i]]++] = static_cast<std::int32_t>(i);
  std::copy_backward(starts, starts + buckets, starts + buckets + 1);  // they stand at their ends
  starts[0] = 0;
}

void sort_into_chunks(const std::int32_t* bucket, Index n, Index buckets, Index chunk,
                      std::int32_t* order, std::int32_t* starts, std::int32_t* filled) {
  count_buckets(bucket, n, buckets, starts);
  std::fill_n(filled, (n + chunk - 1) / chunk, 0);
  const auto size = static_cast<std::uint32_t>(chunk);
  for (Index i = 0; i < n; ++i) {
    const std::uint32_t number = static_cast<std::uint32_t>(starts[bucket[i]]++) / size;
    order[static_cast<std::int32_t>(number * size) + filled[number]++] =
        static_cast<std::int32_t>(i);
  }
}

}  // namespace subquad
