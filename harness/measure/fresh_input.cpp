#include "harness/measure/fresh_input.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <thread>

#include "harness/measure/error_metrics.h"

namespace subquad {
namespace {

// A suspicion is decided by pairs of calls, a known one and an unseen one right after it: whatever
// disturbs the machine meets both alike, so in a quarter of the pairs at most only the second is
// slow without the method's doing, and 18 of 24 such pairs by chance have a probability of 4e-7. A
// memory shows in every pair in which the known call was not disturbed.
constexpr int kPairs = 24;
constexpr int kSlowPairs = 18;        // as many say that it remembers ...
constexpr int kFewPairs = 8;          // ... or these without exception, when calls are long:
constexpr double kLongPairs = 0.5;    // seconds after which they are enough
constexpr double kMaxRatio = 3;       // of a fresh call to the timed median ...
constexpr double kMaxExtra = 100e-6;  // ... when it is also this much slower, in seconds
constexpr double kMaxDifference = 1e-6;

void multiply(const std::vector<TensorView>& tensors, float factor) {
  for (const TensorView& t : tensors) Eigen::Map<Eigen::ArrayXf>(t.data(), t.size()) *= factor;
}

double timed_call(PassRun& run, Index set, double (*now)()) {
  for (const PassOutput& output : run.outputs(set)) fill_untouched(output.tensor);
  run.ready(set);
  const double start = now();
  run.call(set);
  return now() - start;
}

// Relative difference of got to factor * known.
double off_by(const Tensor& known, float factor, const TensorView& got) {
  Tensor expected = known;
  multiply({expected.view()}, factor);
  return relative_difference(got, expected.view());
}

enum class Content { scaled, scaled_and_negated };

// Why the outputs of set 0 cannot follow from its inputs, or "". `scale` is what its linear inputs
// were multiplied with.
std::string wrong_outputs(PassRun& run, const std::vector<Tensor>& known, bool must_follow,
                          float scale) {
  const auto outputs = run.outputs(0);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const std::string bad =
        describe(output_state(outputs[i].tensor), outputs[i].tensor, outputs[i].name);
    if (!bad.empty()) return "on an unseen input: " + bad;
    if (!must_follow) continue;
    const double off = off_by(known[i], outputs[i].linear ? scale : 1.f, outputs[i].tensor);
    if (!(off <= kMaxDifference))
      return fmt::format(
          "returned a remembered answer: inputs changed, but {} is off by {:.3g} from what "
          "follows from them",
          outputs[i].name, off);
  }
  return "";
}

bool much_slower(double fresh_s, double usual_s) {
  return fresh_s > kMaxRatio * usual_s && fresh_s > usual_s + kMaxExtra;
}

std::string probe(PassRun& run, const std::vector<Tensor>& known, bool must_follow, Content content,
                  float* scale, double typical_s, double (*now)()) {
  const Index known_set = run.sets() > 1 ? 1 : 0;  // with one set: its content before the change
  const double start = now();
  double fastest = std::numeric_limits<double>::infinity();
  int slow = 0, pairs = 0;
  for (bool first = true;; first = false) {
    // Pairs are spread over many time slices of the machine.
    if (!first) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    const double known_s = first ? 0 : timed_call(run, known_set, now);
    multiply(run.linear_inputs(0), 2.f);
    *scale *= 2.f;
    if (content == Content::scaled_and_negated) multiply(run.logit_inputs(0), -1.f);
    const double fresh_s = timed_call(run, 0, now);
    fastest = std::min(fastest, fresh_s);
    const std::string wrong = wrong_outputs(run, known, must_follow, *scale);
    if (!wrong.empty()) return wrong;
    if (!much_slower(fresh_s, typical_s)) return "";  // computed in the time of the timed calls
    if (first) continue;                              // caches and team were cold
    ++pairs;
    if (much_slower(fresh_s, known_s)) ++slow;
    if (pairs - slow > kPairs - kSlowPairs) return "";
    const bool enough = pairs >= kFewPairs && slow == pairs && now() - start > kLongPairs;
    if (slow >= kSlowPairs || enough)
      return fmt::format("remembers answers: unseen inputs take {:.3g}x the timed median",
                         fastest / typical_s);
  }
}

}  // namespace

std::string probe_fresh_input(PassRun& run, const std::vector<Tensor>& known,
                              const FreshInputOptions& options) {
  float scale = 1;
  const bool gradients = run.outputs(0).size() > 1;
  // The sign of dq and dk follows k and q: only outputs are free of it.
  const bool both = options.sign_free && options.output_is_linear && !gradients;
  const std::string reason = probe(run, known, options.output_is_linear || gradients,
                                   both ? Content::scaled_and_negated : Content::scaled, &scale,
                                   options.typical_s, options.now);
  if (!reason.empty() || both) return reason;
  // What was remembered may hang on q and k alone; what the output becomes is not known here.
  return probe(run, known, false, Content::scaled_and_negated, &scale, options.typical_s,
               options.now);
}

}  // namespace subquad
