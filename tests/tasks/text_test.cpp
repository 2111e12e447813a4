#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include "harness/core/data_path.h"
#include "tests/tasks/attention.h"

using namespace subquad;
namespace fs = std::filesystem;

namespace {

struct TextFile {
  fs::path path;
  explicit TextFile(const std::string& contents) {
    std::string name = (fs::temp_directory_path() / "subquad_text_XXXXXX").string();
    const int fd = mkstemp(name.data());
    REQUIRE(fd >= 0);
    path = name;
    std::ofstream(path, std::ios::binary) << contents;
  }
  ~TextFile() { fs::remove(path); }
  Settings settings(const std::string& unit) const {
    return {{"path", path.string()}, {"unit", unit}};
  }
};

std::string refusal(const Settings& settings) {
  try {
    make_task("text", settings);
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}

std::string shipped() {
  std::ifstream file(data_path("shakespeare.txt"), std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST_CASE("text labels a token with the next one, and splits by position", "[text]") {
  const std::string text = shipped();
  CHECK(text.size() > 100000);
  CHECK(text.starts_with("First Citizen:\n"));
  const auto task = make_task("text");
  CHECK(task->labels(64).vocabulary == 256);
  CHECK(task->labels(64).classes == 256);
  const std::size_t train = text.size() * 90 / 100, validation = text.size() * 95 / 100;
  const auto inside = [&](Split split, std::size_t begin, std::size_t end) {
    const Index n = 100;
    const TokenBatch batch = task->tokens(split, 0, 200, n, 1);
    for (Index e = 0; e < batch.batch; ++e) {
      std::string window, labels;
      for (Index t = 0; t < n; ++t) {
        window += static_cast<char>(batch.tokens[static_cast<std::size_t>(e * n + t)]);
        labels += static_cast<char>(batch.labels[static_cast<std::size_t>(e * n + t)]);
      }
      const std::size_t at = text.find(window + labels.back());
      if (!(at >= begin && at + window.size() < end)) FAIL_CHECK("window outside its split");
      if (window.substr(1) != labels.substr(0, labels.size() - 1)) FAIL_CHECK("labels not shifted");
    }
  };
  inside(Split::train, 0, train);
  inside(Split::validation, train, validation);
  inside(Split::test, validation, text.size());
}

TEST_CASE("validation and test windows follow one another and start again", "[text]") {
  const TextFile file(std::string(900, 'a') + std::string(50, 'b') + "0123456789" +
                      std::string(40, 'c'));
  const auto task = make_task("text", file.settings("byte"));
  const TokenBatch batch = task->tokens(Split::test, 0, 6, 10, 1);  // 4 windows of 10 in 50 - 1
  const std::string all(batch.tokens.begin(), batch.tokens.end());
  CHECK(all == "0123456789" + std::string(30, 'c') + "0123456789" + std::string(10, 'c'));
  CHECK_THROWS_WITH(task->tokens(Split::test, 0, 1, 50, 1),
                    "text: the test split has 50 bytes, n=50 needs 51");
  CHECK_NOTHROW(task->tokens(Split::test, 0, 1, 49, 1));
}

TEST_CASE("characters are code points, numbered in their order", "[text]") {
  // a, e-acute, euro, G clef: one to four bytes.
  std::string sample = "a\xc3\xa9\xe2\x82\xac\xf0\x9d\x84\x9e", text;
  for (int i = 0; i < 50; ++i) text += sample;
  const TextFile file(text);
  const auto task = make_task("text", file.settings("char"));
  CHECK(task->labels(8).vocabulary == 4);
  const TokenBatch batch = task->tokens(Split::validation, 0, 1, 4, 1);
  CHECK(batch.tokens == std::vector<std::int32_t>{0, 1, 2, 3});
  CHECK(batch.labels == std::vector<std::int32_t>{1, 2, 3, 0});
  Problem p;
  p.n = p.n_kv = 200;
  CHECK(task->unsupported(p) == "");
  p.n_kv = 201;
  CHECK(task->unsupported(p) == "the text has 200 chars, got n=200 and n_kv=201");
}

TEST_CASE("text that is not UTF-8 is refused for characters with its offset", "[text]") {
  const std::vector<std::pair<std::string, int>> table = {
      {"ab\xff", 2},           {"\x80", 0},          {"ab\xc3", 2},       {"\xc0\xaf", 0},
      {"\xc1\xbf", 0},         {"a\xe0\x80\x80", 1}, {"\xed\xa0\x80", 0}, {"\xf4\x90\x80\x80", 0},
      {"\xf5\x80\x80\x80", 0}, {"abc\xe2\x82", 3},   {"\xe2\x28\xa1", 0}, {"\xf0\x8f\xbf\xbf", 0},
      {"x\xf0\x9d\x84", 1},    {"\xc3\xc3", 0}};
  for (const auto& [text, offset] : table) {
    const TextFile file(text);
    const std::string said = refusal(file.settings("char"));
    INFO(said);
    CHECK(said.starts_with(
        fmt::format("text: {}: invalid UTF-8 at byte offset {} (0x", file.path.string(), offset)));
    CHECK(refusal(file.settings("byte")) == "");
  }
  for (const std::string& text : {std::string("\xed\x9f\xbf"), std::string("\xee\x80\x80"),
                                  std::string("\xf4\x8f\xbf\xbf"), std::string("a\0b", 3)})
    CHECK(refusal(TextFile(text).settings("char")) == "");
}

TEST_CASE("a text that cannot be read is refused with the reason", "[text]") {
  CHECK(refusal({{"path", std::string("/nowhere/x.txt")}}) ==
        "text: /nowhere/x.txt: No such file or directory");
  CHECK(refusal(TextFile("").settings("byte")).find("is empty") != std::string::npos);
  CHECK(refusal({{"path", std::string("/usr")}}) ==
        "text: /usr: cannot be read, expected a file with text");
}

TEST_CASE("text's q, k, v attend to what followed the same token before, near ones first",
          "[text]") {
  Problem p;
  p.n = p.n_kv = 400, p.causal = true;
  // One window alone is possible, so that the tokens are known.
  const std::string text = shipped().substr(0, 400);
  const TextFile file(text);
  Settings settings = file.settings("byte");
  settings["sharpness"] = 8.0;
  const MatrixD weights = weights_of(fill("text", settings, p), p);
  double matching = 0, by_chance = 0;
  for (Index i = 100; i < 400; ++i)
    for (Index j = 1; j <= i; ++j)
      if (text[static_cast<std::size_t>(j - 1)] == text[static_cast<std::size_t>(i)]) {
        matching += weights(i, j) / 300;
        by_chance += 1.0 / static_cast<double>(i + 1) / 300;
      }
  CHECK(by_chance < 0.15);
  CHECK(matching > 0.8);
  settings["sharpness"] = 0.0;
  const MatrixD near = weights_of(fill("text", settings, p), p);
  for (Index i = 50; i < 400; i += 50) {
    CHECK(near(i, i) > near(i, i - 5));
    CHECK(near(i, i) > 20 * near(i, 0));
  }
}

TEST_CASE("text's floors are bits of predictors without context", "[text]") {
  const auto floors = make_task("text")->floors(64, 1);
  REQUIRE(floors.size() == 2);
  CHECK(floors[0].value == Approx(8));
  CHECK(floors[1].value > 4.5);  // English letters with blanks: about 4.2 to 4.9 bits
  CHECK(floors[1].value < 5.0);
}

TEST_CASE("shipped data are found through SUBQUAD_DATA first, and a miss names the places",
          "[data_path]") {
  const TextFile file("hello");
  setenv("SUBQUAD_DATA", file.path.parent_path().c_str(), 1);
  CHECK(data_path(file.path.filename().string()) == file.path.string());
  CHECK(data_path("shakespeare.txt").ends_with("tasks/data/shakespeare.txt"));
  CHECK_THROWS_WITH(data_path("none.txt"),
                    Catch::Contains("\"none.txt\" not found") &&
                        Catch::Contains(file.path.parent_path().string() + "/none.txt") &&
                        Catch::Contains("share/subquad/none.txt"));
  unsetenv("SUBQUAD_DATA");
  CHECK_THROWS_AS(data_path(file.path.filename().string()), UserError);
}
