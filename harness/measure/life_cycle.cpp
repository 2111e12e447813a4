#include "harness/measure/life_cycle.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <optional>
#include <thread>

#include "harness/core/method_weights.h"
#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "harness/measure/alloc_counter.h"
#include "harness/measure/attention_matrix.h"
#include "harness/measure/cell_report.h"
#include "harness/measure/fit_data.h"
#include "harness/measure/fresh_input.h"
#include "harness/measure/judgement.h"
#include "harness/measure/limits.h"
#include "harness/measure/machine.h"
#include "harness/measure/memory.h"
#include "harness/measure/noise.h"
#include "harness/measure/output_check.h"
#include "harness/measure/pass_run.h"
#include "harness/measure/processors.h"
#include "harness/measure/reference_file.h"
#include "harness/measure/stage_clock.h"
#include "harness/measure/statistics.h"
#include "harness/measure/timing.h"

namespace subquad {
namespace {

class LifeCycle {
 public:
  LifeCycle(const Cell& cell, const std::string& reference_path, JobResult* result)
      : cell_(cell),
        reference_path_(reference_path),
        report_(result),
        entry_(Registry::instance().method(cell.method)) {}

  void run() {
    create();
    report_.put("build", build_description());
    if (cell_.pass == Pass::fit) {
      fit();
    } else {
      measure();
    }
    finish();
  }

 private:
  // ---- before anything of the method but its constructor runs ----

  void create() {
    const std::string invalid = invalid_reason(cell_.problem);
    if (!invalid.empty()) throw UserError("problem: " + invalid);
    task_ = make_task(cell_.task, cell_.task_settings);
    method_ = make_method(cell_.method, cell_.method_settings);
    if (cell_.pass == Pass::train)
      throw Unsupported("the train pass belongs to a model, not to an attention call");
    std::string reason = unsupported_reason(entry_, *method_, cell_.problem, cell_.pass);
    if (reason.empty()) reason = task_->unsupported(cell_.problem);
    if (!reason.empty()) throw Unsupported(reason);
  }

  // ---- a timed pass ----

  void measure() {
    // Inputs are made by the same team: the idle threads of a larger one would spin beside the
    // first timed calls.
    const std::int64_t tasks = start_team();
    run_ = make_pass_run(*method_, entry_.info, *task_,
                         {.problem = cell_.problem,
                          .pass = cell_.pass,
                          .seed = cell_.seed,
                          .input_sets = cell_.measure.input_sets,
                          .decode_tokens = cell_.measure.decode_tokens,
                          .method_seed = method_seed()});
    make_checks();
    judgement_->load_reference(reference_path_);
    prepare_and_first_call();
    check_calls();
    judgement_->judge();
    declared();
    time();
    find_leaked_threads(tasks);
    attention_matrix(cell_, entry_.info.linear_in_v, *method_, *run_, report_);
    if (cell_.pass == Pass::decode) decoder_trace(cell_, *run_, report_);
    probe();
  }

  // Starts the threads of the cell. Returns the number of threads of the process then.
  std::int64_t start_team() const {
    set_threads(cell_.threads);
    if (cell_.measure.pin) pin_threads(cell_.threads);
    parallel_for(thread_count(), [](Index, int) {});
    return thread_tasks();
  }

  void make_checks() {
    outputs_.emplace(*run_, entry_.info.random);
    judgement_.emplace(cell_, entry_, *run_, report_);
  }

  void prepare_and_first_call() {
    for (Index set = 0; set < run_->sets(); ++set) outputs_->fill_outputs(set);
    std::int64_t before = live_bytes();
    reset_peak();
    const double start = monotonic_seconds();
    run_->prepare();
    take_weights();
    if (!run_->prepare_counts()) {
      before = live_bytes();
      reset_peak();
    }
    run_->prepare_state();
    report_.put("setup_s", monotonic_seconds() - start);
    run_->ready(0);
    checksums_.push_back(run_->input_checksum(0));
    const CacheBytes cache = run_->call_tracking_bytes(0);
    if (hooks_active())
      report_.put_count("peak_bytes", std::max<std::int64_t>(0, peak_bytes() - before));
    if (cell_.pass == Pass::decode) {
      report_.put("kv_bytes", cache.kv);
      report_.put("aux_bytes", cache.aux);
      report_.put("cold_bytes", cache.cold);
    }
    outputs_->check_outputs(0);
  }

