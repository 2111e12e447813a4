// Shards joined into one run directory.
#include "harness/sweep/merge.h"

#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <set>
#include <thread>

#include "harness/core/error.h"
#include "harness/sweep/plan.h"
#include "harness/sweep/results_store.h"
#include "harness/sweep/run_directory.h"
#include "tests/fixtures/sweep_fixture.h"

using namespace subquad;
using fixture::quick_cells;
using fixture::slurp;
using fixture::spill;
using fixture::TemporaryDirectory;

namespace {

constexpr int kRounds = 2;

RowFields row_of(const Cell& cell, int round, const std::string& status = "ok",
                 const std::string& cpu = "a cpu", const std::string& time = "0.5") {
  return {{"cell_id", cell.id()},
          {"round", std::to_string(round)},
          {"attempt", "1"},
          {"status", status},
          {"method", cell.method},
          {"task", cell.task},
          {"pass", "forward"},
          {"n", std::to_string(cell.problem.n)},
          {"cpu", cpu},
          {"host", "host of " + cpu},
          {"build_id", "b"},
          {"time_s", time}};
}

// A shard's directory with all of its rows but `missing` at the end.
void write_shard(const std::string& path, const std::vector<Cell>& cells, int shard, int shards,
                 std::size_t missing = 0, const std::string& cpu = "a cpu") {
  const auto part = select_shard(cells, shard, shards);
  Plan plan{{}, kRounds, shard, shards, {}};
  for (const Cell& cell : part) plan.cells.insert(cell.id());
  for (const Cell& cell : cells) plan.sweep.insert(cell.id());
  const RunDirectory directory(path, plan, Existing::same_plan, false);
  ResultsStore store(directory.fd(), path);
  std::size_t left = part.size() * kRounds - missing;
  for (int round = 0; round < kRounds; ++round)
    for (const Cell& cell : part)
      if (left > 0) store.append(row_of(cell, round, "ok", cpu), {0.5, 0.6}), --left;
  store.close();
  spill(path + "/config.resolved.yaml", "name: x\n");
  spill(path + "/machine.json", "{\"cpu\": \"" + cpu + "\"}\n");
}

void add_row(const std::string& path, const RowFields& row) {
  const Plan plan = plan_from_text(slurp(path + "/plan.json"), path);
  const RunDirectory directory(path, plan, Existing::same_plan, false);
  ResultsStore store(directory.fd(), path);
  store.append(row, {});
  store.close();
}

MergeReport merge(const TemporaryDirectory& path, bool mixed = false) {
  return merge_runs(
      {.directories = {path / "shards"}, .out = path / "shards/merged", .mixed_hardware = mixed});
}

std::size_t count_lines(const std::string& text) {
  return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
}

}  // namespace

TEST_CASE("the shards of a sweep make one run directory with every row once", "[merge]") {
  const TemporaryDirectory path;
  const auto cells = quick_cells(23);
  for (int shard = 0; shard < 3; ++shard)
    write_shard(path / fmt::format("shards/shard-{}-of-3", shard), cells, shard, 3);
  const MergeReport report = merge(path);
  CHECK(report.complete());
  CHECK(report.exit_status() == 0);
  CHECK(report.asked == 46);
  CHECK(report.counts.at(Status::ok) == 46);
  CHECK(report.directories.size() == 3);
  CHECK(report.rows_of_cpu.at("a cpu") == 46);
  const auto rows = read_results_csv(path / "shards/merged/results.csv");
  std::set<std::pair<std::string, std::string>> seen;
  for (const RowFields& row : rows) seen.insert({row.at("cell_id"), row.at("round")});
  CHECK(rows.size() == 46);
  CHECK(seen.size() == 46);
  CHECK(count_lines(slurp(path / "shards/merged/samples.csv")) == 1 + 2 * 46);
  CHECK(slurp(path / "shards/merged/config.resolved.yaml") == "name: x\n");

  // Again: the same file, byte for byte, though the result is a source as well.
  const std::string before = slurp(path / "shards/merged/results.csv");
  const std::string samples = slurp(path / "shards/merged/samples.csv");
  CHECK(merge(path).complete());
  CHECK(slurp(path / "shards/merged/results.csv") == before);
  CHECK(slurp(path / "shards/merged/samples.csv") == samples);
}

