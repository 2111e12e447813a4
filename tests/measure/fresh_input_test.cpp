// The probe for remembered answers, against calls whose duration is made up.
#include "harness/measure/fresh_input.h"

#include <catch2/catch.hpp>
#include <functional>
#include <set>

#include "harness/core/random.h"
#include "harness/core/registry.h"
#include "harness/measure/checksum.h"

using namespace subquad;

namespace {

double clock_s = 0;  // moved by the calls themselves

struct Unused final : Method {
  void prepare(const Problem&, const Env&) override {}
  void forward(const Inputs&, TensorView, Saved*) override {}
};

// out = v. A call takes seconds(known), where known says whether it has met this content before.
class Calls final : public PassRun {
 public:
  Calls(Method& method, const Task& task, const PassConfig& config,
        std::function<double(bool known)> seconds)
      : PassRun(method, task, config), seconds_(std::move(seconds)) {
    for (Index set = 0; set < sets(); ++set) out_.emplace_back(qkv(set).v.shape());
  }
  void call(Index set) override {
    const Tensor& v = qkv(set).v;
    const bool known =
        !met_.insert(checksum64(v.data(), static_cast<std::size_t>(v.size()) * sizeof(float)))
             .second;
    clock_s += seconds_(known);
    std::copy_n(v.data(), v.size(), out_[static_cast<std::size_t>(set)].data());
  }
  std::vector<PassOutput> outputs(Index set) override {
    return {{"out", out_[static_cast<std::size_t>(set)], true}};
  }
  std::vector<TensorView> linear_inputs(Index set) override { return {mutable_qkv(set).v}; }
  std::vector<TensorView> logit_inputs(Index set) override {
    return {mutable_qkv(set).q, mutable_qkv(set).k};
  }

 private:
  std::function<double(bool)> seconds_;
  std::vector<Tensor> out_;
  std::set<std::uint64_t> met_;
};

// What the probe says of calls that take so long; the timed median was 20 us.
std::string verdict(Index sets, const std::function<double(bool known)>& seconds) {
  Unused method;
  const auto task = make_task("gaussian");
  PassConfig config{.problem = {.n = 8, .n_kv = 8, .d_k = 4, .d_v = 4}, .input_sets = sets};
  Calls run(method, *task, config, seconds);
  for (Index set = 0; set < sets; ++set) run.call(set);
  const std::vector<Tensor> known{run.qkv(0).v};
  return probe_fresh_input(
      run, known, {.output_is_linear = true, .sign_free = true, .typical_s = 20e-6, .now = [] {
                     return clock_s;
                   }});
}

}  // namespace

TEST_CASE("calls that take their time are no memory, whatever disturbs them", "[fresh_input]") {
  for (const Index sets : {1, 3}) {
    CAPTURE(sets);
    CHECK(verdict(sets, [](bool) { return 20e-6; }) == "");
    // From now on everything is slow: another process has come.
    CHECK(verdict(sets, [](bool) { return 3e-3; }) == "");
    // A slice of time is lost in every second call, in most calls, and in nearly all.
    for (const double share : {0.5, 0.8, 0.95})
      for (Seed seed = 0; seed < 40; ++seed) {
        Random random(seed, "stalls");
        CAPTURE(share, seed);
        CHECK(verdict(sets, [&](bool) { return random.uniform() < share ? 4e-3 : 20e-6; }) == "");
      }
  }
}

TEST_CASE("a memory is found, on a quiet machine and on a disturbed one", "[fresh_input]") {
  for (const Index sets : {1, 3}) {
    CAPTURE(sets);
    const auto says = Catch::StartsWith("remembers answers: unseen inputs take ");
    CHECK_THAT(verdict(sets, [](bool known) { return known ? 20e-6 : 1e-3; }), says);
    CHECK_THAT(verdict(sets, [](bool known) { return known ? 20e-6 : 0.2; }), says);
    for (Seed seed = 0; seed < 10; ++seed) {
      Random random(seed, "stalls");
      CAPTURE(seed);
      CHECK_THAT(verdict(sets,
                         [&](bool known) {
                           const double stall = random.uniform() < 0.05 ? 4e-3 : 0;
                           return stall + (known ? 20e-6 : 1e-3);
                         }),
                 says);
    }
  }
}
