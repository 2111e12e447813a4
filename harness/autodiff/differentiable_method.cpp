#include "harness/autodiff/differentiable_method.h"

#include <algorithm>

namespace subquad::autodiff {
namespace {

Dims dims_of(const Shape& s) { return {s.batch, s.heads, s.n, s.d}; }

DifferentiableMethod::Call call_on(Tape<float>& tape, const Inputs& in) {
  DifferentiableMethod::Call call{tape,
                                  tape.leaf(in.q.data(), dims_of(in.q.shape())),
                                  tape.leaf(in.k.data(), dims_of(in.k.shape())),
                                  tape.leaf(in.v.data(), dims_of(in.v.shape())),
                                  {},
                                  in.key_mask,
                                  in.training,
                                  in.step};
  if (!in.x.empty()) call.x = tape.leaf(in.x.data(), {in.x.batch(), in.x.n(), in.x.d()});
  return call;
}

void copy_gradient(const Tape<float>& tape, Var<float> leaf, TensorView to) {
  if (to.empty()) return;
  const float* const grad = leaf.empty() ? nullptr : tape.grad(leaf);
  if (grad == nullptr) {
    std::fill_n(to.data(), to.size(), 0.0f);
  } else {
    std::copy_n(grad, to.size(), to.data());
  }
}

}  // namespace

struct DifferentiableMethod::OnTape final : Saved {
  mutable Tape<float> tape;
  mutable Var<float> q, k, v, x, out;
  mutable bool fresh = false;  // recorded, and backward has not run yet
  mutable const float* input = nullptr;
};

void DifferentiableMethod::record(const Inputs& in, OnTape* on) {
  on->tape.clear();
  const Call call = call_on(on->tape, in);
  on->q = call.q;
  on->k = call.k;
  on->v = call.v;
  on->x = call.x;
  on->out = attend(call);
  on->fresh = true;
  on->input = in.q.data();
}

std::unique_ptr<Saved> DifferentiableMethod::make_saved() const {
  return std::make_unique<OnTape>();
}

void DifferentiableMethod::forward(const Inputs& in, TensorView out, Saved* saved) {
  const auto copy = [&](Var<float> value) {
    SUBQUAD_CHECK(value.dims() == dims_of(out.shape()), "attend returned {}, expected {}",
                  value.dims().str(), out.shape().str());
    std::copy_n(value.data(), out.size(), out.data());
  };
  if (saved == nullptr) {
    tape_.clear();
    tape_.record_gradients(false);
    copy(attend(call_on(tape_, in)));
    return;
  }
  auto& on = static_cast<OnTape&>(*saved);
  record(in, &on);
  copy(on.out);
}

void DifferentiableMethod::backward(const Inputs& in, ConstTensorView, ConstTensorView dout,
                                    const Saved& saved, const Gradients& grads) {
  const auto& on = static_cast<const OnTape&>(saved);
  // The way back uses the tape up, and its leaves are the caller's memory of then.
  if (!on.fresh || on.input != in.q.data()) record(in, &const_cast<OnTape&>(on));
  on.tape.backward(on.out, dout.data());
  on.fresh = false;
  copy_gradient(on.tape, on.q, grads.dq);
  copy_gradient(on.tape, on.k, grads.dk);
  copy_gradient(on.tape, on.v, grads.dv);
  copy_gradient(on.tape, on.x, grads.dx);
}

}  // namespace subquad::autodiff
