// Faults through the real binary: faulty methods of a plugin in a sweep beside a sound one, and
// what becomes of the sweep when it is killed or interrupted.
#include <algorithm>
#include <catch2/catch.hpp>
#include <map>
#include <set>

#include "harness/sweep/results_csv.h"
#include "tests/fixtures/child.h"
#include "tests/fixtures/sweep_fixture.h"

using namespace subquad;
using fixture::Child;
using fixture::slurp;
using fixture::spill;
using fixture::TemporaryDirectory;

namespace {

struct Expected {
  std::set<std::string> statuses;
  std::string reason;  // a part of it
};

// method -> what its row must say
const std::map<std::string, Expected> kFaults = {
    {"null", {{"crash"}, "SIGSEGV"}},
    {"abort", {{"crash"}, "SIGABRT"}},
    {"exit_immediately", {{"crash"}, "exit status 0 without an answer"}},
    {"exit", {{"crash"}, "exit status 0 without an answer"}},
    {"double_free", {{"crash"}, "SIGABRT"}},
    {"stack_overflow", {{"crash"}, "SIGSEGV"}},
    {"terminate_in_thread", {{"crash"}, "SIGABRT"}},
    {"throw_int", {{"error"}, ""}},
    {"throw", {{"error"}, "no luck"}},
    {"busy_loop", {{"timeout"}, "still running after"}},
    {"ignores_sigterm", {{"timeout"}, "SIGTERM did not end it"}},
    {"loop_in_thread", {{"timeout"}, "still running after"}},
    {"grandchild", {{"unstable"}, "left 1 processes running"}},
    {"grandchild_session", {{"unstable"}, "left 1 processes running"}},
    // The copy either answers as well or hangs for want of the threads that a fork does not copy.
    {"fork_returns_twice", {{"error", "unstable"}, ""}},
    {"allocates_without_end", {{"oom"}, ""}},
    {"huge_allocation", {{"oom"}, ""}},
    {"nan", {{"wrong"}, ""}},
    {"infinity", {{"wrong"}, ""}},
    {"untouched", {{"wrong"}, ""}},
    {"partly_untouched", {{"wrong"}, ""}},
    {"zeros", {{"wrong"}, ""}},
    {"inexact", {{"wrong"}, ""}},
    {"writes_input", {{"wrong"}, ""}},
    {"right_once", {{"wrong"}, ""}},
    {"stale", {{"wrong"}, ""}},
    {"memoizes", {{"wrong"}, ""}},
    {"prints_much", {{"ok", "unstable"}, ""}},
};

std::string config_text(const std::string& name, const std::string& methods, int rounds,
                        double timeout_s) {
  return fmt::format(
      "name: {}\nrounds: {}\nthreads: 1\n"
      "problem: {{n: [48], d_k: 8, d_v: 8}}\n"
      "methods: {}\ntasks: [gaussian]\n"
      "measure: {{min_time_s: 0.002, repetitions: 2, warmup_s: 0.001, timeout_s: {}, "
      "memory_limit_mb: 1024, max_spread: 1000}}\n"
      "plots: false\n",
      name, rounds, methods, timeout_s);
}

int run(const std::vector<std::string>& arguments, const std::string& log,
        const std::string& directory = "") {
  std::vector<std::string> command = {SUBQUAD_BINARY};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return Child(command, log, directory).wait();
}

bool has_run_command() {
  if (run({"run", "--help"}, "/dev/null") == 0) return true;
  WARN("this binary has no run command");
  return false;
}

}  // namespace

