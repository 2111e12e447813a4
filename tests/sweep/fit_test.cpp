// Fitting as a pass of a sweep: options, rows, files.
#include <stdlib.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "harness/measure/fit_data.h"
#include "harness/sweep/config.h"
#include "harness/sweep/worker.h"

using namespace subquad;
namespace fs = std::filesystem;

namespace {

struct Folder {
  std::string path = (fs::temp_directory_path() / "subquad_fit_XXXXXX").string();
  Folder() { REQUIRE(mkdtemp(path.data()) != nullptr); }
  ~Folder() { fs::remove_all(path); }
};

// Logits that depend on the distance alone: what the biases of nprf can learn.
const std::string kConfig = R"(
name: study
threads: 1
rounds: 1
passes: [forward, fit]
seeds: 5
problem: {heads: 2, n: 48, head_dim: 8, causal: true}
methods: [{name: nprf, features: 16}, dense]
tasks: [toeplitz]
fit: {steps: 100, learning_rate: 0.1, sets: 4}
measure: {min_time_s: 1e-4, repetitions: 1, warmup_s: 0, input_sets: 1}
)";

Config loaded(const std::string& text, const std::vector<std::string>& overrides = {}) {
  const Folder folder;
  std::ofstream(folder.path + "/c.yaml") << text;
  return load_config(folder.path + "/c.yaml", overrides);
}

Cell only(const Config& config, const std::string& filter) {
  const auto cells = filter_cells(config.cells, filter);
  REQUIRE(cells.size() == 1);
  return cells.front();
}

JobResult run(const Cell& cell) {
  Job job;
  job.cell = cell;
  const JobResult result = run_job(job);
  INFO(result.reason);
  REQUIRE((result.status == Status::ok || result.status == Status::unstable));
  return result;
}

double number(const JobResult& r, const char* column) { return std::stod(r.columns.at(column)); }

}  // namespace

TEST_CASE("options of fitting multiply the fit pass and no other", "[sweep][fit]") {
  const Config config = loaded(kConfig, {"fit.steps=[10, 20]", "passes=[forward, fit, train]"});
  CHECK(filter_cells(config.cells, "pass=fit").size() == 4);
  CHECK(filter_cells(config.cells, "pass=fit,steps=20").size() == 2);
  CHECK(filter_cells(config.cells, "pass=forward").size() == 2);
  for (const Cell& cell : config.cells) {
    CHECK(cell.fit.empty() == (cell.pass != Pass::fit));
    CHECK(cell.train.empty() == (cell.pass != Pass::train));
    const Cell back = nlohmann::json::parse(nlohmann::json(cell).dump()).get<Cell>();
    CHECK(back.id() == cell.id());
    CHECK(back.fit == cell.fit);
  }
  const Config again = loaded(config.resolved_yaml);
  REQUIRE(again.cells.size() == config.cells.size());
  for (std::size_t i = 0; i < again.cells.size(); ++i)
    CHECK(again.cells[i].id() == config.cells[i].id());
  const Config other = loaded(kConfig, {"fit.learning_rate=0.2"}), first = loaded(kConfig);
  for (std::size_t i = 0; i < first.cells.size(); ++i)
    CHECK((other.cells[i].id() == first.cells[i].id()) == (first.cells[i].pass != Pass::fit));
  CHECK_THROWS_WITH(loaded(kConfig, {"fit.stps=1"}), Catch::Contains("did you mean \"steps\""));
  CHECK_THROWS_WITH(loaded(kConfig, {"fit.sets=0"}), Catch::Contains("fit.sets"));
}

TEST_CASE("every option of fitting has a row in the documentation", "[sweep][fit]") {
  std::ifstream file(SUBQUAD_SOURCE_DIR "/configs/README.md");
  const std::string page{std::istreambuf_iterator<char>(file), {}};
  const std::size_t section = page.find("**`fit`**");
  REQUIRE(section != std::string::npos);
  for (const auto& field : fit_fields()) {
    INFO(field.spec.name);
    CHECK(page.find("| `" + field.spec.name + "` |", section) != std::string::npos);
  }
}

