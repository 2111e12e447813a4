// Queries and keys as points of [-1, 1]^d_key: what ZETA searches and measures distances in.
//   t = bound(gain W x),  W [d_key, d] with independent N(0, 1 / d) entries; W = 1 where d = d_key
// A seeded projection keeps distances in the mean (Johnson-Lindenstrauss) and is not trained. All
// of it is in double: a code must not depend on the order of a sum.
#pragma once

#include "harness/core/random.h"
#include "harness/core/tensor.h"

namespace subquad {

struct ZetaPointOptions {
  Index d_key = 3;
  int bits = 10;       // per coordinate of a Morton code
  bool clamp = false;  // bound by clamping instead of tanh
  double gain = 1;
};

class ZetaPoints {
 public:
  void prepare(const ZetaPointOptions& options, Index d, Seed seed);
  static double bytes(const ZetaPointOptions& options, Index d);

  // Floats of one row of points: d_key rounded up, zeros behind.
  static Index width(Index d_key) { return (d_key + 3) / 4 * 4; }

  // x [count, d] -> points [count, width], and codes [count] unless null. O(count d d_key).
  void map(const float* x, Index count, float* points, std::uint64_t* codes) const;

  // Gradient through map: dpoints [count, width] -> dx [count, d]; points are those of map.
  void pull_back(const float* points, const float* dpoints, Index count, float* dx) const;

 private:
  ZetaPointOptions options_;
  Index d_ = 0, width_ = 4;
  bool projects_ = false;
  AlignedArray<double> matrix_;  // [d, width] times gain
};

}  // namespace subquad
