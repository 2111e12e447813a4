// Byte-level retrieval of real documents: the Retrieval task of Long Range Arena (ACL Anthology
// Network).
// Source: Radev et al. 2013; Tay et al. 2021, arXiv 2011.04006, lra_benchmarks/matching.
//
// Lines of five fields between tabs, without header or quoting: label ("0.0" or "1.0"), id, id,
// text, text; label 1 = one paper cites the other. Token id = byte + 1, cut to n (10,000 at most,
// as in the source), padded with 0. Either a folder with new_aan_pairs.train.tsv, .eval.tsv and
// .test.tsv, or one file, split 80/10/10. Files are large: they are indexed when first used, and
// lines are read when they are needed.

#include <mutex>

#include "tasks/files.h"
#include "tasks/words.h"

namespace subquad {
namespace {

struct Params {
  std::string path;
};

constexpr const char* kHint = "without data of your own use retrieval_match";
constexpr std::size_t kMostBytes = 10000;

// Where the lines of a file begin, and their labels.
struct LineIndex {
  std::string path;
  std::vector<std::streamoff> begins;
  Tokens labels;
};

// The two texts of a line, or false.
bool parse_line(std::string_view line, std::int32_t* label, std::string_view* a,
                std::string_view* b) {
  std::string_view fields[5];
  for (int i = 0; i < 5; ++i) {
    const std::size_t tab = line.find('\t');
    if ((tab == std::string_view::npos) != (i == 4)) return false;
    fields[i] = line.substr(0, tab);
    line.remove_prefix(i < 4 ? tab + 1 : line.size());
  }
  if (fields[0] != "0.0" && fields[0] != "1.0" && fields[0] != "0" && fields[0] != "1")
    return false;
  if (fields[3].empty() || fields[4].empty()) return false;
  *label = fields[0][0] == '1';
  *a = fields[3];
  *b = fields[4];
  return true;
}

bool next_line(std::istream& file, std::string* line) {
  if (!std::getline(file, *line)) return false;
  if (line->ends_with('\r')) line->pop_back();
  return true;
}

LineIndex index_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file)
    throw UserError(fmt::format("byte_retrieval: {}: {}; {}", path, std::strerror(errno), kHint));
  LineIndex out;
  out.path = path;
  std::string line;
  for (std::streamoff begin = 0; next_line(file, &line); begin = file.tellg()) {
    std::int32_t label = 0;
    std::string_view a, b;
    if (!parse_line(line, &label, &a, &b))
      throw UserError(fmt::format(
          "byte_retrieval: {}:{}: got \"{}\", expected five fields between tabs: label 0.0 or 1.0, "
          "two ids, two texts",
          path, out.labels.size() + 1, excerpt(line)));
    out.begins.push_back(begin);
    out.labels.push_back(label);
    if (file.eof()) break;
  }
  if (file.bad()) throw UserError(fmt::format("byte_retrieval: {}: cannot be read", path));
  require_rows("byte_retrieval", path, static_cast<Index>(out.labels.size()));
  return out;
}

class ByteRetrieval final : public SequenceTask {
 public:
  explicit ByteRetrieval(const Params& params) : SequenceTask("byte_retrieval") {
    if (params.path.empty())
      throw UserError(fmt::format(
          "byte_retrieval: path is missing; expected a folder with new_aan_pairs.train.tsv, or a "
          "TSV file; {}",
          kHint));
    namespace fs = std::filesystem;
    std::error_code error;
    if (fs::is_directory(params.path, error))
      for (const char* part : {"train", "eval", "test"})
        paths_.push_back(
            (fs::path(params.path) / fmt::format("new_aan_pairs.{}.tsv", part)).string());
    else
      paths_ = {params.path};
    for (const std::string& path : paths_)
      if (!fs::is_regular_file(path, error))
        throw UserError(fmt::format("byte_retrieval: {}: no such file; {}", path, kHint));
    indices_.resize(paths_.size());
  }

  LabelSpec labels(Index) const override {
    return {LabelKind::per_sequence, kByteVocabulary, 2, 2};
  }

  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    const LineIndex& index = index_for(split);
    const Rows rows = rows_for(split, index);
    return make_batch(first, batch, n, 2, [&](Index e) {
      return read(index, row_of(rows, split, e, seed), static_cast<std::size_t>(n));
    });
  }

  std::vector<Floor> floors(Index, Seed) const override {
    const auto all = [&](Split split) {
      const LineIndex& index = index_for(split);
      const Rows rows = rows_for(split, index);
      return Tokens(index.labels.begin() + rows.begin, index.labels.begin() + rows.end);
    };
    return {majority_floor(all(Split::train), all(Split::test), 2)};
  }

 private:
  const LineIndex& index_for(Split split) const {
    const std::lock_guard lock(mutex_);
    const std::size_t at = paths_.size() == 1 ? 0 : static_cast<std::size_t>(split);
    if (indices_[at].labels.empty()) indices_[at] = index_of(paths_[at]);
    return indices_[at];
  }
  Rows rows_for(Split split, const LineIndex& index) const {
    const auto count = static_cast<Index>(index.labels.size());
    return paths_.size() == 1 ? split_rows(count, split) : Rows{0, count};
  }

  static Example read(const LineIndex& index, Index row, std::size_t n) {
    std::ifstream file(index.path, std::ios::binary);
    file.seekg(index.begins[static_cast<std::size_t>(row)]);
    std::string line;
    Example out;
    std::int32_t label = 0;
    std::string_view texts[2];
    if (!next_line(file, &line) || !parse_line(line, &label, &texts[0], &texts[1]))
      throw UserError(fmt::format("byte_retrieval: {}:{}: the file changed while it was used",
                                  index.path, row + 1));
    for (int i = 0; i < 2; ++i) {
      const std::string_view text = texts[i].substr(0, std::min(n, kMostBytes));
      append_bytes(text, &out.tokens);
      out.tokens.resize(static_cast<std::size_t>(i + 1) * n, 0);
      out.lengths.push_back(static_cast<std::int32_t>(text.size()));
    }
    out.labels = {label};
    return out;
  }

  Tokens sequence(Index length, Seed, Seed draw) const override {
    const LineIndex& index = index_for(Split::train);
    const auto rows = static_cast<std::uint64_t>(rows_for(Split::train, index).size());
    Random random(draw);
    return laid_end_to_end(length, [&] {
      Example one = read(index, static_cast<Index>(random.below(rows)), kMostBytes);
      one.tokens.resize(static_cast<std::size_t>(one.lengths[0]));
      return one.tokens;
    });
  }

  std::vector<std::string> paths_;  // one, or one per split
  mutable std::mutex mutex_;
  mutable std::vector<LineIndex> indices_;
};

const RegisterTask<ByteRetrieval, Params> kRegistration{
    {.name = "byte_retrieval",
     .source = "ACL Anthology Network; Long Range Arena, arXiv 2011.04006",
     .summary = "bytes of two real papers: does one cite the other? From files of the user's",
     .labelled = true,
     .notes = {"two sequences per example, for a two-tower model; token id = byte + 1, cut to n, "
               "padded with 0",
               "results are identified by the path, not by what the files hold"}},
    {param("path", &Params::path,
           "folder with new_aan_pairs.train.tsv, .eval.tsv and .test.tsv, or one TSV file")}};

}  // namespace
}  // namespace subquad
