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
  Index first_rows = 0;  // rows of dims[0] that begin with first_std instead
  double first_std = 0;
  double rate = 1;  // factor of the learning rate
};

class ParameterLayout {
 public:
  // Returns the number of the entry. Names are unique.
  std::size_t add(std::string name, autodiff::Dims dims, bool decay, double init_std,
                  double init_mean = 0) {
    for (const ParameterEntry& entry : entries_)
      SUBQUAD_CHECK(entry.name != name, "parameter {} twice", name);
    entries_.push_back({std::move(name), dims, size_, decay, init_std, init_mean, 0, 0, 1});
    size_ += (dims.count() + 15) / 16 * 16;  // every tensor starts a cache line; gaps stay zero
    return entries_.size() - 1;
  }
  // The first rows of an entry begin with another standard deviation.
  void set_first_rows(std::size_t number, Index rows, double std) {
    entries_[number].first_rows = rows;
    entries_[number].first_std = std;
  }
  const std::vector<ParameterEntry>& entries() const { return entries_; }
  void set_rate(std::size_t number, double rate) { entries_[number].rate = rate; }
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
