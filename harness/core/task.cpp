#include "harness/core/task.h"

namespace subquad {

std::string_view name(Split split) {
  switch (split) {
    case Split::train:
      return "train";
    case Split::validation:
      return "validation";
    case Split::test:
      return "test";
  }
  return "?";
}

LabelSpec Task::labels(Index) const { throw Unsupported("the task has no labels"); }

TokenBatch Task::tokens(Split, Index, Index, Index, Seed) const {
  throw Unsupported("the task has no tokens");
}

}  // namespace subquad
