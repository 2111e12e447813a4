// What ZETA searches with: Morton codes, sorting, the nearest of a window, and the table of
// neighbours that Z-order keeps.
#include <fmt/core.h>

#include <catch2/catch.hpp>
#include <numeric>
#include <set>

#include "methods/engines/morton.h"
#include "methods/engines/zeta_attention.h"
#include "tests/methods/method_fixture.h"

using namespace subquad;
using namespace subquad::testing;

TEST_CASE("Morton codes enumerate the grid, grow with every coordinate, and begin with the orthant",
          "[methods][zeta]") {
  using namespace engine;
  const auto code2 = [](std::uint64_t a, std::uint64_t b) {
    const std::uint64_t u[] = {a, b};
    return morton_code(u, 2, 2);
  };
  CHECK(code2(0, 0) == 0);
  CHECK(code2(0, 1) == 1);
  CHECK(code2(1, 0) == 2);
  CHECK(code2(1, 1) == 3);
  CHECK(code2(2, 0) == 8);
  CHECK(code2(3, 3) == 15);
  Random random(1);
  for (const auto& [dims, bits] : {std::pair<Index, int>{1, 10},
                                   {1, 31},
                                   {2, 5},
                                   {2, 31},
                                   {3, 10},
                                   {3, 21},
                                   {4, 10},
                                   {8, 7},
                                   {32, 1},
                                   {7, 9}}) {
    for (int trial = 0; trial < 200; ++trial) {
      std::uint64_t u[32], back[32];
      for (Index c = 0; c < dims; ++c) u[c] = random.below(std::uint64_t{1} << bits);
      const std::uint64_t code = morton_code(u, dims, bits);
      CHECK(code >> (dims * bits) == 0);
      morton_point(code, dims, bits, back);
      CHECK(std::equal(u, u + dims, back));
      std::uint64_t orthant = 0;
      for (Index c = 0; c < dims; ++c) orthant = orthant << 1 | u[c] >> (bits - 1);
      CHECK(code >> (dims * (bits - 1)) == orthant);
      const auto c = static_cast<Index>(random.below(static_cast<std::uint64_t>(dims)));
      if (++u[c] < std::uint64_t{1} << bits) CHECK(morton_code(u, dims, bits) > code);
    }
  }
  CHECK(quantized(-1, 10) == 0);
  CHECK(quantized(1, 10) == 1023);
  CHECK(quantized(0, 10) == 512);
  CHECK(quantized(std::nan(""), 10) == 0);
}

TEST_CASE("codes are sorted stably, and merged runs equal the sorted whole", "[methods][zeta]") {
  using namespace engine;
  Random random(2);
  for (const Index n : {0, 1, 2, 255, 256, 257, 3000})
    for (const int bits : {3, 30, 63}) {
      std::vector<CodeAt> items, other(static_cast<std::size_t>(n));
      for (Index i = 0; i < n; ++i)
        items.push_back({random.bits64() >> (64 - bits), static_cast<std::int32_t>(i)});
      std::vector<CodeAt> want = items;
      std::stable_sort(want.begin(), want.end(),
                       [](const CodeAt& a, const CodeAt& b) { return a.code < b.code; });
      const Index half = n / 3;  // runs of earlier and later positions
      std::vector<CodeAt> old(items.begin(), items.begin() + half),
          fresh(items.begin() + half, items.end());
      sort_by_code(items.data(), other.data(), n, bits);
      sort_by_code(old.data(), other.data(), half, bits);
      sort_by_code(fresh.data(), other.data(), n - half, bits);
      old.resize(static_cast<std::size_t>(n));
      merge_backward([&](Index e) { return old[static_cast<std::size_t>(e)].code; }, half,
                     [&](Index e) { return fresh[static_cast<std::size_t>(e)].code; }, n - half,
                     [&](Index to, bool from_new, Index from) {
                       old[static_cast<std::size_t>(to)] =
                           (from_new ? fresh : old)[static_cast<std::size_t>(from)];
                     });
      const auto same = [&](const std::vector<CodeAt>& got) {
        return std::equal(got.begin(), got.end(), want.begin(),
                          [](const CodeAt& a, const CodeAt& b) {
                            return a.code == b.code && a.position == b.position;
                          });
      };
      CHECK(same(items));
      CHECK(same(old));
      std::vector<std::uint64_t> codes;
      for (const CodeAt& item : want) codes.push_back(item.code);
      for (int trial = 0; trial < 20 && n > 0; ++trial) {
        const std::uint64_t wanted = random.bits64() >> (64 - bits);
        const Index place = std::lower_bound(codes.begin(), codes.end(), wanted) - codes.begin();
        CHECK(gallop(codes.data(), place / 2, n, wanted) == place);
      }
    }
}

