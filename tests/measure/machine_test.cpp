#include "harness/measure/machine.h"

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

using namespace subquad;

TEST_CASE("the machine description has every part a result needs", "[machine]") {
  const nlohmann::json machine = machine_description();
  CHECK(machine["schema"] == 1);
  CHECK(machine["cpu"]["model"] == cpu_model());
  CHECK(machine["cpu"]["logical"].get<int>() >= 1);
  CHECK(machine["cpu"]["affinity"].size() >= 1);
  CHECK(machine["memory"]["total_bytes"].get<double>() > 1e8);
  CHECK(machine["memory"]["available_bytes"] <= machine["memory"]["total_bytes"]);
  CHECK(machine["system"]["host"] == host_name());
  CHECK(machine["build"]["build_id"] == build_id());
  CHECK(machine["build"]["flags"].get<std::string>().find("-O") != std::string::npos);
  for (const char* library : {"eigen", "fftw", "fmt", "yaml_cpp", "benchmark", "nlohmann_json",
                              "cli11", "openmp", "glibc"}) {
    CAPTURE(library);
    const std::string version = machine["libraries"][library];
    REQUIRE_FALSE(version.empty());
    CHECK((version[0] >= '0' && version[0] <= '9'));
  }
  for (const auto& cache : machine["cpu"]["caches"]) {
    CHECK(cache["bytes"].get<double>() >= 1024);
    CHECK(cache["level"].get<int>() >= 1);
  }
}

TEST_CASE("the build id is 16 hex digits and stays the same in a process", "[machine]") {
  const std::string id = build_id();
  CHECK(id.size() == 16);
  CHECK(id.find_first_not_of("0123456789abcdef") == std::string::npos);
  CHECK(id != "0000000000000000");
  CHECK(build_id() == id);
}

TEST_CASE("the build description names the build type and a hash of the flags", "[machine]") {
  const std::string text = build_description();
  const std::size_t space = text.find(' ');
  REQUIRE(space != std::string::npos);
  CHECK(text.substr(0, space) == machine_description()["build"]["type"].get<std::string>());
  CHECK(text.size() - space - 1 == 8);
}