TEST_CASE("what is missing is listed, shard by shard, and found by the next merge", "[merge]") {
  const TemporaryDirectory path;
  const auto cells = quick_cells(24);
  write_shard(path / "shards/shard-0-of-3", cells, 0, 3);
  write_shard(path / "shards/shard-2-of-3", cells, 2, 3, 5);
  MergeReport report = merge(path);
  CHECK(report.exit_status() == 1);
  CHECK(report.absent == std::vector<int>{1});
  REQUIRE(report.missing.size() == 2);
  CHECK(report.missing[0].shard == 2);
  CHECK(report.missing[0].runs.size() == 5);
  CHECK(report.missing[0].runs[0].find(" round ") == 16);
  CHECK(report.missing[1].directory.empty());
  const std::size_t absent = select_shard(cells, 1, 3).size() * kRounds;
  CHECK(report.missing[1].runs.size() == absent);
  CHECK(report.counts.at(Status::ok) == 48 - 5 - absent);

  // An interrupted row is there, and yet to be done.
  const Cell last = select_shard(cells, 2, 3).back();
  add_row(path / "shards/shard-2-of-3", row_of(last, 1, "interrupted"));
  report = merge(path);
  CHECK(report.missing[0].runs.size() == 5);
  CHECK(report.counts.at(Status::interrupted) == 1);
  RowFields again = row_of(last, 1);
  again["attempt"] = "2";
  add_row(path / "shards/shard-2-of-3", again);
  report = merge(path);
  CHECK(report.missing[0].runs.size() == 4);
  CHECK_FALSE(report.counts.contains(Status::interrupted));
}

TEST_CASE("two different final rows of one cell are refused, two equal ones are one", "[merge]") {
  const TemporaryDirectory path;
  const auto cells = quick_cells(8);
  write_shard(path / "shards/shard-0-of-2", cells, 0, 2);
  write_shard(path / "shards/shard-1-of-2", cells, 1, 2);
  std::filesystem::copy(path / "shards/shard-1-of-2", path / "copy",
                        std::filesystem::copy_options::recursive);
  MergeOptions options{.directories = {path / "shards", path / "copy"}, .out = path / "out"};
  CHECK(merge_runs(options).complete());

  const std::string before = slurp(path / "out/results.csv");
  std::filesystem::remove(path / "copy/results.csv");
  const Cell cell = select_shard(cells, 1, 2).front();
  add_row(path / "copy", row_of(cell, 0, "ok", "a cpu", "0.75"));
  try {
    merge_runs(options);
    FAIL("a contradiction was merged");
  } catch (const UserError& error) {
    CHECK(std::string(error.what()).find(cell.id()) != std::string::npos);
    CHECK(std::string(error.what()).find("0.75") != std::string::npos);
  }
  CHECK(slurp(path / "out/results.csv") == before);
}

TEST_CASE("a row measured again in its shard replaces the merged one", "[merge]") {
  const TemporaryDirectory path;
  const auto cells = quick_cells(8);
  write_shard(path / "shards/shard-0-of-1", cells, 0, 1);
  CHECK(merge(path).exit_status() == 0);
  RowFields again = row_of(cells[3], 0, "timeout");
  again["attempt"] = "2";
  add_row(path / "shards/shard-0-of-1", again);
  const MergeReport report = merge(path);
  CHECK(report.counts.at(Status::timeout) == 1);
  CHECK(report.exit_status() == 1);
}

TEST_CASE("a run measured again in the merged directory stays, merge after merge", "[merge]") {
  const TemporaryDirectory path;
  const auto cells = quick_cells(8);
  write_shard(path / "shards/shard-0-of-1", cells, 0, 1);
  RowFields failure = row_of(cells[3], 1, "timeout");
  failure["attempt"] = "2";
  add_row(path / "shards/shard-0-of-1", failure);
  CHECK(merge(path).exit_status() == 1);
  RowFields again = row_of(cells[3], 1, "ok", "a cpu", "0.25");
  again["attempt"] = "3";
  add_row(path / "shards/merged", again);
  std::string before;
  for (int time = 0; time < 3; ++time) {
    CHECK(merge(path).exit_status() == 0);
    const std::string results = slurp(path / "shards/merged/results.csv");
    if (time > 0) CHECK(results == before);
    before = results;
  }
  // All three attempts are there, in order, the last one counts.
  std::vector<std::string> attempts;
  for (const RowFields& row : read_results_csv(path / "shards/merged/results.csv"))
    if (row.at("cell_id") == cells[3].id() && row.at("round") == "1")
      attempts.push_back(row.at("attempt"));
  CHECK(attempts == std::vector<std::string>{"1", "2", "3"});
}