  std::string filled(const std::string& path) const {
    return fill_path(path, cell_.method, cell_.label, cell_.seed, cell_.problem.n);
  }

  std::optional<Seed> method_seed() const {
    return cell_.weights.empty() ? std::nullopt : weights_seed(filled(cell_.weights));
  }

  // The parameters of a file, if one was named.
  void take_weights() {
    const std::string source = filled(cell_.weights);
    if (!source.empty()) load_method_weights(source, cell_.method, *method_);
    if (entry_.info.learned && !method_->parameters().empty())
      report_.put("learned_from", source.empty() ? "initial" : source);
  }

  // One more call per set (two for a single set): their outputs are what timed calls must repeat.
  void check_calls() {
    for (Index i = 1; i <= std::max<Index>(1, run_->sets() - 1); ++i) {
      const Index set = i % run_->sets();
      outputs_->fill_outputs(set);
      const double start = monotonic_seconds();
      run_->ready(set);
      ready_s_ = monotonic_seconds() - start;
      if (set > 0) checksums_.push_back(run_->input_checksum(set));
      const std::uint64_t allocations = alloc_calls();
      const double called = monotonic_seconds();
      run_->call(set);
      call_s_ = monotonic_seconds() - called;
      warmed_s_ += call_s_;
      const std::uint64_t counted = alloc_calls() - allocations;  // hooks_active() makes one more
      if (hooks_active()) {
        const auto steps = static_cast<std::uint64_t>(run_->steps());
        report_.put_count("timed_allocs", static_cast<std::int64_t>((counted + steps - 1) / steps));
      }
      outputs_->check_outputs(set);
    }
  }

  void declared() {
    const Budget budget = method_->budget(cell_.problem);
    if (budget.keys_per_query > 0) report_.put("keys_per_query", budget.keys_per_query);
    if (budget.state_bytes > 0) report_.put("state_bytes", budget.state_bytes);
    const double analytic = method_->extra_bytes(cell_.problem, cell_.pass);
    if (analytic > 0) report_.put("analytic_bytes", analytic);
    report_.put("bounds_in", std::string(name(method_->bounds_in())));
  }

  // ---- time ----

  TimingOptions timing_options() const {
    // The check calls were untimed calls too.
    TimingOptions options{.min_time_s = cell_.measure.min_time_s,
                          .warmup_s = cell_.measure.warmup_s - warmed_s_,
                          .repetitions = cell_.measure.repetitions,
                          .max_spread = cell_.measure.max_spread};
    if (run_->ready_before_every_call()) {
      // Untimed work may cost far more than the timed: a repetition takes at most about five times
      // the minimum time, all included.
      const double wanted = options.min_time_s / std::max(call_s_, 1e-9),
                   afforded = 5 * options.min_time_s / std::max(call_s_ + ready_s_, 1e-9);
      options.iterations =
          static_cast<Index>(std::clamp(std::min(std::ceil(wanted), afforded), 1.0, 1e7));
    }
    return options;
  }

  void time() {
    const Index sets = run_->sets();
    TimedCall timed;
    // A slow call may run only once before the first sample: then set 0 comes with that sample.
    const TimingOptions options = timing_options();
    const Index shift = options.iterations == 0 && options.warmup_s > 0 ? sets - 1 : 0;
    const auto set_of = [&](Index number) { return (number + shift) % sets; };
    timed.call = [&](Index number) { run_->call(set_of(number)); };
    if (run_->ready_before_every_call())
      timed.before_call = [&](Index number) {
        run_->ready(set_of(number));
        parallel_for(thread_count(),
                     [](Index, int) {});  // threads may have gone to sleep meanwhile
      };
    PeakMeter peak;
    timed.before_repetition = [&] {
      for (Index set = 0; set < sets; ++set) outputs_->fill_outputs(set);
      peak.sample();
    };
    timed.after_repetition = [&](Index first, Index count) {
      for (Index i = first; i < first + std::min(count, sets); ++i) {
        const bool same = outputs_->compare_with_check(set_of(i));
        if (set_of(i) != 0) continue;
        set_0_was_timed_ = true;
        if (!same)
          judgement_->judge();  // other bits, within the tolerance: these are the ones that count
      }
    };
    const double calibration_before = calibrate();
    const NoiseSnapshot before = noise_snapshot();
    Timing timing = time_calls(timed, options);
    peak.sample();
    Noise noise = noise_between(before, noise_snapshot());
    report_.put_count("vm_hwm_bytes", vm_hwm_bytes());
    noise.calibration_before = calibration_before;
    noise.calibration_after = calibrate();

    if (!set_0_was_timed_) report_.doubt("judged_check_call", "no timed call fell on input set 0");
    require_untouched_inputs();
    put_metrics();
    for (double& sample : timing.samples) sample /= static_cast<double>(run_->steps());
    typical_s_ = median(timing.samples);
    fill_time_columns(timing, peak.gflops());
    for (Doubt& d : doubts(timing.samples, timing.iterations * run_->steps(),
                           cell_.measure.max_spread, noise, cell_.threads))
      report_.doubt(std::move(d));
    report_.put_count("context_switches", noise.context_switches);
    report_.put("steal_s", noise.steal_s);
    report_.put("waited_s", noise.waited_s);
    if (const double mhz = core0_mhz(); mhz > 0) report_.put("mhz", mhz);
    report_.put("calibration_before", noise.calibration_before);
    report_.put("calibration_after", noise.calibration_after);
  }

