// Real Fourier transforms of short rows (the width of a head), many at a time.
//
// Spectra are split: [re_0 .. re_{bins-1}, im_0 .. im_{bins-1}] with bins = floor(d / 2) + 1. Short
// or odd rows are multiplied with the matrix of the transform, which keeps the multiply-add units
// busy; long ones go through FFTW.
#pragma once

#include "methods/engines/fft.h"

namespace subquad {

class RowTransform {
 public:
  enum class Kind { automatic, matrix, fft };
  RowTransform() = default;
  RowTransform(Index d, Kind kind);
  static double bytes(Index d, Kind kind);

  Index d() const { return d_; }
  Index bins() const { return d_ / 2 + 1; }
  Index width() const { return 2 * bins(); }            // floats of a spectrum
  Index scratch_floats() const { return 2 * d_ + 64; }  // that a call may use
  // Weight of a bin in scalar products: <x, y> = sum_f weight(f) Re(conj(X_f) Y_f).
  float weight(Index f) const {
    return (f == 0 || 2 * f == d_ ? 1.f : 2.f) / static_cast<float>(d_);
  }
  // rows [count, d] -> spectra [count, width].
  void forward(const float* rows, Index count, float* spectra, float* scratch) const;
  // spectra -> rows, normalised.
  void inverse(const float* spectra, Index count, float* rows, float* scratch) const;

 private:
  static bool by_matrix(Index d, Kind kind);

  Index d_ = 0;
  bool matrix_ = true;
  RealFft<float> fft_;
  AlignedArray<float> forward_, inverse_;  // [d, width], [width, d]
};

}  // namespace subquad
