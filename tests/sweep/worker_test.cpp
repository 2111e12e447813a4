// The life of a cell: what is measured, judged and reported of honest methods, and of their fit.
#include "harness/sweep/worker.h"

#include <unistd.h>

#include <filesystem>
#include <set>

#include "harness/core/registry.h"
#include "harness/measure/alloc_counter.h"
#include "harness/measure/error_metrics.h"
#include "harness/sweep/row.h"
#include "tests/sweep/worker_fixture.h"

using namespace subquad;
using namespace subquad::fixture;

// ---- honest work ----

TEST_CASE("an honest method is measured in every pass", "[worker]") {
  for (const Pass pass : {Pass::forward, Pass::backward, Pass::forward_backward, Pass::decode})
    for (const bool causal : {false, true}) {
      if (pass == Pass::decode && !causal) continue;
      Job job = job_for("fixture_honest", pass);
      job.cell.problem.causal = causal;
      const JobResult r = run_job(job);
      CAPTURE(name(pass), causal, r.reason);
      REQUIRE(measured(r));
      CHECK(r.samples.size() == 3);
      CHECK(number(r, "time_s") > 0);
      CHECK(number(r, "time_min_s") <= number(r, "time_s"));
      CHECK(number(r, "time_q25_s") <= number(r, "time_q75_s"));
      CHECK(number(r, "time_s") <= number(r, "time_max_s"));
      CHECK(number(r, "repetitions") == 3);
      CHECK(number(r, "iterations") >= 1);
      const bool gradients = job.cell.wants_gradients();
      CHECK(number(r, "rel_error") < (gradients ? 1e-4 : 1e-5));
      CHECK(number(r, "cosine") == Approx(1));
      CHECK(r.columns.at("error_of") == (gradients ? "gradient" : "output"));
      CHECK(number(r, "error_rows") == number(r, "error_rows_total"));
      CHECK(number(r, "error_rows") == (pass == Pass::decode ? 16 : 128));
      CHECK(number(r, "gflops") > 0);
      CHECK(number(r, "keys_per_query") == 64);
      CHECK(r.columns.at("method_metrics") == "kept=0.5;guarded=0");
      CHECK(number(r, "setup_s") >= 0);
      CHECK(number(r, "vm_hwm_bytes") > 1e6);
      CHECK_FALSE(has_flag(r, "not_reproducible"));
      CHECK_FALSE(has_flag(r, "leaked_threads"));
    }
}

TEST_CASE("every column that a worker writes is one of the table, and finite", "[worker]") {
  std::set<std::string> known, written;
  for (const Column& column : kColumns)
    if (column.filled_by == "worker" && !column.help.starts_with("train: "))  // train_test.cpp
      known.insert(std::string(column.name));
  for (const Pass pass : {Pass::forward, Pass::forward_backward, Pass::decode})
    for (const auto& [column, text] : run_method("fixture_honest", pass).columns) {
      written.insert(column);
      CHECK(known.contains(column));
      CHECK(text.find("nan") == std::string::npos);
      CHECK(text.find("inf") == std::string::npos);
    }
  known.erase("fit_s");
  known.erase("fit_steps");  // of fits and methods that learn, below
  for (const char* column : {"learned_from", "fit_first_loss", "fit_last_loss"})
    known.erase(column);
  known.erase("state_bytes");
  known.erase("bandwidth_gbs");  // of a job of its own
  known.erase("mhz");            // not on every machine
  if (!hooks_active()) {
    known.erase("peak_bytes");
    known.erase("timed_allocs");
  }
  for (const std::string& column : known) {
    CAPTURE(column);
    CHECK(written.contains(column));
  }
}

