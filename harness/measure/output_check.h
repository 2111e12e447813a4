// Outputs of the calls of one cell: filled before a call with what no method writes, looked at
// after it, and compared with the output of the checked call on the same input.
#pragma once

#include <vector>

#include "harness/measure/pass_run.h"

namespace subquad {

class OutputCheck {
 public:
  // `random` methods may give other bits on the same input.
  OutputCheck(PassRun& run, bool random) : run_(run), random_(random) {}

  void fill_outputs(Index set);
  // WrongResult when anything is unwritten, NaN or infinite; `when` begins its reason.
  void require_finite(Index set, const char* when);
  // After a call on `set`: finite, and for a set that was checked before as it was then. Sets come
  // in order.
  void check_outputs(Index set);
  // The outputs of a later call must be those of the check call. Returns whether bit for bit.
  bool compare_with_check(Index set);

  // Copies of the outputs of the check call, in the order of PassRun::outputs.
  const std::vector<Tensor>& checked(Index set) const {
    return checked_[static_cast<std::size_t>(set)];
  }
  bool not_reproducible() const { return not_reproducible_; }

 private:
  std::vector<Tensor> copy_of(Index set);

  PassRun& run_;
  bool random_ = false;
  bool not_reproducible_ = false;
  std::vector<std::vector<Tensor>> checked_;  // by set
};

}  // namespace subquad
