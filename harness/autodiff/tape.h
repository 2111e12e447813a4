// Reverse-mode differentiation. Ops (ops.h) compute at once and note on the tape how to go back;
// Tape::backward runs the notes from the end.
//
//   Tape<float> tape;
//   auto x = tape.constant(data, {rows, d}), w = tape.parameter(value, grad, {d_out, d});
//   auto loss = mean(square(linear(x, w)));
//   tape.backward(loss);   // grad += dloss / dw
//   tape.clear();          // ready for the next step
//
// Memory comes from a pool that clear() refills: from the second step of the same shapes on,
// nothing is allocated. Backward gives back every value and gradient as soon as it has been used,
// so that the gradients live in the memory of the activations.
//
// A tape belongs to one thread at a time; ops may use parallel_for inside. The same calls give the
// same bits for any number of threads.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "harness/autodiff/dims.h"
#include "harness/core/tensor.h"

namespace subquad::autodiff {

template <class T>
struct Buffer {  // memory of the pool, with the number of its users
  T* data = nullptr;
  Index size = 0;
  int users = 0;
};

template <class T>
struct Node {
  Dims dims;
  T* value = nullptr;
  Buffer<T>* owned = nullptr;  // holds the value; null when it is the caller's or an alias
  Node* root = nullptr;        // whose value and gradient these are: itself unless an alias
  Buffer<T>* grad = nullptr;   // null: no gradient yet
  T* outer_grad = nullptr;     // a parameter's, in the caller's memory; added to
  Buffer<T>* saved[2] = {};    // what the way back needs besides values; freed after it
  bool needs_grad = false;
  bool leaf = false;  // the gradient is kept for the caller
  void (*back)(void* closure) = nullptr;
  void* closure = nullptr;
};

template <class T>
class Tape;

// A tensor on a tape: a handle, valid until Tape::clear().
template <class T>
class Var {
 public:
  Var() = default;
  Var(Tape<T>* tape, Node<T>* node) : tape_(tape), node_(node) {}

  const Dims& dims() const { return node_->dims; }
  Index size() const { return node_->dims.count(); }
  T* data() const { return node_->value; }
  bool needs_grad() const { return node_->needs_grad; }
  bool empty() const { return node_ == nullptr; }
  Tape<T>& tape() const { return *tape_; }
  Node<T>* node() const { return node_; }

 private:
  Tape<T>* tape_ = nullptr;
  Node<T>* node_ = nullptr;
};

// Where a gradient goes: added when `add`, else it must be overwritten entirely. Null: not wanted.
template <class T>
struct Target {
  T* data = nullptr;
  bool add = false;
  explicit operator bool() const { return data != nullptr; }
};

template <class T>
class Tape {
 public:
  Tape() = default;
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  // Off: ops note nothing, and no gradient can be taken (evaluation).
  void record_gradients(bool on) { recording_ = on; }
  bool records() const { return recording_; }

  // ---- leaves: `data` is the caller's and must stay until clear() ----
  Var<T> constant(const T* data, Dims dims);
  // Its gradient is added to `grad` (null: as a constant).
  Var<T> parameter(const T* data, T* grad, Dims dims);
  // Its gradient is grad(var) after backward.
  Var<T> leaf(const T* data, Dims dims);
  // A constant of the tape's own memory, to be filled by the caller.
  Var<T> room(Dims dims);

  // From `loss` (one element) back to every leaf; or from any tensor with its cotangent [size].
  void backward(Var<T> loss, const T* cotangent = nullptr);
  // Gradient of a leaf after backward, or null when none reached it.
  const T* grad(Var<T> leaf) const;
  // Forgets everything but the memory.
  void clear();
  // Bytes of the pool.
  double bytes() const { return pool_bytes_; }

  // ---- for ops ----
  Var<T> make(Dims dims, bool needs_grad);  // value not initialised
  Var<T> alias(Var<T> of, Dims dims);       // the same values and gradient in another shape
  // Notes `back` (called without arguments), which must be trivially copyable.
  template <class Back>
  void note(Var<T> out, Back back) {
    static_assert(std::is_trivially_destructible_v<Back>);
    void* const place = arena(sizeof(Back));
    new (place) Back(back);
    out.node()->closure = place;
    out.node()->back = [](void* closure) { (*static_cast<Back*>(closure))(); };
    notes_.push_back(out.node());
  }
  // Memory kept with `out` until its way back is done; freed at once when there is none.
  T* save(Var<T> out, int slot, Index size);
  const T* saved(Var<T> out, int slot) const { return out.node()->saved[slot]->data; }

  const T* out_grad(Var<T> out) const { return out.node()->root->grad->data; }
  Target<T> target(Var<T> in);
  // The gradient of `out` is that of `in`: shares it where nothing is there yet.
  void pass_on(Var<T> out, Var<T> in);

  // Work space of an op, given back at the end of its scope.
  class Scratch {
   public:
    Scratch(Tape& tape, Index size) : tape_(tape), buffer_(tape.take(size)) {}
    ~Scratch() { tape_.give(buffer_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    T* data() const { return buffer_->data; }

   private:
    Tape& tape_;
    Buffer<T>* buffer_;
  };

 private:
  static constexpr std::size_t kChunk = 1 << 16;
  struct FreeList {
    Index size;
    std::vector<T*> memory;  // room for all of this size, so that giving back never allocates
    std::size_t made = 0;
  };

  void* arena(std::size_t bytes);
  Node<T>* new_node(Dims dims);
  Buffer<T>* take(Index size);
  void give(Buffer<T>*& buffer);
  FreeList& list_of(Index size);

  bool recording_ = true;
  std::vector<AlignedArray<std::byte>> chunks_;
  std::size_t chunk_ = 0, used_ = 0;
  std::vector<Node<T>*> notes_;
  std::vector<Buffer<T>*> buffers_;  // all taken since clear()
  std::vector<FreeList> free_;
  std::vector<AlignedArray<T>> memory_;
  double pool_bytes_ = 0;
};

extern template class Tape<float>;
extern template class Tape<double>;

}  // namespace subquad::autodiff
