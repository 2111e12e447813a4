#include "methods/engines/conv_cost.h"

#include <algorithm>
#include <cmath>

#include "harness/core/error.h"

namespace subquad {
namespace {

// Fitted to 232 timings of the engines at n = 256 .. 65536 and k = 1 .. 256 on one core of a 2-core
// AMD EPYC (Zen 4, 2.6 GHz), d = 64. Only ratios decide; machines with wide vectors have similar
// ones.
constexpr double kProduct = 93e9;         // operations per second of the direct engine
constexpr double kSpectra = 42e9;         // of products of double spectra in cache
constexpr double kSpectraFar = 21e9;      // and when one frequency's data exceed it
constexpr double kNear = 650e3;           // bytes of one frequency that count as in cache
constexpr double kProfile = 32e9;         // operations per second of the profiles, float
constexpr double kExponential = 0.73e-9;  // seconds each, with the sums of the normaliser, float
constexpr double kMove = 0.2e-9;          // seconds per double moved to or from a block's transform
constexpr double kMoveFar = 1.9e-9;       // and when a tile's spectra are far larger than
constexpr double kTile = 3.5e6;           // this many bytes
constexpr double kMoveLong = 0.2e-9;      // per double of a long transform
constexpr double kMoveLongFar = 0.57e-9;  // and when the columns are far larger than
constexpr double kColumns = 1.05e6;       // this many bytes
constexpr double kCall = 10e-6;           // seconds of everything else

// FFTW's operations per second, 2.5 F log2 F of them, planned by estimate, double.
double transform_rate(double length) {
  constexpr struct {
    double length, rate;
  } kRates[] = {{64, 16e9},    {128, 20e9},   {256, 16e9},     {512, 20e9},
                {1024, 26e9},  {2048, 28e9},  {4096, 25e9},    {8192, 20e9},
                {16384, 17e9}, {32768, 15e9}, {65536, 14.5e9}, {131072, 12.5e9}};
  for (const auto& r : kRates)
    if (length <= r.length * 1.01) return r.rate;
  return 12e9;
}
double transform_operations(double length) {
  return 2.5 * length * std::log2(std::max(2.0, length));
}
double transform_seconds(double length) {
  return transform_operations(length) / transform_rate(length);
}

// From `near` to `far` as x grows from 1 to 2^octaves.
double between(double near, double far, double x, double octaves) {
  return near + (far - near) * std::clamp(std::log2(x) / octaves, 0.0, 1.0);
}

struct Cost {
  double seconds = 0, operations = 0;
};

Cost cost(const ConvSizes& s, ConvEngine engine, Index block) {
  const auto n = static_cast<double>(s.n), m = static_cast<double>(s.columns),
             k = static_cast<double>(s.segments), d_k = static_cast<double>(s.d_k);
  const double wide = engine == ConvEngine::direct || s.single ? 1 : 2;  // float or double
  // Lags of all profiles; causal ones shrink from n to n / k.
  const double lags = s.causal ? n * (k + 1) / 2 : (k + 1) * n;
  Cost c;
  c.operations = lags * (2 * d_k + 4);
  c.seconds = kCall + wide * lags * (2 * d_k / kProfile + kExponential);
  // Transforms of one length, and products of their spectra.
  const auto add_long = [&](double length, double transforms, double products) {
    const double spectra = products * length / 2 * 8;
    const double move = between(kMoveLong, kMoveLongFar, length * m * 8 / kColumns, 1.5);
    c.operations += transforms * transform_operations(length) + spectra;
    c.seconds += transforms * (transform_seconds(length) + length * move * wide / 2) +
                 spectra / kSpectra * wide / 2;
  };
  if (engine == ConvEngine::direct) {
    const double products = (s.causal ? n * (n + 1) : 2 * n * n) * m;
    c.operations += products;
    c.seconds += products / kProduct;
  } else if (engine == ConvEngine::shared) {
    add_long(n + n / k, k * m + k + m, k * m);
  } else if (engine == ConvEngine::local) {
    // 1.1: lengths are rounded up to a grid.
    for (double i = 0; i < k; i += 1)
      add_long(1.1 * (s.causal ? n - i * n / k + n / k : n + n / k), 2 * m + 1, m);
  } else {
    const auto b = static_cast<double>(block);
    const double blocks = std::ceil(n / b), pieces = blocks + k - 1;
    const double windows = lags / b + k, pairs = pieces * blocks * (s.causal ? 0.5 : 1) + pieces;
    const double transforms = (pieces + blocks) * m + windows;
    const double spectra = pairs * std::ceil(m / 8) * 8 * (b + 8) * 8;
    const double tile = ((pieces + blocks) * 8 + windows) * 2 * b * 4 * wide;  // bytes
    const double frequency = ((pieces + blocks) * 16 + windows * 2) * 64;
    c.operations += transforms * transform_operations(2 * b) + spectra;
    c.seconds += transforms * (transform_seconds(2 * b) +
                               b * wide * between(kMove, kMoveFar, tile / kTile, 4)) +
                 spectra / between(kSpectra, kSpectraFar, frequency / kNear, 2) * wide / 2;
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
