// Holographic reduced representations over spectra: binding is a product, unbinding a product with
// the conjugate or a quotient, and products and norms are taken over frequencies (Parseval).
// Spectra are split: `bins` real parts, then `bins` imaginary ones. (arXiv 2305.19534.)
#pragma once

#include <cmath>
#include <memory>
#include <string>

#include "harness/core/method.h"
#include "methods/engines/row_transform.h"

namespace subquad {

struct HolographicOptions {
  std::string inverse = "conj";  // or exact: divides by F(q), |F(q)|^2 + 1e-6 under the bar
  std::string transform = "auto";
  double temperature = 1;
  bool rescale = false;

  RowTransform::Kind kind() const {
    return transform == "matrix" ? RowTransform::Kind::matrix
           : transform == "fft"  ? RowTransform::Kind::fft
                                 : RowTransform::Kind::automatic;
  }
};

// out += x y or x conj(y).
template <bool CONJUGATE, class X, class Y, class Out>
void add_spectra(const X* x, const Y* y, Index bins, Out* out) {
  for (Index f = 0; f < bins; ++f) {
    const auto xr = static_cast<Out>(x[f]), xi = static_cast<Out>(x[bins + f]);
    const auto yr = static_cast<Out>(y[f]);
    const auto yi = CONJUGATE ? -static_cast<Out>(y[bins + f]) : static_cast<Out>(y[bins + f]);
    out[f] += xr * yr - xi * yi;
    out[bins + f] += xr * yi + xi * yr;
  }
}

// F vhat_t from F q_t and beta, the sum of the pairs.
inline void unbind(const double* sum, const float* q, Index bins, bool exact, float* vhat) {
  std::fill_n(vhat, 2 * bins, 0.f);
  add_spectra<true>(sum, q, bins, vhat);
  if (!exact) return;
  for (Index f = 0; f < bins; ++f) {
    const float norm = 1 / (q[f] * q[f] + q[bins + f] * q[bins + f] + 1e-6f);
    vhat[f] *= norm, vhat[bins + f] *= norm;
  }
}

// <v, vhat>, |v|^2 and |vhat|^2 from spectra.
struct Match {
  static constexpr double kEps = 1e-12;  // added to the norms
  double dot = 0, v = 0, vhat = 0;

  Match(const RowTransform& transform, const float* fv, const float* fvhat) {
    const Index bins = transform.bins();
    for (Index f = 0; f < bins; ++f) {
      const auto w = static_cast<double>(transform.weight(f));
      const double vr = static_cast<double>(fv[f]), vi = static_cast<double>(fv[bins + f]),
                   hr = static_cast<double>(fvhat[f]), hi = static_cast<double>(fvhat[bins + f]);
      dot += w * (vr * hr + vi * hi);
      v += w * (vr * vr + vi * vi);
      vhat += w * (hr * hr + hi * hi);
    }
  }
  double norm_v() const { return std::sqrt(v) + kEps; }
  double norm_vhat() const { return std::sqrt(vhat) + kEps; }
  double cosine() const { return dot / (norm_v() * norm_vhat()); }
};

// Token by token. State: the spectrum of all pairs so far and the sum of the softmax, per head.
std::unique_ptr<Decoder> make_holographic_decoder(const DecodeConfig& config,
                                                  const HolographicOptions& options);

}  // namespace subquad
