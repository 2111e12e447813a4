// Batch files for Slurm, and processors for runners that measure at once.
#include "harness/sweep/slurm.h"

#include <catch2/catch.hpp>
#include <csignal>
#include <cstdlib>
#include <set>

#include "harness/core/error.h"
#include "harness/sweep/pool.h"
#include "tests/fixtures/sweep_fixture.h"

using namespace subquad;

namespace {

SlurmJob job() {
  SlurmJob job;
  job.name = "window_study";
  job.program = "/opt/my tools/subquad";
  job.working_directory = "/home/a b";
  job.config = "/data/out/submit/config.yaml";
  job.directory = "/data/out";
  job.filters = {"method=dense|linear"};
  job.shards = 4;
  job.at_once = 2;
  job.cpus = 8;
  job.memory_bytes = 1e9;
  job.limit_s = 5400;
  job.options = {"--partition=fast"};
  return job;
}

bool has_line(const std::string& text, const std::string& line) {
  return ("\n" + text).find("\n" + line + "\n") != std::string::npos;
}

}  // namespace

TEST_CASE("the array's batch file asks for what a measurement needs", "[slurm]") {
  const std::string text = array_script(job());
  INFO(text);
  for (const char* line :
       {"#!/bin/bash", "#SBATCH --array=0-3%2", "#SBATCH --cpus-per-task=8", "#SBATCH --exclusive",
        "#SBATCH --mem=1257M", "#SBATCH --time=01:30:00", "#SBATCH --signal=B:TERM@120",
        "#SBATCH --requeue", "#SBATCH --open-mode=append", "#SBATCH --partition=fast",
        "#SBATCH --output=/data/out/log/%A_%a.log", "#SBATCH --chdir=\"/home/a b\""})
    CHECK(has_line(text, line));
  // The runner is the batch process, or the signal would wait for it to end.
  CHECK(text.find("\nexec '/opt/my tools/subquad' run /data/out/submit/config.yaml") !=
        std::string::npos);
  CHECK(text.find("--filter 'method=dense|linear'") != std::string::npos);
  SlurmJob shared = job();
  shared.exclusive = false;
  shared.at_once = 0;
  CHECK_FALSE(has_line(array_script(shared), "#SBATCH --exclusive"));
  CHECK(has_line(array_script(shared), "#SBATCH --array=0-3"));
  CHECK(merge_script(job()).find("exec '/opt/my tools/subquad' merge "
                                 "/data/out/shard-*-of-4 --out /data/out/merged") !=
        std::string::npos);
}

TEST_CASE("batch files are good bash", "[slurm]") {
  const fixture::TemporaryDirectory path;
  SlurmJob odd = job();
  odd.directory = "/data/it's 100% mine";
  odd.filters = {"label=a'b"};
  int number = 0;
  for (const std::string& text : {array_script(odd), merge_script(odd)}) {
    const std::string file = path / std::to_string(number++);
    fixture::spill(file, text);
    CHECK(std::system(("bash -n " + file).c_str()) == 0);
  }
  CHECK(array_script(odd).find("100%% mine/log/%A_%a.log") != std::string::npos);
  odd.options = {"partition=fast"};
  CHECK_THROWS_AS(array_script(odd), UserError);
  odd = job();
  odd.working_directory = "/a\nb";
  CHECK_THROWS_AS(array_script(odd), UserError);
}

TEST_CASE("times and sizes are written as Slurm reads them", "[slurm]") {
  CHECK(slurm_time(61) == "00:01:01");
  CHECK(slurm_time(86400 + 3600) == "1-01:00:00");
  CHECK(slurm_memory(0) == "64M");
  CHECK(seconds_of_slurm_time("90") == 5400);
  CHECK(seconds_of_slurm_time("1:30:00") == 5400);
  CHECK(seconds_of_slurm_time("2-00:00:30") == 2 * 86400 + 30);
  for (const char* bad : {"", "0", "-5", "1:2", "1h", "1-2", "12x", "1:00:00x"})
    CHECK_THROWS_AS(seconds_of_slurm_time(bad), UserError);
}

TEST_CASE("runners that measure at once get disjoint cores, or are refused", "[pool]") {
  std::vector<int> processors;
  for (int i = 900; i < 908; ++i) processors.push_back(i);  // none of this machine: a core each
  for (int jobs = 1; jobs <= 8; ++jobs) {
    std::set<int> seen;
    for (const auto& set : processor_sets(processors, jobs, 1)) {
      CHECK_FALSE(set.empty());
      for (const int processor : set) CHECK(seen.insert(processor).second);
    }
    CHECK(seen.size() == 8);
  }
  CHECK(processor_sets(processors, 4, 2).size() == 4);
  CHECK_THROWS_AS(processor_sets(processors, 5, 2), UserError);
  CHECK_THROWS_AS(processor_sets(processors, 9, 1), UserError);
  CHECK(processor_list({0, 1, 2, 5, 7, 8}) == "0-2,5,7-8");
  CHECK(processor_list({3}) == "3");
  CHECK(processor_list({}).empty());
  CHECK_FALSE(usable_processor_list().empty());
}

namespace {
struct NoStop : StopRequest {
  int signal() const override { return 0; }
  int fd() const override { return -1; }
};
}  // namespace

TEST_CASE("a pool ends though SIGCHLD was ignored where it was started", "[pool]") {
  const fixture::TemporaryDirectory path;
  auto* const before = std::signal(SIGCHLD, SIG_IGN);
  const std::vector<PoolTask> tasks = {{{"/bin/sh", "-c", "exit 3"}, path / "a.log"},
                                       {{"/bin/sh", "-c", "echo b"}, path / "b.log"}};
  std::vector<std::size_t> ended;
  const PoolReport report = run_pool(tasks, {usable_processor_list()}, NoStop(),
                                     [&](std::size_t task, int) { ended.push_back(task); });
  std::signal(SIGCHLD, before);
  CHECK(report.status == std::vector<int>{3, 0});
  CHECK(ended == std::vector<std::size_t>{0, 1});
  CHECK(fixture::slurp(path / "b.log") == "b\n");
}
