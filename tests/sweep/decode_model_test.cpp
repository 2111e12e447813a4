// Decoding of trained models as a pass of a sweep: options and rows.
#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "harness/sweep/config.h"
#include "harness/sweep/plan.h"
#include "harness/sweep/worker.h"
#include "tests/model/saved_model.h"

using namespace subquad;
namespace fs = std::filesystem;

namespace {

Config loaded(const SavedModel& model, const std::string& task,
              const std::vector<std::string>& overrides = {}) {
  const std::string path = model.path() + "/c.yaml";
  std::ofstream(path) << fmt::format(R"(
name: study
threads: 1
rounds: 1
passes: decode
seeds: 5
problem: {{n: 24}}
methods: [dense, {{name: window, m: 4}}, {{name: adore, m: 4, rebuild: model}}]
tasks: [{{name: {}, from: "{}", layer: [-1, 0]}}]
measure: {{examples: 5, decode_tokens: 16, min_time_s: 1e-4, repetitions: 2, warmup_s: 0, input_sets: 2}}
)",
                                     task, model.path());
  return load_config(path, overrides);
}

JobResult run(const Config& config, const std::string& filter) {
  const auto cells = filter_cells(config.cells, filter);
  REQUIRE(cells.size() == 1);
  Job job;
  job.cell = cells.front();
  return run_job(job);
}

double number(const JobResult& r, const char* column) {
  INFO(column << " " << r.reason);
  REQUIRE(r.columns.contains(column));
  return std::stod(r.columns.at(column));
}

bool measured(const JobResult& r) { return r.status == Status::ok || r.status == Status::unstable; }

}  // namespace

TEST_CASE("options of whole models belong to the identity of their cells alone",
          "[sweep][decode_model]") {
  const SavedModel model("mqar", {{"vocabulary", Index{64}}, {"pairs", Index{2}}}, {}, 24);
  const Config config = loaded(model, "mqar"),
               other = loaded(model, "mqar", {"measure.examples=9"});
  REQUIRE(config.cells.size() == 6);
  for (std::size_t i = 0; i < config.cells.size(); ++i) {
    const Cell& cell = config.cells[i];
    CHECK(cell.whole_model() == (cell.task_settings.at("layer") == ParamValue(Index{-1})));
    CHECK(needs_reference(cell) == !cell.whole_model());
    const Cell back = nlohmann::json::parse(nlohmann::json(cell).dump()).get<Cell>();
    CHECK(back.id() == cell.id());
    CHECK(back.measure.examples == 5);
    CHECK((other.cells[i].id() != cell.id()) == cell.whole_model());
  }
  std::ofstream(model.path() + "/again.yaml") << config.resolved_yaml;
  const Config again = load_config(model.path() + "/again.yaml", {});
  REQUIRE(again.cells.size() == config.cells.size());
  for (std::size_t i = 0; i < again.cells.size(); ++i)
    CHECK(again.cells[i].id() == config.cells[i].id());
  CHECK_THROWS_WITH(loaded(model, "mqar", {"measure.feed=teecher"}), Catch::Contains("teacher"));
}

TEST_CASE("without a cache a row of a whole model keeps nothing and has the same logits",
          "[sweep][decode_model]") {
  const SavedModel model("mqar", {{"vocabulary", Index{64}}, {"pairs", Index{2}}}, {}, 24);
  const Config config =
      loaded(model, "mqar", {"tasks[0].layer=-1", "tasks[0].cache=[true, false]"});
  const JobResult kept = run(config, "method=dense,cache=true"),
                  uncached = run(config, "method=dense,cache=false");
  REQUIRE(measured(kept));
  REQUIRE(measured(uncached));
  CHECK(number(kept, "kv_bytes") > 0);
  CHECK(number(uncached, "kv_bytes") == 0);
  CHECK(number(uncached, "rel_error") <= 1e-5);
  CHECK(number(uncached, "loss") == Approx(number(kept, "loss")));
  CHECK(number(uncached, "timed_allocs") > 0);
}

TEST_CASE("a row of a whole model has quality, time and bytes of the whole model",
          "[sweep][decode_model]") {
  const SavedModel model("mqar", {{"vocabulary", Index{64}}, {"pairs", Index{2}}}, {}, 24);
  const Config config = loaded(model, "mqar");
  const JobResult dense = run(config, "layer=-1,method=dense");
  const JobResult window = run(config, "layer=-1,method=window");
  const JobResult adore = run(config, "layer=-1,method=adore");
  for (const JobResult* r : {&dense, &window, &adore}) {
    INFO(r->reason);
    REQUIRE(measured(*r));
    CHECK(number(*r, "perplexity") == Approx(std::exp(number(*r, "loss"))));
    CHECK(number(*r, "tokens_per_s") == Approx(1 / number(*r, "time_s")));
    CHECK(number(*r, "token_p50_s") <= number(*r, "token_p95_s"));
    CHECK(number(*r, "timed_allocs") == 0);
    CHECK(r->columns.at("error_of") == "logits");
    CHECK(r->samples.size() >= 2);
  }
  CHECK(number(dense, "rel_error") <= 1e-4);
  CHECK(number(window, "rel_error") > 1e-3);
  CHECK(number(dense, "kv_bytes") == 4.0 * 24 * 2 * 2 * (8 + 6));
  CHECK(number(window, "kv_bytes") == 4.0 * 4 * 2 * 2 * (8 + 6));
  CHECK(number(adore, "kv_bytes") == 4.0 * 4 * 2 * 2 * (8 + 6));
  CHECK(number(adore, "cold_bytes") == 0);
  CHECK(adore.columns.at("learned_from") == "initial");
  // The labels behind the prompt of 8 of the 5 examples are what is judged.
  CHECK(dense.columns.at("evaluation").find("prompts of 8 tokens, 5 examples") !=
        std::string::npos);
  // The single layer cannot rebuild through the model.
  CHECK(run(config, "layer=0,method=adore").status == Status::unsupported);
  // Recall has other labels than the next token.
  const Config own = loaded(model, "mqar", {"measure.feed=own"});
  CHECK(run(own, "layer=-1,method=dense").status == Status::unsupported);
  const Config head = loaded(model, "mqar", {"tasks[0].head=1"});
  CHECK(run(head, "layer=-1,method=dense").status == Status::unsupported);
}

TEST_CASE("a model's own text is judged by its parallel forward", "[sweep][decode_model]") {
  const SavedModel model("char_lm", {}, {{"steps", Index{60}}, {"learning_rate", 0.01}}, 24);
  const auto drawn = [&](const char* temperature) {
    const Config config = loaded(
        model, "char_lm", {"measure.feed=own", std::string("measure.temperature=") + temperature});
    const JobResult r = run(config, "layer=-1,method=dense");
    INFO(r.reason);
    REQUIRE(measured(r));
    CHECK(r.columns.at("evaluation").find("80 drawn tokens") == 0);
    return r;
  };
  const JobResult greedy = drawn("0"), warm = drawn("1"), hot = drawn("50");
  CHECK(number(greedy, "accuracy") == 1);  // always the most probable token
  CHECK(number(greedy, "loss") < number(warm, "loss"));
  CHECK(number(warm, "loss") < number(hot, "loss"));
  CHECK(drawn("1").columns.at("loss") == warm.columns.at("loss"));
}