TEST_CASE("memory is the high-water mark of prepare and one pass", "[worker]") {
  if (!hooks_active()) return;
  // p_ and dp_ of [1, 2, n, n] float32; backward holds the saved weights too.
  const double matrix = 2.0 * 256 * 256 * 4;
  CHECK(number(run_method("fixture_honest", Pass::forward, 256), "peak_bytes") ==
        Approx(2 * matrix).epsilon(0.02));
  CHECK(number(run_method("fixture_honest", Pass::forward, 256), "analytic_bytes") == 2 * matrix);
  CHECK(number(run_method("fixture_honest", Pass::backward, 256), "peak_bytes") ==
        Approx(3 * matrix).epsilon(0.05));
  // Decoding: the cache alone, without what prepare made for the parallel form.
  const JobResult decode = run_method("fixture_honest", Pass::decode, 256);
  CHECK(number(decode, "peak_bytes") == Approx(2.0 * 256 * (16 + 8) * 4).epsilon(0.25));
  CHECK(number(decode, "kv_bytes") == 2.0 * 256 * (16 + 8) * 4);
  CHECK(number(decode, "aux_bytes") == 8);
  CHECK(number(decode, "cold_bytes") == 0);
}

TEST_CASE("allocations inside a timed call are counted", "[worker]") {
  if (!hooks_active()) return;
  const std::string& method =
      wrong_method("allocates", [](Honest& m, const Inputs& in, TensorView out, int) {
        honestly(m, in, out);
        for (int i = 0; i < 7; ++i) std::free(std::malloc(static_cast<std::size_t>(100 + i)));
      });
  const double honest = number(run_method("fixture_honest"), "timed_allocs");
  CHECK(number(run_method(method), "timed_allocs") >= honest);
  std::vector<void*> kept;
  kept.reserve(1 << 20);
  const std::string& hoards =
      wrong_method("hoards", [&kept](Honest& m, const Inputs& in, TensorView out, int) {
        honestly(m, in, out);
        for (int i = 0; i < 7 && kept.size() < kept.capacity(); ++i)
          kept.push_back(std::malloc(16));
      });
  CHECK(number(run_method(hoards), "timed_allocs") == honest + 7);
  for (void* block : kept) std::free(block);
}

TEST_CASE("what a decoder shows gives recall, and single tokens are timed", "[worker]") {
  for (const Index m : {64, 4}) {
    Job job = job_for("window", Pass::decode);
    job.cell.problem.causal = true;
    job.cell.method_settings = {{"m", m}};
    job.cell.error.top_k = 16;
    const JobResult r = run_job(job);
    CAPTURE(m, r.reason);
    REQUIRE(measured(r));
    CHECK(number(r, "token_p50_s") > 0);
    CHECK(number(r, "token_p50_s") <= number(r, "token_p95_s"));
    CHECK(number(r, "topk") == 16);
    CHECK(number(r, "matrix_rows") == 16);  // 8 steps of two heads
    if (m == 64) {
      CHECK(number(r, "recall_topk") == 1);
      CHECK(number(r, "mass_recall") == Approx(1));
      CHECK(number(r, "row_error") < 1e-5);
      CHECK(number(r, "kl") < 1e-5);
    } else {
      CHECK(number(r, "recall_topk") < 0.4);  // five keys are seen
      CHECK(number(r, "mass_recall") < 0.5);
      CHECK(number(r, "row_error") > 0.1);
    }
    CHECK(number(r, "kv_bytes") == static_cast<double>(4 * m * 2 * (16 + 8)));
  }
}

TEST_CASE("attention rows give divergence and top-k mass", "[worker]") {
  for (const bool causal : {false, true}) {
    Job job = job_for("fixture_honest");
    job.cell.problem.causal = causal;
    job.cell.error.top_k = 5;
    const JobResult r = run_job(job);
    CHECK(number(r, "kl") == Approx(0).margin(1e-6));
    CHECK(number(r, "topk_mass") == Approx(1).epsilon(1e-4));
    CHECK(number(r, "topk") == 5);
  }
  Job off = job_for("fixture_honest");
  off.cell.error.matrix_rows = 0;
  CHECK(run_job(off).columns.count("kl") == 0);
}

