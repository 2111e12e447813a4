#include "harness/sweep/cell.h"

#include <catch2/catch.hpp>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>

using namespace subquad;

namespace {

Cell sample() {
  Cell cell;
  cell.method = "fixture_window";
  cell.method_settings = {{"window", Index{64}},
                          {"ratio", 0.1},
                          {"whole", 1.0},
                          {"exact", true},
                          {"mode", std::string("fast")}};
  cell.label = "window \"64\", \xc3\xa9";
  cell.task = "fixture_data";
  cell.task_settings = {{"temperature", 0.30000000000000004}, {"text", std::string("7")}};
  cell.problem = {.batch = 2,
                  .heads = 3,
                  .n = 100,
                  .n_kv = 200,
                  .d_k = 32,
                  .d_v = 48,
                  .causal = true,
                  .scale = 0.1};
  cell.pass = Pass::backward;
  cell.threads = 4;
  cell.seed = 0xfedcba9876543210u;
  cell.measure = {.min_time_s = 0.25,
                  .repetitions = 7,
                  .warmup_s = 0.5,
                  .input_sets = 2,
                  .decode_tokens = 9,
                  .max_spread = 0.3,
                  .timeout_s = 12.5,
                  .memory_limit_mb = 99,
                  .pin = true};
  cell.error = {.max_gflop = 3.5, .rows = 17, .matrix_rows = 5, .top_k = 6};
  cell.plugins = {"/tmp/a.so", "/tmp/b c.so"};
  return cell;
}

using Change = std::function<void(Cell&)>;

}  // namespace

TEST_CASE("a cell survives its way through JSON", "[cell]") {
  const Cell cell = sample();
  const Cell back = nlohmann::json::parse(nlohmann::json(cell).dump()).get<Cell>();
  CHECK(back.id() == cell.id());
  CHECK(back.reference_id() == cell.reference_id());
  CHECK(back.method_settings == cell.method_settings);  // with their types: 1.0 stays a real
  CHECK(back.task_settings == cell.task_settings);
  CHECK(back.problem == cell.problem);
  CHECK(back.label == cell.label);
  CHECK(back.plugins == cell.plugins);
  CHECK(back.measure.timeout_s == cell.measure.timeout_s);
  CHECK(back.measure.memory_limit_mb == cell.measure.memory_limit_mb);
  CHECK(back.measure.max_spread == cell.measure.max_spread);
  CHECK(nlohmann::json(back) == nlohmann::json(cell));
}

TEST_CASE("a job and its result survive their way through JSON", "[cell]") {
  Job job;
  job.cell = sample();
  job.round = 3;
  job.make_reference = true;
  job.measure_bandwidth = true;
  job.reference_path = "/tmp/r";
  const Job back = nlohmann::json::parse(nlohmann::json(job).dump()).get<Job>();
  CHECK(nlohmann::json(back) == nlohmann::json(job));
  CHECK(back.make_reference);
  CHECK(back.measure_bandwidth);

  JobResult result;
  result.status = Status::unstable;
  result.reason = "spread 0.3, above 0.1";
  result.columns = {{"time_s", "0.001"}, {"flags", "spread;steal"}};
  result.samples = {0.1, 1e-9, 0.30000000000000004};
  const JobResult again = nlohmann::json::parse(nlohmann::json(result).dump()).get<JobResult>();
  CHECK(again.status == result.status);
  CHECK(again.reason == result.reason);
  CHECK(again.columns == result.columns);
  CHECK(again.samples == result.samples);
}

