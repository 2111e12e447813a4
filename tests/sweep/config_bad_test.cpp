// Every malformed config under tests/fixtures/configs/bad gives exactly the lines of its .expect
// file. A .set file beside it holds --set options, one a line.
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "harness/sweep/config.h"
#include "harness/sweep/yaml_reader.h"

using namespace subquad;
namespace fs = std::filesystem;

namespace {

const fs::path kBad = fs::path(SUBQUAD_SOURCE_DIR) / "tests/fixtures/configs/bad";

std::string text_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

std::vector<fs::path> configs() {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(kBad))
    if (entry.path().extension() == ".yaml") paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  return paths;
}

std::set<std::string> names_in(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    names.insert(entry.path().string());
  return names;
}

// The message of load_config, with the folder of the configs taken out; "" when it succeeds.
std::string message_of(const fs::path& config, const std::vector<std::string>& overrides = {}) {
  try {
    load_config(config.string(), overrides);
    return "";
  } catch (const ConfigError& error) {
    std::string text = error.what();
    const std::string folder = config.parent_path().string() + "/";
    for (std::size_t at; (at = text.find(folder)) != std::string::npos;)
      text.erase(at, folder.size());
    return text;
  }
}

// A file in a folder of its own, removed at the end.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& text, const std::string& name = "config.yaml") {
    std::string folder = (fs::temp_directory_path() / "subquad_config_XXXXXX").string();
    REQUIRE(mkdtemp(folder.data()) != nullptr);
    folder_ = folder;
    std::ofstream(path_ = folder_ / name, std::ios::binary) << text;
  }
  ~TemporaryFile() { fs::remove_all(folder_); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const fs::path& path() const { return path_; }
  const fs::path& folder() const { return folder_; }

 private:
  fs::path folder_, path_;
};

const std::string kGood =
    "name: good\nproblem: {n: 256}\nmethods: [fixture_plain]\ntasks: [fixture_data]\n";

}  // namespace

TEST_CASE("every malformed config gives its lines, and nothing is written", "[config]") {
  const TemporaryFile elsewhere("");
  const fs::path before = fs::current_path();
  fs::current_path(elsewhere.folder());
  const std::set<std::string> here = names_in("."), there = names_in(kBad);
  REQUIRE(configs().size() >= 45);
  for (const fs::path& path : configs()) {
    INFO(path.filename().string());
    fs::path expect = path, set = path;
    expect.replace_extension(".expect");
    set.replace_extension(".set");
    const std::vector<std::string> overrides = lines_of(text_of(set));
    const std::string message = message_of(path, overrides);
    if (std::getenv("SUBQUAD_WRITE_EXPECT") != nullptr) std::ofstream(expect) << message << '\n';
    CHECK(message + "\n" == text_of(expect));
    // Each line says where: file:line:column, or the option.
    for (const std::string& line : lines_of(message)) {
      const bool located = line.starts_with(path.filename().string() + ":") ||
                           (!overrides.empty() && line.starts_with("--set "));
      CHECK(located);
    }
  }
  CHECK(names_in(".") == here);
  if (std::getenv("SUBQUAD_WRITE_EXPECT") == nullptr) CHECK(names_in(kBad) == there);
  fs::current_path(before);
}

TEST_CASE("a config that cannot be read is named with its nearest neighbour", "[config]") {
  const TemporaryFile file(kGood, "quickstart.yaml");
  CHECK(message_of(file.folder() / "quickstrat.yaml") ==
        "quickstrat.yaml: cannot be read: No such file or directory; did you mean "
        "\"quickstart.yaml\"?");
  CHECK(message_of(file.folder() / "nothing_like_it") ==
        "nothing_like_it: cannot be read: No such file or directory");
  CHECK_THROWS_WITH(load_config(file.folder().string()),
                    file.folder().string() + ": is a directory; expected a file");
  CHECK_THROWS_WITH(load_config("/dev/zero"), "/dev/zero: is not a regular file; expected a file");
  CHECK_THROWS_WITH(load_config(""), Catch::Contains("cannot be read"));
  CHECK_THROWS_WITH(load_config("no/such/folder/x.yaml"), Catch::Contains("cannot be read"));
  CHECK_THROWS_WITH(load_config(std::string("a\0b", 3)), Catch::Contains("cannot be read"));
  if (geteuid() != 0) {  // root reads everything
    fs::permissions(file.path(), fs::perms::none);
    CHECK(message_of(file.path()) == "quickstart.yaml: cannot be read: Permission denied");
  }
}

TEST_CASE("a large or deep config is refused before it can do harm", "[config]") {
  const auto repeated = [](const std::string& text, std::size_t count) {
    std::string out;
    for (std::size_t i = 0; i < count; ++i) out += text;
    return out;
  };
  const auto refused = [&](const std::string& text) {
    const TemporaryFile file(text);
    return message_of(file.path());
  };
  CHECK(refused(repeated("# padding\n", 110000)) ==
        "config.yaml: larger than 1048576 bytes; a config is small text");
  CHECK(refused(repeated("[", 100000)) == "config.yaml:1:17: nested more than 32 levels deep");
  CHECK(refused(repeated("{a: ", 100000)) == "config.yaml:1:125: nested more than 32 levels deep");
  CHECK(refused(repeated("- ", 100000)) == "config.yaml:1:65: nested more than 32 levels deep");
  CHECK(refused(repeated("? ", 100000)) == "config.yaml:1:65: nested more than 32 levels deep");
  CHECK(refused(repeated("- 1\n", 100000)) ==
        "config.yaml:100000:3: more than 100000 values (aliases count with all that they stand "
        "for)");
  CHECK(refused(kGood + "seeds: [" + repeated("1,", 99000) + "1]").find("again (first at 5:9)") !=
        std::string::npos);
  // Many errors are counted, not all printed.
  const std::string many = refused(kGood + "seeds: [" + repeated("x,", 5000) + "1]");
  CHECK(lines_of(many).size() == 101);
  CHECK(lines_of(many).back() == "config.yaml: 4900 more errors");
}

TEST_CASE("byte order mark and CRLF are accepted and do not shift positions", "[config]") {
  std::string text = "\xef\xbb\xbf";
  for (const char c : kGood + "rounds: x\n")
    text += c == '\n' ? std::string("\r\n") : std::string(1, c);
  const TemporaryFile file(text);
  CHECK(message_of(file.path()) ==
        "config.yaml:5:9: rounds: got \"x\", expected an integer in [1, 10000]");
  CHECK(message_of(file.path(), {"rounds=2"}) == "");
}

TEST_CASE("invalid UTF-8 is found wherever it stands", "[config]") {
  CHECK(find_invalid_utf8("plain, caf\xc3\xa9, \xe2\x82\xac, \xf0\x9f\x98\x80") ==
        std::string_view::npos);
  CHECK(find_invalid_utf8("a\x80") == 1);              // continuation without a lead
  CHECK(find_invalid_utf8("ab\xc3") == 2);             // cut off
  CHECK(find_invalid_utf8("\xc0\xaf") == 0);           // overlong
  CHECK(find_invalid_utf8("\xed\xa0\x80") == 0);       // surrogate
  CHECK(find_invalid_utf8("x\xf4\x90\x80\x80") == 1);  // beyond U+10FFFF
  CHECK(find_invalid_utf8("\xff") == 0);
}
