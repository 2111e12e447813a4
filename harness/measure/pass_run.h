// One pass of one method on a number of pre-made input sets: the thing that is checked and timed.
//
// Calls rotate over the sets; each set has inputs and outputs of its own. Sets are drawn from the
// task with set = 0, 1, ...; the cotangents of backward are standard normal (make_dout).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "harness/core/method.h"
#include "harness/core/task.h"
#include "harness/measure/reference.h"

namespace subquad {

// A tensor that a call writes.
struct PassOutput {
  std::string name;  // out, dq, dk, dv
  TensorView tensor;
  bool linear = true;  // scales with linear_inputs
};

struct PassConfig {
  Problem problem;
  Pass pass = Pass::forward;
  Seed seed = 0;
  Index input_sets = 3;
  Index decode_tokens = 64;
  bool gradients = false;                          // backward will be called in any pass (a fit)
  std::optional<Seed> method_seed = std::nullopt;  // of the method; none: `seed`
};

class PassRun {
 public:
  virtual ~PassRun() = default;

  Index sets() const { return static_cast<Index>(inputs_.size()); }
  Inputs inputs(Index set) const { return inputs_[static_cast<std::size_t>(set)].inputs(); }
  const QKV& qkv(Index set) const { return inputs_[static_cast<std::size_t>(set)]; }

  virtual void prepare();  // Method::prepare
  // What has to be set up after prepare() and is held during the pass (a decoder).
  virtual void prepare_state() {}
  // Memory held by Method::prepare belongs to the pass (not so when decoding: prepare() may set up
  // the parallel form).
  virtual bool prepare_counts() const { return true; }
  // Untimed work on which call(set) relies: the forward of a backward, the history of a decoder.
  virtual void ready(Index) {}
  virtual bool ready_before_every_call() const { return false; }
  virtual void call(Index set) = 0;  // what is timed
  // Steps within one call; times are given per step (decode: tokens).
  virtual Index steps() const { return 1; }

  virtual std::vector<PassOutput> outputs(Index set) = 0;
  // Inputs in which the outputs are linear when linear_in_v holds: v, or for gradients dout.
  virtual std::vector<TensorView> linear_inputs(Index set) = 0;
  // q and k as the method gets them.
  virtual std::vector<TensorView> logit_inputs(Index set) = 0;
  // Everything that the call may read and must not write. Call after ready(set).
  virtual std::uint64_t input_checksum(Index set) const;

  // Exact values of `outputs` where the task's reference does not serve (decoding): all rows.
  virtual bool has_own_reference() const { return false; }
  virtual Reference own_reference() const { return {}; }
  // Peak of Decoder::bytes over a call; zero elsewhere.
  virtual CacheBytes call_tracking_bytes(Index set) {
    call(set);
    return {};
  }
  // ready(set) and one call, step by step: `after` is called outside the time of each step.
  // Returns false where a call has no steps.
  virtual bool each_step(
      Index /*set*/,
      const std::function<void(Index step, double seconds, const Decoder&)>& /*after*/) {
    return false;
  }

 protected:
  PassRun(Method& method, const Task& task, const PassConfig& config);
  QKV& mutable_qkv(Index set) { return inputs_[static_cast<std::size_t>(set)]; }
  Env env() const;

  Method& method_;
  PassConfig config_;

 private:
  std::vector<QKV> inputs_;
};

// forward, backward, forward_backward or decode; Unsupported for other passes.
std::unique_ptr<PassRun> make_pass_run(Method& method, const MethodInfo& info, const Task& task,
                                       const PassConfig& config);

}  // namespace subquad
