// How far an output is from the exact one, and how much the comparison proves. All sums are in
// double; a NaN never yields a number that looks good.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "harness/core/tensor.h"

namespace subquad {

// A NaN with a payload of its own: what outputs are filled with before a call, so that an element
// that was never written is told from one that was computed as NaN.
float fill_pattern();
void fill_untouched(TensorView tensor);

struct OutputState {
  Index untouched = 0;   // elements that still hold the fill pattern
  Index not_finite = 0;  // other NaN or infinite elements
  Index first_bad = -1;  // offset of the first of either kind, -1 when there is none
  bool finite() const { return first_bad < 0; }
};
OutputState output_state(ConstTensorView tensor);
// "NaN or infinity in 3 of 64 elements, first at [0, 1, 2, 3]", or "output left untouched ..."; ""
// when the state is good. `what` names the tensor.
std::string describe(const OutputState& state, ConstTensorView tensor, std::string_view what);

struct ErrorMetrics {
  double relative = 0;           // ||got - exact||_F / ||exact||_F
  bool relative_defined = true;  // false: exact is zero and got is not, or something is not finite
  double max_abs = 0;
  // Mean over the rows that have a direction (norm above 1e-9 of the rms row); a zero row of the
  // output counts 0 there.
  double cosine = 0;
  double row_relative = 0;  // mean over the same rows of ||got - exact|| / ||exact||
  Index rows = 0;
  // ||exact - (mean row of its head)||_F / ||exact||_F: what a method that writes one constant row
  // would be off by. Small means that the comparison proves little.
  double constant_row_error = 0;
};

// The comparison proves little: the exact output hardly differs between queries (several rows are
// needed to say so), or is zero.
bool weak_check(const ErrorMetrics& metrics);

// Collects rows of one or more tensors (dq, dk, dv together) into one ErrorMetrics.
class ErrorSums {
 public:
  // Compares every row of exact [batch, heads, R, d] with got [batch, heads, N, d]. `rows` gives,
  // per (batch, head), which rows of `got` they are; empty: rows 0 .. R-1 and R = N.
  // `got` must be finite (see output_state).
  void add(const BasicTensorView<const double>& exact, ConstTensorView got,
           const std::vector<std::vector<Index>>& rows = {});
  ErrorMetrics metrics() const;

 private:
  double error2_ = 0, exact2_ = 0, constant2_ = 0, max_abs_ = 0, cosine_ = 0, row_error_ = 0;
  Index rows_ = 0, directed_rows_ = 0, most_rows_per_head_ = 0;
};

// Relative Frobenius difference ||a - b|| / ||b||; 0 for equal tensors, infinity when undefined.
double relative_difference(ConstTensorView a, ConstTensorView b);

// ---- attention matrices ----

struct MatrixMetrics {
  double kl = 0;          // mean over rows of sum_j p_j log(p_j / max(w_j, kKlFloor)), nats
  double topk_mass = 0;   // sum of w over the exact top k keys / sum of p there, mean over rows
  Index rows = 0;         // rows with exact mass: those of the two means above
  bool negative = false;  // some weight is negative: kl has no meaning
  double relative = 0;    // ||w - p||_F / ||p||_F over all rows
  double row_tv = 0;      // mean over all rows of sum_j |w_j - p_j| / 2
  double recall = 0;      // share of the exact top k keys that have any weight, mean over rows
  double mass = 0;        // exact mass of the keys that have any weight, mean over rows
  Index judged_rows = 0;  // all rows
};

// Weights below this count as this much in kl, which is infinite for a method that skips a key that
// has any exact mass.
inline constexpr double kKlFloor = 1e-10;

class MatrixSums {
 public:
  // exact and got [rows, n_kv]. Rows without exact mass (no visible key) are passed over in kl and
  // topk_mass. Returns false, and counts nothing, when a weight of `got` is not finite.
  bool add(const MatrixD& exact, const Matrix& got, Index top_k);
  std::optional<MatrixMetrics> metrics() const;  // empty without rows that have exact mass

 private:
  double kl_ = 0, mass_ = 0, recall_ = 0, seen_mass_ = 0, error2_ = 0, exact2_ = 0, tv_ = 0;
  Index rows_ = 0, judged_rows_ = 0;
  bool negative_ = false;
};

}  // namespace subquad
