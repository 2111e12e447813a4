#include "harness/autodiff/tape.h"

#include <algorithm>
#include <cstring>

namespace subquad::autodiff {

template <class T>
void* Tape<T>::arena(std::size_t bytes) {
  const std::size_t rounded = (bytes + 63) / 64 * 64;
  SUBQUAD_CHECK(rounded <= kChunk, "{} bytes", bytes);
  if (chunk_ < chunks_.size() && used_ + rounded > kChunk) {
    ++chunk_;
    used_ = 0;
  }
  if (chunk_ == chunks_.size()) chunks_.emplace_back(static_cast<Index>(kChunk));
  void* const place = chunks_[chunk_].data() + used_;
  used_ += rounded;
  return place;
}

template <class T>
Node<T>* Tape<T>::new_node(Dims dims) {
  auto* const node = new (arena(sizeof(Node<T>))) Node<T>();
  node->dims = dims;
  node->root = node;
  return node;
}

template <class T>
typename Tape<T>::FreeList& Tape<T>::list_of(Index size) {
  for (FreeList& list : free_)
    if (list.size == size) return list;
  free_.push_back({size, {}, 0});
  return free_.back();
}

template <class T>
Buffer<T>* Tape<T>::take(Index size) {
  const Index unit = static_cast<Index>(kAlignment / sizeof(T));
  const Index rounded = std::max<Index>(1, (size + unit - 1) / unit) * unit;
  FreeList& list = list_of(rounded);
  auto* const buffer = new (arena(sizeof(Buffer<T>))) Buffer<T>();
  buffer->size = rounded;
  buffer->users = 1;
  if (list.memory.empty()) {
    memory_.emplace_back(rounded);
    if (++list.made > list.memory.capacity()) list.memory.reserve(2 * list.made);
    pool_bytes_ += static_cast<double>(rounded) * sizeof(T);
    buffer->data = memory_.back().data();
  } else {
    buffer->data = list.memory.back();
    list.memory.pop_back();
  }
  buffers_.push_back(buffer);
  return buffer;
}

template <class T>
void Tape<T>::give(Buffer<T>*& buffer) {
  if (buffer != nullptr && --buffer->users == 0)
    list_of(buffer->size).memory.push_back(buffer->data);
  buffer = nullptr;
}

template <class T>
Var<T> Tape<T>::constant(const T* data, Dims dims) {
  Node<T>* const node = new_node(dims);
  node->value = const_cast<T*>(data);  // ops write only what they made
  return {this, node};
}

template <class T>
Var<T> Tape<T>::parameter(const T* data, T* grad, Dims dims) {
  const Var<T> var = constant(data, dims);
  var.node()->outer_grad = grad;
  var.node()->needs_grad = recording_ && grad != nullptr;
  return var;
}

template <class T>
Var<T> Tape<T>::leaf(const T* data, Dims dims) {
  const Var<T> var = constant(data, dims);
  var.node()->needs_grad = recording_;
  var.node()->leaf = true;
  return var;
}

template <class T>
Var<T> Tape<T>::room(Dims dims) {
  return make(dims, false);
}

template <class T>
Var<T> Tape<T>::make(Dims dims, bool needs_grad) {
  Node<T>* const node = new_node(dims);
  node->owned = take(dims.count());
  node->value = node->owned->data;
  node->needs_grad = recording_ && needs_grad;
  return {this, node};
}

template <class T>
Var<T> Tape<T>::alias(Var<T> of, Dims dims) {
  SUBQUAD_CHECK(dims.count() == of.size(), "{} cannot become {}", of.dims().str(), dims.str());
  Node<T>* const node = new_node(dims);
  node->value = of.data();
  node->root = of.node()->root;
  node->needs_grad = of.needs_grad();
  return {this, node};
}

template <class T>
T* Tape<T>::save(Var<T> out, int slot, Index size) {
  Buffer<T>*& buffer = out.node()->saved[slot];
  SUBQUAD_CHECK(buffer == nullptr, "slot {} is taken", slot);
  buffer = take(size);
  return buffer->data;
}

template <class T>
Target<T> Tape<T>::target(Var<T> in) {
  Node<T>& node = *in.node()->root;
  if (!node.needs_grad) return {};
  if (node.outer_grad != nullptr) return {node.outer_grad, true};
  const Index size = node.dims.count();
  if (node.grad == nullptr) {
    node.grad = take(size);
    return {node.grad->data, false};
  }
  if (node.grad->users > 1) {  // shared by pass_on: this one gets its own
    Buffer<T>* const own = take(size);
    std::copy_n(node.grad->data, size, own->data);
    give(node.grad);
    node.grad = own;
  }
  return {node.grad->data, true};
}

template <class T>
void Tape<T>::pass_on(Var<T> out, Var<T> in) {
  Node<T>& to = *in.node()->root;
  if (!to.needs_grad) return;
  Buffer<T>* const from = out.node()->root->grad;
  if (to.grad == nullptr && to.outer_grad == nullptr) {
    ++from->users;
    to.grad = from;
    return;
  }
  const T* const given = from->data;
  T* const sum = target(in).data;
  for (Index i = 0, n = in.size(); i < n; ++i) sum[i] += given[i];
}

template <class T>
void Tape<T>::backward(Var<T> loss, const T* cotangent) {
  SUBQUAD_CHECK(loss.needs_grad(), "nothing here depends on a parameter");
  SUBQUAD_CHECK(cotangent != nullptr || loss.size() == 1, "a loss of shape {}", loss.dims().str());
  const Target<T> start = target(loss);
  SUBQUAD_CHECK(!start.add, "backward needs a fresh tape");
  if (cotangent != nullptr) {
    std::copy_n(cotangent, loss.size(), start.data);
  } else {
    start.data[0] = 1;
  }
  for (auto note = notes_.rbegin(); note != notes_.rend(); ++note) {
    Node<T>& node = **note;
    if (node.grad != nullptr) node.back(node.closure);
    give(node.grad);
    give(node.saved[0]);
    give(node.saved[1]);
    give(node.owned);
  }
  notes_.clear();
}

template <class T>
const T* Tape<T>::grad(Var<T> leaf) const {
  const Node<T>& node = *leaf.node();
  SUBQUAD_CHECK(node.leaf, "only a leaf keeps its gradient");
  return node.grad == nullptr ? nullptr : node.grad->data;
}

template <class T>
void Tape<T>::clear() {
  for (Buffer<T>* buffer : buffers_) {
    if (buffer->users == 0) continue;
    buffer->users = 1;
    Buffer<T>* handle = buffer;
    give(handle);
  }
  buffers_.clear();
  notes_.clear();
  chunk_ = used_ = 0;
}

template class Tape<float>;
template class Tape<double>;

}  // namespace subquad::autodiff
