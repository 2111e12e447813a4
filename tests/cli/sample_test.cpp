#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "tests/cli/shell.h"

using namespace subquad::test;
using nlohmann::json;

namespace {

std::vector<json> sampled(const std::string& arguments) {
  const Finished result = subquad::test::subquad("sample " + arguments);
  CAPTURE(result.err);
  REQUIRE(result.status == 0);
  std::vector<json> objects;
  std::istringstream lines(result.out);
  for (std::string line; std::getline(lines, line);) objects.push_back(json::parse(line));
  return objects;
}

}  // namespace

TEST_CASE("sample prints one object a line with q, k and v of the shape", "[cli][sample]") {
  const auto objects = sampled("gaussian --count 3 --n 5 --d 2 --heads 2");
  REQUIRE(objects.size() == 3);
  for (const json& object : objects)
    for (const char* name : {"q", "k", "v"}) {
      REQUIRE(object[name].size() == 1);
      REQUIRE(object[name][0].size() == 2);
      REQUIRE(object[name][0][0].size() == 5);
      CHECK(object[name][0][0][0].size() == 2);
    }
  CHECK(objects[0]["q"] != objects[1]["q"]);
}

TEST_CASE("sample is a function of the seed", "[cli][sample]") {
  CHECK(sampled("gaussian --seed 7") == sampled("gaussian --seed 7"));
  CHECK(sampled("gaussian --seed 7") != sampled("gaussian --seed 8"));
}

TEST_CASE("sample of an unknown task or a bad value ends with status 2", "[cli][sample]") {
  CHECK(subquad::test::subquad("sample gausian").err.find("did you mean \"gaussian\"?") !=
        std::string::npos);
  for (const char* arguments : {"gausian", "gaussian --count 0", "gaussian --set temperature=x",
                                "gaussian --split holdout", "gaussian --n -3"}) {
    CAPTURE(arguments);
    CHECK(subquad::test::subquad(std::string("sample ") + arguments).status == 2);
  }
}

TEST_CASE("sample reports a full device as a storage failure", "[cli][sample]") {
  const Finished result =
      shell(fmt::format("'{}' sample gaussian --n 4096 >/dev/full", SUBQUAD_BINARY));
  CHECK(result.status == 3);
  CHECK(line_count(result.err) == 1);
}
