// Made-up words and documents of them, for the stand-ins of byte-level text classification and
// retrieval.
//
// A document is cut into equal stretches; each holds one word that matters, at a uniform place,
// among fillers and look-alikes (one letter away from a word that matters), single spaces between
// words, more where no word fits. Words never meet across stretches: each ends in a space.
// Our choice: the words are the same for every seed, so that models of different seeds compare.
//
// For task sources alone, with internal linkage: see common.h.
#pragma once

#include <set>
#include <string>

#include "tasks/sequences.h"

namespace subquad {
namespace {

constexpr Index kLongestWord = 8;

struct Lexicon {
  std::vector<std::string> keys;  // the words that matter
  std::vector<std::string> alike, fillers;
};

// `keys` words that matter, 32 look-alikes, 256 fillers: 3 to 8 lower-case letters, all distinct,
// no word that matters inside another word, none "not".
[[maybe_unused]] Lexicon make_lexicon(const std::string& owner, std::size_t keys) {
  Random random(derive(20110400, owner + ".lexicon"));
  Lexicon out;
  std::set<std::string> taken = {"not"};
  const auto holds_key = [&](const std::string& word) {
    return std::any_of(out.keys.begin(), out.keys.end(),
                       [&](const std::string& key) { return word.find(key) != std::string::npos; });
  };
  const auto letter = [&] { return static_cast<char>('a' + random.below(26)); };
  const auto word = [&] {
    std::string w;
    for (std::uint64_t i = 3 + random.below(6); i > 0; --i) w += letter();
    return w;
  };
  while (out.keys.size() < keys) {
    const std::string w = word();
    const bool inside = std::any_of(out.keys.begin(), out.keys.end(), [&](const std::string& key) {
      return key.find(w) != std::string::npos;
    });
    if (!inside && !holds_key(w) && taken.insert(w).second) out.keys.push_back(w);
  }
  while (out.alike.size() < 32) {
    std::string w = out.keys[out.alike.size() % keys];
    w[random.below(w.size())] = letter();
    if (!holds_key(w) && taken.insert(w).second) out.alike.push_back(w);
  }
  while (out.fillers.size() < 256) {
    const std::string w = word();
    if (!holds_key(w) && taken.insert(w).second) out.fillers.push_back(w);
  }
  return out;
}

// Appends a stretch of `size` bytes that holds `text` once, at a uniform place, and fills the rest.
// size > text.size().
[[maybe_unused]] void append_stretch(Random& random, const Lexicon& lexicon, std::size_t size,
                                     const std::string& text, std::string* out) {
  const std::size_t room = size - 1 - text.size();  // the last byte is a space
  const std::size_t before = random.below(room + 1);
  const auto fill = [&](std::size_t bytes) {  // words, each with the space after it, then spaces
    while (bytes > 0) {
      const auto& from = random.uniform() < 0.2 ? lexicon.alike : lexicon.fillers;
      const std::string& word = from[random.below(from.size())];
      if (word.size() + 1 > bytes) break;
      *out += word + " ";
      bytes -= word.size() + 1;
    }
    out->append(bytes, ' ');
  };
  fill(before);
  *out += text + " ";
  fill(room - before);
}

// Where stretch i of `count` begins in a document of n bytes.
[[maybe_unused]] std::size_t stretch_begin(Index n, Index count, Index i) {
  return static_cast<std::size_t>(n * i / count);
}

// Token ids of bytes: byte + 1, 0 pads.
constexpr Index kByteVocabulary = 257;
[[maybe_unused]] void append_bytes(std::string_view text, Tokens* out) {
  for (const char c : text) out->push_back(static_cast<unsigned char>(c) + 1);
}

}  // namespace
}  // namespace subquad
