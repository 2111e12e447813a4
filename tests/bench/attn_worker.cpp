// A long-lived process that times one registered method, to be put in turn with other programs'
// processes: drift of the clock then falls on all of them alike.
//
//   attn_worker THREADS [METHOD] [key=value ...]        METHOD defaults to dense
//
// Reads lines `PASS N HEADS CAUSAL` (PASS: fwd; fwdbwd for both halves together; decode for single
// tokens at the end of a history of N; batch 1) and answers each with one line: `ok t1 t2 ...`,
// seconds of single calls (tokens) after a warm-up, or `skip reason`. The environment sets MIN_S
// (seconds that a visit measures, 0.1) and D (width of q, k and v, 64). Calls go from existing
// inputs to existing outputs; what a call of its own has allocated in prepare() is outside. A few
// rows of the last timed output are compared with a double-precision evaluation; an output that is
// wrong is skipped, not timed.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "harness/core/registry.h"
#include "harness/measure/error_metrics.h"
#include "harness/measure/pass_run.h"
#include "harness/measure/processors.h"
#include "harness/measure/reference.h"
#include "harness/sweep/process.h"
#include "tests/reference/registry.h"

namespace {

using namespace subquad;

constexpr std::size_t kMostCalls = 2000;  // of one visit: the line stays readable
constexpr Index kTranscribed = 256;       // tokens that a method's own transcription evaluates
constexpr Index kRows = 8;                // query rows per head judged of an exact method
constexpr Seed kSeed = 1;
constexpr double kTolerance = 1e-5;  // relative Frobenius error of float32 against double

const std::map<std::string, Pass> kPasses{
    {"fwd", Pass::forward}, {"fwdbwd", Pass::forward_backward}, {"decode", Pass::decode}};

double environment(const char* name, double fallback) {
  const char* const text = std::getenv(name);
  return text == nullptr || *text == '\0' ? fallback : std::stod(text);
}

Settings settings_from(const MethodEntry& entry, int argc, char** argv, int first) {
  std::map<std::string, ParamSpec> specs;
  for (const ParamSpec& spec : entry.params) specs[spec.name] = spec;
  Settings given;
  for (int i = first; i < argc; ++i) {
    const std::string word = argv[i];
    const std::size_t equal = word.find('=');
    if (equal == std::string::npos)
      throw UserError(fmt::format("\"{}\": expected key=value", word));
    const std::string key = word.substr(0, equal), value = word.substr(equal + 1);
    // An unknown name is left to resolve(), which suggests the nearest one.
    given[key] = specs.contains(key) ? parse(specs.at(key), value) : ParamValue(value);
  }
  return resolve(entry.info.name, entry.params, given);
}

// First `rows` tokens of every head, in double.
TensorD head_of(const ConstTensorView& from, Index rows) {
  TensorD to(from.batch(), from.heads(), rows, from.d());
  for (Index bh = 0; bh < from.batch() * from.heads(); ++bh)
    to.view().head(bh) = from.head(bh).topRows(rows).cast<double>();
  return to;
}

class Worker {
 public:
  Worker(const MethodEntry& entry, Settings settings)
      : entry_(entry), settings_(std::move(settings)), task_(make_task("gaussian")) {}

  std::string answer(const std::string& line) {
    std::istringstream words(line);
    std::string pass;
    Problem p;
    int causal = 0;
    if (!(words >> pass >> p.n >> p.heads >> causal) || !kPasses.contains(pass))
      return "skip not-understood";
    p.n_kv = p.n;
    p.d_k = p.d_v = static_cast<Index>(environment("D", 64));
    p.causal = causal != 0;
    const Pass asked = kPasses.at(pass);
    if (run_ == nullptr || !(p == problem_) || asked != pass_) {
      const std::string reason = set_up(p, asked);
      if (!reason.empty()) return "skip " + reason;
    }
    std::vector<double> times = measure(environment("MIN_S", 0.1));
    const std::string wrong = judge();
    if (!wrong.empty()) return "skip " + wrong;
    std::string text = "ok";
    for (const double t : times) text += fmt::format(" {:.6e}", t);
    return text;
  }

 private:
  std::string set_up(const Problem& p, Pass pass) {
    run_.reset();
    judged_ = false;
    problem_ = p;
    pass_ = pass;
    std::string reason = invalid_reason(p);
    if (!reason.empty()) return reason;
    method_ = make_method(entry_.info.name, settings_);
    reason = unsupported_reason(entry_, *method_, p, pass);
    if (!reason.empty()) return reason;
    run_ = make_pass_run(*method_, entry_.info, *task_,
                         {.problem = p,
                          .pass = pass,
                          .seed = kSeed,
                          .input_sets = 1,
                          .method_seed = 0});  // as the transcriptions have it
    run_->prepare();
    run_->prepare_state();
    return "";
  }

