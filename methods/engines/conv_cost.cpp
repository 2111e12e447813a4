#include "methods/engines/conv_cost.h"

#include <algorithm>
#include <cmath>

#include "harness/core/error.h"

namespace subquad {
namespace {

// Speeds of one core of a 2-core AMD EPYC (Zen 4, 2.6 GHz), in operations per second. Only their
// ratios decide; another machine with wide vectors has similar ones.
constexpr double kProduct = 90e9;        // direct engine, float
constexpr double kSpectra = 50e9;        // products of spectra, float; double has half
constexpr double kTransform = 20e9;      // FFTW, 2.5 F log2 F operations, F up to kSmall
constexpr double kLongTransform = 12e9;  // beyond
constexpr double kSmall = 16384;
constexpr double kProfile = 40e9;        // logits of the profiles, float; double has half
constexpr double kExponential = 0.8e-9;  // seconds each, with the sums of the normaliser
constexpr double kCopy = 0.8e-9;         // seconds per value that is moved to or from a transform

double log2_of(double x) { return std::log2(std::max(2.0, x)); }

double transform_operations(double length) { return 2.5 * length * log2_of(length); }
double transform_seconds(double length) {
  return transform_operations(length) / (length <= kSmall ? kTransform : kLongTransform);
}

struct Cost {
  double seconds = 0, operations = 0;
};

Cost cost(const ConvSizes& s, ConvEngine engine, Index block) {
  const auto n = static_cast<double>(s.n), m = static_cast<double>(s.columns),
             k = static_cast<double>(s.segments);
  const double wide = engine == ConvEngine::direct || s.single ? 1 : 2;  // float or double
  // Lags of all profiles; causal ones shrink from n to n / k.
  const double lags = s.causal ? n * (k + 1) / 2 : (k + 1) * n;
  Cost c;
  c.operations = lags * (2 * static_cast<double>(s.d_k) + 4);
  c.seconds = wide * (lags * 2 * static_cast<double>(s.d_k) / kProfile + lags * kExponential);
  const double longest = n + n / k;
  if (engine == ConvEngine::direct) {
    const double products = (s.causal ? n * (n + 1) : 2 * n * n) * m;
    c.operations += products;
    c.seconds += products / kProduct;
  } else if (engine == ConvEngine::shared) {
    const double transforms = k * m + k + m, spectra = k * m * longest / 2 * 8;
    c.operations += transforms * transform_operations(longest) + spectra;
    c.seconds += transforms * (transform_seconds(longest) + longest * kCopy * wide / 4) +
                 wide * spectra / kSpectra;
  } else if (engine == ConvEngine::local) {
    for (double i = 0; i < k; i += 1) {
      // Lengths are rounded up to a grid with steps of 1.33 and 1.5.
      const double length = 1.2 * (s.causal ? n - i * n / k + n / k : longest);
      const double transforms = 2 * m + 1, spectra = m * length / 2 * 8;
      c.operations += transforms * transform_operations(length) + spectra;
      c.seconds += transforms * (transform_seconds(length) + length * kCopy * wide / 4) +
                   wide * spectra / kSpectra;
    }
  } else {
    const auto b = static_cast<double>(block);
    const double blocks = std::ceil(n / b), pieces = blocks + k - 1;
    const double windows = lags / b + k, pairs = pieces * blocks * (s.causal ? 0.5 : 1) + pieces;
    const double tile = std::ceil(m / 8) * 8;
    const double transforms = (pieces + blocks) * m + windows, spectra = pairs * tile * (b + 8) * 8;
    c.operations += transforms * transform_operations(2 * b) + spectra;
    c.seconds += transforms * (transform_seconds(2 * b) + 2 * b * kCopy * wide / 4) +
                 wide * spectra / kSpectra;
  }
  return c;
}

}  // namespace

double conv_seconds(const ConvSizes& sizes, ConvEngine engine, Index block) {
  return cost(sizes, engine, block).seconds;
}
double conv_operations(const ConvSizes& sizes, ConvEngine engine, Index block) {
  return cost(sizes, engine, block).operations;
}

ConvPlan choose_conv_plan(const ConvSizes& sizes, const std::string& name) {
  constexpr Index kSmallestBlock = 32, kLargestBlock = 8192;
  ConvPlan best;
  bool first = true;
  const auto consider = [&](const char* engine_name, ConvEngine engine, Index block) {
    if (name != "auto" && name != engine_name) return;
    const double seconds = conv_seconds(sizes, engine, block);
    if (!first && seconds >= best.seconds) return;
    best = {engine, block, seconds};
    first = false;
  };
  consider("direct", ConvEngine::direct, 0);
  consider("shared", ConvEngine::shared, 0);
  consider("local", ConvEngine::local, 0);
  for (Index block = kSmallestBlock;
       block <= kLargestBlock && (block == kSmallestBlock || block < 2 * sizes.n); block *= 2)
    consider("partitioned", ConvEngine::partitioned, block);
  if (first) throw InternalError("no convolution engine " + name);
  return best;
}

}  // namespace subquad
