#include "methods/engines/row_transform.h"

#include <cmath>

namespace subquad {
namespace {

// Rows shorter than this are transformed by a matrix: at 64 it takes as long as FFTW, and below it
// wins; the matrix of 128 already takes twice the time.
constexpr Index kShort = 96;
constexpr Index kBlock = 64;  // rows of one product, so that Eigen's packing stays on the stack
constexpr double kPi = 3.14159265358979323846;

float* aligned(float* p) {  // FFTW's plans are for aligned arrays
  const auto bits = reinterpret_cast<std::uintptr_t>(p);
  return reinterpret_cast<float*>((bits + kAlignment - 1) / kAlignment * kAlignment);
}

}  // namespace

bool RowTransform::by_matrix(Index d, Kind kind) {
  return d % 2 == 1 || (kind == Kind::automatic ? d < kShort : kind == Kind::matrix);
}

double RowTransform::bytes(Index d, Kind kind) {
  return by_matrix(d, kind) ? 8.0 * static_cast<double>(d * 2 * (d / 2 + 1)) : 0;
}

RowTransform::RowTransform(Index d, Kind kind) : d_(d), matrix_(by_matrix(d, kind)) {
  if (!matrix_) {
    fft_ = RealFft<float>(d, Planner::estimate);
    return;
  }
  forward_ = AlignedArray<float>(d * width());
  inverse_ = AlignedArray<float>(d * width());
  for (Index x = 0; x < d; ++x)
    for (Index f = 0; f < bins(); ++f) {
      const double angle = 2 * kPi * static_cast<double>(x * f % d) / static_cast<double>(d);
      const double w = static_cast<double>(weight(f));
      forward_[x * width() + f] = static_cast<float>(std::cos(angle));
      forward_[x * width() + bins() + f] = static_cast<float>(-std::sin(angle));
      inverse_[f * d + x] = static_cast<float>(w * std::cos(angle));
      inverse_[(bins() + f) * d + x] = static_cast<float>(-w * std::sin(angle));
    }
}

void RowTransform::forward(const float* rows, Index count, float* spectra, float* scratch) const {
  if (matrix_) {
    const ConstMatrixMap m(forward_.data(), d_, width());
    for (Index r = 0; r < count; r += kBlock) {
      const Index size = std::min(kBlock, count - r);
      MatrixMap(spectra + r * width(), size, width()).noalias() =
          ConstMatrixMap(rows + r * d_, size, d_) * m;
    }
    return;
  }
  float* row = aligned(scratch);
  float* pairs = row + (d_ + 15) / 16 * 16;
  for (Index r = 0; r < count; ++r) {
    std::copy_n(rows + r * d_, d_, row);
    fft_.forward(row, pairs);
    float* to = spectra + r * width();
    for (Index f = 0; f < bins(); ++f) to[f] = pairs[2 * f], to[bins() + f] = pairs[2 * f + 1];
  }
}

void RowTransform::inverse(const float* spectra, Index count, float* rows, float* scratch) const {
  if (matrix_) {
    const ConstMatrixMap m(inverse_.data(), width(), d_);
    for (Index r = 0; r < count; r += kBlock) {
      const Index size = std::min(kBlock, count - r);
      MatrixMap(rows + r * d_, size, d_).noalias() =
          ConstMatrixMap(spectra + r * width(), size, width()) * m;
    }
    return;
  }
  float* row = aligned(scratch);
  float* pairs = row + (d_ + 15) / 16 * 16;
  const float unit = 1.f / static_cast<float>(d_);
  for (Index r = 0; r < count; ++r) {
    const float* from = spectra + r * width();
    for (Index f = 0; f < bins(); ++f) pairs[2 * f] = from[f], pairs[2 * f + 1] = from[bins() + f];
    fft_.inverse(pairs, row);
    for (Index x = 0; x < d_; ++x) rows[r * d_ + x] = row[x] * unit;
  }
}

}  // namespace subquad
