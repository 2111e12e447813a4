// Attention whose weights are a low-rank matrix times a Toeplitz matrix, entry by entry, one head:
//
//   Y_t = sum_j c_{j-t} (phi_q(t) . phi_k(j)) V_j / sum_j c_{j-t} (phi_q(t) . phi_k(j)),
//
// with features phi of any sign and c > 0 given by its logarithms. (arXiv 2106.12566, algorithm 1.)
//   transforms: one Toeplitz product of [n, d_v] per feature (conv_partitioned.h), O(M n d_v log n)
//   explicit:   tiles of the n x n matrix, O(n^2 (M + d_v))
// A row whose denominator is small beside the rounding of transforms is computed explicitly.
// Backward goes by Toeplitz products alone.
#pragma once

#include <span>

#include "harness/core/tensor.h"
#include "methods/engines/conv_partitioned.h"

namespace subquad {

class ToeplitzFeatures {
 public:
  struct Sizes {
    Index n = 0, features = 0, d_v = 0;
    bool causal = true;
    bool transforms = false;  // of forward
    bool gradients = false;
  };
  enum Key : std::uint8_t { kKey = 0, kNotFinite = 1, kPadding = 2 };

  // Whether transforms are cheaper than tiles, and the operations of either.
  static bool transforms_pay(const Sizes& sizes);
  static double product_operations(const Sizes& sizes);  // transforms, one product of all features
  static double bytes(const Sizes& sizes);
  void prepare(const Sizes& sizes);

  // ---- to be filled before a call ----
  double* phi_q() { return phi_q_.data(); }            // [n, features]
  double* phi_k() { return phi_k_.data(); }            // [n, features]; zero where padded
  double* log_kernel() { return log_kernel_.data(); }  // [2 n - 1]: log c_{j-t} at t - j + n - 1
  // What key j is: its value is not finite (transforms leave it out), or it does not exist.
  std::uint8_t* kinds() { return kinds_.data(); }  // [n]
  // Makes c and the number of keys that a row sees from what was filled.
  void begin();

  // v, out [n, d_v]. Returns the number of rows that transforms would have spoiled.
  Index forward(const float* v, float* out);
  // out is what forward gave, dout its gradient; overwrites dv [n, d_v]. Then dphi_q, dphi_k and dc
  // hold the gradients of what was filled: dc with respect to c, by t - j + n - 1.
  void backward(const float* v, const float* out, const float* dout, bool with_kernel, float* dv);
  const double* dphi_q() const { return dphi_q_.data(); }
  const double* dphi_k() const { return dphi_k_.data(); }
  // d(log c) = c dc, of the lags in [lowest_lag, n - 1].
  double dlog_kernel(Index lag) const {
    return dc_[lag + sizes_.n - 1] * toeplitz_.profile(0)[lag];
  }
  Index lowest_lag() const { return toeplitz_.lowest(0); }

  // c_{j-t} phi(q_t) . phi(k_j), and how many real keys row t sees.
  double weight(Index t, Index j) const { return toeplitz_.profile(0)[t - j] * product(t, j); }
  Index seen(Index t) const { return seen_[t]; }

 private:
  static Index columns(const Sizes& s) { return std::max(s.d_v, s.features); }
  static Index block(const Sizes& s);
  static PartitionedConv<double>::Sizes conv_sizes(const Sizes& s);
  static Index tile_floats(const Sizes& s);
  Index visible(Index t) const { return sizes_.causal ? t + 1 : sizes_.n; }
  double product(Index t, Index j) const;
  template <class Body>
  void for_rows(Body&& body) const;
  void forward_tiles(const float* v, float* out);
  Index forward_transforms(const float* v, float* out);
  void exact_row(const float* v, Index t, int thread, float* out);
  void normalizers();

  Sizes sizes_;
  AlignedArray<double> phi_q_, phi_k_, dphi_q_, dphi_k_;  // [n, features]
  AlignedArray<double> log_kernel_, dc_;                  // [2 n - 1]
  ConvKernels<double> toeplitz_, correlation_;
  PartitionedConv<double> conv_;
  AlignedArray<double> x_, y_;        // [n, columns]
  AlignedArray<double> total_;        // [n, d_v]
  AlignedArray<double> sums_, e_;     // [n]
  AlignedArray<float> tiles_;         // per thread
  AlignedArray<double> rows_;         // [threads, d_v]
  AlignedArray<std::uint8_t> kinds_;  // [n]
  AlignedArray<Index> seen_;          // [n]
};

}  // namespace subquad
