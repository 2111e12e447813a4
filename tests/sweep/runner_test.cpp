#include "harness/sweep/runner.h"

#include <sys/file.h>
#include <sys/wait.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdio>
#include <set>

#include "harness/sweep/csv.h"
#include "harness/sweep/plan.h"
#include "harness/sweep/results_csv.h"
#include "harness/sweep/results_store.h"
#include "tests/fixtures/sweep_fixture.h"

using namespace subquad;
using fixture::make_cell;
using fixture::make_config;
using fixture::quick_cells;
using fixture::slurp;
using fixture::spill;
using fixture::TemporaryDirectory;

namespace {

RunOptions options_for(const std::string& directory) {
  RunOptions options;
  options.directory = directory;
  options.worker_command = {SUBQUAD_SWEEP_FIXTURE, "worker"};
  options.grace_s = 0.2;
  return options;
}

RunReport sweep(const Config& config, const RunOptions& options) {
  Progress silent(nullptr);
  return run_sweep(config, options, fixture::make_provenance(), silent);
}

std::map<std::pair<std::string, std::string>, int> rows_by_key(const std::string& directory) {
  std::map<std::pair<std::string, std::string>, int> count;
  for (const RowFields& row : read_results_csv(directory + "/results.csv"))
    ++count[{row.at("cell_id"), row.at("round")}];
  return count;
}

std::size_t lines_of(const std::string& path) {
  const std::string text = slurp(path);
  return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
}

template <class Error>
std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("the plan has every cell once per round, shuffled anew and reproducibly", "[sweep]") {
  const auto plan = make_plan(50, 3, 7), again = make_plan(50, 3, 7), other = make_plan(50, 3, 8);
  REQUIRE(plan.size() == 150);
  std::vector<std::vector<std::size_t>> rounds(3);
  for (std::size_t i = 0; i < plan.size(); ++i) {
    CHECK(plan[i].cell == again[i].cell);
    CHECK(plan[i].round == static_cast<int>(i / 50));
    rounds[i / 50].push_back(plan[i].cell);
  }
  CHECK(rounds[0] != rounds[1]);
  CHECK(std::any_of(plan.begin(), plan.end(), [&](const Step& step) {
    return step.cell != other[static_cast<std::size_t>(&step - plan.data())].cell;
  }));
  for (auto& round : rounds) {
    std::sort(round.begin(), round.end());
    for (std::size_t i = 0; i < 50; ++i) CHECK(round[i] == i);
  }
}

TEST_CASE("shards are disjoint, complete, and keep cells of one reference together", "[sweep]") {
  const std::vector<Cell> cells = quick_cells(43);
  std::map<std::string, int> shard_of_reference;
  std::size_t total = 0;
  std::set<std::string> ids;
  for (int shard = 0; shard < 4; ++shard) {
    const auto part = select_shard(cells, shard, 4);
    total += part.size();
    for (const Cell& cell : part) {
      ids.insert(cell.id());
      CHECK(shard_of_reference.emplace(cell.reference_id(), shard).first->second == shard);
    }
  }
  CHECK(total == 43);
  CHECK(ids.size() == 43);
  CHECK(select_shard(cells, 0, 1).size() == 43);
  CHECK_THROWS_AS(select_shard(cells, 4, 4), UserError);
  CHECK_THROWS_AS(select_shard(cells, -1, 4), UserError);
  CHECK_THROWS_AS(select_shard(cells, 0, 0), UserError);
}

TEST_CASE("a sweep leaves one row per cell and round, and the files beside them", "[sweep]") {
  const TemporaryDirectory path;
  Config config = make_config(quick_cells(6), 2);
  config.cells[3].label = "=a, \"label\"";
  const RunReport report = sweep(config, options_for(path / "run"));
  CHECK(report.exit_status() == 0);
  CHECK(report.counts == std::map<Status, std::size_t>{{Status::ok, 12}});
  CHECK(report.complete());
  const auto rows = read_results_csv(path / "run/results.csv");
  REQUIRE(rows.size() == 12);
  for (const auto& [key, count] : rows_by_key(path / "run")) CHECK(count == 1);
  for (const RowFields& row : rows) {
    CHECK(row.at("attempt") == "1");
    CHECK(row.at("time_s") == "0.00125");
    CHECK(row.at("scale") == "0.5");
    CHECK(row.at("build_id") == "0123456789abcdef");
    CHECK(row.at("command") ==
          fmt::format("subquad run {}/config.resolved.yaml --filter cell={} --set rounds=1 --out "
                      "results/{}",
                      path / "run", row.at("cell_id"), row.at("cell_id")));
  }
  CHECK(lines_of(path / "run/samples.csv") == 1 + 2 * 12);
  CHECK(lines_of(path / "run/attempts.log") == 12);
  CHECK(lines_of(path / "run/references.log") == 2);  // once per reference
  CHECK(slurp(path / "run/config.resolved.yaml") == "name: fixture\n");
  CHECK(slurp(path / "run/machine.json") == "{}\n");
  CHECK_FALSE(std::filesystem::exists(path / "run/.cache"));
  CHECK_FALSE(std::filesystem::exists(path / "run/worker.log"));
}

TEST_CASE("a cell that fails is a row and leaves the rest of the sweep unharmed", "[sweep]") {
  const TemporaryDirectory path;
  const std::map<std::string, Status> expected = {{"abort", Status::crash},
                                                  {"exit", Status::crash},
                                                  {"busy_loop", Status::timeout},
                                                  {"nan_columns", Status::wrong},
                                                  {"unsupported", Status::unsupported},
                                                  {"killed_from_outside", Status::oom},
                                                  {"garbage_after_answer", Status::error},
                                                  {"crash_after_answer", Status::unstable},
                                                  {"ok", Status::ok}};
  std::vector<Cell> cells;
  for (const auto& [method, status] : expected) {
    cells.push_back(make_cell(method));
    cells.back().measure.timeout_s = method == "busy_loop" ? 0.3 : 20;
  }
  const RunReport report = sweep(make_config(cells), options_for(path / "run"));
  CHECK(report.exit_status() == 1);
  CHECK(report.complete());
  const auto rows = read_results_csv(path / "run/results.csv");
  CHECK(rows.size() == expected.size());
  for (const RowFields& row : rows) {
    INFO(row.at("method") << ": " << row.at("reason"));
    CHECK(row.at("status") == name(expected.at(row.at("method"))));
    CHECK(row.at("reason").empty() == (row.at("method") == "ok"));
    if (row.at("method") == "nan_columns") {
      CHECK(row.at("reason") == "'=1+1\\nsecond line, \"quoted\"");
      CHECK(row.at("host") == "a host");
      CHECK(row.at("rel_error").empty());
    }
  }
  CHECK(slurp(path / "run/worker.log").find("abort forward") == std::string::npos);

  SECTION("failed rows are final, unless they are to be tried again") {
    CHECK(sweep(make_config(cells), options_for(path / "run")).exit_status() == 1);
    CHECK(lines_of(path / "run/results.csv") == 1 + expected.size());
    RunOptions retry = options_for(path / "run");
    retry.retry_failed = true;
    const RunReport second = sweep(make_config(cells), retry);
    CHECK(second.earlier == 3);  // ok, unstable, unsupported
    CHECK(second.asked == expected.size());
    CHECK(lines_of(path / "run/results.csv") == 1 + 2 * expected.size() - 3);
    const auto last = final_rows(read_results_csv(path / "run/results.csv"));
    CHECK(last.size() == expected.size());
    for (const RowFields& row : last)
      CHECK((row.at("attempt") == "2") == failed(status_from_name(row.at("status"))));
  }
}

TEST_CASE("a cell whose reference fails is measured, and says that it was not compared",
          "[sweep]") {
  const TemporaryDirectory path;
  std::vector<Cell> cells = {make_cell("ok"), make_cell("unsupported"), make_cell("abort")};
  for (Cell& cell : cells) cell.task = "no_reference";
  const RunReport report = sweep(make_config(cells, 2), options_for(path / "run"));
  for (const RowFields& row : read_results_csv(path / "run/results.csv")) {
    if (row.at("method") == "ok") {
      CHECK(row.at("status") == "unstable");
      CHECK(row.at("flags") == "reference_failed");
      CHECK(row.at("reason") ==
            "not compared with exact attention, since that failed: crash: SIGABRT");
      CHECK(row.at("time_s") == "0.00125");
    } else {
      CHECK(row.at("status") == (row.at("method") == "abort" ? "crash" : "unsupported"));
    }
  }
  CHECK(lines_of(path / "run/references.log") == 1);  // tried once
  REQUIRE_FALSE(report.warnings.empty());
  CHECK(report.warnings[0].starts_with("no exact reference for no_reference"));
}

TEST_CASE("a worker is told where its reference is, and which memory it has", "[sweep]") {
  const TemporaryDirectory path;
  Cell cell = make_cell("shows_surroundings");
  cell.measure.memory_limit_mb = 2048;
  cell.threads = 2;
  sweep(make_config({cell}), options_for(path / "run"));
  const std::string reason = read_results_csv(path / "run/results.csv").at(0).at("reason");
  CHECK(reason.find("omp=2 ") != std::string::npos);
  CHECK(reason.find(" reference=exact ") != std::string::npos);
  CHECK(reason.find(" space=2048 ") != std::string::npos);
}

TEST_CASE("a finished run is not run again", "[sweep]") {
  const TemporaryDirectory path;
  const Config config = make_config(quick_cells(4), 2);
  sweep(config, options_for(path / "run"));
  const std::string before = slurp(path / "run/results.csv");
  const RunReport report = sweep(config, options_for(path / "run"));
  CHECK(report.earlier == 8);
  CHECK(report.exit_status() == 0);
  CHECK(slurp(path / "run/results.csv") == before);
}

TEST_CASE("an interrupted row is run again as the next attempt", "[sweep]") {
  const TemporaryDirectory path;
  // The request comes after a few looks, at some moment of the sweep.
  struct WhileRunning final : StopRequest {
    int signal() const override { return ++calls > 6 ? SIGTERM : 0; }
    int fd() const override { return -1; }
    mutable int calls = 0;
  } stop;
  std::vector<Cell> cells = quick_cells(3);
  for (Cell& cell : cells) cell.method_settings["seconds"] = 0.05;
  RunOptions options = options_for(path / "run");
  options.stop = &stop;
  const RunReport report = sweep(make_config(cells), options);
  CHECK(report.exit_status() == 143);
  CHECK_FALSE(report.complete());
  CHECK(report.missing + report.counts.size() >= 1);
  CHECK(std::filesystem::exists(path / "run/.cache"));
  const std::size_t before = lines_of(path / "run/results.csv") - 1;
  const RunReport second = sweep(make_config(cells), options_for(path / "run"));
  CHECK(second.exit_status() == 0);
  const auto rows = read_results_csv(path / "run/results.csv");
  CHECK(final_rows(rows).size() == 3);
  CHECK(rows.size() >= std::max<std::size_t>(before, 3));
  for (const RowFields& row : final_rows(rows)) CHECK(row.at("status") == "ok");
}

TEST_CASE("another plan in the directory is refused unless told what to do", "[sweep]") {
  const TemporaryDirectory path;
  sweep(make_config(quick_cells(4), 2), options_for(path / "run"));
  const std::string before = slurp(path / "run/results.csv");

  const std::string message = message_of<UserError>(
      [&] { sweep(make_config(quick_cells(5), 2), options_for(path / "run")); });
  for (const char* word : {"another run", "4 cells x 2 rounds", "--fresh", "--resume", "--out"})
    CHECK(message.find(word) != std::string::npos);
  CHECK_FALSE(message_of<UserError>([&] {
                sweep(make_config(quick_cells(4), 3), options_for(path / "run"));
              }).empty());
  CHECK(slurp(path / "run/results.csv") == before);

  SECTION("a part of the plan is no other plan") {
    CHECK(sweep(make_config(quick_cells(2), 1), options_for(path / "run")).earlier == 2);
    CHECK(sweep(make_config(quick_cells(4), 2), options_for(path / "run")).earlier == 8);
  }
  SECTION("resume continues with the new plan and keeps the rows") {
    RunOptions options = options_for(path / "run");
    options.existing = Existing::resume;
    std::vector<Cell> cells = quick_cells(6);
    cells.erase(cells.begin());
    const RunReport report = sweep(make_config(cells, 2), options);
    CHECK(report.asked == 10);
    CHECK(report.earlier == 6);
    CHECK(report.exit_status() == 0);
    CHECK(slurp(path / "run/results.csv").starts_with(before));
    CHECK(rows_by_key(path / "run").size() == 12);
  }
  SECTION("fresh moves the old run aside") {
    RunOptions options = options_for(path / "run");
    options.existing = Existing::fresh;
    for (int i = 0; i < 2; ++i) CHECK(sweep(make_config(quick_cells(2), 1), options).earlier == 0);
    CHECK(lines_of(path / "run/results.csv") == 3);
    std::vector<std::string> old;
    for (const auto& entry : std::filesystem::directory_iterator(path.str()))
      if (entry.path().filename().string().starts_with("run.old-"))
        old.push_back(slurp(entry.path() / "results.csv"));
    REQUIRE(old.size() == 2);
    CHECK((old[0] == before) != (old[1] == before));
  }
}

TEST_CASE("a directory that is no run is never written to", "[sweep]") {
  const TemporaryDirectory path;
  std::filesystem::create_directories(path / "home");
  spill(path / "home/letter.txt", "dear");
  for (const Existing existing : {Existing::same_plan, Existing::resume, Existing::fresh}) {
    RunOptions options = options_for(path / "home");
    options.existing = existing;
    CHECK(message_of<UserError>([&] {
            sweep(make_config(quick_cells(1)), options);
          }).find("not those of a run") != std::string::npos);
  }
  CHECK(slurp(path / "home/letter.txt") == "dear");
  CHECK_FALSE(std::filesystem::exists(path / "home/results.csv"));
  spill(path / "file", "");
  CHECK_THROWS_AS(sweep(make_config(quick_cells(1)), options_for(path / "file")), StorageError);
}

TEST_CASE("a link as run directory is refused unless followed", "[sweep]") {
  const TemporaryDirectory path;
  std::filesystem::create_directories(path / "real");
  std::filesystem::create_symlink(path / "real", path / "link");
  CHECK(message_of<UserError>([&] {
          sweep(make_config(quick_cells(1)), options_for(path / "link"));
        }).find("symbolic link") != std::string::npos);
  CHECK_THROWS_AS(sweep(make_config(quick_cells(1)), options_for(path / "link/")), UserError);
  CHECK(std::filesystem::is_empty(path / "real"));
  RunOptions options = options_for(path / "link");
  options.follow_links = true;
  CHECK(sweep(make_config(quick_cells(1)), options).exit_status() == 0);
  CHECK(std::filesystem::exists(path / "real/results.csv"));
}

TEST_CASE("names that could lead elsewhere are refused", "[sweep]") {
  CHECK(default_directory("a-b_c.1", 0, 1) == "results/a-b_c.1");
  CHECK(default_directory("a", 2, 4) == "results/a/shard-2-of-4");
  for (const std::string name : {"", "..", "a..b", "../x", "/x", "a/b", ".a", "-a", "A", "a b"})
    CHECK_THROWS_AS(default_directory(name, 0, 1), UserError);
  CHECK_THROWS_AS(default_directory(std::string(65, 'a'), 0, 1), UserError);
  CHECK_THROWS_AS(default_directory(std::string("\0a", 2), 0, 1), UserError);
}

TEST_CASE("a second runner is told who holds the directory", "[sweep][lock]") {
  const TemporaryDirectory path;
  const Config config = make_config(quick_cells(1));
  {
    const RunDirectory held(path / "run", Plan{{config.cells[0].id()}, 1}, Existing::same_plan,
                            false);
    const std::string message =
        message_of<LockedError>([&] { sweep(config, options_for(path / "run")); });
    CHECK(message.find(fmt::format("{}: locked by pid {} on host ", path / "run", getpid())) == 0);
    CHECK(message.find(" since 2") != std::string::npos);
    RunOptions fresh = options_for(path / "run");
    fresh.existing = Existing::fresh;
    CHECK_THROWS_AS(sweep(config, fresh), LockedError);
  }
  CHECK(sweep(config, options_for(path / "run")).exit_status() == 0);
}

TEST_CASE("a lock goes with its process", "[sweep][lock]") {
  const TemporaryDirectory path;
  const pid_t child = fork();
  if (child == 0) {
    new RunDirectory(path / "run", Plan{}, Existing::same_plan, false);
    _exit(0);  // without any destructor, as after kill -9
  }
  waitpid(child, nullptr, 0);
  CHECK(sweep(make_config(quick_cells(1)),
              [&] {
                RunOptions options = options_for(path / "run");
                options.existing = Existing::resume;
                return options;
              }())
            .exit_status() == 0);
}

TEST_CASE("a row that cannot be stored stops the run and is handed out", "[sweep]") {
  const TemporaryDirectory path;
  int writes = 0;
  RunOptions options = options_for(path / "run");
  options.file_calls.pause = [](useconds_t) { return 0; };
  options.file_calls.fdatasync = [&](int fd) {
    if (++writes > 3) {
      errno = ENOSPC;
      return -1;
    }
    return fdatasync(fd);
  };
  std::string row;
  try {
    sweep(make_config(quick_cells(5)), options);
    FAIL("the run went on");
  } catch (const UnsavedRow& error) {
    row = error.row;
    CHECK(std::string(error.what()).find("No space left on device") != std::string::npos);
  }
  CHECK(parse_results_csv(results_header() + row, "x").at(0).at("time_s") == "0.00125");
  CHECK(lines_of(path / "run/results.csv") == 3);   // header, two rows
  CHECK(lines_of(path / "run/attempts.log") == 3);  // no further cell was started
  CHECK(sweep(make_config(quick_cells(5)), options_for(path / "run")).exit_status() == 0);
  CHECK(rows_by_key(path / "run").size() == 5);
  CHECK(lines_of(path / "run/results.csv") == 6);
}

TEST_CASE("a damaged results file is not added to", "[sweep]") {
  const TemporaryDirectory path;
  const Config config = make_config(quick_cells(3));
  sweep(config, options_for(path / "run"));
  std::string text = slurp(path / "run/results.csv");
  text[text.size() / 2] = '\x01';
  spill(path / "run/results.csv", text);
  CHECK_THROWS_AS(sweep(config, options_for(path / "run")), StorageError);
  CHECK(slurp(path / "run/results.csv") == text);
}

TEST_CASE("more memory than there is, and less disk than needed, are refused before the start",
          "[sweep]") {
  const TemporaryDirectory path;
  Cell cell = make_cell("ok");
  cell.measure.memory_limit_mb = Index{1} << 30;
  CHECK(message_of<UserError>([&] {
          sweep(make_config({cell}), options_for(path / "a"));
        }).starts_with("memory_limit_mb: got 1073741824, but only "));
  Cell large = make_cell("ok");
  large.problem.n = large.problem.n_kv = Index{1} << 40;
  large.pass = Pass::backward;
  CHECK(message_of<StorageError>([&] {
          sweep(make_config({large}), options_for(path / "b"));
        }).find("this run needs about") != std::string::npos);
  CHECK(slurp(path / "b/attempts.log").empty());
}

TEST_CASE("rows of another build are kept, with a warning and their own machine file", "[sweep]") {
  const TemporaryDirectory path;
  sweep(make_config(quick_cells(2)), options_for(path / "run"));
  Provenance other = fixture::make_provenance();
  other.build_id = "fedcba9876543210";
  Progress silent(nullptr);
  const RunReport report =
      run_sweep(make_config(quick_cells(2)), options_for(path / "run"), other, silent);
  REQUIRE(report.warnings.size() == 1);
  CHECK(report.warnings[0].starts_with("2 earlier rows were measured by another build"));
  int machine_files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(path / "run"))
    machine_files += entry.path().filename().string().starts_with("machine");
  CHECK(machine_files == 2);
}

