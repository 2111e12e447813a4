// Text from outside in a message of ours.
#pragma once

#include <string>
#include <string_view>

namespace subquad {

// Control characters and what is no UTF-8 escaped as \xNN, a line feed as \n.
std::string printable(std::string_view text);

// The position of the first byte that is not valid UTF-8, or npos.
std::size_t find_invalid_utf8(std::string_view text);

}  // namespace subquad
