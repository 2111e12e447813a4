// What the flags of a row mean, and what can be done about them: for `subquad doctor`.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace subquad {

struct FlagHelp {
  std::string_view flag;     // as it stands in the column `flags`
  std::string_view meaning;  // one line
  std::string_view remedy;
};

// Every flag that a row may carry, sorted.
const std::vector<FlagHelp>& all_flags();
// Null when there is none of this name.
const FlagHelp* find_flag(std::string_view flag);

}  // namespace subquad
