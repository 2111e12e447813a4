// Wall-clock time for humans. Nothing is measured or decided with it.
#pragma once

#include <string>

namespace subquad {

std::string utc_time();          // "2024-05-01T12:34:56Z"
std::string utc_time_compact();  // "20240501T123456Z", for file names

}  // namespace subquad
