// Gradients of convolutional attention with frozen segments, in double precision.
//
// With G = dL/dY, Gt_t = G_t / D_t, dl_t = <G_t, Y_t>, e_t = dl_t / D_t and a = logit scale:
//
//   exact    the derivative of what forward computes. For lag l of segment i
//              gu_i(l) = w_i(l) sum over j in segment i of ( <Gt_{j+l}, V_j> - e_{j+l} ),
//            then dq_{j*+l} += a gu_i(l) k_{j*}, dk_{j*} += a sum_l gu_i(l) q_{j*+l} with j* the
//            column that stands for the segment: only those keys receive a gradient.
//   plug_in  the gradient of softmax attention with its weights P replaced by the approximate ones
//            (arXiv 2405.05219, section on training): for every column c
//              dq(:, c) = a ( sum_l G(:, l) o P (V(:, l) o K(:, c)) - dl o (P K)(:, c) )
//              dk(:, c) = a ( sum_l V(:, l) o P^T (G(:, l) o Q(:, c)) - P^T (dl o Q)(:, c) ),
//            d_k products with d_v + 1 columns each.
// Both: dv = P^T G. Rows whose D is too small to divide by are left out of the products and added
// one by one, with weights from their own largest logit.
#pragma once

#include <span>

#include "methods/engines/conv_cost.h"
#include "methods/engines/conv_direct.h"
#include "methods/engines/conv_partitioned.h"
#include "methods/engines/conv_profiles.h"

namespace subquad {

class ConvGradient {
 public:
  struct Sizes {
    Index n = 0, d_k = 0, d_v = 0;
    Index max_segments = 1;
    bool causal = true;
    bool plug_in = false;
  };
  // Short sequences directly, others by the partitioned engine.
  void prepare(const Sizes& sizes, Planner planner);
  static double bytes(const Sizes& sizes);

  // One head; out is what forward gave, dout its gradient. Overwrites dq, dk [n, d_k], dv [n, d_v].
  void run(std::span<const Index> starts, const float* q, const float* k, const float* v,
           double scale, const float* out, const float* dout, float* dq, float* dk, float* dv);

 private:
  static ConvPlan plan(const Sizes& sizes);
  static Index columns(const Sizes& s) { return s.plug_in ? s.d_v + 1 : s.d_v; }
  void apply(const double* x, double* y);       // y = diag(1/D) W x
  void transposed(const double* x, double* y);  // y = W^T x
  void add_rows(const float* q, const float* k, const float* v, double scale, const float* dout,
                float* dq, float* dk, float* dv);
  void exact(const float* q, const float* k, double scale, float* dq, float* dk);
  void plug_in(const float* q, const float* k, const float* v, double scale, const float* dout,
               float* dq, float* dk);

  Sizes sizes_;
  ConvPlan plan_;
  ConvProfiles<double> profiles_;
  ConvKernels<double> w_, correlation_;
  DirectConv<double> direct_;
  PartitionedConv<double> partitioned_;
  AlignedArray<double> sums_, rounding_, inverse_;  // [n]
  AlignedArray<double> dl_, e_before_;              // [n], [n + 1]: sum of e before a row
  AlignedArray<double> x_, y_, values_;             // [n, columns]
  AlignedArray<double> weights_;                    // [n] of one row
};

}  // namespace subquad