TEST_CASE("what determines a result changes the id", "[cell]") {
  const std::vector<Change> changes{
      [](Cell& c) { c.method = "other"; },
      [](Cell& c) { c.method_settings["window"] = Index{65}; },
      [](Cell& c) { c.method_settings["ratio"] = 0.10000000000000002; },
      [](Cell& c) { c.method_settings["exact"] = false; },
      [](Cell& c) { c.method_settings["mode"] = std::string("slow"); },
      [](Cell& c) { c.task = "other"; },
      [](Cell& c) { c.task_settings["temperature"] = 0.3; },
      [](Cell& c) { c.problem.batch = 1; },
      [](Cell& c) { c.problem.heads = 1; },
      [](Cell& c) { c.problem.n = 101; },
      [](Cell& c) { c.problem.n_kv = 201; },
      [](Cell& c) { c.problem.d_k = 33; },
      [](Cell& c) { c.problem.d_v = 49; },
      [](Cell& c) { c.problem.causal = false; },
      [](Cell& c) { c.problem.scale = 0.2; },
      [](Cell& c) { c.pass = Pass::forward; },
      [](Cell& c) { c.pass = Pass::forward_backward; },
      [](Cell& c) { c.threads = 1; },
      [](Cell& c) { c.seed = 1; },
      [](Cell& c) { c.measure.min_time_s = 0.5; },
      [](Cell& c) { c.measure.repetitions = 8; },
      [](Cell& c) { c.measure.warmup_s = 0; },
      [](Cell& c) { c.measure.input_sets = 3; },
      [](Cell& c) { c.measure.decode_tokens = 10; },
      [](Cell& c) { c.measure.pin = false; },
      [](Cell& c) { c.error.max_gflop = 4; },
      [](Cell& c) { c.error.rows = 18; },
      [](Cell& c) { c.error.matrix_rows = 6; },
      [](Cell& c) { c.error.top_k = 7; }};
  std::set<std::string> ids{sample().id()};
  for (std::size_t i = 0; i < changes.size(); ++i) {
    INFO("change " << i);
    Cell cell = sample();
    changes[i](cell);
    CHECK(ids.insert(cell.id()).second);
    CHECK(cell.id().size() == 16);
    CHECK(cell.id().find_first_not_of("0123456789abcdef") == std::string::npos);
  }
}

TEST_CASE("what does not determine a result leaves the id alone", "[cell]") {
  const std::vector<Change> changes{
      [](Cell& c) { c.label = "other"; }, [](Cell& c) { c.plugins.clear(); },
      [](Cell& c) { c.measure.timeout_s = 1; }, [](Cell& c) { c.measure.memory_limit_mb = 1; },
      [](Cell& c) { c.measure.max_spread = 1; }};
  for (const Change& change : changes) {
    Cell cell = sample();
    change(cell);
    CHECK(cell.id() == sample().id());
  }
  // "auto" is the number that it stands for.
  Cell spelled = sample(), automatic = sample();
  automatic.problem.scale = 0;
  spelled.problem.scale = automatic.problem.logit_scale();
  CHECK(spelled.id() == automatic.id());
}

TEST_CASE("cells share a reference when they differ in the method alone", "[cell]") {
  const std::string reference = sample().reference_id();
  for (const Change& change : std::vector<Change>{
           [](Cell& c) { c.method = "other"; }, [](Cell& c) { c.method_settings.clear(); },
           [](Cell& c) { c.threads = 1; }, [](Cell& c) { c.measure.repetitions = 1; },
           [](Cell& c) { c.pass = Pass::forward_backward; }}) {
    Cell cell = sample();
    change(cell);
    CHECK(cell.reference_id() == reference);
  }
  for (const Change& change : std::vector<Change>{
           [](Cell& c) { c.task = "other"; }, [](Cell& c) { c.task_settings["temperature"] = 0.3; },
           [](Cell& c) { c.problem.n = 99; }, [](Cell& c) { c.seed = 1; },
           [](Cell& c) { c.error.rows = 1; }, [](Cell& c) { c.pass = Pass::forward; }}) {
    Cell cell = sample();
    change(cell);
    CHECK(cell.reference_id() != reference);
  }
}

TEST_CASE("statuses have names that read back, and an unknown one is refused", "[cell]") {
  std::set<std::string> names;
  for (const Status status : kAllStatuses) {
    names.emplace(name(status));
    CHECK(status_from_name(name(status)) == status);
  }
  CHECK(names.size() == 9);
  CHECK_THROWS_AS(status_from_name("fine"), UserError);
  CHECK_FALSE(failed(Status::ok));
  CHECK_FALSE(failed(Status::unstable));
  CHECK_FALSE(failed(Status::unsupported));
  CHECK(failed(Status::wrong));
  CHECK(failed(Status::interrupted));
}
