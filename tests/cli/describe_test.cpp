#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "tests/cli/shell.h"

using namespace subquad::test;

TEST_CASE("describe shows every parameter of every method and task", "[cli][describe]") {
  const Finished all = subquad::test::subquad("list --json");
  REQUIRE(all.status == 0);
  const auto json = nlohmann::json::parse(all.out);
  for (const char* kind : {"methods", "tasks"})
    for (const auto& entry : json[kind]) {
      const std::string name = entry["name"];
      CAPTURE(name);
      const Finished result = subquad::test::subquad("describe " + name);
      CHECK(result.status == 0);
      // A method and a task may share a name: both are shown.
      const std::string title = name + ": " + entry["summary"].get<std::string>() + "\n";
      CHECK(("\n" + result.out).find("\n" + title) != std::string::npos);
      for (const auto& param : entry["parameters"])
        CHECK(result.out.find(param["help"].get<std::string>()) != std::string::npos);
      for (const auto& note : entry["notes"])
        CHECK(result.out.find(note.get<std::string>()) != std::string::npos);
    }
}

TEST_CASE("describe --json gives budget and memory at the asked length", "[cli][describe]") {
  const Finished result = subquad::test::subquad("describe dense_naive --n 2048 --json");
  REQUIRE(result.status == 0);
  const auto sample = nlohmann::json::parse(result.out)["sample"];
  CHECK(sample["extra_bytes"].get<double>() >= 4.0 * 2048 * 2048);
  CHECK(sample["problem"].get<std::string>().find("n=2048") != std::string::npos);
}

TEST_CASE("describe of an unknown name suggests the nearest in one line", "[cli][describe]") {
  const Finished result = subquad::test::subquad("describe dense_naiv");
  CHECK(result.status == 2);
  CHECK(line_count(result.err) == 1);
  CHECK(result.err.find("did you mean \"dense_naive\"?") != std::string::npos);
}

TEST_CASE("describe refuses an unknown parameter", "[cli][describe]") {
  const Finished result = subquad::test::subquad("describe gaussian --set nothing=1");
  CHECK(result.status == 2);
  CHECK(result.err.find("--set nothing=1: gaussian: unknown parameter") != std::string::npos);
}
