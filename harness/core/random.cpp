// Compiled with -ffp-contract=off (see CMakeLists.txt): a fused multiply-add would change bits
// between machines.
#include "harness/core/random.h"

#include <bit>
#include <cmath>
#include <unordered_map>

#include "harness/core/error.h"
#include "harness/core/parallel.h"

namespace subquad {
namespace {

std::uint64_t mix(std::uint64_t x) {  // splitmix64's finaliser
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9ULL;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

std::array<std::uint32_t, 4> block_of(Seed seed, std::uint64_t block) {
  return philox4x32(
      {static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), 0, 0},
      {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
}

// 2^-52 (word + 1/2): symmetric about 1/2, never 0 or 1.
double to_uniform(std::uint32_t high, std::uint32_t low) {
  const std::uint64_t word = (std::uint64_t{high} << 32 | low) >> 12;  // 52 bits
  return (static_cast<double>(word) + 0.5) * 0x1p-52;
}

// 32 bits are enough for float32 deviates: |x| < 6.4.
double to_uniform32(std::uint32_t word) { return (static_cast<double>(word) + 0.5) * 0x1p-32; }

// out[i] = convert applied to word i of the stream, a chunk at a time: convert(words, count, out)
// takes at most kChunk words. The words are made kLanes blocks at once, in loops that the compiler
// turns into vector code; integers, so the same words as philox4x32 gives one by one.
constexpr Index kLanes = 64;
constexpr Index kChunk = 1024;  // a multiple of 4 kLanes; the buffers below stay in the L1 cache

void philox_lanes(Seed seed, std::uint64_t first_block, std::uint32_t* words) {
  std::uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
  for (Index lane = 0; lane < kLanes; ++lane) {
    const std::uint64_t block = first_block + static_cast<std::uint64_t>(lane);
    c0[lane] = static_cast<std::uint32_t>(block);
    c1[lane] = static_cast<std::uint32_t>(block >> 32);
    c2[lane] = c3[lane] = 0;
  }
  std::uint32_t k0 = static_cast<std::uint32_t>(seed);
  std::uint32_t k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (Index lane = 0; lane < kLanes; ++lane) {
      const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c0[lane];
      const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c2[lane];
      const std::uint32_t n0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1[lane] ^ k0;
      const std::uint32_t n2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3[lane] ^ k1;
      c1[lane] = static_cast<std::uint32_t>(p1);
      c3[lane] = static_cast<std::uint32_t>(p0);
      c0[lane] = n0;
      c2[lane] = n2;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (Index lane = 0; lane < kLanes; ++lane) {
    words[4 * lane] = c0[lane];
    words[4 * lane + 1] = c1[lane];
    words[4 * lane + 2] = c2[lane];
    words[4 * lane + 3] = c3[lane];
  }
}

template <class Convert>
void fill(Seed seed, float* out, Index count, Convert&& convert) {
  constexpr Index kItem = 16 * kChunk;  // of one thread at a time
  parallel_for((count + kItem - 1) / kItem, [&](Index item, int) {
    std::uint32_t words[kChunk];
    const Index end = std::min(count, (item + 1) * kItem);
    for (Index begin = item * kItem; begin < end; begin += kChunk) {
      const Index length = std::min(kChunk, end - begin);
      for (Index i = 0; i < length; i += 4 * kLanes)
        philox_lanes(seed, static_cast<std::uint64_t>((begin + i) / 4), words + i);
      convert(words, length, out + begin);
    }
  });
}

}  // namespace

Seed derive(Seed seed, std::string_view purpose, std::initializer_list<std::uint64_t> numbers) {
  std::uint64_t hash = 0xcbf29ce484222325ULL;  // FNV-1a over the purpose
  for (const char c : purpose) {
    hash ^= static_cast<unsigned char>(c);
    hash *= 0x100000001b3ULL;
  }
  hash = mix(hash ^ mix(seed + 0x9e3779b97f4a7c15ULL));
  for (const std::uint64_t number : numbers) hash = mix(hash + mix(number + 0x9e3779b97f4a7c15ULL));
  return hash;
}

std::array<std::uint32_t, 4> philox4x32(const std::array<std::uint32_t, 4>& counter,
                                        const std::array<std::uint32_t, 2>& key) {
  auto [c0, c1, c2, c3] = counter;
  std::uint32_t k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c0;
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c2;
    const std::uint32_t n0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const std::uint32_t n2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(p1);
    c3 = static_cast<std::uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

std::uint32_t Random::bits32() {
  if (used_ == 4) {
    words_ = block_of(seed_, block_++);
    used_ = 0;
  }
  return words_[static_cast<std::size_t>(used_++)];
}

std::uint64_t Random::bits64() {
  const std::uint64_t high = bits32();
  return high << 32 | bits32();
}

double Random::uniform() {
  const std::uint32_t high = bits32();
  return to_uniform(high, bits32());
}

double Random::uniform(double low, double high) { return low + (high - low) * uniform(); }

double Random::normal() { return inverse_normal_cdf(uniform()); }

double Random::exponential() { return -portable_log(uniform()); }

std::uint64_t Random::below(std::uint64_t bound) {
  SUBQUAD_CHECK(bound > 0, "Random::below(0)");
  const std::uint64_t limit = -bound % bound;  // 2^64 mod bound: reject below it, no bias
  std::uint64_t word = bits64();
  while (word < limit) word = bits64();
  return word % bound;
}

std::vector<Index> Random::sample_without_replacement(Index n, Index k) {
  SUBQUAD_CHECK(0 <= k && k <= n, "cannot draw {} distinct numbers below {}", k, n);
  // Fisher-Yates on a virtual array 0..n-1: only moved places are stored.
  std::unordered_map<Index, Index> moved;
  const auto value = [&](Index i) {
    const auto found = moved.find(i);
    return found == moved.end() ? i : found->second;
  };
  std::vector<Index> drawn;
  drawn.reserve(static_cast<std::size_t>(k));
  for (Index i = 0; i < k; ++i) {
    const Index j = i + static_cast<Index>(below(static_cast<std::uint64_t>(n - i)));
    drawn.push_back(value(j));
    moved[j] = value(i);
  }
  return drawn;
}

namespace {

// log(m * 2^exponent) for m in [1/2, 1).
inline double log_of(double m, double exponent) {
  const bool low = m < 0.70710678118654752440;
  m = low ? m * 2 : m;
  exponent = low ? exponent - 1 : exponent;
  const double t = (m - 1) / (m + 1);  // log m = 2 atanh t, |t| < 0.172
  const double t2 = t * t;
  double sum = 0;
  for (int k = 21; k >= 1; k -= 2) sum = sum * t2 + 1.0 / k;
  return 2 * t * sum + exponent * 0.69314718055994530942;
}

}  // namespace

double portable_log(double x) {
  if (!(x > 0)) return x == 0 ? -HUGE_VAL : std::nan("");
  int exponent = 0;
  const double m = std::frexp(x, &exponent);
  return log_of(m, static_cast<double>(exponent));
}

double portable_exp(double x) {
  if (std::isnan(x)) return x;
  if (x > 709.78) return HUGE_VAL;
  if (x < -745) return 0;
  const double k = std::floor(x * 1.44269504088896340736 + 0.5);
  const double r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10;
  double sum = 1;
  for (int i = 14; i >= 1; --i) sum = 1 + sum * r / i;
  return std::ldexp(sum, static_cast<int>(k));
}

namespace {

// sin and cos of r in [-pi/4, pi/4] by their series.
double sine_series(double r) {
  const double r2 = r * r;
  double sum = 0;
  for (int i = 17; i >= 1; i -= 2) sum = 1 - sum * r2 / ((i + 1) * (i + 2.0));
  return r * sum;
}
double cosine_series(double r) {
  const double r2 = r * r;
  double sum = 0;
  for (int i = 16; i >= 0; i -= 2) sum = 1 - sum * r2 / ((i + 1) * (i + 2.0));
  return sum;
}

// x = quadrant * pi/2 + r; pi/2 in three parts, exact products for |quadrant| < 2^20.
double reduce(double x, int* quadrant) {
  const double k = std::floor(x * 0.63661977236758134308 + 0.5);
  const double r = ((x - k * 1.57079632673412561417e+00) - k * 6.07710050630396597660e-11) -
                   k * 2.02226624879595063154e-21;
  *quadrant = static_cast<int>(static_cast<std::int64_t>(k) & 3);
  return r;
}

}  // namespace

double portable_sin(double x) {
  int quadrant = 0;
  const double r = reduce(x, &quadrant);
  const double value = quadrant % 2 == 0 ? sine_series(r) : cosine_series(r);
  return quadrant >= 2 ? -value : value;
}

double portable_cos(double x) {
  int quadrant = 0;
  const double r = reduce(x, &quadrant);
  const double value = quadrant % 2 == 0 ? cosine_series(r) : sine_series(r);
  return quadrant == 1 || quadrant == 2 ? -value : value;
}

// M. J. Wichura, Algorithm AS 241, PPND16 (Applied Statistics 37, 1988), in its three pieces.
namespace {

constexpr double kCentral = 0.425;  // |p - 1/2| of the central piece

inline double normal_centre(double q) {  // q = p - 1/2
  const double r = 0.180625 - q * q;
  return q *
         (((((((2.5090809287301226727e3 * r + 3.3430575583588128105e4) * r +
               6.7265770927008700853e4) *
                  r +
              4.5921953931549871457e4) *
                 r +
             1.3731693765509461125e4) *
                r +
            1.9715909503065514427e3) *
               r +
           1.3314166789178437745e2) *
              r +
          3.3871328727963666080e0) /
         (((((((5.2264952788528545610e3 * r + 2.8729085735721942674e4) * r +
               3.9307895800092710610e4) *
                  r +
              2.1213794301586595867e4) *
                 r +
             5.3941960214247511077e3) *
                r +
            6.8718700749205790830e2) *
               r +
           4.2313330701600911252e1) *
              r +
          1.0);
}

// Both tails are functions of r = sqrt(-log(min(p, 1 - p))).
inline double normal_tail(double r) {  // r <= 5
  r -= 1.6;
  return (((((((7.74545014278341407640e-4 * r + 2.27238449892691845833e-2) * r +
               2.41780725177450611770e-1) *
                  r +
              1.27045825245236838258e0) *
                 r +
             3.64784832476320460504e0) *
                r +
            5.76949722146069140550e0) *
               r +
           4.63033784615654529590e0) *
              r +
          1.42343711074968357734e0) /
         (((((((1.05075007164441684324e-9 * r + 5.47593808499534494600e-4) * r +
               1.51986665636164571966e-2) *
                  r +
              1.48103976427480074590e-1) *
                 r +
             6.89767334985100004550e-1) *
                r +
            1.67638483018380384940e0) *
               r +
           2.05319162663775882187e0) *
              r +
          1.0);
}

double normal_far_tail(double r) {  // r > 5
  r -= 5;
  return (((((((2.01033439929228813265e-7 * r + 2.71155556874348757815e-5) * r +
               1.24266094738807843860e-3) *
                  r +
              2.65321895265761230930e-2) *
                 r +
             2.96560571828504891230e-1) *
                r +
            1.78482653991729133580e0) *
               r +
           5.46378491116411436990e0) *
              r +
          6.65790464350110377720e0) /
         (((((((2.04426310338993978564e-15 * r + 1.42151175831644588870e-7) * r +
               1.84631831751005468180e-5) *
                  r +
              7.86869131145613259100e-4) *
                 r +
             1.48753612908506148525e-2) *
                r +
            1.36929880922735805310e-1) *
               r +
           5.99832206555887937690e-1) *
              r +
          1.0);
}

}  // namespace

double inverse_normal_cdf(double p) {
  const double q = p - 0.5;
  if (std::fabs(q) <= kCentral) return normal_centre(q);
  const double r = std::sqrt(-portable_log(q < 0 ? p : 1 - p));
  const double value = r <= 5 ? normal_tail(r) : normal_far_tail(r);
  return q < 0 ? -value : value;
}

void fill_normal(Seed seed, float* out, Index count) {
  // The bits of inverse_normal_cdf(to_uniform32(word)). 15 of 100 words belong to a tail: these are
  // gathered and computed together, and with 32 bits r < 4.8, so the far tail is never needed.
  fill(seed, out, count, [](const std::uint32_t* words, Index length, float* to) {
    double tail[kChunk];
    std::int32_t where[kChunk];
    Index tails = 0;
    for (Index i = 0; i < length; ++i)
      to[i] = static_cast<float>(normal_centre(to_uniform32(words[i]) - 0.5));
    for (Index i = 0; i < length; ++i) {
      const double p = to_uniform32(words[i]);
      tail[tails] = p;
      where[tails] = static_cast<std::int32_t>(i);
      tails += std::fabs(p - 0.5) > kCentral ? 1 : 0;
    }
    for (Index i = 0; i < tails; ++i) {
      const double p = tail[i], smaller = p < 0.5 ? p : 1 - p;
      // frexp of a normal number
      const std::uint64_t bits = std::bit_cast<std::uint64_t>(smaller);
      const double m =
          std::bit_cast<double>((bits & 0x000fffffffffffffULL) | 0x3fe0000000000000ULL);
      const auto exponent = static_cast<double>(static_cast<std::int32_t>(bits >> 52) - 1022);
      const double value = normal_tail(std::sqrt(-log_of(m, exponent)));
      tail[i] = p < 0.5 ? -value : value;
    }
    for (Index i = 0; i < tails; ++i) to[where[i]] = static_cast<float>(tail[i]);
  });
}

void fill_uniform(Seed seed, float* out, Index count) {
  fill(seed, out, count, [](const std::uint32_t* words, Index length, float* to) {
    for (Index i = 0; i < length; ++i)  // the largest value would round up to 1 in float32
      to[i] = static_cast<float>(std::min(to_uniform32(words[i]), 1 - 0x1p-24));
  });
}

}  // namespace subquad
