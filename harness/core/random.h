// Counter-based random numbers: the value at (seed, stream, position) is a pure function, so a
// sequence is the same on every machine, for every thread count and in every order of evaluation.
//
// Generator: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011),
// checked against its published vectors. Normal deviates use Wichura's AS 241 with our own
// logarithm: only IEEE-exact operations, no libm, no fused multiply-add, hence the same bits
// everywhere. Standard distributions are not used: they differ between libraries.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <vector>

#include "harness/core/types.h"

namespace subquad {

using Seed = std::uint64_t;

// A new seed for a named purpose: derive(seed, "keys", {layer, head}). Distinct names or numbers
// give independent streams.
Seed derive(Seed seed, std::string_view purpose, std::initializer_list<std::uint64_t> numbers = {});

// One Philox4x32-10 block: four 32-bit words.
std::array<std::uint32_t, 4> philox4x32(const std::array<std::uint32_t, 4>& counter,
                                        const std::array<std::uint32_t, 2>& key);

// A sequential reader of one stream; `at` positions can also be read directly.
class Random {
 public:
  explicit Random(Seed seed) : seed_(seed) {}
  Random(Seed seed, std::string_view purpose, std::initializer_list<std::uint64_t> numbers = {})
      : seed_(derive(seed, purpose, numbers)) {}

  std::uint32_t bits32();                    // uniform over all 32-bit words
  std::uint64_t bits64();                    // uniform over all 64-bit words
  double uniform();                          // in (0, 1), 52 bits, never 0 or 1
  double uniform(double low, double high);   // in (low, high)
  double normal();                           // mean 0, variance 1
  double exponential();                      // mean 1
  std::uint64_t below(std::uint64_t bound);  // uniform in [0, bound), without bias; bound > 0
  // k distinct numbers of [0, n) in the order drawn; needs k <= n.
  std::vector<Index> sample_without_replacement(Index n, Index k);
  template <class T>
  void shuffle(std::vector<T>& items) {  // Fisher-Yates
    for (std::size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[below(i)]);
  }

 private:
  Seed seed_;
  std::uint64_t block_ = 0;
  std::array<std::uint32_t, 4> words_{};
  int used_ = 4;
};

// out[i] = i-th standard normal of stream `seed`, in float32; block-parallel, same bits for any
// thread count. `uniform` likewise in (0, 1).
void fill_normal(Seed seed, float* out, Index count);
void fill_uniform(Seed seed, float* out, Index count);

// Elementary functions from IEEE-exact operations only, for data that must not depend on the
// machine's libm. Relative error below 1e-14 (sine and cosine: absolute, |x| <= 1e6).
double portable_log(double x);  // x > 0
double portable_exp(double x);
double portable_sin(double x);
double portable_cos(double x);
double inverse_normal_cdf(double p);  // 0 < p < 1; AS 241, relative error about 1e-16

}  // namespace subquad
