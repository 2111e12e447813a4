#include "harness/core/plugin.h"

#include <catch2/catch.hpp>
#include <filesystem>

#include "tests/cli/shell.h"

using namespace subquad::test;

namespace {

const std::string kPlugins = std::string(SUBQUAD_BINARY_DIR) + "/plugins/";
const std::string kGood = kPlugins + "distance_decay.so";

// The one line with which a plugin is refused; "" when it was loaded.
std::string refusal(const std::string& path) {
  try {
    subquad::load_plugin(path);
  } catch (const subquad::UserError& error) {
    return error.what();
  }
  return "";
}

void check_refused(const std::string& path, const std::vector<std::string>& words) {
  const std::string line = refusal(path);
  CAPTURE(line);
  CHECK(line.find(path) != std::string::npos);
  CHECK(line.find('\n') == std::string::npos);
  for (const std::string& word : words) CHECK(line.find(word) != std::string::npos);
}

// A copy of the good plugin in which `from` is replaced by `to` of the same length.
std::string altered(const TemporaryDirectory& dir, const std::string& from, const std::string& to) {
  std::string bytes = contents(kGood);
  REQUIRE(from.size() == to.size());
  std::size_t changes = 0;
  for (std::size_t at = 0; (at = bytes.find(from, at)) != std::string::npos; at += to.size()) {
    bytes.replace(at, from.size(), to);
    ++changes;
  }
  REQUIRE(changes >= 1);
  std::string path = dir / "altered.so";
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

}  // namespace

TEST_CASE("a plugin of another interface version is refused with both values", "[plugin]") {
  const TemporaryDirectory dir;
  const std::string ours = "@interface=" SUBQUAD_STRINGIFY(SUBQUAD_INTERFACE_VERSION);
  std::string theirs = ours;
  theirs.back() = '9';
  check_refused(altered(dir, ours, theirs),
                {"it has " + theirs.substr(1), "this subquad has " + ours.substr(1), "rebuild"});
}

TEST_CASE("a plugin of another Eigen or C++ ABI is refused with both values", "[plugin]") {
  const TemporaryDirectory dir;
  check_refused(altered(dir, " eigen=3.", " eigen=9."),
                {"it has eigen=9.", "this subquad has eigen=3."});
  check_refused(altered(dir, " cxx11abi=1", " cxx11abi=0"),
                {"it has cxx11abi=0", "this subquad has cxx11abi=1"});
}

#ifdef __AVX__
TEST_CASE("a plugin built for another processor is refused with both alignments", "[plugin]") {
  check_refused(
      kPlugins + "other_flags.so",
      {"it has align=16", "this subquad has align=" SUBQUAD_STRINGIFY(EIGEN_MAX_ALIGN_BYTES)});
}
#endif

TEST_CASE("what is no plugin is refused in one line that says why", "[plugin]") {
  const TemporaryDirectory dir;
  check_refused(dir / "missing.so", {"No such file"});
  std::ofstream(dir / "text.so") << "method: dense\n";
  check_refused(dir / "text.so", {"not a shared object"});
  std::ofstream(dir / "empty.so") << "";
  check_refused(dir / "empty.so", {"not a shared object"});
  check_refused(dir.path().string(), {"not a file"});
  check_refused(kPlugins + "no_stamp.so", {"no interface stamp", "SUBQUAD_PLUGIN()"});
  check_refused(kPlugins + "undefined_symbol.so", {"undefined symbol"});
  check_refused(kPlugins + "registers_nothing.so", {"registers no method and no task"});
  std::ofstream(dir / "cut.so", std::ios::binary) << contents(kGood).substr(0, 20000);
  check_refused(dir / "cut.so", {});
}

TEST_CASE("a plugin whose name exists is refused, naming both files", "[plugin]") {
  // In a process of its own: a registration cannot be taken back.
  const Finished result =
      subquad::test::subquad(fmt::format("list --plugin '{}duplicate_name.so'", kPlugins));
  CHECK(result.status == 2);
  CHECK(result.out.empty());
  CHECK(line_count(result.err) == 1);
  CHECK(result.err.find("task \"gaussian\" is registered twice: in tasks/gaussian.cpp and in ") !=
        std::string::npos);
  CHECK(result.err.find("duplicate_name.cpp") != std::string::npos);
}

TEST_CASE("a good plugin is loaded once, also under another path", "[plugin]") {
  REQUIRE(subquad::Registry::instance().find_method("distance_decay") == nullptr);
  CHECK(refusal(kGood) == "");
  REQUIRE(subquad::Registry::instance().find_method("distance_decay") != nullptr);
  CHECK(refusal(kGood) == "");
  CHECK(refusal(kPlugins + "../plugins/distance_decay.so") == "");
  const TemporaryDirectory dir;
  fs::create_symlink(kGood, dir / "link.so");
  CHECK(refusal(dir / "link.so") == "");
  CHECK(subquad::make_method("distance_decay", {{"half_life", 2.0}}) != nullptr);
}
