// The example in methods/README.md is the file that is compiled into these tests.
#include <algorithm>
#include <catch2/catch.hpp>
#include <fstream>
#include <sstream>

namespace {

std::string text_of(const std::string& path) {
  std::ifstream file(std::string(SUBQUAD_SOURCE_DIR) + "/" + path);
  REQUIRE(file);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

TEST_CASE("the example of the methods page is the compiled one", "[methods]") {
  const std::string example = text_of("tests/methods/uniform_example.cpp");
  CHECK(text_of("methods/README.md").find("```cpp\n" + example + "```") != std::string::npos);
  CHECK(std::count(example.begin(), example.end(), '\n') < 60);
}
