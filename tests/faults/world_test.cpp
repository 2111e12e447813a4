// Faults of the world around a measurement: neighbours, a fat parent, a binary that is replaced.
#include <sched.h>
#include <sys/stat.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <set>
#include <vector>

#include "harness/measure/memory.h"
#include "harness/measure/noise.h"
#include "harness/sweep/pool.h"
#include "harness/sweep/results_csv.h"
#include "tests/fixtures/child.h"
#include "tests/fixtures/sweep_fixture.h"

using namespace subquad;
using fixture::Child;
using fixture::slurp;
using fixture::spill;
using fixture::TemporaryDirectory;

namespace {

std::string config_text(int cells, double min_time_s) {
  return fmt::format(
      "name: world\nrounds: {}\nthreads: 1\nproblem: {{n: 32, d_k: 8, d_v: 8}}\n"
      "methods: [dense_naive]\ntasks: [gaussian]\n"
      "measure: {{min_time_s: {}, repetitions: 2, warmup_s: 0.001, max_spread: 1000}}\n"
      "plots: false\n",
      cells, min_time_s);
}

void bind_to(int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(processor, &set);
  REQUIRE(sched_setaffinity(0, sizeof set, &set) == 0);
}

}  // namespace

TEST_CASE("a neighbour on the same processor makes a measurement doubtful", "[faults][noise]") {
  if (slurp("/proc/self/schedstat").empty()) {
    WARN("this kernel does not count waiting (no schedstat)");
    return;
  }
  cpu_set_t before_set;
  CPU_ZERO(&before_set);
  REQUIRE(sched_getaffinity(0, sizeof before_set, &before_set) == 0);
  bind_to(usable_processor_list().front());
  // Started now, so bound to the same processor.
  Child neighbour({"/bin/sh", "-c", "while :; do :; done"});
  fixture::sleep_s(0.1);
  const NoiseSnapshot before = noise_snapshot();
  const double end = cpu_seconds() + 0.2;
  while (cpu_seconds() < end) continue;
  const Noise noise = noise_between(before, noise_snapshot());
  sched_setaffinity(0, sizeof before_set, &before_set);
  INFO("waited " << noise.waited_s << " of " << noise.wall_s << " s");
  CHECK(noise.waited_s > 0.1 * noise.wall_s);
  const auto list = doubts({1, 1, 1, 1, 1}, 1, 0.1, noise, 1);
  CHECK(std::any_of(list.begin(), list.end(),
                    [](const Doubt& d) { return d.flag == "waited" && d.unstable; }));
}

TEST_CASE("a worker's peak memory is its own, however fat the parent", "[faults]") {
  const TemporaryDirectory path;
  spill(path / "c.yaml", config_text(1, 0.001));
  std::vector<char> fat(std::size_t{500} << 20, 1);  // touched
  REQUIRE(vm_rss_bytes() > (std::int64_t{450} << 20));
  const int status =
      Child({SUBQUAD_BINARY, "run", path / "c.yaml", "--out", path / "out"}, path / "log").wait();
  INFO(slurp(path / "log"));
  REQUIRE(status == 0);
  CHECK(fat[fat.size() / 2] == 1);
  for (const RowFields& row : read_results_csv(path / "out/results.csv"))
    CHECK(std::stod(row.at("vm_hwm_bytes")) < (200 << 20));
}

TEST_CASE("an executable that is replaced while it runs does not mix builds", "[faults]") {
  const TemporaryDirectory path;
  const std::string program = path / "subquad", out = path / "out";
  std::filesystem::copy_file(SUBQUAD_BINARY, program);
  spill(path / "c.yaml", config_text(6, 0.05));
  Child child({program, "run", path / "c.yaml", "--out", out}, path / "log");
  REQUIRE(fixture::wait_until([&] { return !slurp(out + "/attempts.log").empty(); }));
  // As a linker does it: a new file under the old name.
  spill(path / "new", "#!/bin/sh\nexit 7\n");
  REQUIRE(chmod((path / "new").c_str(), 0755) == 0);
  std::filesystem::rename(path / "new", program);
  const int status = child.wait();
  INFO(slurp(path / "log"));
  CHECK(status == 0);
  const auto rows = read_results_csv(out + "/results.csv");
  CHECK(rows.size() == 6);
  std::set<std::string> builds;
  for (const RowFields& row : rows) builds.insert(row.at("build_id"));
  CHECK(builds.size() == 1);
}