  // Untimed calls for a tenth of the time (one at least), then timed ones.
  std::vector<double> measure(double min_s) {
    double spent = 0;
    do {
      spent += timed_call() * static_cast<double>(run_->steps());
    } while (spent < 0.1 * min_s);
    std::vector<double> times;
    for (spent = 0; spent < min_s && times.size() < kMostCalls;
         spent += times.back() * static_cast<double>(run_->steps()))
      times.push_back(timed_call());
    return times;
  }

  double timed_call() {
    if (run_->ready_before_every_call()) run_->ready(0);
    const auto start = std::chrono::steady_clock::now();
    run_->call(0);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() /
           static_cast<double>(run_->steps());
  }

  // Why the output of the last timed call is wrong, or "". Once per shape.
  std::string judge() {
    if (judged_) return "";
    for (const PassOutput& output : run_->outputs(0)) {
      const std::string bad = describe(output_state(output.tensor), output.tensor, output.name);
      if (!bad.empty()) return bad;
    }
    const ConstTensorView out = run_->outputs(0).front().tensor;
    const auto transcription = reference::references().find(entry_.info.name);
    ErrorSums sums;
    if (run_->has_own_reference()) {  // decoding, by an exact method or not
      const Reference exact = run_->own_reference();
      for (const PassOutput& output : run_->outputs(0)) sums.add(exact.out.view(), output.tensor);
      if (!entry_.info.exact) return "";
    } else if (entry_.info.exact) {
      // Sampled rows of the output, and of dq where there are gradients.
      const bool gradients = pass_ != Pass::forward;
      const Tensor dout = gradients ? make_dout(problem_, kSeed, 0) : Tensor();
      const Reference exact =
          exact_reference(run_->inputs(0), gradients ? &dout : nullptr, problem_, kSeed,
                          {.gradients = gradients, .max_gflop = 0, .rows = kRows});
      for (const PassOutput& output : run_->outputs(0)) {
        if (output.name == "out") sums.add(exact.out.view(), output.tensor, exact.rows);
        if (output.name == "dq") sums.add(exact.dq.view(), output.tensor, exact.rows);
      }
    } else if (transcription != reference::references().end() &&
               (problem_.n <= kTranscribed ||
                (problem_.causal && entry_.info.causality == Causality::strict))) {
      // The first rows of a strictly causal method depend on the first tokens alone.
      const Index n = std::min(problem_.n, kTranscribed);
      reference::Call call;
      call.problem = problem_;
      call.problem.n = call.problem.n_kv = n;
      const Inputs in = run_->inputs(0);
      call.q = head_of(in.q, n);
      call.k = head_of(in.k, n);
      call.v = head_of(in.v, n);
      const TensorD exact = transcription->second.forward(settings_, call);
      std::vector<Index> rows(static_cast<std::size_t>(n));
      for (Index i = 0; i < n; ++i) rows[static_cast<std::size_t>(i)] = i;
      sums.add(exact.view(), out,
               std::vector(static_cast<std::size_t>(out.batch() * out.heads()), rows));
    } else {
      fmt::print(stderr, "attn_worker: {} {}: only checked to be finite\n", entry_.info.name,
                 problem_.str());
      judged_ = true;
      return "";
    }
    const double error = sums.metrics().relative,
                 allowed = std::max(kTolerance, entry_.info.tolerance);
    if (!(error <= allowed))
      return fmt::format("wrong: relative error {:.3g}, at most {:.3g} is allowed", error, allowed);
    judged_ = true;
    return "";
  }

  const MethodEntry& entry_;
  Settings settings_;
  std::unique_ptr<Task> task_;
  std::unique_ptr<Method> method_;
  std::unique_ptr<PassRun> run_;  // after method_, which it refers to
  Problem problem_;
  Pass pass_ = Pass::forward;
  bool judged_ = false;
};

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc < 2) throw UserError("usage: attn_worker THREADS [METHOD] [key=value ...]");
    restart_with(allocator_environment(), argv);  // as the runner starts its workers
    Registry::instance().check();
    const int threads = std::stoi(argv[1]);
    if (threads < 1) throw UserError("THREADS must be at least 1");
    set_threads(threads);
    const MethodEntry& entry = Registry::instance().method(argc > 2 ? argv[2] : "dense");
    Worker worker(entry, settings_from(entry, argc, argv, 3));
    for (std::string line; std::getline(std::cin, line);) {
      std::string answer;
      try {
        answer = worker.answer(line);
      } catch (const std::exception& error) {
        answer = fmt::format("skip {}", error.what());
      }
      std::replace(answer.begin(), answer.end(), '\n', ' ');
      std::cout << answer << std::endl;  // flushed: the driver waits for it
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "attn_worker: {}\n", error.what());
    return 2;
  }
  return 0;
}
