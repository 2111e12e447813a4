// Two git revisions: built in work trees, measured in turn, compared.
#include <catch2/catch.hpp>

#include "harness/sweep/results_csv.h"
#include "tests/cli/shell.h"

using namespace subquad::test;

namespace {

constexpr const char* kConfig =
    "name: c\nthreads: 1\nproblem: {n: 24, d_k: 8, d_v: 8}\nmethods: [dense]\n"
    "tasks: [gaussian]\nmeasure: {min_time_s: 0.001, repetitions: 2, max_spread: 1000}\n";

// repo.sh makes repo, a repository of one commit whose target `subquad` hands over to the real one,
// unless it is there, and then does `more` in it; c.yaml is what is measured. False: no git or no
// cmake here.
bool set_up(const TemporaryDirectory& dir, const std::string& more) {
  if (shell("git --version && cmake --version").status != 0) {
    WARN("no git or no cmake here");
    return false;
  }
  std::ofstream(dir / "c.yaml") << kConfig;
  std::ofstream(dir / "repo.sh") << fmt::format(
      R"(set -e
unset GIT_DIR GIT_WORK_TREE
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a
if [ ! -d repo ]; then
mkdir repo && cd repo && git init -q
cat >CMakeLists.txt <<X
cmake_minimum_required(VERSION 3.25)
project(fake NONE)
add_custom_target(subquad COMMAND \${{CMAKE_COMMAND}} -E copy \${{CMAKE_SOURCE_DIR}}/start \${{CMAKE_BINARY_DIR}}/subquad)
X
printf '#!/bin/sh\nexec {0} "$@"\n' >start && chmod +x start
git add . && git commit -qm one && git tag one
cd ..
fi
cd repo
{1}
)",
      SUBQUAD_BINARY, more);
  REQUIRE(shell(fmt::format("cd '{}' && sh repo.sh", dir.path().string())).status == 0);
  return true;
}

}  // namespace

TEST_CASE("two revisions are built and measured in turn", "[cli][compare]") {
  const TemporaryDirectory dir;
  // The second revision gives its workers too little memory, so everything fails in it.
  if (!set_up(dir, fmt::format(
                       R"(printf '#!/bin/sh\nexec {0} "$@" --set measure.memory_limit_mb=1\n' >start
git commit -qam two)",
                       SUBQUAD_BINARY)))
    return;
  const auto compare = [&](const std::string& other) {
    return shell(
        fmt::format("cd '{}' && '{}' compare one {} --source repo --config c.yaml --rounds 2 "
                    "--threshold 10 --include-unstable",
                    dir.path().string(), SUBQUAD_BINARY, other));
  };
  const Finished same = compare("one~0");
  INFO(same.out << same.err);
  CHECK(same.status == 0);
  CHECK(same.out.find("1 cells in both: 0 regressions") != std::string::npos);
  for (const char* side : {"a", "b"})
    CHECK(subquad::read_results_csv(dir / ("results/compare/" + std::string(side) + "/results.csv"))
              .size() == 2);
  const Finished worse = compare("HEAD");
  INFO(worse.out << worse.err);
  CHECK(worse.status == 1);
  CHECK(worse.out.find("WORSE") != std::string::npos);
  CHECK(worse.out.find("status") != std::string::npos);
  // Without a config there is nothing to measure.
  CHECK(shell(fmt::format("cd '{}' && '{}' compare one HEAD", dir.path().string(), SUBQUAD_BINARY))
            .status == 2);
}

TEST_CASE("a revision means what it is in the source repository now", "[cli][compare]") {
  const TemporaryDirectory dir;
  if (!set_up(dir, "echo more >>notes && git add . && git commit -qm more")) return;
  const std::string in_dir = fmt::format("cd '{}' && ", dir.path().string());
  const auto hash = [&](const std::string& tree) {
    const Finished found = shell(in_dir + "unset GIT_DIR; git -C " + tree + " rev-parse HEAD");
    REQUIRE(found.status == 0);
    return found.out.substr(0, found.out.size() - 1);
  };
  const std::string compare = fmt::format(
      "'{}' compare HEAD~1 HEAD --source repo --config c.yaml --rounds 1 --threshold 10 "
      "--include-unstable",
      SUBQUAD_BINARY);
  for (int time = 0; time < 2; ++time) {
    REQUIRE(shell(in_dir + "sh repo.sh").status == 0);
    // An exported GIT_DIR is that of another repository.
    const Finished compared = shell(in_dir + "GIT_DIR=/nowhere/.git " + compare);
    INFO(compared.out << compared.err);
    CHECK(compared.status == 0);
    const std::string head = hash("repo");
    CHECK(hash("results/compare/tree-" + head) == head);
    const Finished before = shell(in_dir + "unset GIT_DIR; git -C repo rev-parse HEAD~1");
    const std::string parent = before.out.substr(0, before.out.size() - 1);
    CHECK(hash("results/compare/tree-" + parent) == parent);
    CHECK(compared.err.find("tree-" + head + "/build") != std::string::npos);
    CHECK(compared.err.find("tree-" + parent + "/build") != std::string::npos);
  }
  // Only commits: what looks like an option or is not there is refused.
  for (const char* bad : {"HEAD~9", "nothing"}) {
    const Finished refused =
        shell(in_dir + fmt::format("'{}' compare HEAD {} --source repo --config c.yaml",
                                   SUBQUAD_BINARY, bad));
    CHECK(refused.status == 2);
    CHECK(refused.err.find("is no revision of") != std::string::npos);
  }
  // While another comparison is at work in the folder, nothing is measured there.
  const Finished locked = shell(in_dir + "flock results/compare/.lock sh -c \"" + compare + "\"");
  CHECK(locked.status == 1);
  CHECK(locked.err.find("locked by") != std::string::npos);
}
