// Lanczos-3 reduction of byte images, as the Python Imaging Library computes it: rows, then
// columns, rounded to bytes after each.
//
// For task sources alone, with internal linkage: see common.h.
#pragma once

#include <cstdint>

#include "tasks/common.h"

namespace subquad {
namespace {

using Bytes = std::vector<std::uint8_t>;

[[maybe_unused]] std::uint8_t to_byte(double x) {
  return static_cast<std::uint8_t>(std::floor(std::min(255.0, std::max(0.0, x)) + 0.5));
}

// Weights of one axis from `in` to `out` pixels.
class Lanczos {
 public:
  Lanczos(Index in, Index out) : in_(in) {
    const double scale = static_cast<double>(in) / static_cast<double>(out);
    const double support = 3 * std::max(1.0, scale);
    for (Index i = 0; i < out; ++i) {
      const double centre = (static_cast<double>(i) + 0.5) * scale;
      Taps taps;
      taps.first = std::max<Index>(0, static_cast<Index>(std::floor(centre - support + 0.5)));
      const Index end = std::min(in, static_cast<Index>(std::floor(centre + support + 0.5)));
      double sum = 0;
      for (Index j = taps.first; j < end; ++j) {
        const double t = (static_cast<double>(j) + 0.5 - centre) / std::max(1.0, scale);
        const double weight = std::fabs(t) < 3 ? sinc(t) * sinc(t / 3) : 0;
        taps.weights.push_back(weight);
        sum += weight;
      }
      for (double& weight : taps.weights) weight /= sum;
      taps_.push_back(std::move(taps));
    }
  }

  Index in() const { return in_; }
  Index out() const { return static_cast<Index>(taps_.size()); }

  // Output pixel i of the row (stride 1) or column at `from`.
  std::uint8_t at(const std::uint8_t* from, Index stride, Index i) const {
    const Taps& taps = taps_[static_cast<std::size_t>(i)];
    double sum = 0;
    from += taps.first * stride;
    for (const double weight : taps.weights) {
      sum += weight * static_cast<double>(*from);
      from += stride;
    }
    return to_byte(sum);
  }

  // The square image `from` [in, in] reduced to [out, out].
  Bytes reduce(const Bytes& from) const {
    const Index size = out();
    Bytes rows(static_cast<std::size_t>(in_ * size)), all(static_cast<std::size_t>(size * size));
    for (Index y = 0; y < in_; ++y)
      for (Index x = 0; x < size; ++x)
        rows[static_cast<std::size_t>(y * size + x)] = at(from.data() + y * in_, 1, x);
    for (Index y = 0; y < size; ++y)
      for (Index x = 0; x < size; ++x)
        all[static_cast<std::size_t>(y * size + x)] = at(rows.data() + x, size, y);
    return all;
  }

 private:
  struct Taps {
    Index first = 0;
    std::vector<double> weights;
  };
  static double sinc(double t) {  // sin(pi t) / (pi t)
    constexpr double kPi = 3.14159265358979323846;
    return t == 0 ? 1 : portable_sin(kPi * t) / (kPi * t);
  }

  Index in_;
  std::vector<Taps> taps_;
};

}  // namespace
}  // namespace subquad