TEST_CASE("a fit is judged on inputs that it never saw, and its row says what it is",
          "[sweep][fit]") {
  const Folder folder;
  const Config config = loaded(kConfig, {"fit.save=" + folder.path + "/fitted"});
  const JobResult untrained = run(only(config, "method=nprf,pass=forward"));
  const Cell cell = only(config, "method=nprf,pass=fit");
  const JobResult fitted = run(cell);
  CHECK(untrained.columns.at("learned_from") == "initial");
  CHECK(fitted.columns.at("learned_from") == "fit");
  CHECK(number(fitted, "fit_steps") == 100);
  CHECK_FALSE(untrained.columns.contains("fit_steps"));
  CHECK_FALSE(fitted.columns.contains("time_s"));
  INFO("held-out error " << number(untrained, "rel_error") << " -> " << number(fitted, "rel_error")
                         << ", losses " << number(fitted, "fit_first_loss") << " -> "
                         << number(fitted, "fit_last_loss"));
  CHECK(number(fitted, "fit_last_loss") < 0.7 * number(fitted, "fit_first_loss"));
  CHECK(number(fitted, "rel_error") < 0.85 * number(untrained, "rel_error"));
  // Held-out and training errors are of one size: nothing was learned by heart.
  CHECK(number(fitted, "rel_error") < 1.3 * std::sqrt(number(fitted, "fit_last_loss")));
  CHECK(run(cell).columns.at("rel_error") == fitted.columns.at("rel_error"));

  // The stored parameters give the same output as the fit did.
  const std::string file = folder.path + "/fitted/nprf_" + cell.id() + ".safetensors";
  REQUIRE(fs::exists(file));
  const Config later = loaded(kConfig, {"passes=forward", "methods[0].weights=" + file});
  const Cell with = only(later, "method=nprf");
  CHECK(with.label == "nprf (fitted)");
  CHECK(with.id() != only(config, "method=nprf,pass=forward").id());
  CHECK(loaded(later.resolved_yaml).cells.front().id() == with.id());
  const JobResult stored = run(with);
  CHECK(stored.columns.at("learned_from") == file);
  CHECK(stored.columns.at("rel_error") == fitted.columns.at("rel_error"));

  // A path may name the cell: one config keeps a file for each seed, another reads them.
  const std::string pattern = folder.path + "/new/{method}_{seed}.safetensors";
  const std::string place = folder.path + "/new/nprf_" + std::to_string(cell.seed) + ".safetensors";
  const Cell named = only(loaded(kConfig, {"fit.save=" + pattern}), "method=nprf,pass=fit");
  CHECK(run(named).columns.at("learned_from") == "fit");
  REQUIRE(fs::exists(place));
  const Config reading = loaded(kConfig, {"passes=forward", "methods[0].weights=" + pattern});
  const JobResult read = run(only(reading, "method=nprf"));
  CHECK(read.columns.at("learned_from") == place);
  CHECK(read.columns.at("rel_error") == fitted.columns.at("rel_error"));

  Cell wrong = with;
  wrong.problem.n = wrong.problem.n_kv = 32;  // other distances, another shape
  Job job;
  job.cell = wrong;
  const JobResult refused = run_job(job);
  CHECK(refused.status == Status::error);
  CHECK(refused.reason.find("bias") != std::string::npos);
}

TEST_CASE("what has nothing to fit is unsupported, and weights need learned parameters",
          "[sweep][fit]") {
  Job job;
  job.cell = only(loaded(kConfig), "method=dense,pass=fit");
  CHECK(run_job(job).status == Status::unsupported);
  job.cell = only(loaded(kConfig, {"methods[0].rpe=false"}), "method=nprf,pass=fit");
  CHECK(run_job(job).status == Status::unsupported);
  CHECK_THROWS_WITH(loaded(kConfig, {"methods[1]={name: dense, weights: x}"}),
                    Catch::Contains("dense has no learned parameters"));
  job.cell = only(loaded(kConfig, {"passes=forward", "methods[0].weights=nowhere"}), "method=nprf");
  const JobResult missing = run_job(job);
  CHECK(missing.status == Status::error);
  CHECK(missing.reason.find("nowhere: no such file") != std::string::npos);
}
