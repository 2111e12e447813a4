#include "methods/engines/kernel_features.h"

#include <cmath>

namespace subquad {

KernelFeatures::Map KernelFeatures::map_from_name(const std::string& name) {
  if (name == "prf") return Map::prf;
  if (name == "trf") return Map::trf;
  if (name == "elu") return Map::elu;
  throw InternalError("no feature map " + name);
}

Index KernelFeatures::count(const Options& o) {
  return o.map == Map::elu ? o.d : o.map == Map::trf ? 2 * o.directions : o.directions;
}

double KernelFeatures::bytes(const Options& o, Index heads) {
  return o.map == Map::elu ? 0 : 8.0 * static_cast<double>(heads * o.directions * o.d);
}

KernelFeatures::KernelFeatures(const Options& options, Index heads, Seed seed) : options_(options) {
  if (options.map == Map::elu) return;
  const Index d = options.d, m = options.directions, all = heads * m;
  AlignedArray<float> drawn(all * d);
  fill_normal(seed, drawn.data(), drawn.size());
  directions_ = AlignedArray<double>(all * d);
  for (Index e = 0; e < drawn.size(); ++e) directions_[e] = static_cast<double>(drawn[e]);
  if (!options.orthogonal) return;
  Eigen::Map<MatrixD> w(directions_.data(), all, d);
  for (Index a = 0; a < all; ++a) {  // Gram-Schmidt inside blocks of d rows; lengths stay
    const double length = w.row(a).norm();
    for (int repeat = 0; repeat < 2; ++repeat)
      for (Index other = a - a % m % d; other < a; ++other)
        w.row(a) -= w.row(a).dot(w.row(other)) / w.row(other).squaredNorm() * w.row(other);
    w.row(a) *= length / w.row(a).norm();
  }
}

double KernelFeatures::input(const float* raw, double* x) const {
  double square = 0;
  for (Index c = 0; c < options_.d; ++c)
    square += static_cast<double>(raw[c]) * static_cast<double>(raw[c]);
  const double factor =
      options_.normalize ? 1 / std::max(std::sqrt(square), 1e-12) : options_.factor;
  for (Index c = 0; c < options_.d; ++c) x[c] = factor * static_cast<double>(raw[c]);
  return factor;
}

double KernelFeatures::log_features(Index head, const float* raw, double* x, double* phi) const {
  const Index d = options_.d, m = options_.directions;
  const double factor = input(raw, x);
  if (options_.map == Map::elu) {
    for (Index c = 0; c < d; ++c) phi[c] = x[c] > 0 ? x[c] + 1 : std::exp(x[c]);
    return factor;
  }
  double square = 0;
  for (Index c = 0; c < d; ++c) square += x[c] * x[c];
  const double norm = std::exp(square / 2) / std::sqrt(static_cast<double>(m));
  for (Index a = 0; a < m; ++a) {
    const double* w = directions_.data() + (head * m + a) * d;
    double dot = 0;
    for (Index c = 0; c < d; ++c) dot += w[c] * x[c];
    if (options_.map == Map::prf) {
      phi[a] = dot - square / 2;
    } else {
      phi[a] = norm * std::sin(dot);
      phi[m + a] = norm * std::cos(dot);
    }
  }
  return factor;
}

void KernelFeatures::gradient(Index head, const float* raw, const double* phi, const double* dphi,
                              double* x, float* draw) const {
  const Index d = options_.d, m = options_.directions;
  const double factor = input(raw, x);
  const auto dx = [&](Index c) {
    if (options_.map == Map::elu) return dphi[c] * (x[c] > 0 ? 1 : phi[c]);
    double sum = 0;
    for (Index a = 0; a < m; ++a) {
      const double w = directions_[(head * m + a) * d + c];
      sum += options_.map == Map::prf ? dphi[a] * phi[a] * (w - x[c])
                                      : (dphi[a] * phi[m + a] - dphi[m + a] * phi[a]) * w +
                                            (dphi[a] * phi[a] + dphi[m + a] * phi[m + a]) * x[c];
    }
    return sum;
  };
  double along = 0;  // x . dx
  for (Index c = 0; options_.normalize && c < d; ++c) along += x[c] * dx(c);
  for (Index c = 0; c < d; ++c) draw[c] = static_cast<float>(factor * (dx(c) - x[c] * along));
}

}  // namespace subquad
