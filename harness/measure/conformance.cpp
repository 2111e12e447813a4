#include "harness/measure/conformance.h"

#include <functional>
#include <string_view>

#include "harness/measure/conformance_checks.h"

namespace subquad {

std::vector<CheckResult> check_method(const MethodEntry& entry, const ConformanceOptions& options) {
  using namespace conformance;
  const Runner run{entry, options.seed};
  const int rounds = std::max(1, options.rounds);
  // Many tiny calls: waking threads would cost more than the calls. The thread checks ask for
  // theirs.
  const ThreadCount restore;
  omp_set_num_threads(1);
  std::vector<CheckResult> results;
  const auto check = [&](const char* name, const std::function<void()>& body) {
    if (std::string_view(name).find(options.only) == std::string_view::npos) return;
    for (const std::string& skipped : options.skip)
      if (std::string_view(name).find(skipped) != std::string_view::npos) return;
    CheckResult result{name, CheckOutcome::passed, ""};
    try {
      body();
    } catch (const Skip& skip) {
      result.outcome = CheckOutcome::skipped;
      result.detail = skip.reason;
    } catch (const Violation& violation) {
      result.outcome = CheckOutcome::failed;
      result.detail = violation.detail;
    } catch (const std::exception& error) {
      result.outcome = CheckOutcome::failed;
      result.detail = fmt::format("threw: {}", error.what());
    } catch (...) {
      result.outcome = CheckOutcome::failed;
      result.detail = "threw something that is no std::exception";
    }
    results.push_back(std::move(result));
  };

  check("parameters: the default and both ends of every range run or are refused",
        [&] { check_parameters(run); });
  check("forward: finite on ragged sizes, output written entirely", [&] { check_finite(run); });
  check("forward: the output does not depend on what it held", [&] { check_overwritten(run); });
  check("forward: inputs stay untouched", [&] { check_inputs_untouched(run); });
  check("forward: the same call gives the same bits", [&] { check_repeatable(run); });
  check("forward: the same bits for 1, 2 and 3 threads", [&] { check_threads(run); });
  check("causal: changed tokens leave earlier outputs untouched, bit for bit", [&] {
    if (entry.info.causality != Causality::strict) throw Skip{"not declared strictly causal"};
    check_causal(run, rounds, true);
  });
  check("causal: no value of a future token leaks", [&] {
    if (entry.info.causality == Causality::none) throw Skip{"no causal form declared"};
    check_causal(run, rounds, false);
  });
  check("padding: padded keys have no influence", [&] { check_padding(run); });
  check("linear in v: additive and homogeneous", [&] { check_linear_in_v(run); });
  check("exact limit: equals softmax attention", [&] { check_exact_limit(run); });
  check("exact: equals softmax attention at the defaults", [&] { check_exact_always(run); });
  check("attention matrix: its product with v is the output", [&] { check_attention_rows(run); });
  check("bounds: the oracles that it names are no farther from the exact attention matrix",
        [&] { check_oracles(run); });
  check("random: the seed decides", [&] { check_seed(run); });
  check("backward: finite, the same bits for 1, 2 and 3 threads, inputs untouched",
        [&] { check_backward_bits(run); });
  check("backward: equals central differences of forward", [&] { check_directions(run, rounds); });
  check("decode: token by token equals the causal forward; reset and prefill work",
        [&] { check_decoder(run); });
  check("passes: the second call of each, at 1 and 2 threads, allocates nothing",
        [&] { check_allocations(run); });
  check("figures: budget, extra_bytes, flops and metrics are finite", [&] { check_figures(run); });
  return results;
}

}  // namespace subquad
