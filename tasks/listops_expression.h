// ListOps expressions: random trees, their value, and their text form.
// Source: Nangia and Bowman 2018, arXiv 1804.06028; Tay et al. 2021 (Long Range Arena), arXiv
// 2011.04006, lra_benchmarks/data/listops.py.
//
// An expression is a sequence of tokens in prefix order: operator, arguments, "]". Ids are ours: 0
// pads, 1 .. 10 are the digits 0 .. 9, then MIN, MAX, MED, SM (sum modulo 10) and "]".
//   tree(depth): at depth < max_depth with probability p_op an operator, uniform of four, over 2 ..
//   max_args trees of depth + 1; else a digit, uniform. The root is tree(1).
// MED of an even number of arguments is the floor of the mean of the middle two.
//
// For task sources alone, with internal linkage: see common.h.
#pragma once

#include <array>

#include "tasks/sequences.h"

namespace subquad::listops {
namespace {

enum Token : std::int32_t { kPad, kDigit0, kMin = 11, kMax, kMed, kSum, kEnd };
constexpr Index kVocabulary = 16;
constexpr Index kClasses = 10;

[[maybe_unused]] bool is_operator(std::int32_t token) { return token >= kMin && token <= kSum; }
[[maybe_unused]] bool is_digit(std::int32_t token) { return token >= 1 && token <= 10; }

struct Bounds {
  Index max_depth = 10, max_args = 10;
  Index longer_than = 500, shorter_than = 2000;  // both strict, in tokens
  double p_operator = 0.25;
};

// Appends tree(depth) to `out`. False, with `out` in any state, once it is too long: trees are
// drawn until one fits, so giving up early changes nothing.
[[maybe_unused]] bool grow(Random& random, const Bounds& shape, Index depth, bool root,
                           Tokens* out) {
  if (static_cast<Index>(out->size()) + 1 >= shape.shorter_than) return false;
  const bool op = root || (depth < shape.max_depth && random.uniform() < shape.p_operator);
  if (!op) {
    out->push_back(kDigit0 + static_cast<std::int32_t>(random.below(10)));
    return true;
  }
  const auto args = 2 + random.below(static_cast<std::uint64_t>(shape.max_args - 1));
  out->push_back(kMin + static_cast<std::int32_t>(random.below(4)));
  for (std::uint64_t i = 0; i < args; ++i)
    if (!grow(random, shape, depth + 1, false, out)) return false;
  out->push_back(kEnd);
  return static_cast<Index>(out->size()) < shape.shorter_than;
}

// Draws until an expression's length lies between the bounds. The root is an operator: a single
// digit is too short anyway. False after `attempts` draws.
[[maybe_unused]] bool draw(Random& random, const Bounds& shape, Index attempts, Tokens* out) {
  for (Index i = 0; i < attempts; ++i) {
    out->clear();
    if (grow(random, shape, 1, true, out) && static_cast<Index>(out->size()) > shape.longer_than)
      return true;
  }
  return false;
}

[[maybe_unused]] std::int32_t apply(std::int32_t op, std::vector<std::int32_t> values) {
  std::sort(values.begin(), values.end());
  switch (op) {
    case kMin:
      return values.front();
    case kMax:
      return values.back();
    case kMed:
      return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
    default: {
      std::int32_t sum = 0;
      for (const std::int32_t value : values) sum += value;
      return sum % 10;
    }
  }
}

// The value 0 .. 9 of an expression, and what is needed about its root. -1 as value where the
// tokens are no expression.
struct Evaluation {
  std::int32_t value = -1;
  Index depth = 0;                          // operators nested in each other
  std::vector<std::int32_t> root_digits{};  // direct arguments of the root that are digits
};
[[maybe_unused]] Evaluation evaluate(const Tokens& tokens) {
  struct Open {
    std::int32_t op;
    std::vector<std::int32_t> values;
  };
  Evaluation result;
  std::vector<Open> open;
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    const std::int32_t token = tokens[t];
    std::int32_t value = 0;
    if (is_operator(token)) {
      open.push_back({token, {}});
      result.depth = std::max(result.depth, static_cast<Index>(open.size()));
      continue;
    }
    if (is_digit(token)) {
      value = token - kDigit0;
      if (open.size() == 1) result.root_digits.push_back(value);
    } else if (token == kEnd && !open.empty() && !open.back().values.empty()) {
      value = apply(open.back().op, std::move(open.back().values));
      open.pop_back();
    } else {
      return {};
    }
    if (!open.empty()) {
      open.back().values.push_back(value);
    } else {
      if (t + 1 != tokens.size()) return {};
      result.value = value;
      return result;
    }
  }
  return {};
}

constexpr std::array<const char*, kVocabulary> kNames = {
    "", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "[MIN", "[MAX", "[MED", "[SM", "]"};

// Binary, left-nested brackets as in the data files: "( ( ( [MAX 4 ) 3 ) ] )".
[[maybe_unused]] std::string to_text(const Tokens& tokens) {
  // Each argument and each "]" closes one pair, which opens before the operator.
  std::vector<std::size_t> operator_of;  // tokens of open operators
  std::vector<Index> pairs(tokens.size(), 0);
  const auto count = [&] {
    if (!operator_of.empty()) ++pairs[operator_of.back()];
  };
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    if (is_operator(tokens[t])) {
      operator_of.push_back(t);
    } else {
      count();
      if (tokens[t] == kEnd) {
        operator_of.pop_back();
        count();
      }
    }
  }
  std::string text;
  std::size_t nested = 0;
  const auto word = [&](const char* w) {
    if (!text.empty()) text += ' ';
    text += w;
  };
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    for (Index i = 0; i < pairs[t]; ++i) word("(");
    word(kNames[static_cast<std::size_t>(tokens[t])]);
    if (is_operator(tokens[t])) {
      ++nested;
      continue;
    }
    if (nested > 0) word(")");
    if (tokens[t] == kEnd && --nested > 0) word(")");
  }
  return text;
}

// Tokens of a text form; brackets "(" and ")" are ignored. On an unknown word: its name in
// `unknown`.
[[maybe_unused]] Tokens from_text(std::string_view text, std::string* unknown) {
  Tokens tokens;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t begin = text.find_first_not_of(' ', at);
    if (begin == std::string_view::npos) break;
    const std::size_t end = std::min(text.find(' ', begin), text.size());
    const std::string_view word = text.substr(begin, end - begin);
    at = end;
    if (word == "(" || word == ")") continue;
    const auto known = std::find(kNames.begin() + 1, kNames.end(), word);
    if (known == kNames.end()) {
      *unknown = word;
      return {};
    }
    tokens.push_back(static_cast<std::int32_t>(known - kNames.begin()));
  }
  return tokens;
}

}  // namespace
}  // namespace subquad::listops
