// Generated checks of what a method declares about itself: figures and parameters.
#include "harness/measure/conformance_checks.h"

namespace subquad::conformance {

void check_figures(const Runner& run) {
  for (const Problem& p : problems(run)) {
    const auto method = run.prepared(p);
    const auto check = [&](const std::string& what, double value) {
      if (!(value >= 0 && std::isfinite(value))) fail("{}: {} is {}", p.str(), what, value);
    };
    check("budget().keys_per_query", method->budget(p).keys_per_query);
    check("budget().state_bytes", method->budget(p).state_bytes);
    for (const Pass pass : run.entry.info.passes) {
      check(fmt::format("extra_bytes of {}", name(pass)), method->extra_bytes(p, pass));
      check(fmt::format("flops of {}", name(pass)), method->flops(p, pass));
    }
    Tensor out(p.batch, p.heads, p.n, p.d_v);
    method->forward(make_inputs(run.entry.info, p, run.seed).inputs(), out, nullptr);
    for (const Metric& metric : method->metrics())
      if (!std::isfinite(metric.value)) fail("{}: {} is {}", p.str(), metric.name, metric.value);
  }
}

namespace {

// Values of a parameter that are worth a call: its default, both ends of its range, every choice.
// Ends beyond what a small test can pay for are left out.
std::vector<ParamValue> trial_values(const ParamSpec& spec) {
  constexpr double kHuge = 65536;
  std::vector<ParamValue> values{spec.default_value};
  if (spec.type == ParamType::boolean) values.insert(values.end(), {true, false});
  for (const std::string& text : spec.choices) values.push_back(text);
  if (spec.type == ParamType::integer || spec.type == ParamType::real)
    for (const double end : {spec.min, spec.max}) {
      if (!(std::fabs(end) <= kHuge)) continue;
      values.push_back(spec.type == ParamType::integer ? ParamValue(static_cast<Index>(end))
                                                       : ParamValue(end));
    }
  return values;
}

}  // namespace

void check_parameters(const Runner& run) {
  for (const ParamSpec& spec : run.entry.params)
    for (const ParamValue& value : trial_values(spec))
      for (const bool causal : {false, true}) {
        const Settings given{{spec.name, value}};
        const Problem p = make_problem(17, 17, causal);
        try {
          if (!run.supports(p, Pass::forward, given)) continue;
          require_finite(run.forward(p, make_inputs(run.entry.info, p, run.seed), given),
                         fmt::format("{} at {}", p.str(), to_string(given)));
        } catch (const UserError&) {  // a refusal with a reason is an answer, except at the default
          if (value == spec.default_value) throw;
        } catch (const Unsupported&) {
          if (value == spec.default_value) throw;
        }
      }
  if (run.entry.params.empty()) throw Skip{"no parameters"};
}

}  // namespace subquad::conformance