  void require_untouched_inputs() {
    for (Index set = 0; set < run_->sets(); ++set)
      if (run_->input_checksum(set) != checksums_[static_cast<std::size_t>(set)])
        throw WrongResult(fmt::format("wrote into its inputs (set {})", set));
  }

  void fill_time_columns(const Timing& timing, double peak_gflops) {
    const std::vector<double>& s = timing.samples;
    const Problem& p = cell_.problem;
    report_.put("time_s", typical_s_);
    report_.put("time_min_s", *std::min_element(s.begin(), s.end()));
    report_.put("time_max_s", *std::max_element(s.begin(), s.end()));
    const double low = quantile(s, 0.25), high = quantile(s, 0.75);
    report_.put("time_q25_s", low);
    report_.put("time_q75_s", high);
    report_.put("spread", (high - low) / typical_s_);
    report_.put_count("repetitions", static_cast<std::int64_t>(s.size()));
    report_.put_count("iterations", timing.iterations);
    const double tokens =
        static_cast<double>(p.batch) * (cell_.pass == Pass::decode ? 1 : static_cast<double>(p.n));
    report_.put("tokens_per_s", tokens / typical_s_);
    const double flops = method_->flops(p, cell_.pass);
    report_.put("fma_peak_gflops", peak_gflops);
    if (flops > 0) {
      report_.put("gflops", 1e-9 * flops / typical_s_);
      report_.put("fraction_of_peak", 1e-9 * flops / typical_s_ / peak_gflops);
    }
    report_.samples(s);
  }

  // ---- after timing ----

