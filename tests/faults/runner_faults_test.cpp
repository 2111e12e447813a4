// Faults of the world around a runner: it is killed, interrupted, started twice, or its disk is
// full. See README.md for the list.
#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/wait.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <chrono>
#include <set>
#include <thread>

#include "harness/sweep/results_csv.h"
#include "tests/fixtures/child.h"
#include "tests/fixtures/sweep_fixture.h"

using namespace subquad;
using fixture::Child;
using fixture::slurp;
using fixture::spill;
using fixture::TemporaryDirectory;

namespace {

// A runner over `cells` cells that sleep, in a process of its own.
std::vector<std::string> sweep_command(const std::string& directory, int cells, int rounds,
                                       int milliseconds, const std::string& method = "ok") {
  return {
      SUBQUAD_SWEEP_FIXTURE,        "run", directory, std::to_string(cells), std::to_string(rounds),
      std::to_string(milliseconds), method};
}

// Every cell of `cells` x `rounds` has one final row, and no other row is final.
void check_complete(const std::string& directory, int cells, int rounds) {
  const auto rows = read_results_csv(directory + "/results.csv");
  std::set<std::pair<std::string, std::string>> seen;
  for (const RowFields& row : rows) {
    INFO(row.at("cell_id") << " round " << row.at("round"));
    CHECK(row.at("status") == "ok");
    CHECK(seen.insert({row.at("cell_id"), row.at("round")}).second);
  }
  CHECK(seen.size() == static_cast<std::size_t>(cells * rounds));
}

std::set<std::string> starts(const std::string& directory) {
  std::set<std::string> lines;
  const std::string text = slurp(directory + "/attempts.log");
  for (std::size_t from = 0, to = 0; (to = text.find('\n', from)) != std::string::npos;
       from = to + 1)
    lines.insert(text.substr(from, to - from));
  return lines;
}

void kill_and_resume(int kills, int cells, int rounds, Seed seed) {
  const TemporaryDirectory path;
  const std::string run = path / "run";
  Random random(seed, "moments of kill -9");
  int killed = 0;
  std::size_t most = 0;
  for (int i = 0; i < kills; ++i) {
    Child child(sweep_command(run, cells, rounds, 20));
    fixture::sleep_s(random.uniform(0, 0.3));
    child.signal(SIGKILL);
    killed += child.wait() == 128 + SIGKILL;
    // The worker that was running dies with its runner.
    CHECK(fixture::wait_until([&] { return fixture::processes_with(SUBQUAD_SWEEP_FIXTURE) == 0; }));
    if (std::filesystem::exists(run + "/results.csv")) {
      const std::size_t rows = read_results_csv(run + "/results.csv").size();
      CHECK(rows >= most);  // nothing is lost
      most = rows;
    }
  }
  CHECK(2 * killed > kills);  // else the sweep was too short for this test
  Child last(sweep_command(run, cells, rounds, 20));
  CHECK(last.wait() == 0);
  check_complete(run, cells, rounds);
  CHECK_FALSE(std::filesystem::exists(run + "/.cache"));
  // Every start has a number of its own.
  std::set<std::string> numbers;
  for (const std::string& line : starts(run))
    CHECK(numbers.insert(line.substr(0, line.find(' ', line.find(' ', 17) + 1))).second);
  CHECK(numbers.size() >= static_cast<std::size_t>(cells * rounds));
}

}  // namespace

TEST_CASE("after kill -9 at random moments a run continues without loss or repetition",
          "[faults]") {
  kill_and_resume(3, 15, 2, 1);
}

TEST_CASE("after 20 times kill -9 a run continues without loss or repetition", "[faults][slow]") {
  kill_and_resume(20, 30, 6, 2);
}

TEST_CASE("kill -9 of the runner takes even a worker that ignores SIGTERM", "[faults]") {
  const TemporaryDirectory path;
  Child child(sweep_command(path / "run", 1, 1, 0, "ignores_sigterm"));
  REQUIRE(fixture::wait_until([] { return fixture::processes_with(SUBQUAD_SWEEP_FIXTURE) == 2; }));
  child.signal(SIGKILL);
  CHECK(child.wait() == 128 + SIGKILL);
  CHECK(fixture::wait_until([] { return fixture::processes_with(SUBQUAD_SWEEP_FIXTURE) == 0; }));
}

