// A method of which only a differentiable forward is written: the gradients follow from the tape.
//
//   class Mine final : public DifferentiableMethod {
//     Var<float> attend(const Call& c) override {
//       return matmul(softmax(scale(matmul(c.q, c.k, false, true), problem().logit_scale())), c.v);
//     }
//   };
//
// The price: every intermediate tensor is kept for the way back, and the ops run one after another.
// A method that writes forward and backward itself (Method) has neither; a test compares the two.
#pragma once

#include "harness/autodiff/ops.h"
#include "harness/core/method.h"

namespace subquad::autodiff {

class DifferentiableMethod : public Method {
 public:
  struct Call {
    Tape<float>& tape;
    Var<float> q, k, v;  // [batch, heads, n, d_k], [batch, heads, n_kv, d_k], [.., n_kv, d_v]
    Var<float> x;        // [batch, n, d_model], or empty
    std::span<const std::uint8_t> key_mask;  // [batch, n_kv], or empty
    bool training;
    std::uint64_t step;

    // A learned parameter of the method on the tape; its gradient is added to Parameter::grad.
    Var<float> parameter(Parameter& p) const {
      Dims dims;
      for (const Index size : p.shape) dims.push_back(size);
      return tape.parameter(p.value.data(), tape.records() ? p.grad.data() : nullptr, dims);
    }
  };

  // [batch, heads, n, d_v] out of ops of ops.h. Called once per forward; what it hands to ops by
  // pointer must live as long as the method.
  virtual Var<float> attend(const Call& call) = 0;

  void prepare(const Problem& problem, const Env& env) override {
    problem_ = problem;
    set_up(problem, env);
  }
  void forward(const Inputs& in, TensorView out, Saved* saved) override;
  std::unique_ptr<Saved> make_saved() const override;
  // May be called again for one forward; then the forward runs again too.
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved& saved,
                const Gradients& grads) override;

 protected:
  // What prepare() is for: parameters, tables.
  virtual void set_up(const Problem&, const Env&) {}
  const Problem& problem() const { return problem_; }

 private:
  struct OnTape;
  void record(const Inputs& in, OnTape* on);

  Problem problem_;
  Tape<float> tape_;  // of calls without gradients
};

}  // namespace subquad::autodiff
