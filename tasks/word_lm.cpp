// Language modelling of words over a text of the user's, as of WikiText-2.
// Source: Merity et al. 2016, arXiv 1609.07843 (the format).
//
// Words stand between spaces (or tabs); every line, an empty one too, ends in <eos>. Ids: 0 is
// <unk>, also for words that training does not hold or that the vocabulary has no room for; the
// others in the order of their frequency in training, equal ones in the order of their bytes.

#include "tasks/language.h"

namespace subquad {
namespace {

struct Params {
  std::string path, validation, test;
  Index vocabulary = 0;
};

// Calls body(word) for every word and line end.
template <class Body>
void for_words(std::string_view text, Body&& body) {
  for_lines(text, [&](std::string_view line, Index) {
    for (std::size_t at = 0; at < line.size();) {
      const std::size_t begin = line.find_first_not_of(" \t", at);
      if (begin == std::string_view::npos) break;
      const std::size_t end = std::min(line.find_first_of(" \t", begin), line.size());
      body(line.substr(begin, end - begin));
      at = end;
    }
    body(std::string_view("<eos>"));
  });
}

class WordLm final : public LanguageTask {
 public:
  explicit WordLm(const Params& params) : LanguageTask("word_lm") {
    const Parts parts = read_parts(owner_, params.path, params.validation, params.test);
    std::unordered_map<std::string_view, Index> count;
    for_words(parts.bytes[0], [&](std::string_view word) { ++count[word]; });
    count.erase("<unk>");
    std::vector<std::pair<Index, std::string_view>> words;
    for (const auto& [word, times] : count) words.emplace_back(-times, word);
    std::sort(words.begin(), words.end());
    if (params.vocabulary > 0)
      words.resize(std::min(words.size(), static_cast<std::size_t>(params.vocabulary - 1)));
    std::unordered_map<std::string_view, std::int32_t> id_of;
    for (std::size_t i = 0; i < words.size(); ++i)
      id_of[words[i].second] = static_cast<std::int32_t>(i + 1);
    vocabulary_ = static_cast<Index>(words.size()) + 1;
    for (int part = 0; part < 3; ++part)
      for_words(parts.bytes[part], [&](std::string_view word) {
        const auto known = id_of.find(word);
        parts_[part].push_back(known == id_of.end() ? 0 : known->second);
      });
  }
};

const RegisterTask<WordLm, Params> kRegistration{
    {.name = "word_lm",
     .source = "a text of the user's in the format of WikiText (Merity et al. 2016, arXiv "
               "1609.07843); default: 150 kB of Shakespeare (public domain)",
     .summary = "words of a text, each labelled with the next",
     .labelled = true,
     .notes = {"a part without a file of its own is cut from the end of path: 5 % validation, 5 % "
               "test, at the beginning of a line",
               "perplexity per word is 2 to the bits per token; compare it for one vocabulary only",
               "results are identified by the paths, not by what the files hold"}},
    {param("path", &Params::path,
           "file to train on, relative to the current directory; empty = the text that ships with "
           "subquad"),
     param("validation", &Params::validation, "file of its own for validation"),
     param("test", &Params::test, "file of its own for the test"),
     param("vocabulary", &Params::vocabulary, {0, 1 << 24},
           "token ids, <unk> included; rarer words become <unk>; 0 = every word of training")}};

}  // namespace
}  // namespace subquad