TEST_CASE("every faulty method of a plugin is a row with its reason, beside a sound one",
          "[faults][end_to_end][slow]") {
  if (!has_run_command()) return;
  const TemporaryDirectory path;
  std::string methods = "[dense_naive";
  for (const auto& [kind, expected] : kFaults) methods += ", fault_" + kind;
  spill(path / "faults.yaml", config_text("faults", methods + "]", 1, 3));
  const int status = run({"run", path / "faults.yaml", "--plugin",
                          SUBQUAD_TEST_PLUGINS "/faulty_methods.so", "--out", path / "out"},
                         path / "log");
  INFO(slurp(path / "log"));
  CHECK(status == 1);
  const auto rows = read_results_csv(path / "out/results.csv");
  CHECK(rows.size() == kFaults.size() + 1);
  for (const RowFields& row : rows) {
    INFO(row.at("method") << " is " << row.at("status") << ": " << row.at("reason"));
    if (row.at("method") == "dense_naive") {
      CHECK((row.at("status") == "ok" || row.at("status") == "unstable"));
      continue;
    }
    const Expected& expected = kFaults.at(row.at("method").substr(6));
    CHECK(expected.statuses.contains(row.at("status")));
    CHECK(row.at("reason").find(expected.reason) != std::string::npos);
    CHECK((row.at("status") == "ok" || !row.at("reason").empty()));
    // What was not validated has no error to show.
    for (const char* column : {"time_s", "rel_error"})
      if (row.at("status") != "ok" && row.at("status") != "unstable" && row.at("status") != "wrong")
        CHECK(row.at(column).empty());
  }
}

TEST_CASE("the binary's exit statuses tell the truth", "[faults][end_to_end]") {
  if (!has_run_command()) return;
  const TemporaryDirectory path;
  const std::string log = path / "log";
  spill(path / "good.yaml", config_text("good", "[dense_naive]", 2, 60));
  spill(path / "bad.yaml", config_text("good", "[densest]", 2, 60));
  CHECK(run({"run", path / "good.yaml", "--out", path / "a"}, log) == 0);
  CHECK(run({"run", path / "bad.yaml", "--out", path / "b"}, log) == 2);
  CHECK_FALSE(std::filesystem::exists(path / "b"));
  CHECK(run({"run", path / "good.yaml", "--no-such-option"}, log) == 2);
  CHECK(run({"run", path / "good.yaml", "--fresh", "--resume"}, log) == 2);
  CHECK(run({"run", path / "good.yaml", "--shard", "2/2", "--out", path / "b"}, log) == 2);
  CHECK(run({"run", path / "good.yaml", "--shard", "1-2", "--out", path / "b"}, log) == 2);
  CHECK_FALSE(std::filesystem::exists(path / "b"));

  // Again: nothing to do. Another plan: refused, then allowed.
  CHECK(run({"run", path / "good.yaml", "--out", path / "a"}, log) == 0);
  CHECK(slurp(log).find("2 of 2 rows are there already") != std::string::npos);
  CHECK(run({"run", path / "good.yaml", "--set", "rounds=3", "--out", path / "a"}, log) == 2);
  CHECK(run({"run", path / "good.yaml", "--set", "rounds=3", "--resume", "--out", path / "a"},
            log) == 0);
  CHECK(read_results_csv(path / "a/results.csv").size() == 3);

  // The command of a row reproduces it.
  const RowFields row = read_results_csv(path / "a/results.csv").at(0);
  const std::string command = row.at("command").substr(std::string("subquad").size());
  spill(path / "again.sh", "exec " SUBQUAD_BINARY + command + "\n");
  CHECK(Child({"/bin/sh", path / "again.sh"}, log, path.str()).wait() == 0);
  const std::string again = path / ("results/" + row.at("cell_id") + "/results.csv");
  REQUIRE(std::filesystem::exists(again));
  CHECK(read_results_csv(again).at(0).at("cell_id") == row.at("cell_id"));

  // A damaged result stops with status 3 and says where.
  std::string text = slurp(path / "a/results.csv");
  text[text.size() - text.size() / 4] = '\x02';
  spill(path / "a/results.csv", text);
  CHECK(run({"run", path / "good.yaml", "--resume", "--out", path / "a"}, log) == 3);
  CHECK(slurp(log).find("results.csv:") != std::string::npos);
}

