#include "harness/measure/life_cycle.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <optional>
#include <thread>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "harness/measure/alloc_counter.h"
#include "harness/measure/error_metrics.h"
#include "harness/measure/fit_data.h"
#include "harness/measure/fresh_input.h"
#include "harness/measure/limits.h"
#include "harness/measure/machine.h"
#include "harness/measure/memory.h"
#include "harness/measure/noise.h"
#include "harness/measure/pass_run.h"
#include "harness/measure/processors.h"
#include "harness/measure/reference_file.h"
#include "harness/measure/statistics.h"
#include "harness/measure/timing.h"

namespace subquad {
namespace {

constexpr double kSameOutput = 1e-5;         // two calls on the same input may differ by this much
constexpr double kGradientTolerance = 1e-4;  // of an exact method's gradients, at least
constexpr Index kFitSteps = 200;
constexpr Index kFitSets = 8;

// What the method did is wrong; what() is the reason.
struct WrongResult : std::runtime_error {
  using std::runtime_error::runtime_error;
};

ReferenceOptions reference_options(const Cell& cell) {
  return {.gradients = cell.wants_gradients(),
          .max_gflop = cell.error.max_gflop,
          .rows = cell.error.rows};
}

std::string text(double value) { return to_string(ParamValue(value)); }

class LifeCycle {
 public:
  LifeCycle(const Cell& cell, const std::string& reference_path, JobResult* result)
      : cell_(cell),
        reference_path_(reference_path),
        result_(*result),
        entry_(Registry::instance().method(cell.method)) {}

  void run() {
    create();
    put("build", build_description());
    if (cell_.pass == Pass::fit) {
      fit();
    } else {
      measure();
    }
    finish();
  }

 private:
  using Outputs = std::vector<Tensor>;