TEST_CASE("exit statuses tell the truth", "[sweep]") {
  RunReport report;
  report.asked = 2;
  report.counts = {{Status::ok, 1}, {Status::unsupported, 1}};
  CHECK(report.exit_status() == 0);
  for (const Status status : kAllStatuses) {
    report.counts = {{Status::ok, 1}, {status, 1}};
    CHECK(report.exit_status() == (failed(status) ? 1 : 0));
  }
  report.counts = {{Status::ok, 1}};
  report.missing = 1;
  CHECK(report.exit_status() == 1);
  report.signal = SIGINT;
  CHECK(report.exit_status() == 130);
}

TEST_CASE("words of a shell and times are written for humans", "[sweep]") {
  CHECK(shell_word("a/b.yaml") == "a/b.yaml");
  CHECK(shell_word("it's") == "'it'\\''s'");
  CHECK(shell_word("") == "''");
  CHECK(shell_word("n<=4") == "'n<=4'");
  CHECK(human_seconds(1.23e-3) == "1.23 ms");
  CHECK(human_seconds(4.5e-6) == "4.5 us");
  CHECK(human_seconds(59) == "59 s");
  CHECK(human_seconds(125) == "2 min 05 s");
  CHECK(human_seconds(12000) == "3 h 20 min");
}

TEST_CASE("progress is one plain line per cell where there is no terminal", "[sweep]") {
  const TemporaryDirectory path;
  std::FILE* stream = std::fopen((path / "progress").c_str(), "w");
  REQUIRE(stream != nullptr);
  Progress progress(stream);
  RunOptions options = options_for(path / "run");
  run_sweep(make_config({make_cell("ok"), make_cell("exit_3")}), options,
            fixture::make_provenance(), progress);
  std::fclose(stream);
  const std::string text = slurp(path / "progress");
  CHECK(std::count(text.begin(), text.end(), '\n') == 2);
  CHECK(text.find("[1/2] ") == 0);
  CHECK(text.find("round 0: ok 1.25 ms\n") != std::string::npos);
  CHECK(text.find("round 0: crash: ended with exit status 3 without an answer: giving up\n") !=
        std::string::npos);
  CHECK(text.find('\r') == std::string::npos);
  CHECK(slurp(path / "run/worker.log").find("giving up\n") != std::string::npos);
}
