// Sorting tokens by an integer code: stable, without comparisons where that pays, and merging of
// sorted runs. Equal codes keep the order of their positions.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "harness/core/types.h"

namespace subquad::engine {

struct CodeAt {
  std::uint64_t code = 0;
  std::int32_t position = 0;

  friend bool operator<(const CodeAt& a, const CodeAt& b) {
    return a.code != b.code ? a.code < b.code : a.position < b.position;
  }
};

// Sorts items [count], whose positions ascend, by the low `bits` bits of the code. `other` [count]
// is work space. Radix sort from the lowest digit, O(count bits / 8): one pass of histograms, one
// per digit in which codes differ.
inline void sort_by_code(CodeAt* items, CodeAt* other, Index count, int bits) {
  if (count < 256) {  // clearing histograms would cost more
    std::sort(items, items + count);
    return;
  }
  constexpr int kDigit = 8, kValues = 1 << kDigit, kDigits = 8;
  const int digits = (bits + kDigit - 1) / kDigit;
  std::array<std::array<std::int32_t, kValues>, kDigits> histogram;
  for (int d = 0; d < digits; ++d) histogram[static_cast<std::size_t>(d)].fill(0);
  for (Index i = 0; i < count; ++i)
    for (int d = 0; d < digits; ++d)
      ++histogram[static_cast<std::size_t>(d)][items[i].code >> (d * kDigit) & (kValues - 1)];
  CodeAt *from = items, *to = other;
  for (int d = 0; d < digits; ++d) {
    auto& place = histogram[static_cast<std::size_t>(d)];
    std::int32_t sum = 0;
    bool one_value = false;
    for (std::int32_t& x : place) {
      one_value |= x == count;
      const std::int32_t here = x;
      x = sum, sum += here;
    }
    if (one_value) continue;
    for (Index i = 0; i < count; ++i)
      to[place[from[i].code >> (d * kDigit) & (kValues - 1)]++] = from[i];
    std::swap(from, to);
  }
  if (from != items) std::copy_n(from, count, items);
}

// Calls place(target, from_new, source) for the merge of two sorted runs, from the largest down:
// entry `source` of the old or new run goes to `target` of the merged one. Old entries may thus be
// moved within their own array, which has room behind it. On equal codes old ones come first.
// O(olds + news), at most one move per entry.
template <class Old, class New, class Place>
inline void merge_backward(const Old& old_code, Index olds, const New& new_code, Index news,
                           Place&& place) {
  while (news > 0) {
    if (olds > 0 && old_code(olds - 1) > new_code(news - 1)) {
      --olds;
      place(olds + news, false, olds);
    } else {
      --news;
      place(olds + news, true, news);
    }
  }
}

// First entry of [first, count) with code >= wanted, in steps that double: O(log of the distance).
inline Index gallop(const std::uint64_t* code, Index first, Index count, std::uint64_t wanted) {
  Index low = first, step = 1;
  while (low + step <= count && code[low + step - 1] < wanted) {
    low += step;
    step *= 2;
  }
  Index length = std::min(step - 1, count - low);
  while (length > 0) {
    const Index half = length / 2;
    const bool below = code[low + half] < wanted;
    low = below ? low + half + 1 : low;
    length = below ? length - half - 1 : half;
  }
  return low;
}

}  // namespace subquad::engine
