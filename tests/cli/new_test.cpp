#include <catch2/catch.hpp>

#include "tests/cli/shell.h"

using namespace subquad::test;

namespace {

// A tree that `new` takes for the source tree, without writing into the real one.
void make_tree(const TemporaryDirectory& dir) {
  fs::create_directories(dir.path() / "tree");
  fs::create_symlink(fs::path(SUBQUAD_SOURCE_DIR) / "harness", dir / "tree/harness");
}

Finished make_new(const TemporaryDirectory& dir, const std::string& arguments) {
  return subquad::test::subquad(fmt::format("new {} --source '{}'", arguments, dir / "tree"));
}

}  // namespace

TEST_CASE("new writes one file in the right place, once", "[cli][new]") {
  const TemporaryDirectory dir;
  make_tree(dir);
  const Finished method = make_new(dir, "method windowed_mean --family sparse_fixed");
  CHECK(method.status == 0);
  CHECK(method.out == (dir / "tree/methods/sparse_fixed/windowed_mean.cpp") + "\n");
  const std::string text = contents(dir / "tree/methods/sparse_fixed/windowed_mean.cpp");
  CHECK(text.find("class WindowedMean final : public Method") != std::string::npos);
  CHECK(text.find(".family = \"sparse_fixed\"") != std::string::npos);
  CHECK(text.find("{{") == std::string::npos);  // no mark of the template is left
  const Finished format =
      shell(fmt::format("! command -v clang-format >/dev/null || clang-format "
                        "--style='file:{}/.clang-format' --dry-run "
                        "--Werror '{}'",
                        SUBQUAD_SOURCE_DIR, dir / "tree/methods/sparse_fixed/windowed_mean.cpp"));
  CAPTURE(format.err);
  CHECK(format.status == 0);
  CHECK(make_new(dir, "task shared_direction").status == 0);
  CHECK(fs::exists(dir / "tree/tasks/shared_direction.cpp"));

  const Finished again = make_new(dir, "method windowed_mean --family sparse_fixed");
  CHECK(again.status == 2);
  CHECK(again.err.find("exists and is left alone") != std::string::npos);
  CHECK(contents(dir / "tree/methods/sparse_fixed/windowed_mean.cpp") == text);
}

TEST_CASE("new refuses bad names, taken names and a tree that is none", "[cli][new]") {
  const TemporaryDirectory dir;
  make_tree(dir);
  for (const char* arguments :
       {"method Mean", "method ../mean", "method 'a b'", "method 1mean", "method ''", "task a-b",
        "method mean --family ../x", "method mean --family Sparse"}) {
    CAPTURE(arguments);
    const Finished result = make_new(dir, arguments);
    CHECK(result.status == 2);
    CHECK(result.out.empty());
    CHECK(line_count(result.err) >= 1);
  }
  CHECK(make_new(dir, "method dense_naive").err.find("exists: methods/exact/dense_naive.cpp") !=
        std::string::npos);
  CHECK(make_new(dir, "task gaussian").err.find("exists: tasks/gaussian.cpp") != std::string::npos);
  CHECK_FALSE(fs::exists(dir / "tree/methods"));
  const Finished lost =
      subquad::test::subquad(fmt::format("new method mean --source '{}'", dir.path().string()));
  CHECK(lost.status == 2);
  CHECK(lost.err.find("no source tree") != std::string::npos);
}

TEST_CASE("new --standalone writes a project and leaves existing files alone", "[cli][new]") {
  const TemporaryDirectory dir;
  const std::string command = fmt::format("new method my_mean --standalone '{}'", dir / "project");
  REQUIRE(subquad::test::subquad(command).status == 0);
  for (const char* file : {"my_mean.cpp", "CMakeLists.txt", "README.md", "example.yaml"}) {
    CAPTURE(file);
    const std::string text = contents(dir / (std::string("project/") + file));
    CHECK(text.find("my_mean") != std::string::npos);
    CHECK(text.find("{{NAME}}") == std::string::npos);
  }
  CHECK(contents(dir / "project/my_mean.cpp").find("SUBQUAD_PLUGIN();") != std::string::npos);
  CHECK(subquad::test::subquad(command).status == 2);
}

TEST_CASE("starting files compile without warnings, against the installed package, and pass",
          "[cli][new][slow]") {
  const TemporaryDirectory dir;
  const Finished installed =
      shell(fmt::format("cmake --install '{}' --prefix '{}'", SUBQUAD_BINARY_DIR, dir / "prefix"));
  CAPTURE(installed.err);
  REQUIRE(installed.status == 0);
  const std::string executable = dir / "prefix/bin/subquad";

  // Those of the tree, built as plugins with a stamp in a file of its own.
  make_tree(dir);
  REQUIRE(make_new(dir, "method tree_mean").status == 0);
  REQUIRE(make_new(dir, "task tree_task").status == 0);
  // Those that stand alone; the task's project also builds the files of the tree.
  for (const char* kind : {"method", "task"})
    REQUIRE(
        shell(fmt::format("'{0}' new {1} own_{1} --standalone '{2}'", executable, kind, dir / kind))
            .status == 0);
  std::ofstream(dir / "task/stamp.cpp")
      << "#include \"harness/core/plugin.h\"\nSUBQUAD_PLUGIN();\n";
  std::ofstream(dir / "task/CMakeLists.txt", std::ios::app) << fmt::format(
      "subquad_add_plugin(tree_files stamp.cpp {0}/methods/custom/tree_mean.cpp "
      "{0}/tasks/tree_task.cpp)\n",
      dir / "tree");
  for (const char* kind : {"method", "task"}) {
    const Finished built = shell(
        fmt::format("cd '{}' && cmake -B build -DCMAKE_PREFIX_PATH='{}' "
                    "-DCMAKE_CXX_FLAGS='-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror "
                    "-Wno-maybe-uninitialized' && cmake --build build && ctest --test-dir build "
                    "--output-on-failure",
                    dir / kind, dir / "prefix"));
    CAPTURE(kind, built.out, built.err);
    REQUIRE(built.status == 0);
    CHECK(built.out.find("100% tests passed") != std::string::npos);
  }
  const std::string plugin = dir / "task/build/tree_files.so";
  const Finished tested =
      shell(fmt::format("'{}' test tree_mean --plugin '{}'", executable, plugin));
  CAPTURE(tested.out, tested.err);
  CHECK(tested.status == 0);
  CHECK(shell(fmt::format("'{}' sample tree_task --plugin '{}'", executable, plugin)).status == 0);
}
