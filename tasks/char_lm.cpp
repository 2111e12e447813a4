// Language modelling of characters (Unicode code points of UTF-8 text) over a text of the user's.
//
// Ids are in the order of the code points of the training part; one more stands for characters that
// occur in the other parts alone.

#include "tasks/language.h"
#include "tasks/utf8.h"

namespace subquad {
namespace {

struct Params {
  std::string path, validation, test;
};

class CharLm final : public LanguageTask {
 public:
  explicit CharLm(const Params& params) : LanguageTask("char_lm") {
    const Parts parts = read_parts(owner_, params.path, params.validation, params.test);
    std::map<std::int32_t, std::int32_t> id_of;
    for (int part = 0; part < 3; ++part) {
      parts_[part] = decode_utf8(owner_ + ": " + parts.path[part], parts.bytes[part], "");
      if (part == 0) {
        for (const std::int32_t point : parts_[0]) id_of.emplace(point, 0);
        for (auto& [point, id] : id_of) id = static_cast<std::int32_t>(vocabulary_++);
        ++vocabulary_;
      }
      for (std::int32_t& point : parts_[part]) {
        const auto known = id_of.find(point);
        point = known == id_of.end() ? static_cast<std::int32_t>(vocabulary_ - 1) : known->second;
      }
    }
  }
};

const RegisterTask<CharLm, Params> kRegistration{
    {.name = "char_lm",
     .source = "a text of the user's; default: 150 kB of Shakespeare (public domain)",
     .summary = "characters of a text, each labelled with the next",
     .labelled = true,
     .notes = {"a part without a file of its own is cut from the end of path: 5 % validation, 5 % "
               "test",
               "bits per token are bits per character",
               "results are identified by the paths, not by what the files hold"}},
    {param("path", &Params::path,
           "file to train on, relative to the current directory; empty = the text that ships with "
           "subquad"),
     param("validation", &Params::validation, "file of its own for validation"),
     param("test", &Params::test, "file of its own for the test")}};

}  // namespace
}  // namespace subquad
