// Cosines and sines of (frequency x position), for tasks with position features.
//
// For task sources alone, with internal linkage: see common.h.
#pragma once

#include "tasks/common.h"

namespace subquad {
namespace {

constexpr double kTwoPi = 6.28318530717958647692;

// cos and sin of 2 pi f_l t for t = 0 .. length-1 and L frequencies in turns per position, in
// [0, 1/2]. Made from two short tables by the addition theorem: t = 256 a + b. Error below 1e-9
// for t < 2^24.
class Waves {
 public:
  Waves(std::vector<double> frequencies, Index length)
      : count_(static_cast<Index>(frequencies.size())),
        fine_(table(frequencies, 1, kStep)),
        coarse_(table(frequencies, kStep, length / kStep + 1)) {}

  Index count() const { return count_; }
  void at(Index t, Index l, double* cosine, double* sine) const {
    const Pair x = coarse_[static_cast<std::size_t>(t / kStep * count_ + l)];
    const Pair y = fine_[static_cast<std::size_t>(t % kStep * count_ + l)];
    *cosine = x.cosine * y.cosine - x.sine * y.sine;
    *sine = x.sine * y.cosine + x.cosine * y.sine;
  }

 private:
  struct Pair {
    double cosine, sine;
  };
  static constexpr Index kStep = 256;

  static std::vector<Pair> table(const std::vector<double>& frequencies, Index step, Index rows) {
    std::vector<Pair> pairs;
    pairs.reserve(frequencies.size() * static_cast<std::size_t>(rows));
    for (Index r = 0; r < rows; ++r)
      for (const double f : frequencies) {
        const double turns = f * static_cast<double>(r * step);
        const double angle = kTwoPi * (turns - std::floor(turns));
        pairs.push_back({portable_cos(angle), portable_sin(angle)});
      }
    return pairs;
  }

  Index count_;
  std::vector<Pair> fine_, coarse_;
};

// The frequencies of rotary position embeddings in turns per position: base^(-l / L) / (2 pi).
[[maybe_unused]] std::vector<double> rotary_frequencies(Index count, double base) {
  std::vector<double> frequencies;
  for (Index l = 0; l < count; ++l)
    frequencies.push_back(
        portable_exp(-portable_log(base) * static_cast<double>(l) / static_cast<double>(count)) /
        kTwoPi);
  return frequencies;
}

}  // namespace
}  // namespace subquad
