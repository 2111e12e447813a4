#include "harness/measure/error_metrics.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#ifdef __FAST_MATH__
#error "NaN must behave as NaN here: build without -ffast-math"
#endif

namespace subquad {
namespace {

constexpr std::uint32_t kFillBits = 0x7fc5a7edU;  // a quiet NaN with a payload of its own

// Below this a constant output would nearly pass.
constexpr double kWeakConstantRow = 0.05;

}  // namespace

float fill_pattern() { return std::bit_cast<float>(kFillBits); }

void fill_untouched(TensorView tensor) {
  std::fill_n(reinterpret_cast<std::uint32_t*>(tensor.data()), tensor.size(), kFillBits);
}

OutputState output_state(ConstTensorView tensor) {
  // Adding up x * 0 is NaN as soon as one element is not finite: the common case needs one pass.
  const Eigen::Map<const Eigen::ArrayXf> all(tensor.data(), tensor.size());
  OutputState state;
  if ((all * 0.f).sum() == 0.f) return state;
  for (Index i = 0; i < tensor.size(); ++i) {
    const float value = tensor.data()[i];
    if (std::isfinite(value)) continue;
    if (state.first_bad < 0) state.first_bad = i;
    ++(std::bit_cast<std::uint32_t>(value) == kFillBits ? state.untouched : state.not_finite);
  }
  return state;
}

std::string describe(const OutputState& state, ConstTensorView tensor, std::string_view what) {
  if (state.finite()) return "";
  const Shape& s = tensor.shape();
  const Index row = state.first_bad / s.d, head = row / s.n;
  const std::string place = fmt::format("[{}, {}, {}, {}]", head / s.heads, head % s.heads,
                                        row % s.n, state.first_bad % s.d);
  if (state.untouched > 0)
    return fmt::format(
        "{} left untouched: {} of {} elements still hold the fill value (never written, or added "
        "to), first at {}",
        what, state.untouched, s.size(), place);
  return fmt::format("{} has NaN or infinity in {} of {} elements, first at {}", what,
                     state.not_finite, s.size(), place);
}

void ErrorSums::add(const BasicTensorView<const double>& exact, ConstTensorView got,
                    const std::vector<std::vector<Index>>& rows) {
  const Index d = exact.d();
  SUBQUAD_CHECK(got.d() == d && got.batch() == exact.batch() && got.heads() == exact.heads(),
                "{} against {}", got.shape().str(), exact.shape().str());
  SUBQUAD_CHECK(!rows.empty() || got.n() == exact.n(), "{} against {}", got.shape().str(),
                exact.shape().str());
  // Rounding decides the direction of a row that is nearly zero among others that are not.
  const Eigen::Map<const VectorD> all(exact.data(), exact.size());
  const double total_rows = static_cast<double>(exact.batch() * exact.heads() * exact.n());
  const double negligible2 = exact.n() > 0 ? 1e-18 * all.squaredNorm() / total_rows : 0;
  const auto row_of = [](const double* p, Index n) { return Eigen::Map<const VectorD>(p, n); };
  for (Index bh = 0; bh < exact.batch() * exact.heads(); ++bh) {
    const double* exact_head = exact.data() + bh * exact.n() * d;
    const float* got_head = got.data() + bh * got.n() * d;
    VectorD sum = VectorD::Zero(d), difference(d), converted(d);
    double norm2 = 0;
    for (Index i = 0; i < exact.n(); ++i) {
      const Index place =
          rows.empty() ? i : rows[static_cast<std::size_t>(bh)][static_cast<std::size_t>(i)];
      const auto e = row_of(exact_head + i * d, d);
      converted = Eigen::Map<const Vector>(got_head + place * d, d).cast<double>();
      difference = converted - e;
      const double e2 = e.squaredNorm(), g2 = converted.squaredNorm();
      norm2 += e2;
      error2_ += difference.squaredNorm();
      // maxCoeff passes over a NaN; error2_ keeps it, and metrics() looks there.
      max_abs_ = std::max(max_abs_, difference.cwiseAbs().maxCoeff());
      if (e2 > negligible2) {
        ++directed_rows_;
        row_error_ += difference.norm() / std::sqrt(e2);
        if (g2 > 0) cosine_ += e.dot(converted) / std::sqrt(e2 * g2);
      }
      sum += e;
    }
    exact2_ += norm2;
    if (exact.n() > 0)
      constant2_ += std::max(0.0, norm2 - sum.squaredNorm() / static_cast<double>(exact.n()));
    rows_ += exact.n();
  }
  most_rows_per_head_ = std::max(most_rows_per_head_, exact.n());
}

ErrorMetrics ErrorSums::metrics() const {
  ErrorMetrics m;
  m.rows = rows_;
  if (!std::isfinite(error2_) || !std::isfinite(exact2_)) {
    m.relative_defined = false;
    m.relative = m.max_abs = m.cosine = m.row_relative = std::numeric_limits<double>::quiet_NaN();
    return m;
  }
  m.max_abs = max_abs_;
  m.cosine = directed_rows_ > 0 ? cosine_ / static_cast<double>(directed_rows_)
             : error2_ == 0     ? 1
                                : 0;
  m.row_relative = directed_rows_ > 0 ? row_error_ / static_cast<double>(directed_rows_) : 0;
  if (exact2_ > 0) {
    m.relative = std::sqrt(error2_ / exact2_);
  } else {
    m.relative = 0;
    m.relative_defined = error2_ == 0;
  }
  // One row is always equal to its mean and says nothing about constancy.
  m.constant_row_error = most_rows_per_head_ < 2 ? 1
                         : exact2_ > 0           ? std::sqrt(constant2_ / exact2_)
                                                 : 0;
  if (exact2_ == 0) m.constant_row_error = 0;
  return m;
}

bool weak_check(const ErrorMetrics& metrics) {
  return !(metrics.constant_row_error >= kWeakConstantRow);
}

double relative_difference(ConstTensorView a, ConstTensorView b) {
  SUBQUAD_CHECK(a.shape() == b.shape(), "{} against {}", a.shape().str(), b.shape().str());
  if (std::equal(a.data(), a.data() + a.size(), b.data())) return 0;
  double difference2 = 0, norm2 = 0;
  for (Index i = 0; i < a.size(); ++i) {
    const double x = static_cast<double>(a.data()[i]), y = static_cast<double>(b.data()[i]);
    difference2 += (x - y) * (x - y);
    norm2 += y * y;
  }
  const double ratio = std::sqrt(difference2 / norm2);
  return std::isfinite(ratio) ? ratio : std::numeric_limits<double>::infinity();
}

bool MatrixSums::add(const MatrixD& exact, const Matrix& got, Index top_k) {
  SUBQUAD_CHECK(exact.rows() == got.rows() && exact.cols() == got.cols(),
                "[{}, {}] against [{}, {}]", got.rows(), got.cols(), exact.rows(), exact.cols());
  for (Index i = 0; i < got.size(); ++i)
    if (!std::isfinite(got.data()[i])) return false;
  negative_ = negative_ || !(got.array() >= 0.f).all();
  std::vector<Index> order(static_cast<std::size_t>(exact.cols()));
  for (Index r = 0; r < exact.rows(); ++r) {
    const auto p = exact.row(r);
    const RowVectorT<double> difference = got.row(r).cast<double>() - p;
    error2_ += difference.squaredNorm();
    exact2_ += p.squaredNorm();
    tv_ += 0.5 * difference.cwiseAbs().sum();
    ++judged_rows_;
    if (!(p.sum() > 0)) continue;
    double kl = 0;
    for (Index j = 0; j < p.size(); ++j)
      if (p[j] > 0)
        kl += p[j] * std::log(p[j] / std::max(static_cast<double>(got(r, j)), kKlFloor));
    const auto k = std::min<std::size_t>(static_cast<std::size_t>(top_k), order.size());
    std::iota(order.begin(), order.end(), Index{0});
    std::nth_element(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k == 0 ? 0 : k - 1),
                     order.end(), [&p](Index a, Index b) {  // ties: the earlier key
                       return p[a] > p[b] || (p[a] == p[b] && a < b);
                     });
    double exact_mass = 0, got_mass = 0, wanted = 0, found = 0;
    for (std::size_t i = 0; i < k; ++i) {
      exact_mass += p[order[i]];
      got_mass += static_cast<double>(got(r, order[i]));
      if (!(p[order[i]] > 0)) continue;  // a row may see fewer than k keys
      ++wanted;
      if (got(r, order[i]) != 0.f) ++found;
    }
    if (wanted > 0) recall_ += found / wanted;
    for (Index j = 0; j < p.size(); ++j)
      if (got(r, j) != 0.f) seen_mass_ += p[j];
    kl_ += kl;
    mass_ += exact_mass > 0 ? got_mass / exact_mass : 0;
    ++rows_;
  }
  return true;
}

std::optional<MatrixMetrics> MatrixSums::metrics() const {
  if (rows_ == 0) return std::nullopt;
  const auto rows = static_cast<double>(rows_);
  return MatrixMetrics{.kl = kl_ / rows,
                       .topk_mass = mass_ / rows,
                       .rows = rows_,
                       .negative = negative_,
                       .relative = std::sqrt(error2_ / exact2_),
                       .row_tv = tv_ / static_cast<double>(judged_rows_),
                       .recall = recall_ / rows,
                       .mass = seen_mass_ / rows,
                       .judged_rows = judged_rows_};
}

}  // namespace subquad