TEST_CASE("the nearest are chosen, ties by position", "[methods][zeta]") {
  Random random(3);
  for (const Index count : {2, 5, 16, 33, 64, 65, 300})
    for (const double levels : {3.0, 1e9})
      for (Index keep = 1; keep < count; keep += 1 + keep / 3) {
        const Index whole = engine::whole_vectors(count);
        std::vector<float> distance(static_cast<std::size_t>(whole),
                                    std::numeric_limits<float>::infinity());
        std::vector<std::int32_t> position, chosen(static_cast<std::size_t>(count + 1));
        for (Index j = 0; j < count; ++j) {
          distance[static_cast<std::size_t>(j)] =
              static_cast<float>(std::floor(levels * random.uniform()) / levels);
          position.push_back(static_cast<std::int32_t>(j));
        }
        random.shuffle(position);
        std::vector<std::pair<std::pair<float, std::int32_t>, std::int32_t>> ranked;
        for (std::size_t j = 0; j < position.size(); ++j)
          ranked.push_back({{distance[j], position[j]}, static_cast<std::int32_t>(j)});
        std::sort(ranked.begin(), ranked.end());
        std::set<std::int32_t> want;
        for (Index e = 0; e < keep; ++e) want.insert(ranked[static_cast<std::size_t>(e)].second);
        float hint = static_cast<float>(random.uniform());
        engine::choose_nearest(distance.data(), position.data(), count, keep, &hint, chosen.data());
        CHECK(std::set<std::int32_t>(chosen.begin(), chosen.begin() + keep) == want);
        CHECK(std::is_sorted(chosen.begin(), chosen.begin() + keep));
      }
}

namespace {

// Share of the 64 exact nearest neighbours among `window` others around a point in Z-order, over
// 256 of n points; uniform in [-1, 1], or Gaussian times 1/4 in the quantiser's range.
double neighbour_recall(Index n, Index dims, Index window, bool gaussian, Seed seed) {
  Random random(seed);
  const int bits = engine::default_morton_bits(dims);
  std::vector<double> x;
  for (Index e = 0; e < n * dims; ++e)
    x.push_back(gaussian ? 0.25 * random.normal() : random.uniform(-1, 1));
  std::vector<engine::CodeAt> items(static_cast<std::size_t>(n)), other = items;
  for (Index i = 0; i < n; ++i) {
    std::uint64_t u[32];
    for (Index c = 0; c < dims; ++c)
      u[c] = engine::quantized(x[static_cast<std::size_t>(i * dims + c)], bits);
    items[static_cast<std::size_t>(i)] = {engine::morton_code(u, dims, bits),
                                          static_cast<std::int32_t>(i)};
  }
  engine::sort_by_code(items.data(), other.data(), n, bits * static_cast<int>(dims));
  double found = 0;
  for (Index point = 0; point < 256; ++point) {
    const Index place = point * n / 256, i = items[static_cast<std::size_t>(place)].position;
    std::vector<std::pair<double, Index>> ranked;
    for (Index j = 0; j < n; ++j) {
      double sum = 0;
      for (Index c = 0; c < dims; ++c)
        sum += std::pow(
            x[static_cast<std::size_t>(i * dims + c)] - x[static_cast<std::size_t>(j * dims + c)],
            2);
      if (j != i) ranked.emplace_back(sum, j);
    }
    std::nth_element(ranked.begin(), ranked.begin() + 63, ranked.end());
    std::set<Index> nearest;
    for (std::size_t e = 0; e < 64; ++e) nearest.insert(ranked[e].second);
    const Index first = std::clamp<Index>(place - window / 2, 0, n - window - 1);
    for (Index e = first; e <= first + window; ++e)
      found += nearest.contains(items[static_cast<std::size_t>(e)].position) ? 1 : 0;
  }
  return found / (256 * 64);
}

}  // namespace

TEST_CASE("Z-order keeps neighbours as the locality table says", "[methods][zeta]") {
  struct Row {
    bool gaussian;
    Index dims;
    double want[4];  // n = 512 and 2048, windows of 64 and 128
  };
  const Row table[] = {{true, 1, {.93, 1.00, .93, 1.00}}, {true, 2, {.58, .75, .51, .65}},
                       {true, 3, {.47, .65, .40, .53}},   {true, 8, {.26, .43, .17, .25}},
                       {true, 32, {.18, .32, .07, .12}},  {false, 1, {.96, 1.00, .95, 1.00}},
                       {false, 2, {.62, .84, .55, .74}},  {false, 3, {.55, .73, .45, .59}},
                       {false, 8, {.30, .46, .24, .32}},  {false, 32, {.20, .34, .09, .14}}};
  for (const Row& row : table)
    for (int e = 0; e < 4; ++e) {
      const Index n = e < 2 ? 512 : 2048, window = e % 2 == 0 ? 64 : 128;
      double mean = 0;
      for (Seed seed = 0; seed < 4; ++seed)
        mean += neighbour_recall(n, row.dims, window, row.gaussian, seed) / 4;
      INFO(fmt::format("{} d={} n={} window={}: {:.3f}, table {:.2f}",
                       row.gaussian ? "gaussian" : "uniform", row.dims, n, window, mean,
                       row.want[e]));
      CHECK(std::fabs(mean - row.want[e]) <= 0.04);
    }
}
