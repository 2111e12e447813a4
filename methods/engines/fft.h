// Real Fourier transforms of one length, by FFTW, behind a process-wide cache of plans.
//
// FFTW's planner is not thread safe, its plans are: plans are made in prepare() under a lock, kept
// until the process ends and executed on any aligned array. One plan is run in a loop over the
// columns of a batch (a batched plan gains nothing), and threads take different columns.
//
// Our choice: plans are estimated, not measured, unless a method is told otherwise. A measured plan
// runs 1.2 to 1.5 times faster, but takes 0.1 to 2 s to make, and which algorithm wins differs from
// run to run: the same input would give other bits.
#pragma once

#include <fftw3.h>

#include "harness/core/tensor.h"

namespace subquad {

enum class Planner { estimate, measure };

// The smallest even number >= n without prime factors above 7; n >= 1.
Index good_fft_size(Index n);

// Transforms of T = float or double, length F (even). Spectra have F/2 + 1 complex numbers,
// interleaved. Not normalised: forward and inverse multiply by F. Arrays are aligned to kAlignment.
template <class T>
class RealFft {
 public:
  RealFft() = default;
  RealFft(Index length, Planner planner);  // makes or finds the plans
  // What both plans hold, about: FFTW's tables of roots are 1 to 2.2 numbers per point by the
  // factors of the length (measured from 1024 to 131072).
  static double bytes(Index length) {
    return 1.6 * static_cast<double>(sizeof(T)) * static_cast<double>(length);
  }

  Index length() const { return length_; }
  Index spectrum_size() const { return length_ / 2 + 1; }  // complex numbers
  // x [F] -> spectrum [2 (F/2 + 1)]; x is kept.
  void forward(const T* x, T* spectrum) const;
  // spectrum -> x; the spectrum is destroyed.
  void inverse(T* spectrum, T* x) const;

 private:
  Index length_ = 0;
  void* forward_ = nullptr;  // owned by the cache
  void* inverse_ = nullptr;
};

// Destroys every plan: no RealFft made before may be used any more. For tests that measure memory.
void forget_fft_plans();

extern template class RealFft<float>;
extern template class RealFft<double>;

}  // namespace subquad
