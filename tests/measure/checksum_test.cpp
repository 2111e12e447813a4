#include "harness/measure/checksum.h"

#include <catch2/catch.hpp>
#include <set>
#include <string>
#include <vector>

using namespace subquad;

TEST_CASE("a checksum notices every changed bit, length and order", "[checksum]") {
  std::set<std::uint64_t> seen;
  std::size_t made = 0;
  for (const std::size_t size : {0, 1, 7, 8, 31, 32, 33, 100}) {
    std::vector<unsigned char> data(size, 0);
    seen.insert(checksum64(data.data(), size));
    ++made;
    for (std::size_t bit = 0; bit < 8 * size; ++bit) {
      data[bit / 8] = static_cast<unsigned char>(1 << (bit % 8));
      seen.insert(checksum64(data.data(), size));
      data[bit / 8] = 0;
      ++made;
    }
  }
  CHECK(seen.size() == made);
  const std::string a = "abc", b = "abd";
  const auto chain = [](const std::string& x, const std::string& y) {
    return checksum64(y.data(), y.size(), checksum64(x.data(), x.size()));
  };
  CHECK(chain(a, b) != chain(b, a));
  CHECK(chain(a, b) == chain(a, b));
}
