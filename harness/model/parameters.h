// The learned tensors of a model: all in one array, so that a gradient buffer, a moment of the
// optimizer or a sum over shards is one array of the same size.
#pragma once

#include <string>
#include <vector>

#include "harness/autodiff/dims.h"
#include "harness/core/tensor.h"

namespace subquad {

struct ParameterEntry {
  std::string name;  // "layers.0.attn.qkv.weight"
  autodiff::Dims dims;
  Index offset = 0;
  bool decay = true;  // weight decay applies
  double init_std = 0, init_mean = 0;
};

class ParameterLayout {
 public:
  // Returns the number of the entry. Names are unique.
  std::size_t add(std::string name, autodiff::Dims dims, bool decay, double init_std,
                  double init_mean = 0) {
    for (const ParameterEntry& entry : entries_)
      SUBQUAD_CHECK(entry.name != name, "parameter {} twice", name);
    entries_.push_back({std::move(name), dims, size_, decay, init_std, init_mean});
    size_ += (dims.count() + 15) / 16 * 16;  // every tensor starts a cache line; gaps stay zero
    return entries_.size() - 1;
  }
  const std::vector<ParameterEntry>& entries() const { return entries_; }
  const ParameterEntry& operator[](std::size_t i) const { return entries_[i]; }
  Index size() const { return size_; }  // of the array
  Index count() const {                 // of learned numbers
    Index sum = 0;
    for (const ParameterEntry& entry : entries_) sum += entry.dims.count();
    return sum;
  }

 private:
  std::vector<ParameterEntry> entries_;
  Index size_ = 0;
};

}  // namespace subquad