TEST_CASE("one input set, one token, one query and odd widths are measured", "[worker]") {
  Job job = job_for("fixture_honest");
  job.cell.measure.input_sets = 1;
  CHECK(measured(run_job(job)));
  job.cell.problem = {.batch = 2, .heads = 1, .n = 1, .n_kv = 1, .d_k = 3, .d_v = 1};
  const JobResult one = run_job(job);
  CAPTURE(one.reason);
  CHECK(measured(one));
  Job decode = job_for("fixture_honest", Pass::decode, 5);
  decode.cell.measure.decode_tokens = 64;  // more than there are: no history
  const JobResult r = run_job(decode);
  CAPTURE(r.reason);
  REQUIRE(measured(r));
  CHECK(number(r, "error_rows") == 10);
}

TEST_CASE("sampled rows are judged when the exact reference is too expensive", "[worker]") {
  Job job = job_for("fixture_honest", Pass::forward, 100);
  job.cell.error.max_gflop = 0;
  job.cell.error.rows = 10;
  const JobResult r = run_job(job);
  CHECK(number(r, "error_rows") == 20);
  CHECK(number(r, "error_rows_total") == 200);
  CHECK(number(r, "rel_error") < 1e-5);
  job.cell.pass = Pass::backward;
  const JobResult g = run_job(job);
  CAPTURE(g.reason);
  CHECK(g.columns.at("error_of") == "dq");
  CHECK(number(g, "rel_error") < 1e-4);
}

TEST_CASE("a stored reference is used, and a bad one is passed over and said", "[worker]") {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("worker_reference" + std::to_string(getpid())))
          .string();
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    Job job = job_for("fixture_honest", pass);
    job.reference_path = path;
    job.make_reference = true;
    REQUIRE(run_job(job).status == Status::ok);
    job.make_reference = false;
    const JobResult with = run_job(job);
    REQUIRE(measured(with));
    CHECK_FALSE(has_flag(with, "reference_recomputed"));
    Job without = job;
    without.reference_path = "";
    CHECK(run_job(without).columns.at("rel_error") == with.columns.at("rel_error"));

    std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
    const JobResult cut = run_job(job);
    REQUIRE(measured(cut));
    CHECK(has_flag(cut, "reference_recomputed"));
    CHECK(cut.columns.at("rel_error") == with.columns.at("rel_error"));
  }
  std::filesystem::remove(path);
  Job nowhere = job_for("fixture_honest");
  nowhere.make_reference = true;
  nowhere.reference_path = "/nowhere/at/all";
  CHECK(run_job(nowhere).status == Status::error);
}

// ---- fit ----

namespace {

// Learns one number: the mean of the dense outputs.
struct Learner : Honest {
  FitReport fit(FitData& data, const FitOptions& options) override {
    Inputs in;
    ConstTensorView dense;
    std::set<const float*> seen;
    for (Index i = 0; i < options.steps; ++i) {
      data.next(&in, &dense);
      seen.insert(in.q.data());
      Tensor own(dense.shape());
      prepare(problem_, {});
      attend(in, own, nullptr);
      worst = std::max(worst, relative_difference(own, dense));
    }
    distinct = static_cast<double>(seen.size());
    return {options.steps, 1, 0.5};
  }
  std::vector<Metric> metrics() const override { return {{"worst", worst}, {"sets", distinct}}; }
  double worst = 0, distinct = 0;
};
const RegisterMethod<Learner> kLearner{[] {
  MethodInfo info = fixture_info("learner");
  info.passes = {Pass::forward, Pass::fit};
  info.learned = true;
  return info;
}()};

}  // namespace

TEST_CASE("a fit trains on inputs of its own with exact outputs and is judged on another",
          "[worker]") {
  const JobResult r = run_method("fixture_learner", Pass::fit, 32);
  CAPTURE(r.reason);
  REQUIRE(r.status == Status::ok);
  CHECK(number(r, "fit_s") > 0);
  CHECK(number(r, "fit_steps") == 200);
  CHECK(number(r, "rel_error") < 1e-5);
  CHECK_THAT(r.columns.at("method_metrics"), Catch::EndsWith("sets=8"));
  CHECK_THAT(r.columns.at("method_metrics"),
             Catch::StartsWith("worst=") && Catch::Contains("e-07"));
}
