// YAML text -> a tree of nodes that remember where they stand.
//
// yaml-cpp does the scanning; its own node tree is not used because it hides what a config must
// not hide: it keeps the first of two equal keys, turns 012 into 10 and "yes" into true, reads on
// past a NUL or 0x04 as if the file had ended, accepts a quote that is never closed, ignores a
// second document, and walks an alias bomb without end. Here scalars stay text, and every one of
// these is an error with a line and a column.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "harness/core/printable.h"

namespace subquad {

// Where a node stands. Line and column count from 1. Source 0 is the config file, 1, 2, ... the
// overrides of the command line in their order, -1, -2, ... the plugins named there.
struct YamlPlace {
  int source = 0;
  int line = 1;
  int column = 1;
  bool operator==(const YamlPlace&) const = default;
};

struct YamlProblem {
  YamlPlace place;
  std::string message;
};

struct YamlEntry;

struct YamlNode {
  enum class Kind { null, scalar, sequence, map };

  Kind kind = Kind::null;
  YamlPlace place;
  bool quoted = false;  // a scalar that is text for sure: "12", '12', |, >
  std::string text;     // of a scalar
  std::vector<YamlNode> items;
  std::vector<YamlEntry> entries;  // keys are scalars, each occurs once

  const YamlNode* find(std::string_view key) const;  // the value, or null
  YamlNode* find(std::string_view key);
};

// A key and its value. (A pair of nodes inside a node would be a pair of an incomplete type.)
struct YamlEntry {
  YamlEntry(YamlNode key, YamlNode value) : first(std::move(key)), second(std::move(value)) {}
  YamlNode first, second;
};

// Bounds of what is read; beyond them the text is refused before it can do harm.
struct YamlLimits {
  std::size_t bytes = 1 << 20;
  int nodes = 100000;  // aliases count with everything they stand for
  int depth = 32;
};

// The text is not YAML at all, or exceeds a limit.
struct YamlError : std::runtime_error {
  YamlError(YamlPlace at, const std::string& message) : std::runtime_error(message), place(at) {}
  YamlPlace place;
};

// Parses one document. Faults that leave the rest readable (a duplicate key, a tag, a key that is
// no plain name) are appended to `problems`; the others throw YamlError. `source` is written into
// every place.
YamlNode parse_yaml(const std::string& text, int source, std::vector<YamlProblem>* problems,
                    const YamlLimits& limits = {});

// The bytes of a regular file. UserError when it is missing (with the nearest name beside it), a
// directory, not readable, or larger than `max_bytes`.
std::string read_text_file(const std::string& path, std::size_t max_bytes);

// printable() text of the user in double quotes, cut after 60 bytes.
std::string quoted_for_message(std::string_view text);

}  // namespace subquad
