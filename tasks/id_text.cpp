// Sequences of token ids with a class each, from text files: the layout in which Mega and others
// keep the tasks of Long Range Arena.
// Source: facebookresearch/mega, examples/mega/lra.
//
// A folder with train.src, valid.src and test.src, one sequence of ids between spaces a line, and
// train.label, valid.label and test.label, one class a line. Sequences are cut to n and padded with
// 0. The vocabulary and the classes are as large as the largest id and label of the three.

#include "tasks/files.h"

namespace subquad {
namespace {

struct Params {
  std::string path;
};

constexpr Index kLargestId = Index{1} << 24;

struct Row {
  Tokens tokens;
  std::int32_t label = 0;
};

class IdText final : public SequenceTask {
 public:
  explicit IdText(const Params& params) : SequenceTask("id_text") {
    if (params.path.empty())
      throw UserError(
          "id_text: path is missing; expected a folder with train.src, train.label, valid.src, "
          "...");
    for (const char* part : {"train", "valid", "test"}) {
      const auto begin = static_cast<Index>(rows_.size());
      read((std::filesystem::path(params.path) / part).string());
      splits_.push_back({begin, static_cast<Index>(rows_.size())});
    }
  }

  LabelSpec labels(Index) const override {
    return {LabelKind::per_sequence, vocabulary_, classes_, 1};
  }

  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    return make_batch(first, batch, n, 1, [&](Index e) {
      Row row = rows_[static_cast<std::size_t>(
          row_of(splits_[static_cast<std::size_t>(split)], split, e, seed))];
      const std::size_t length = std::min(row.tokens.size(), static_cast<std::size_t>(n));
      row.tokens.resize(static_cast<std::size_t>(n), 0);
      return Example{std::move(row.tokens), {row.label}, {static_cast<std::int32_t>(length)}};
    });
  }

  std::vector<Floor> floors(Index, Seed) const override {
    const auto all = [&](Split split) {
      Tokens labels;
      const Rows rows = splits_[static_cast<std::size_t>(split)];
      for (Index i = rows.begin; i < rows.end; ++i)
        labels.push_back(rows_[static_cast<std::size_t>(i)].label);
      return labels;
    };
    return {majority_floor(all(Split::train), all(Split::test), classes_)};
  }

 private:
  void read(const std::string& stem) {
    const std::string source = read_file(owner_, stem + ".src");
    const std::string labels = read_file(owner_, stem + ".label");
    const std::size_t begin = rows_.size();
    const auto number_at = [&](const std::string& path, Index line, std::string_view word) {
      Index value = 0;
      if (!parse_index(word, &value) || value < 0 || value >= kLargestId)
        throw UserError(fmt::format("id_text: {}:{}: got \"{}\", expected an integer in [0, {}]",
                                    path, line, excerpt(word), kLargestId - 1));
      return static_cast<std::int32_t>(value);
    };
    for_lines(source, [&](std::string_view line, Index number) {
      Row row;
      for (std::size_t at = 0; at < line.size();) {
        const std::size_t word = line.find_first_not_of(' ', at);
        if (word == std::string_view::npos) break;
        const std::size_t end = std::min(line.find(' ', word), line.size());
        row.tokens.push_back(number_at(stem + ".src", number, line.substr(word, end - word)));
        vocabulary_ = std::max<Index>(vocabulary_, row.tokens.back() + 1);
        at = end;
      }
      if (row.tokens.empty())
        throw UserError(
            fmt::format("id_text: {}.src:{}: got no ids, expected one at least", stem, number));
      rows_.push_back(std::move(row));
    });
    std::size_t at = begin;
    for_lines(labels, [&](std::string_view line, Index number) {
      const std::int32_t label = number_at(stem + ".label", number, line);
      classes_ = std::max<Index>(classes_, label + 1);
      if (at < rows_.size()) rows_[at].label = label;
      ++at;
    });
    if (at != rows_.size())
      throw UserError(
          fmt::format("id_text: {0}.label: got {1} labels, expected {2}, one for each "
                      "line of {0}.src",
                      stem, at - begin, rows_.size() - begin));
    if (rows_.size() == begin)
      throw UserError(fmt::format("id_text: {}.src: got no lines, expected one at least", stem));
  }

  Tokens sequence(Index length, Seed, Seed draw) const override {
    Random random(draw);
    const auto train = static_cast<std::uint64_t>(splits_[0].size());
    return laid_end_to_end(length, [&] { return rows_[random.below(train)].tokens; });
  }

  std::vector<Row> rows_;
  std::vector<Rows> splits_;
  Index vocabulary_ = 1, classes_ = 1;
};

const RegisterTask<IdText, Params> kRegistration{
    {.name = "id_text",
     .source = "files of the user's in the layout of facebookresearch/mega, examples/mega/lra",
     .summary = "sequences of token ids, each with a class, from text files",
     .labelled = true,
     .notes = {"cut to n, padded with 0",
               "results are identified by the path, not by what the files hold"}},
    {param("path", &Params::path,
           "folder with train.src, train.label, valid.src, valid.label, test.src, test.label")}};

}  // namespace
}  // namespace subquad
