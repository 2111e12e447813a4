#include "tests/sweep/worker_fixture.h"

#include <charconv>
#include <limits>
#include <map>

#include "harness/core/registry.h"

namespace subquad::fixture {

MethodInfo fixture_info(const std::string& name) {
  MethodInfo info;
  info.name = "fixture_" + name;
  info.family = "fixture";
  info.causality = Causality::strict;
  info.passes = {Pass::forward, Pass::backward, Pass::decode};
  info.exact = true;
  return info;
}

namespace {

const RegisterMethod<Honest> kHonest{fixture_info("honest")};

}  // namespace

const std::string& wrong_method(const std::string& name, Misdeed deed,
                                const std::function<void(MethodInfo&)>& change) {
  static std::map<std::string, std::string> names;
  if (names.contains(name)) return names.at(name);
  MethodInfo info = fixture_info(name);
  info.passes = {Pass::forward};
  if (change) change(info);
  Registry::instance().add(MethodEntry{
      info, {}, [deed](const Settings&) { return std::make_unique<Wrong>(deed); }, __FILE__});
  return names[name] = info.name;
}

Job job_for(const std::string& method, Pass pass, Index n) {
  Job job;
  Cell& c = job.cell;
  c.method = method;
  c.label = method;
  c.task = "gaussian";
  c.problem = {.batch = 1, .heads = 2, .n = n, .n_kv = n, .d_k = 16, .d_v = 8};
  c.problem.causal = pass == Pass::decode;
  c.pass = pass;
  c.threads = 1;
  c.seed = 3;
  c.measure.min_time_s = 0.002;
  c.measure.warmup_s = 0.001;
  c.measure.repetitions = 3;
  c.measure.decode_tokens = 8;
  c.measure.max_spread = 1e9;  // the machine of the tests may be busy
  return job;
}

JobResult run_method(const std::string& method, Pass pass, Index n) {
  return run_job(job_for(method, pass, n));
}

bool measured(const JobResult& r) { return r.status == Status::ok || r.status == Status::unstable; }

double number(const JobResult& r, const std::string& column) {
  const auto found = r.columns.find(column);
  if (found == r.columns.end()) FAIL("column " << column << " is missing");
  double value = std::numeric_limits<double>::quiet_NaN();
  const std::string& text = found->second;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    FAIL("column " << column << " is not a number: " << text);
  return value;
}

bool has_flag(const JobResult& r, const std::string& flag) {
  return (";" + r.columns.at("flags") + ";").find(";" + flag + ";") != std::string::npos;
}

}  // namespace subquad::fixture
