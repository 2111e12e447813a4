#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/cli/shell.h"

using namespace subquad::test;
using nlohmann::json;

namespace {

std::set<std::string> files_in(const std::string& folder) {
  std::set<std::string> names;
  for (const auto& entry :
       fs::recursive_directory_iterator(std::string(SUBQUAD_SOURCE_DIR) + "/" + folder))
    if (entry.path().extension() == ".cpp" && entry.path().parent_path().filename() != "engines" &&
        entry.path().string().find("/peers/") == std::string::npos &&  // plugins, not built in
        contents(entry.path().string())
                .find(folder == "tasks" ? "RegisterTask<" : "RegisterMethod<") != std::string::npos)
      names.insert(entry.path().stem().string());
  return names;
}

std::set<std::string> listed(const std::string& what) {
  const Finished result = subquad::test::subquad("list " + what + " --names");
  REQUIRE(result.status == 0);
  std::set<std::string> names;
  std::istringstream lines(result.out);
  for (std::string line; std::getline(lines, line);) names.insert(line);
  return names;
}

}  // namespace

TEST_CASE("every file of methods/ and tasks/ registers the name it carries", "[cli][list]") {
  // An object that the linker dropped, or a file named otherwise, would show here.
  CHECK(listed("methods") == files_in("methods"));
  CHECK(listed("tasks") == files_in("tasks"));
}

TEST_CASE("list shows a sorted table with a heading and a line for each name", "[cli][list]") {
  const Finished result = subquad::test::subquad("list methods");
  CHECK(result.status == 0);
  CHECK(result.out.starts_with("METHOD "));
  CHECK(line_count(result.out) == 1 + static_cast<int>(listed("methods").size()));
  CHECK(result.out.find("TASK") == std::string::npos);
}

TEST_CASE("list --json holds what is declared", "[cli][list]") {
  const Finished result = subquad::test::subquad("list --json");
  REQUIRE(result.status == 0);
  const json all = json::parse(result.out);
  CHECK(all["methods"].size() == listed("methods").size());
  CHECK(all["tasks"].size() == listed("tasks").size());
  for (const json& method : all["methods"]) {
    CHECK_FALSE(method["summary"].get<std::string>().empty());
    CHECK(method["passes"][0] == "forward");
    CHECK(fs::exists(std::string(SUBQUAD_SOURCE_DIR) + "/" + method["file"].get<std::string>()));
    for (const json& param : method["parameters"]) CHECK(param.contains("default"));
  }
}

TEST_CASE("list refuses another word with status 2", "[cli][list]") {
  const Finished result = subquad::test::subquad("list papers");
  CHECK(result.status == 2);
  CHECK(result.err.find("papers") != std::string::npos);
}
