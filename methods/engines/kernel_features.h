// Feature maps whose scalar products stand for exp(x . y): phi(x) . phi(y).
//   prf  m^-1/2 exp(w_a . x - |x|^2 / 2), positive; the mean over w is exp(x . y)
//   trf  m^-1/2 exp(|x|^2 / 2) [sin(w_a . x), cos(w_a . x)], 2 m features of either sign
//   elu  elu(x) + 1 of every coordinate, no directions: a kernel of its own
// w_a are standard normal, in orthogonal blocks if asked. x is the given vector divided by its
// length or times a factor. (Luo et al. 2021, arXiv 2106.12566; prf: Performer, arXiv 2009.14794.)
#pragma once

#include <string>

#include "harness/core/random.h"
#include "harness/core/tensor.h"

namespace subquad {

class KernelFeatures {
 public:
  enum class Map { prf, trf, elu };
  struct Options {
    Map map = Map::prf;
    Index d = 0;
    Index directions = 32;  // m
    bool orthogonal = false;
    bool normalize = true;
    double factor = 1;  // without normalize
  };
  static Map map_from_name(const std::string& name);
  static Index count(const Options& options);  // features of a vector
  static double bytes(const Options& options, Index heads);

  KernelFeatures() = default;
  KernelFeatures(const Options& options, Index heads, Seed seed);

  // Features of raw [d], for prf the logarithms of phi sqrt(m): the caller shifts and
  // exponentiates. x [d] receives the vector that phi sees; returns its ratio to the raw one. O(m
  // d).
  double log_features(Index head, const float* raw, double* x, double* phi) const;
  // Gradient of raw from phi (as used, after shifts) and dphi. Shifts that cancel count as
  // constant.
  //   prf: dx = sum_a dphi_a phi_a (w_a - x); through the length: (dx - x (x . dx)) / |raw|.
  void gradient(Index head, const float* raw, const double* phi, const double* dphi, double* x,
                float* draw) const;

 private:
  double input(const float* raw, double* x) const;

  Options options_;
  AlignedArray<double> directions_;  // [heads, m, d]
};

}  // namespace subquad