  // A joined thread may be listed for a moment longer.
  void find_leaked_threads(std::int64_t before) {
    std::int64_t extra = 0;
    for (int wait = 0; wait < 5; ++wait) {
      extra = thread_tasks() - before;
      if (extra <= 0) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    report_.doubt("leaked_threads",
                  fmt::format("left {} thread{} of its own running beside the {} granted", extra,
                              extra == 1 ? "" : "s", cell_.threads),
                  true);
  }

  void put_metrics() {
    std::string all;
    std::vector<Metric> metrics = method_->metrics();
    for (Metric& share : stage_shares()) metrics.push_back(std::move(share));
    for (const Metric& metric : metrics)
      all += fmt::format("{}{}={}", all.empty() ? "" : ";", metric.name, column_text(metric.value));
    if (!all.empty()) report_.put("method_metrics", all);
  }

  // By one more call, which is not timed: of a method that marks its stages.
  std::vector<Metric> stage_shares() {
    auto* const staged = dynamic_cast<HasStages*>(method_.get());
    if (staged == nullptr || cell_.pass != Pass::forward) return {};
    const std::vector<std::string> names = staged->stages();
    StageClock clock(cell_.threads, names.size());
    staged->set_probe(&clock);
    run_->call(0);
    staged->set_probe(nullptr);
    return clock.shares(names);
  }

  void probe() {
    const MethodInfo& info = entry_.info;
    const std::string reason = probe_fresh_input(
        *run_, outputs_->checked(0),
        {.output_is_linear = info.linear_in_v && !info.structure_from_v && !info.random,
         .sign_free = info.exact,
         .typical_s = typical_s_ * static_cast<double>(run_->steps())});
    if (!reason.empty()) throw WrongResult(reason);
  }

  // ---- fit ----

  // Trains on sets of its own, then judges the output on the unseen set 0.
  void fit() {
    start_team();
    PassConfig config{.problem = cell_.problem,
                      .pass = Pass::forward,
                      .seed = cell_.seed,
                      .input_sets = 1,
                      .decode_tokens = 0,
                      .gradients = true,
                      .method_seed = method_seed()};
    run_ = make_pass_run(*method_, entry_.info, *task_, config);
    make_checks();
    judgement_->load_reference(reference_path_);
    outputs_->fill_outputs(0);
    const std::int64_t before = live_bytes();
    reset_peak();
    double start = monotonic_seconds();
    run_->prepare();
    report_.put("setup_s", monotonic_seconds() - start);
    take_weights();
    const FitConfig config_of_fit =
        subquad::bind(fit_fields(), resolve("fit", specs_of(fit_fields()), cell_.fit));
    TaskFitData data(*task_, cell_.problem, cell_.seed, config_of_fit.sets);
    Inputs first;
    ConstTensorView dense;
    for (Index i = 0; i < config_of_fit.sets; ++i)  // made outside the timed part
      data.next(&first, &dense);
    start = monotonic_seconds();
    FitOptions options;
    options.steps = config_of_fit.steps;
    options.learning_rate = config_of_fit.learning_rate;
    options.seed = cell_.seed;
    const FitReport report = method_->fit(data, options);
    report_.put("fit_s", monotonic_seconds() - start);
    report_.put_count("fit_steps", report.steps);
    report_.put("fit_first_loss", report.first_loss);
    report_.put("fit_last_loss", report.last_loss);
    report_.put("learned_from", "fit");
    if (hooks_active())
      report_.put_count("peak_bytes", std::max<std::int64_t>(0, peak_bytes() - before));
    checksums_.push_back(run_->input_checksum(0));
    run_->call(0);
    outputs_->require_finite(0, "after the fit: ");
    report_.put_count("vm_hwm_bytes", vm_hwm_bytes());
    require_untouched_inputs();
    judgement_->judge();
    declared();
    put_metrics();
    attention_matrix(cell_, entry_.info.linear_in_v, *method_, *run_, report_);
    if (!std::isfinite(report.first_loss) || !std::isfinite(report.last_loss))
      throw WrongResult("the fit's loss is not finite");
    if (config_of_fit.save.empty()) return;
    std::filesystem::path path = filled(config_of_fit.save);
    if (path.extension() != ".safetensors")
      path /= fmt::format("{}_{}.safetensors", cell_.method, cell_.id());
    std::error_code error;
    std::filesystem::create_directories(path.parent_path(), error);
    save_method_weights(path.string(), cell_.method, cell_.method_settings, *method_,
                        method_seed().value_or(cell_.seed));
  }

  // ---- verdict ----

  void finish() {
    if (judgement_->weak())
      report_.doubt("weak_check", "the exact output hardly differs between queries");
    if (outputs_->not_reproducible()) report_.doubt("not_reproducible");
    report_.finish();
  }

  const Cell& cell_;
  const std::string& reference_path_;
  CellReport report_;
  const MethodEntry& entry_;
  std::unique_ptr<Task> task_;
  std::unique_ptr<Method> method_;
  std::unique_ptr<PassRun> run_;  // after method_: a decoder may refer to its method
  std::optional<OutputCheck> outputs_;
  std::optional<Judgement> judgement_;
  std::vector<std::uint64_t> checksums_;  // by set: inputs
  double typical_s_ = 0, call_s_ = 0, ready_s_ = 0, warmed_s_ = 0;
  bool set_0_was_timed_ = false;
};

}  // namespace

void measure_cell(const Cell& cell, const std::string& reference_path, JobResult* result) {
  try {
    LifeCycle(cell, reference_path, result).run();
  } catch (const WrongResult& wrong) {
    result->status = Status::wrong;
    result->reason = wrong.what();
    // Time that was taken of a wrong answer is no result.
    result->samples.clear();
    for (const char* column : {"time_s", "time_min_s", "time_max_s", "time_q25_s", "time_q75_s",
                               "spread", "tokens_per_s", "gflops", "fraction_of_peak"})
      result->columns.erase(column);
  }
}

void make_reference_file(const Cell& cell, const std::string& path) {
  set_threads(usable_processors());
  const auto task = make_task(cell.task, cell.task_settings);
  const std::string reason = task->unsupported(cell.problem);
  if (!reason.empty()) throw Unsupported(reason);
  write_reference(path, cell.reference_id(),
                  task_reference(*task, cell.problem, cell.seed, reference_options(cell)));
}

}  // namespace subquad