TEST_CASE("a dry run prints the cells and writes nothing", "[faults][end_to_end]") {
  if (!has_run_command()) return;
  const TemporaryDirectory path;
  spill(path / "good.yaml", config_text("good", "[dense_naive]", 2, 60));
  CHECK(run({"run", "good.yaml", "--dry-run"}, path / "log", path.str()) == 0);
  CHECK(slurp(path / "log").find("1 cells x 2 rounds = 2 runs") != std::string::npos);
  CHECK_FALSE(std::filesystem::exists(path / "results"));
  CHECK(run({"run", "good.yaml", "--dry-run", "--set", "rounds=10000", "--set", "seeds=[1,2,3]"},
            path / "log", path.str()) == 0);
  CHECK(run({"run", "good.yaml", "--set", "rounds=10000", "--set", "seeds=[1,2,3]"}, path / "log",
            path.str()) == 2);
  CHECK(slurp(path / "log").find("--yes") != std::string::npos);
  CHECK_FALSE(std::filesystem::exists(path / "results"));
}

TEST_CASE("Ctrl-C ends the binary with 130 and a command that really resumes",
          "[faults][end_to_end]") {
  if (!has_run_command()) return;
  const TemporaryDirectory path;
  spill(path / "long.yaml", config_text("long", "[dense_naive]", 3, 100));
  Child child({SUBQUAD_BINARY, "run", path / "long.yaml", "--set", "measure.min_time_s=30", "--out",
               path / "out"},
              path / "log");
  REQUIRE(fixture::wait_until([&] { return !slurp(path / "out/attempts.log").empty(); }));
  fixture::sleep_s(0.2);
  child.signal(SIGINT);
  CHECK(child.wait() == 130);
  const std::string log = slurp(path / "log");
  INFO(log);
  const std::string called = std::string("\n  ") + SUBQUAD_BINARY + " run ";
  REQUIRE(log.find(called) != std::string::npos);
  std::string command = log.substr(log.find(called) + 3);
  command = command.substr(0, command.find('\n'));
  CHECK(command.find("--resume") != std::string::npos);
  const auto rows = read_results_csv(path / "out/results.csv");
  REQUIRE(rows.size() == 1);
  CHECK(rows[0].at("status") == "interrupted");
  // The same command, with a plan that does not take so long.
  const std::size_t at = command.find("min_time_s=30");
  REQUIRE(at != std::string::npos);
  command.replace(at, 13, "min_time_s=0.01");
  spill(path / "resume.sh", "exec " + command + "\n");
  CHECK(Child({"/bin/sh", path / "resume.sh"}, path / "log").wait() == 0);
}

TEST_CASE("kill -9 of the binary at random moments, then the same command again, loses nothing",
          "[faults][end_to_end][slow]") {
  if (!has_run_command()) return;
  const TemporaryDirectory path;
  spill(
      path / "many.yaml",
      fmt::format("name: many\nrounds: 2\nthreads: 1\nproblem: {{n: [16, 17, 33, 48, 64], d_k: 8, "
                  "d_v: 8}}\nseeds: [1, 2, 3]\nmethods: [dense_naive]\ntasks: [gaussian]\n"
                  "measure: {{min_time_s: 0.002, repetitions: 2, warmup_s: 0.001}}\n"
                  "plots: false\n"));
  Random random(6, "moments of kill -9");
  const std::vector<std::string> command = {SUBQUAD_BINARY, "run", path / "many.yaml", "--out",
                                            path / "out"};
  for (int i = 0; i < 20; ++i) {
    Child child(command);
    fixture::sleep_s(random.uniform(0, 0.6));
    child.signal(SIGKILL);
    child.wait();
    CHECK(fixture::wait_until([] { return fixture::processes_with(SUBQUAD_BINARY) == 0; }));
  }
  const int status = Child(command, path / "log").wait();
  INFO(slurp(path / "log"));
  CHECK(status == 0);
  std::set<std::pair<std::string, std::string>> seen;
  for (const RowFields& row : read_results_csv(path / "out/results.csv"))
    CHECK(seen.insert({row.at("cell_id"), row.at("round")}).second);
  CHECK(seen.size() == 30);
}
