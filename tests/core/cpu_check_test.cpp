#include "harness/core/cpu_check.h"

#include <catch2/catch.hpp>
#include <string>

using namespace subquad;

TEST_CASE("missing processor features are named, present ones are not", "[cpu]") {
  char text[256] = "?";
  CHECK_FALSE(missing_cpu_features(0b0110, 0b1110, text, sizeof text));
  CHECK(std::string(text).empty());
  CHECK(missing_cpu_features(0b10000110, 0b0010, text, sizeof text));
  CHECK(std::string(text) == "avx2, avx512f");
}

TEST_CASE("a long list of missing features is cut to the buffer", "[cpu]") {
  char text[12] = "?";
  CHECK(missing_cpu_features(~0u, 0, text, sizeof text));
  CHECK(std::string(text) == "sse4.2, avx");
}

TEST_CASE("the machine that builds natively has what the build uses", "[cpu]") {
  char text[256];
  CHECK_FALSE(missing_cpu_features(kCpuFeaturesBuiltFor, cpu_features(), text, sizeof text));
#ifdef __AVX2__
  CHECK((kCpuFeaturesBuiltFor >> 2 & 1) == 1);
#endif
#ifdef __AVX512F__
  CHECK((kCpuFeaturesBuiltFor >> 7 & 1) == 1);
#endif
}
