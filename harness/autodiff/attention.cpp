#include "harness/autodiff/attention.h"

#include <limits>

#include "harness/autodiff/op_tools.h"

namespace subquad::autodiff {
namespace {

Shape shape_of(const Dims& d) { return {d[0], d[1], d[2], d[3]}; }

Inputs inputs_of(Var<float> q, Var<float> k, Var<float> v, Var<float> x, const MethodCall& call) {
  Inputs in;
  in.q = {q.data(), shape_of(q.dims())};
  in.k = {k.data(), shape_of(k.dims())};
  in.v = {v.data(), shape_of(v.dims())};
  if (!x.empty()) in.x = {x.data(), {x.dims()[0], 1, x.dims()[1], x.dims()[2]}};
  in.key_mask = call.key_mask;
  in.training = call.training;
  in.step = call.step;
  return in;
}

// Memory for a gradient that a method overwrites: the target itself, or a buffer that is added to
// it afterwards.
class Overwritten {
 public:
  Overwritten(Tape<float>& tape, Var<float> var)
      : target_(tape.target(var)),
        size_(var.size()),
        own_(tape, target_ && !target_.add ? 0 : var.size()) {}
  float* data() const { return target_ && !target_.add ? target_.data : own_.data(); }
  void finish() const {
    if (!target_ || !target_.add) return;
    for (Index i = 0; i < size_; ++i) target_.data[i] += own_.data()[i];
  }

 private:
  Target<float> target_;
  Index size_;
  Tape<float>::Scratch own_;
};

}  // namespace

Var<float> attention(Var<float> q, Var<float> k, Var<float> v, Var<float> x,
                     const MethodCall& call) {
  Tape<float>& tape = q.tape();
  const Dims out_dims = q.dims().with(-1, v.dims().back());
  bool needs = q.needs_grad() || k.needs_grad() || v.needs_grad();
  if (!x.empty()) needs = needs || x.needs_grad();
  needs = needs || !call.method->parameters().empty();
  const Var<float> out = tape.make(out_dims, needs);
  const bool gradients = out.needs_grad();
  SUBQUAD_CHECK(!gradients || call.saved != nullptr, "no Saved for a call with gradients");
  call.method->forward(inputs_of(q, k, v, x, call), {out.data(), shape_of(out_dims)},
                       gradients ? call.saved : nullptr);
  if (!gradients) return out;
  tape.note(out, [=] {
    Tape<float>& t = out.tape();
    const Overwritten dq(t, q), dk(t, k), dv(t, v);
    const Shape shape = shape_of(out.dims());
    Gradients grads{{dq.data(), shape_of(q.dims())},
                    {dk.data(), shape_of(k.dims())},
                    {dv.data(), shape_of(v.dims())},
                    {}};
    const ConstTensorView o{out.data(), shape}, dout{t.out_grad(out), shape};
    const Inputs in = inputs_of(q, k, v, x, call);
    if (x.empty()) {
      call.method->backward(in, o, dout, *call.saved, grads);
    } else {
      const Overwritten dx(t, x);
      grads.dx = {dx.data(), in.x.shape()};
      call.method->backward(in, o, dout, *call.saved, grads);
      dx.finish();
    }
    dq.finish();
    dk.finish();
    dv.finish();
  });
  return out;
}

template <class T>
Var<T> plain_attention(Var<T> q, Var<T> k, Var<T> v, double scale_of_logits,
                       std::span<const std::uint8_t> seen) {
  Var<T> logits = matmul(scale(q, scale_of_logits), k, false, true);
  if (!seen.empty()) logits = masked_fill(logits, seen, -std::numeric_limits<double>::infinity());
  return matmul(softmax(logits), v);
}

template Var<float> plain_attention(Var<float>, Var<float>, Var<float>, double,
                                    std::span<const std::uint8_t>);
template Var<double> plain_attention(Var<double>, Var<double>, Var<double>, double,
                                     std::span<const std::uint8_t>);

}  // namespace subquad::autodiff
