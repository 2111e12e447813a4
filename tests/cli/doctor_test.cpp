#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "tests/cli/shell.h"

using namespace subquad::test;

TEST_CASE("doctor --json describes machine, speed and noise", "[cli][doctor]") {
  const Finished result = subquad::test::subquad("doctor --json --seconds 0.4");
  REQUIRE(result.status == 0);
  const auto json = nlohmann::json::parse(result.out);
  CHECK_FALSE(json["machine"]["cpu"]["model"].get<std::string>().empty());
  CHECK(json["speed"]["fma_gflops"].get<double>() > 0);
  CHECK(json["speed"]["gemm_gflops"].get<double>() > 0);
  CHECK(json["noise"]["samples"].get<int>() >= 4);
  CHECK(json["noise"]["min_s"].get<double>() <= json["noise"]["median_s"].get<double>());
  CHECK(json["noise"]["median_s"].get<double>() <= json["noise"]["max_s"].get<double>());
}

TEST_CASE("doctor prints every heading and an answer on what may spoil a measurement",
          "[cli][doctor]") {
  const Finished result = subquad::test::subquad("doctor --seconds 0.2");
  CHECK(result.status == 0);
  for (const char* heading : {"processor", "caches", "memory", "frequency", "build", "libraries",
                              "matrix product", "noise", "disturbance", "figures", "spoil"})
    CHECK(result.out.find(heading) != std::string::npos);
}