TEST_CASE("Ctrl-C and SIGTERM write the row of the running cell and end with their status",
          "[faults]") {
  for (const int number : {SIGINT, SIGTERM}) {
    for (const std::string method : {"ok", "ignores_sigterm"}) {
      const TemporaryDirectory path;
      INFO("signal " << number << ", worker " << method);
      Child child(sweep_command(path / "run", 3, 1, 60000, method));
      REQUIRE(fixture::wait_until([&] { return starts(path / "run").size() == 1; }));
      fixture::sleep_s(0.1);
      child.signal(number);
      CHECK(child.wait() == 128 + number);
      CHECK(fixture::processes_with(SUBQUAD_SWEEP_FIXTURE) == 0);
      const auto rows = read_results_csv(path / "run/results.csv");
      REQUIRE(rows.size() == 1);
      CHECK(rows[0].at("status") == "interrupted");
      CHECK(rows[0].at("reason") == "the run was interrupted");
      // The longest a worker may still have had is far below the 2 s that are promised.
      CHECK(std::stod(rows[0].at("wall_s")) < 60);
    }
  }
}

TEST_CASE("a second signal ends the runner at once, and its worker with it", "[faults]") {
  const TemporaryDirectory path;
  Child child(sweep_command(path / "run", 3, 1, 0, "ignores_sigterm"));
  REQUIRE(fixture::wait_until([&] { return starts(path / "run").size() == 1; }));
  fixture::sleep_s(0.1);
  child.signal(SIGINT);
  fixture::sleep_s(0.05);
  child.signal(SIGINT);
  CHECK(child.wait() == 130);
  CHECK(fixture::wait_until([] { return fixture::processes_with(SUBQUAD_SWEEP_FIXTURE) == 0; }));
}

TEST_CASE("of eight runners on one directory one works and the others say so", "[faults]") {
  for (int repetition = 0; repetition < 3; ++repetition) {
    const TemporaryDirectory path;
    std::vector<std::unique_ptr<Child>> runners;
    for (int i = 0; i < 8; ++i)
      runners.push_back(std::make_unique<Child>(sweep_command(path / "run", 8, 1, 20),
                                                path / ("log" + std::to_string(i))));
    int worked = 0, refused = 0;
    for (int i = 0; i < 8; ++i) {
      const int status = runners[static_cast<std::size_t>(i)]->wait();
      const std::string log = slurp(path / ("log" + std::to_string(i)));
      INFO(status << ": " << log);
      worked += status == 0;
      if (status == 1) {
        CHECK(log.find("locked by ") != std::string::npos);
        ++refused;
      }
    }
    // One that came after the end of the first has nothing left to do.
    CHECK(worked >= 1);
    CHECK(worked + refused == 8);
    check_complete(path / "run", 8, 1);
    CHECK(starts(path / "run").size() == 8);
  }
}

TEST_CASE("a file system that is full ends the run with status 3 and loses nothing", "[faults]") {
  const TemporaryDirectory path;
  std::filesystem::create_directories(path / "small");
  if (mount("tmpfs", (path / "small").c_str(), "tmpfs", 0, "size=256k") != 0) {
    WARN("tmpfs cannot be mounted here; the failing calls of results_test.cpp stand for it");
    return;
  }
  struct Unmount {
    std::string path;
    ~Unmount() { umount2(path.c_str(), MNT_DETACH); }
  } unmount{path / "small"};
  const std::string run = path / "small/run";
  // Room for the check before the start, but not while the run goes on.
  Child first(sweep_command(run, 25, 1, 30), path / "log");
  REQUIRE(fixture::wait_until([&] { return starts(run).size() >= 2; }));
  {
    std::ofstream filler(path / "small/filler", std::ios::binary);
    const std::string block(1024, 'x');
    while (filler.write(block.data(), 1024).flush()) continue;
  }
  CHECK(first.wait() == 3);
  const std::string log = slurp(path / "log");
  INFO(log);
  CHECK((log.find("No space left on device") != std::string::npos ||
         log.find("the disk is full") != std::string::npos));
  // What was stored can be read; what could not is on stderr, unless the start's line did not fit.
  const std::size_t stored = read_results_csv(run + "/results.csv").size();
  CHECK(stored < 25);
  Child full(sweep_command(run, 25, 1, 30), path / "log2");
  CHECK(full.wait() == 3);
  CHECK(read_results_csv(run + "/results.csv").size() >= stored);
  std::filesystem::remove(path / "small/filler");
  Child last(sweep_command(run, 25, 1, 30));
  CHECK(last.wait() == 0);
  check_complete(run, 25, 1);
}

TEST_CASE("the runner stays small", "[faults]") {
  const TemporaryDirectory path;
  Child child(sweep_command(path / "run", 1, 1, 60000));
  REQUIRE(fixture::wait_until([&] { return starts(path / "run").size() == 1; }));
  const std::string status = slurp("/proc/" + std::to_string(child.pid()) + "/status");
  const std::size_t at = status.find("VmHWM:");
  REQUIRE(at != std::string::npos);
  CHECK(std::stol(status.substr(at + 6)) < 50 * 1024);
  child.signal(SIGINT);
  CHECK(child.wait() == 130);
}
