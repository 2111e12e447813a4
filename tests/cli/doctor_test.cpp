#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <regex>

#include "tests/cli/shell.h"

using namespace subquad::test;

TEST_CASE("doctor explains every flag that the code can raise", "[cli][doctor]") {
  const Finished result = subquad::test::subquad("doctor --flags");
  REQUIRE(result.status == 0);
  int found = 0;
  const std::regex raised("(?:doubt\\(|add_flag\\(result, |push_back\\(\\s*\\{)\"([a-z_]+)\"");
  for (const auto& entry : fs::recursive_directory_iterator(SUBQUAD_SOURCE_DIR "/harness")) {
    const std::string path = entry.path().string();
    // Elsewhere braces in a push_back make other things.
    const bool doubts = path.find("/sweep/") != std::string::npos || path.ends_with("noise.cpp") ||
                        path.ends_with("life_cycle.cpp") || path.ends_with("judgement.cpp") ||
                        path.ends_with("attention_matrix.cpp");
    if (!path.ends_with(".cpp") || !doubts) continue;
    const std::string source = contents(path);
    for (std::sregex_iterator match(source.begin(), source.end(), raised), end; match != end;
         ++match) {
      ++found;
      INFO(path << " raises " << (*match)[1]);
      CHECK(("\n" + result.out).find("\n" + (*match)[1].str() + ": ") != std::string::npos);
    }
  }
  CHECK(found >= 18);
}

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