TEST_CASE("--wait waits for directories and plans as well as for rows", "[merge]") {
  const TemporaryDirectory path;
  const auto cells = quick_cells(8);
  const MergeOptions options{
      .directories = {path / "a/shard-0-of-2", path / "b"}, .out = path / "out", .wait_s = 60};
  std::thread late([&] {
    usleep(200000);
    std::filesystem::create_directories(path / "a/shard-0-of-2");  // without a plan
    std::filesystem::create_directories(path / "b");
    usleep(600000);
    write_shard(path / "a/shard-0-of-2", cells, 0, 2);
    write_shard(path / "b/shard-1-of-2", cells, 1, 2);
  });
  MergeReport report;
  try {
    report = merge_runs(options);
  } catch (const std::exception& error) {
    FAIL_CHECK(error.what());
  }
  late.join();
  CHECK(report.complete());
  CHECK(report.counts[Status::ok] == 16);
  CHECK_THROWS_AS(
      merge_runs({.directories = {path / "nowhere"}, .out = path / "none", .wait_s = 0.2}),
      UserError);
}

TEST_CASE("rows of several CPU models stand together only when asked for", "[merge]") {
  const TemporaryDirectory path;
  const auto cells = quick_cells(8);
  write_shard(path / "shards/shard-0-of-2", cells, 0, 2, 0, "fast cpu");
  write_shard(path / "shards/shard-1-of-2", cells, 1, 2, 0, "slow cpu");
  CHECK_THROWS_WITH(merge(path), Catch::Contains("fast cpu") && Catch::Contains("slow cpu") &&
                                     Catch::Contains("--mixed-hardware"));
  CHECK_FALSE(std::filesystem::exists(path / "shards/merged/results.csv"));
  const MergeReport report = merge(path, true);
  CHECK(report.hosts.size() == 2);
  CHECK(report.warnings.empty());  // each comparison was on one of them
  CHECK(std::filesystem::exists(path / "shards/merged/machine-shard-1-of-2.json"));
}

TEST_CASE("a comparison over two CPU models is warned of", "[merge]") {
  const TemporaryDirectory path;
  const auto cells = quick_cells(4);  // one comparison
  write_shard(path / "shards/shard-0-of-1", cells, 0, 1, 3);
  const auto missing = cells.back();
  add_row(path / "shards/shard-0-of-1", row_of(missing, 1, "ok", "another cpu"));
  const MergeReport report = merge(path, true);
  REQUIRE_FALSE(report.warnings.empty());
  CHECK(report.warnings[0].find("several CPU models") != std::string::npos);
}

TEST_CASE("directories of different sweeps, and what is no run, are refused", "[merge]") {
  const TemporaryDirectory path;
  write_shard(path / "a/shard-0-of-2", quick_cells(8), 0, 2);
  write_shard(path / "b/shard-1-of-2", quick_cells(12), 1, 2);
  write_shard(path / "c/shard-0-of-3", quick_cells(8), 0, 3);
  const auto refused = [&](const std::vector<std::string>& directories, const std::string& out) {
    CHECK_THROWS_AS(merge_runs({.directories = directories, .out = out}), UserError);
    CHECK_FALSE(std::filesystem::exists(path / "out"));
  };
  refused({path / "a", path / "b"}, path / "out");
  refused({path / "a", path / "c"}, path / "out");
  refused({path / "nowhere"}, path / "out");
  refused({path.str()}, path / "out");  // holds neither a run nor shards
  // A directory of rows that the sweep does not have is not written over.
  write_shard(path / "other", quick_cells(12), 0, 1);
  CHECK_THROWS_AS(merge_runs({.directories = {path / "a"}, .out = path / "other"}), UserError);
  // Damage stops it.
  std::string text = slurp(path / "a/shard-0-of-2/results.csv");
  text[text.size() / 2] = '\x01';
  spill(path / "a/shard-0-of-2/results.csv", text);
  CHECK_THROWS_AS(merge_runs({.directories = {path / "a"}, .out = path / "out"}), StorageError);
}

TEST_CASE("plan.json keeps which part of which sweep a directory is", "[merge]") {
  const Plan plan{{"a", "b"}, 3, 1, 4, {"a", "b", "c"}}, alone{{"a"}, 1, 0, 1, {}};
  CHECK(plan_from_text(to_text(plan), "x") == plan);
  CHECK(plan_from_text(to_text(alone), "x") == alone);
  CHECK_THROWS_AS(plan_from_text("{\"cells\": 3}", "x"), StorageError);
}
