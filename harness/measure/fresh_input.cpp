#include "harness/measure/fresh_input.h"

#include <fmt/core.h>

#include <algorithm>
#include <limits>

#include "harness/measure/error_metrics.h"
#include "harness/measure/memory.h"

namespace subquad {
namespace {

constexpr int kTries = 12;            // the fastest counts: one disturbed call proves nothing
constexpr double kMaxRatio = 3;       // of a fresh call to the timed median ...
constexpr double kMaxExtra = 100e-6;  // ... when it is also this much slower, in seconds
constexpr double kMaxDifference = 1e-6;

void multiply(const std::vector<TensorView>& tensors, float factor) {
  for (const TensorView& t : tensors) Eigen::Map<Eigen::ArrayXf>(t.data(), t.size()) *= factor;
}

// Seconds of call(0). With `warm`, the processor's caches and the thread team are made as warm as
// in a timed loop: a call on another set, which the method knows, goes before.
// `known_s` becomes the time of that call: what disturbs the machine disturbs both.
double fresh_call(PassRun& run, bool warm, double* known_s) {
  if (warm && run.sets() > 1) {
    if (run.ready_before_every_call()) run.ready(1);
    const double before = monotonic_seconds();
    run.call(1);
    *known_s = monotonic_seconds() - before;
  }
  for (const PassOutput& output : run.outputs(0)) fill_untouched(output.tensor);
  run.ready(0);
  const double start = monotonic_seconds();
  run.call(0);
  return monotonic_seconds() - start;
}

// Relative difference of got to factor * known.
double off_by(const Tensor& known, float factor, const TensorView& got) {
  Tensor expected = known;
  multiply({expected.view()}, factor);
  return relative_difference(got, expected.view());
}

enum class Content { scaled, scaled_and_negated };

std::string probe(PassRun& run, const std::vector<Tensor>& known, bool must_follow, Content content,
                  float* scale, double typical_s) {
  double fastest = std::numeric_limits<double>::infinity();
  for (int attempt = 0; attempt < kTries; ++attempt) {
    multiply(run.linear_inputs(0), 2.f);
    *scale *= 2.f;
    if (content == Content::scaled_and_negated) multiply(run.logit_inputs(0), -1.f);
    double known_s = 0;
    const double fresh_s = fresh_call(run, attempt > 0, &known_s);
    fastest = std::min(fastest, fresh_s);
    const auto outputs = run.outputs(0);
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const std::string bad =
          describe(output_state(outputs[i].tensor), outputs[i].tensor, outputs[i].name);
      if (!bad.empty()) return "on an unseen input: " + bad;
      if (!must_follow) continue;
      const double off = off_by(known[i], outputs[i].linear ? *scale : 1.f, outputs[i].tensor);
      if (!(off <= kMaxDifference))
        return fmt::format(
            "returned a remembered answer: inputs changed, but {} is off by {:.3g} from what "
            "follows from them",
            outputs[i].name, off);
    }
    const double usual_s = std::max(typical_s, known_s);
    if (!(fresh_s > kMaxRatio * usual_s && fresh_s > usual_s + kMaxExtra)) return "";
  }
  return fmt::format("remembers answers: unseen inputs take {:.3g}x the timed median",
                     fastest / typical_s);
}

}  // namespace

std::string probe_fresh_input(PassRun& run, const std::vector<Tensor>& known,
                              const FreshInputOptions& options) {
  float scale = 1;
  const bool gradients = run.outputs(0).size() > 1;
  // The sign of dq and dk follows k and q: only outputs are free of it.
  const bool both = options.sign_free && options.output_is_linear && !gradients;
  const std::string reason =
      probe(run, known, options.output_is_linear || gradients,
            both ? Content::scaled_and_negated : Content::scaled, &scale, options.typical_s);
  if (!reason.empty() || both) return reason;
  // What was remembered may hang on q and k alone; what the output becomes is not known here.
  return probe(run, known, false, Content::scaled_and_negated, &scale, options.typical_s);
}

}  // namespace subquad
