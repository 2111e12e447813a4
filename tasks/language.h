// What the language-modelling tasks share: the parts of a text, windows of it, n-gram floors.
//
// The label of a token is the next one. Training windows stand at random places; those of
// validation and test follow each other without overlap, from the beginning again when the part is
// used up.
//
// For task sources alone, with internal linkage: see common.h.
#pragma once

#include <map>
#include <unordered_map>

#include "harness/core/data_path.h"
#include "tasks/files.h"

namespace subquad {
namespace {

// The bytes of the three parts of a text. A part without a file of its own is cut from the end of
// `path`: 5 % each, test last.
struct Parts {
  std::string bytes[3];  // train, validation, test
  std::string path[3];
};
[[maybe_unused]] Parts read_parts(const std::string& owner, const std::string& path,
                                  const std::string& validation, const std::string& test) {
  if (path.empty() && !(validation.empty() && test.empty()))
    throw UserError(owner + ": got validation or test without path; expected path");
  Parts parts;
  const std::string text = path.empty() ? data_path("shakespeare.txt") : path;
  parts.path[0] = text;
  std::string all = read_file(owner, text);
  const std::size_t share = all.size() / 20;
  // Cuts stand at the beginning of a line where one is near, else before a character of UTF-8.
  const auto cut = [&](std::size_t at) {
    const std::size_t end = at == 0 ? std::string::npos : all.rfind('\n', at - 1);
    if (end != std::string::npos && at - end < 4096) return end + 1;
    while (at > 0 && at < all.size() && (static_cast<unsigned char>(all[at]) & 0xC0) == 0x80) --at;
    return at;
  };
  for (const int part : {2, 1}) {
    const std::string& own = part == 2 ? test : validation;
    parts.path[part] = own.empty() ? text : own;
    if (!own.empty()) {
      parts.bytes[part] = read_file(owner, own);
      continue;
    }
    const std::size_t at = cut(all.size() - share);
    parts.bytes[part] = all.substr(at);
    all.resize(at);
  }
  parts.bytes[0] = std::move(all);
  for (int part = 0; part < 3; ++part)
    if (parts.bytes[part].empty())
      throw UserError(fmt::format("{}: {}: got no text for the {} part, expected more text", owner,
                                  parts.path[part], name(static_cast<Split>(part))));
  return parts;
}

// Bits per token of the predictors that every language model should beat, on `test` after counting
// `train`: uniform; how frequent a token is (one more than counted); what followed the token before
// (Witten and Bell 1991: P(w|v) = (c(vw) + T(v) P(w)) / (c(v) + T(v)), T(v) the number of different
// followers). Each test sequence is one of `test`.
[[maybe_unused]] std::vector<Floor> ngram_floors(const std::vector<Tokens>& train,
                                                 const std::vector<Tokens>& test,
                                                 Index vocabulary) {
  const double log2 = portable_log(2.0);
  std::vector<double> count(static_cast<std::size_t>(vocabulary), 1.0), followed = count,
                                                                        followers = count;
  std::fill(followed.begin(), followed.end(), 0.0);
  std::fill(followers.begin(), followers.end(), 0.0);
  std::unordered_map<std::uint64_t, double> pairs;
  const auto pair = [&](std::int32_t a, std::int32_t b) {
    return static_cast<std::uint64_t>(a) * static_cast<std::uint64_t>(vocabulary) +
           static_cast<std::uint64_t>(b);
  };
  double total = static_cast<double>(vocabulary);
  for (const Tokens& part : train)
    for (std::size_t t = 0; t < part.size(); ++t) {
      count[static_cast<std::size_t>(part[t])] += 1;
      total += 1;
      if (t == 0) continue;
      const auto before = static_cast<std::size_t>(part[t - 1]);
      followed[before] += 1;
      followers[before] += ++pairs[pair(part[t - 1], part[t])] == 1;
    }
  double unigram = 0, bigram = 0, tokens = 0;
  for (const Tokens& part : test)
    for (std::size_t t = 1; t < part.size(); ++t) {
      const double p = count[static_cast<std::size_t>(part[t])] / total;
      const auto before = static_cast<std::size_t>(part[t - 1]);
      const auto seen = pairs.find(pair(part[t - 1], part[t]));
      const double weight = followed[before] + followers[before];
      const double q =
          weight > 0 ? ((seen == pairs.end() ? 0 : seen->second) + followers[before] * p) / weight
                     : p;
      unigram -= portable_log(p);
      bigram -= portable_log(q);
      tokens += 1;
    }
  tokens = std::max(1.0, tokens);
  return {{"uniform", "bits_per_token", portable_log(static_cast<double>(vocabulary)) / log2},
          {"unigram", "bits_per_token", unigram / log2 / tokens},
          {"bigram", "bits_per_token", bigram / log2 / tokens}};
}

class LanguageTask : public SequenceTask {
 public:
  LabelSpec labels(Index) const override {
    return {LabelKind::per_token, vocabulary_, vocabulary_, 1};
  }

  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    const Tokens& text = parts_[static_cast<std::size_t>(split)];
    const auto length = static_cast<Index>(text.size());
    if (length < n + 1)
      refuse("the {} part has {} tokens, n={} needs {}", name(split), length, n, n + 1);
    return make_batch(first, batch, n, 1, [&](Index e) {
      Index start = e % ((length - 1) / n) * n;
      if (split == Split::train)
        start = static_cast<Index>(Random(example_seed(seed, owner_, split, e))
                                       .below(static_cast<std::uint64_t>(length - n)));
      const auto from = text.begin() + start;
      return Example{{from, from + n}, {from + 1, from + n + 1}, {}};
    });
  }

  std::vector<Floor> floors(Index, Seed) const override {
    return ngram_floors({parts_[0]}, {parts_[2]}, vocabulary_);
  }

 protected:
  using SequenceTask::SequenceTask;

  // A window of the training part, and from its beginning again where it is shorter.
  Tokens sequence(Index length, Seed, Seed draw) const override {
    const Tokens& text = parts_[0];
    std::size_t at = Random(draw).below(text.size());
    Tokens out;
    for (Index t = 0; t < length; ++t) {
      out.push_back(text[at]);
      at = at + 1 == text.size() ? 0 : at + 1;
    }
    return out;
  }

  Index vocabulary_ = 0;
  Tokens parts_[3];  // train, validation, test
};

}  // namespace
}  // namespace subquad