  void put(const std::string& column, std::string value) {
    result_.columns[column] = std::move(value);
  }
  void put(const std::string& column, double value) {
    if (std::isfinite(value)) put(column, text(value));
  }
  void put_count(const std::string& column, std::int64_t value) {
    put(column, fmt::format("{}", value));
  }
  void doubt(std::string flag, std::string reason = "", bool unstable = false) {
    doubts_.push_back({std::move(flag), std::move(reason), unstable});
  }

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
                          .decode_tokens = cell_.measure.decode_tokens});
    load_reference();
    prepare_and_first_call();
    check_calls();
    judge();
    declared();
    time();
    find_leaked_threads(tasks);
    attention_matrix();
    probe();
  }

  // Starts the threads of the cell. Returns the number of threads of the process then.
  std::int64_t start_team() const {
    set_threads(cell_.threads);
    if (cell_.measure.pin) pin_threads(cell_.threads);
    parallel_for(thread_count(), [](Index, int) {});
    return thread_tasks();
  }

  void prepare_and_first_call() {
    for (Index set = 0; set < run_->sets(); ++set) fill_outputs(set);
    std::int64_t before = live_bytes();
    reset_peak();
    const double start = monotonic_seconds();
    run_->prepare();
    if (!run_->prepare_counts()) {
      before = live_bytes();
      reset_peak();
    }
    run_->prepare_state();
    put("setup_s", monotonic_seconds() - start);
    run_->ready(0);
    checksums_.push_back(run_->input_checksum(0));
    const CacheBytes cache = run_->call_tracking_bytes(0);
    if (hooks_active()) put_count("peak_bytes", std::max<std::int64_t>(0, peak_bytes() - before));
    if (cell_.pass == Pass::decode) {
      put("kv_bytes", cache.kv);
      put("aux_bytes", cache.aux);
      put("cold_bytes", cache.cold);
    }
    check_outputs(0);
  }

  // One more call per set (two for a single set): their outputs are what timed calls must repeat.
  void check_calls() {
    for (Index i = 1; i <= std::max<Index>(1, run_->sets() - 1); ++i) {
      const Index set = i % run_->sets();
      fill_outputs(set);
      const double start = monotonic_seconds();
      run_->ready(set);
      ready_s_ = monotonic_seconds() - start;
      if (set > 0) checksums_.push_back(run_->input_checksum(set));
      const std::uint64_t allocations = alloc_calls();
      const double called = monotonic_seconds();
      run_->call(set);
      call_s_ = monotonic_seconds() - called;
      warmed_s_ += call_s_;
      if (hooks_active()) {
        const auto steps = static_cast<std::uint64_t>(run_->steps());
        put_count("timed_allocs",
                  static_cast<std::int64_t>((alloc_calls() - allocations + steps - 1) / steps));
      }
      check_outputs(set);
    }
  }

  void fill_outputs(Index set) {
    for (const PassOutput& output : run_->outputs(set)) fill_untouched(output.tensor);
  }

  void require_finite(Index set, const char* when) {
    for (const PassOutput& output : run_->outputs(set)) {
      const std::string bad = describe(output_state(output.tensor), output.tensor, output.name);
      if (!bad.empty()) throw WrongResult(fmt::format("{}{}", when, bad));
    }
  }

  void check_outputs(Index set) {
    require_finite(set, "");
    if (set < static_cast<Index>(checked_.size())) {
      compare_with_check(set);
    } else {
      checked_.push_back(copy_of(set));
    }
  }

  Outputs copy_of(Index set) {
    Outputs copies;
    for (const PassOutput& output : run_->outputs(set)) {
      copies.emplace_back(output.tensor.shape());
      std::memcpy(copies.back().data(), output.tensor.data(),
                  static_cast<std::size_t>(output.tensor.size()) * sizeof(float));
    }
    return copies;
  }

  // The outputs of a later call must be those of the check call. Returns whether bit for bit.
  bool compare_with_check(Index set) {
    bool same = true;
    const auto outputs = run_->outputs(set);
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const Tensor& expected = checked_[static_cast<std::size_t>(set)][i];
      const TensorView& got = outputs[i].tensor;
      if (std::memcmp(got.data(), expected.data(),
                      static_cast<std::size_t>(got.size()) * sizeof(float)) == 0)
        continue;
      same = false;
      require_finite(set, "in a timed call: ");
      const double off = relative_difference(got, expected.view());
      if (!(off <= kSameOutput))
        throw WrongResult(
            fmt::format("{} of a timed call differs from the checked call on the same input by "
                        "{:.3g}, at most {:.3g} is allowed",
                        outputs[i].name, off, kSameOutput));
    }
    if (!same && !entry_.info.random) not_reproducible_ = true;
    return same;
  }

  // ---- error ----

  void load_reference() {
    if (run_->has_own_reference()) {
      reference_ = run_->own_reference();
      return;
    }
    const std::uint64_t hash = inputs_hash(run_->inputs(0));
    if (!reference_path_.empty()) {
      try {
        reference_ = read_reference(reference_path_, cell_.reference_id(), cell_.problem);
        if (reference_.inputs_hash == hash && !(cell_.wants_gradients() && reference_.dq.empty()))
          return;
        doubt("reference_recomputed", "the reference file belongs to other inputs");
      } catch (const StorageError& error) {
        doubt("reference_recomputed", error.what());
      }
    }
    const Tensor dout =
        cell_.wants_gradients() ? make_dout(cell_.problem, cell_.seed, 0) : Tensor();
    reference_ = exact_reference(run_->inputs(0), dout.empty() ? nullptr : &dout, cell_.problem,
                                 cell_.seed, reference_options(cell_));
  }

  // Error of set 0 as it is in the outputs now.
  ErrorMetrics error_of(bool gradients) {
    ErrorSums sums;
    for (const PassOutput& output : run_->outputs(0)) {
      if ((output.name == "out") == gradients) continue;
      const TensorD& exact = output.name == "out"  ? reference_.out
                             : output.name == "dq" ? reference_.dq
                             : output.name == "dk" ? reference_.dk
                                                   : reference_.dv;
      const bool by_rows = output.name == "out" || output.name == "dq";
      if (!exact.empty())  // sampled rows have no dk and dv
        sums.add(exact.view(), output.tensor,
                 by_rows ? reference_.rows : std::vector<std::vector<Index>>{});
    }
    return sums.metrics();
  }

  // Why the method must equal exact attention here, or "".
  std::string exactness() const {
    if (entry_.info.exact) return "a method declared exact";
    if (!entry_.info.exact_limit) return "";
    const Settings limit =
        resolve(cell_.method, entry_.params, entry_.info.exact_limit(cell_.problem));
    const Settings asked = resolve(cell_.method, entry_.params, cell_.method_settings);
    return limit == asked ? "a method at its exact limit" : "";
  }

  void require_exact(const ErrorMetrics& m, double tolerance, const char* what) {
    const std::string why = exactness();
    if (why.empty() || (m.relative_defined && m.relative <= tolerance)) return;
    throw WrongResult(
        fmt::format("relative error of {} against exact attention is {:.3g}; {} may "
                    "have {:.3g}",
                    what, m.relative, why, tolerance));
  }

  // Judges the outputs of set 0: fills the error columns; WrongResult when they cannot be right.
  void judge() {
    const bool gradients = cell_.wants_gradients();
    const ErrorMetrics m = error_of(gradients);
    put("error_of", !gradients ? "output" : reference_.all_rows() ? "gradient" : "dq");
    if (m.relative_defined) put("rel_error", m.relative);
    put("max_error", m.max_abs);
    put("cosine", m.cosine);
    const Index heads = cell_.problem.batch * cell_.problem.heads;
    const Index per_head = gradients ? reference_.dq.n() : reference_.out.n();
    const bool decode = cell_.pass == Pass::decode;
    put_count("error_rows", decode ? per_head : per_head * heads);
    put_count("error_rows_total", decode ? per_head : cell_.problem.n * heads);
    weak_ = weak_check(gradients ? error_weight_of_output(m) : m);
    const double gradient_tolerance = std::max(kGradientTolerance, entry_.info.tolerance);
    require_exact(m, gradients ? gradient_tolerance : entry_.info.tolerance,
                  gradients ? "the gradient" : "the output");
    if (cell_.pass == Pass::forward_backward)
      require_exact(error_of(false), entry_.info.tolerance, "the output");
  }

  // Gradients may well be nearly alike between rows; only a vanishing one proves little.
  static ErrorMetrics error_weight_of_output(ErrorMetrics m) {
    if (m.constant_row_error > 0) m.constant_row_error = 1;
    return m;
  }

  void declared() {
    const Budget budget = method_->budget(cell_.problem);
    if (budget.keys_per_query > 0) put("keys_per_query", budget.keys_per_query);
    if (budget.state_bytes > 0) put("state_bytes", budget.state_bytes);
    const double analytic = method_->extra_bytes(cell_.problem, cell_.pass);
    if (analytic > 0) put("analytic_bytes", analytic);
  }

  // ---- time ----

  TimingOptions timing_options() const {
    // The check calls were untimed calls too.
    TimingOptions options{.min_time_s = cell_.measure.min_time_s,
                          .warmup_s = cell_.measure.warmup_s - warmed_s_,
                          .repetitions = cell_.measure.repetitions};
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
      for (Index set = 0; set < sets; ++set) fill_outputs(set);
      peak.sample();
    };
    timed.after_repetition = [&](Index first, Index count) {
      for (Index i = first; i < first + std::min(count, sets); ++i) {
        const bool same = compare_with_check(set_of(i));
        if (set_of(i) != 0) continue;
        set_0_was_timed_ = true;
        if (!same) judge();  // other bits, within the tolerance: these are the ones that count
      }
    };
    const double calibration_before = calibrate();
    const NoiseSnapshot before = noise_snapshot();
    Timing timing = time_calls(timed, options);
    peak.sample();
    Noise noise = noise_between(before, noise_snapshot());
    put_count("vm_hwm_bytes", vm_hwm_bytes());
    noise.calibration_before = calibration_before;
    noise.calibration_after = calibrate();

    if (!set_0_was_timed_) doubt("judged_check_call", "no timed call fell on input set 0");
    require_untouched_inputs();
    put_metrics();
    for (double& sample : timing.samples) sample /= static_cast<double>(run_->steps());
    typical_s_ = median(timing.samples);
    fill_time_columns(timing, peak.gflops());
    for (Doubt& d : doubts(timing.samples, timing.iterations * run_->steps(),
                           cell_.measure.max_spread, noise, cell_.threads))
      doubts_.push_back(std::move(d));
    put_count("context_switches", noise.context_switches);
    put("steal_s", noise.steal_s);
    if (const double mhz = core0_mhz(); mhz > 0) put("mhz", mhz);
    put("calibration_before", noise.calibration_before);
    put("calibration_after", noise.calibration_after);
  }

  void require_untouched_inputs() {
    for (Index set = 0; set < run_->sets(); ++set)
      if (run_->input_checksum(set) != checksums_[static_cast<std::size_t>(set)])
        throw WrongResult(fmt::format("wrote into its inputs (set {})", set));
  }

  void fill_time_columns(const Timing& timing, double peak_gflops) {
    const std::vector<double>& s = timing.samples;
    const Problem& p = cell_.problem;
    put("time_s", typical_s_);
    put("time_min_s", *std::min_element(s.begin(), s.end()));
    put("time_max_s", *std::max_element(s.begin(), s.end()));
    const double low = quantile(s, 0.25), high = quantile(s, 0.75);
    put("time_q25_s", low);
    put("time_q75_s", high);
    put("spread", (high - low) / typical_s_);
    put_count("repetitions", static_cast<std::int64_t>(s.size()));
    put_count("iterations", timing.iterations);
    const double tokens =
        static_cast<double>(p.batch) * (cell_.pass == Pass::decode ? 1 : static_cast<double>(p.n));
    put("tokens_per_s", tokens / typical_s_);
    const double flops = method_->flops(p, cell_.pass);
    put("fma_peak_gflops", peak_gflops);
    if (flops > 0) {
      put("gflops", 1e-9 * flops / typical_s_);
      put("fraction_of_peak", 1e-9 * flops / typical_s_ / peak_gflops);
    }
    result_.samples = s;
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
    doubt("leaked_threads",
          fmt::format("left {} thread{} of its own running beside the {} granted", extra,
                      extra == 1 ? "" : "s", cell_.threads),
          true);
  }

  // KL divergence and top-k mass on about matrix_rows rows of the attention matrix of set 0.
  // An extra: a failure here does not undo the measurement.
  void attention_matrix() {
    try {
      compare_attention_rows();
    } catch (const std::exception& error) {
      doubt("attention_rows", error.what());
    }
  }

  void compare_attention_rows() {
    const Problem& p = cell_.problem;
    if (cell_.error.matrix_rows <= 0 || cell_.pass == Pass::decode || cell_.pass == Pass::backward)
      return;
    const Index heads = std::min(p.batch * p.heads, cell_.error.matrix_rows);
    const Index per_head = std::min(p.n, (cell_.error.matrix_rows + heads - 1) / heads);
    const Inputs in = run_->inputs(0);
    MatrixSums sums;
    Matrix weights(per_head, p.n_kv);
    for (Index i = 0; i < heads; ++i) {
      const Index bh = i * (p.batch * p.heads) / heads, b = bh / p.heads, h = bh % p.heads;
      std::vector<Index> rows = Random(cell_.seed, "matrix.rows", {static_cast<std::uint64_t>(bh)})
                                    .sample_without_replacement(p.n, per_head);
      std::sort(rows.begin(), rows.end());
      weights.setConstant(fill_pattern());
      if (!method_->attention_rows(in, b, h, rows, weights)) return;
      if (!sums.add(exact_attention_rows(in, p, b, h, rows), weights, cell_.error.top_k)) {
        doubt("attention_rows", "its attention matrix has negative or non-finite weights");
        return;
      }
    }
    if (const auto m = sums.metrics()) {
      put("kl", m->kl);
      put("topk_mass", m->topk_mass);
      put_count("topk", std::min(cell_.error.top_k, p.n_kv));
    }
  }

  void put_metrics() {
    std::string all;
    for (const Metric& metric : method_->metrics())
      all += fmt::format("{}{}={}", all.empty() ? "" : ";", metric.name, text(metric.value));
    if (!all.empty()) put("method_metrics", all);
  }

  void probe() {
    const MethodInfo& info = entry_.info;
    const std::string reason = probe_fresh_input(
        *run_, checked_[0],
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
                      .decode_tokens = 0};
    run_ = make_pass_run(*method_, entry_.info, *task_, config);
    load_reference();
    fill_outputs(0);
    const std::int64_t before = live_bytes();
    reset_peak();
    double start = monotonic_seconds();
    run_->prepare();
    put("setup_s", monotonic_seconds() - start);
    TaskFitData data(*task_, cell_.problem, cell_.seed, kFitSets);
    Inputs first;
    ConstTensorView dense;
    for (Index i = 0; i < kFitSets; ++i) data.next(&first, &dense);  // made outside the timed part
    start = monotonic_seconds();
    FitOptions options;
    options.steps = kFitSteps;
    options.seed = cell_.seed;
    const FitReport report = method_->fit(data, options);
    put("fit_s", monotonic_seconds() - start);
    put_count("fit_steps", report.steps);
    if (hooks_active()) put_count("peak_bytes", std::max<std::int64_t>(0, peak_bytes() - before));
    checksums_.push_back(run_->input_checksum(0));
    run_->call(0);
    require_finite(0, "after the fit: ");
    put_count("vm_hwm_bytes", vm_hwm_bytes());
    require_untouched_inputs();
    judge();
    declared();
    put_metrics();
    attention_matrix();
    if (!std::isfinite(report.first_loss) || !std::isfinite(report.last_loss))
      throw WrongResult("the fit's loss is not finite");
  }

  // ---- verdict ----

  void finish() {
    if (weak_) doubt("weak_check", "the exact output hardly differs between queries");
    if (not_reproducible_) doubt("not_reproducible");
    std::string flags, reasons;
    for (const Doubt& d : doubts_) {
      if ((";" + flags + ";").find(";" + d.flag + ";") == std::string::npos)
        flags += (flags.empty() ? "" : ";") + d.flag;
      if (d.unstable) reasons += (reasons.empty() ? "" : "; ") + d.reason;
    }
    put("flags", flags);
    result_.status = reasons.empty() ? Status::ok : Status::unstable;
    result_.reason = reasons;
  }

  const Cell& cell_;
  const std::string& reference_path_;
  JobResult& result_;
  const MethodEntry& entry_;
  std::unique_ptr<Task> task_;
  std::unique_ptr<Method> method_;
  std::unique_ptr<PassRun> run_;  // after method_: a decoder may refer to its method
  Reference reference_;
  std::vector<Outputs> checked_;          // by set: outputs of the check call
  std::vector<std::uint64_t> checksums_;  // by set: inputs
  std::vector<Doubt> doubts_;
  double typical_s_ = 0, call_s_ = 0, ready_s_ = 0, warmed_s_ = 0;
  bool set_0_was_timed_ = false, not_reproducible_ = false, weak_ = false;
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
