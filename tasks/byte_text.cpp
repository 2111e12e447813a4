// Byte-level text classification of real reviews: the Text task of Long Range Arena.
// Source: Maas et al. 2011 (Large Movie Review Dataset); Tay et al. 2021, arXiv 2011.04006.
//
// Token id = byte + 1, cut to n bytes, padded with 0; label 1 is positive. Two layouts:
//   folder  <path>/{train,test}/{pos,neg}/*.txt, one review a file (the data set's own). Files in
//           the order of their names; every tenth of training, in an order that is shuffled once
//           and for all, is validation. (Long Range Arena has none and selects on the test part.)
//   table   a CSV or TSV file with a header that names the columns: review and sentiment, text and
//           label, or Source and Target; labels 0 and 1 or negative and positive; quoting as in RFC
//           4180. Rows are shuffled once and for all, then split 80/10/10.
// `bytes_literal`: texts are Python bytes literals, b'...', to be undone.

#include "tasks/files.h"
#include "tasks/words.h"

namespace subquad {
namespace {

struct Params {
  std::string path;
  bool bytes_literal = false;
};

constexpr const char* kHint = "without data of your own use text_majority";
constexpr Seed kShuffle = 20110601;  // of the rows, before they are split

// The bytes that a Python literal b'...' or b"..." stands for; false where it is none.
bool undo_literal(std::string_view literal, std::string* out) {
  if (literal.size() < 3 || literal[0] != 'b' || (literal[1] != '\'' && literal[1] != '"') ||
      literal.back() != literal[1])
    return false;
  literal = literal.substr(2, literal.size() - 3);
  out->clear();
  for (std::size_t at = 0; at < literal.size(); ++at) {
    if (literal[at] != '\\') {
      *out += literal[at];
      continue;
    }
    if (++at == literal.size()) return false;
    switch (literal[at]) {
      case '\\':
      case '\'':
      case '"':
        *out += literal[at];
        break;
      case 'n':
        *out += '\n';
        break;
      case 'r':
        *out += '\r';
        break;
      case 't':
        *out += '\t';
        break;
      case 'x': {
        unsigned value = 0;
        if (at + 2 >= literal.size() ||
            std::from_chars(literal.data() + at + 1, literal.data() + at + 3, value, 16).ptr !=
                literal.data() + at + 3)
          return false;
        *out += static_cast<char>(value);
        at += 2;
        break;
      }
      default:
        return false;
    }
  }
  return true;
}

struct Review {
  std::string text;  // of a table; empty where `file` has it
  std::string file;
  std::int32_t label = 0;
};

// Records of a table, RFC 4180: fields may be quoted, then hold separators, line ends and doubled
// quotes. Calls body(fields, line) with the line on which the record begins.
template <class Body>
void for_records(const std::string& path, std::string_view bytes, char separator, Body&& body) {
  std::vector<std::string> fields(1);
  bool quoted = false, any = false;
  Index line = 1, begin = 1, opened = 0;
  const auto finish = [&] {
    if (any) body(fields, begin);
    fields.assign(1, "");
    any = false;
  };
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    const char c = bytes[at];
    if (c == '\n') ++line;
    if (quoted) {
      if (c != '"') {
        fields.back() += c;
      } else if (at + 1 < bytes.size() && bytes[at + 1] == '"') {
        fields.back() += '"';
        ++at;
      } else {
        quoted = false;
        if (at + 1 < bytes.size() && bytes[at + 1] != separator && bytes[at + 1] != '\n' &&
            bytes[at + 1] != '\r')
          throw UserError(
              fmt::format("byte_text: {}:{}: got \"{}\" after a closing quote, expected "
                          "a separator or the end of the line",
                          path, line, excerpt(bytes.substr(at + 1, 1))));
      }
    } else if (c == '"' && fields.back().empty()) {
      quoted = any = true;
      opened = line;
    } else if (c == separator) {
      fields.emplace_back();
      any = true;
    } else if (c == '\n') {
      finish();
      begin = line;
    } else if (c != '\r' || at + 1 >= bytes.size() || bytes[at + 1] != '\n') {
      fields.back() += c;
      any = true;
    }
  }
  if (quoted)
    throw UserError(
        fmt::format("byte_text: {}:{}: got no end of the quoted field that begins here, "
                    "expected a closing quote",
                    path, opened));
  finish();
}

std::vector<Review> read_table(const std::string& path, bool bytes_literal) {
  const std::string bytes = read_file("byte_text", path, kHint);
  const std::string_view header = std::string_view(bytes).substr(0, bytes.find('\n'));
  const char separator = header.find('\t') != std::string_view::npos ? '\t' : ',';
  std::vector<Review> rows;
  std::size_t text = 0, label = 0, columns = 0;
  for_records(path, bytes, separator, [&](const std::vector<std::string>& fields, Index line) {
    const auto fail = [&](const std::string& got, const std::string& expected) {
      throw UserError(
          fmt::format("byte_text: {}:{}: got {}, expected {}", path, line, got, expected));
    };
    if (columns == 0) {
      columns = fields.size();
      const auto find = [&](std::initializer_list<const char*> names) {
        for (std::size_t i = 0; i < columns; ++i)
          for (const char* name : names)
            if (fields[i] == name) return i;
        return columns;
      };
      text = find({"review", "text", "Source"});
      label = find({"sentiment", "label", "Target"});
      if (text == columns || label == columns)
        fail(fmt::format("header \"{}\"", excerpt(header)),
             "columns review and sentiment, text and label, or Source and Target");
      return;
    }
    if (fields.size() != columns)
      fail(fmt::format("{} fields", fields.size()), fmt::format("{} as in the header", columns));
    Review row;
    const std::string& name = fields[label];
    if (name != "0" && name != "1" && name != "negative" && name != "positive")
      fail(fmt::format("label \"{}\"", excerpt(name)), "0, 1, negative or positive");
    row.label = name == "1" || name == "positive";
    row.text = fields[text];
    if (bytes_literal && !undo_literal(fields[text], &row.text))
      fail(fmt::format("\"{}\"", excerpt(fields[text])), "a Python bytes literal, b'...'");
    if (row.text.empty()) fail("an empty text", "at least one byte");
    rows.push_back(std::move(row));
  });
  require_rows("byte_text", path, static_cast<Index>(rows.size()));
  return rows;
}

// Files of <folder>/{neg,pos}, sorted by name, negative first.
std::vector<Review> list_folder(const std::filesystem::path& folder) {
  namespace fs = std::filesystem;
  std::vector<Review> rows;
  for (const std::int32_t label : {0, 1}) {
    const fs::path part = folder / (label == 1 ? "pos" : "neg");
    std::vector<std::string> names = files_in("byte_text", part.string(), ".txt", kHint);
    for (std::string& name : names) rows.push_back({"", std::move(name), label});
  }
  require_rows("byte_text", folder.string(), static_cast<Index>(rows.size()));
  return rows;
}

class ByteText final : public SequenceTask {
 public:
  explicit ByteText(const Params& params) : SequenceTask("byte_text") {
    if (params.path.empty())
      throw UserError(fmt::format(
          "byte_text: path is missing; expected a folder of reviews or a CSV or TSV file; {}",
          kHint));
    namespace fs = std::filesystem;
    std::error_code error;
    const bool folder = fs::is_directory(params.path, error);
    std::vector<Review> rows = folder ? list_folder(fs::path(params.path) / "train")
                                      : read_table(params.path, params.bytes_literal);
    const auto count = static_cast<Index>(rows.size());
    for (Index i = 0; i < count; ++i)
      rows_.push_back(std::move(rows[static_cast<std::size_t>(permuted(i, count, kShuffle))]));
    if (!folder) {
      for (const Split split : {Split::train, Split::validation, Split::test})
        splits_.push_back(split_rows(count, split));
      return;
    }
    splits_ = {{0, count - count / 10}, {count - count / 10, count}};
    std::vector<Review> test = list_folder(fs::path(params.path) / "test");
    splits_.push_back({count, count + static_cast<Index>(test.size())});
    rows_.insert(rows_.end(), std::make_move_iterator(test.begin()),
                 std::make_move_iterator(test.end()));
  }

  LabelSpec labels(Index) const override {
    return {LabelKind::per_sequence, kByteVocabulary, 2, 1};
  }

  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    return make_batch(first, batch, n, 1, [&](Index e) {
      const Review& row = rows_[static_cast<std::size_t>(
          row_of(splits_[static_cast<std::size_t>(split)], split, e, seed))];
      Example out;
      append_bytes(std::string_view(text_of(row)).substr(0, static_cast<std::size_t>(n)),
                   &out.tokens);
      out.lengths = {static_cast<std::int32_t>(out.tokens.size())};
      out.tokens.resize(static_cast<std::size_t>(n), 0);
      out.labels = {row.label};
      return out;
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
    return {majority_floor(all(Split::train), all(Split::test), 2)};
  }

 private:
  std::string text_of(const Review& row) const {
    if (row.file.empty()) return row.text;
    std::string text = read_file("byte_text", row.file);
    if (text.empty())
      throw UserError(fmt::format("byte_text: {}: got an empty file, expected a review", row.file));
    return text;
  }

  Tokens sequence(Index length, Seed, Seed draw) const override {
    Random random(draw);
    const auto train = static_cast<std::uint64_t>(splits_[0].size());
    return laid_end_to_end(length, [&] {
      Tokens more;
      append_bytes(text_of(rows_[random.below(train)]), &more);
      return more;
    });
  }

  std::vector<Review> rows_;
  std::vector<Rows> splits_;
};

const RegisterTask<ByteText, Params> kRegistration{
    {.name = "byte_text",
     .source = "Maas et al. 2011 (Large Movie Review Dataset); Long Range Arena, arXiv 2011.04006",
     .summary = "bytes of real reviews, positive or negative, from files of the user's",
     .labelled = true,
     .notes = {"token id = byte + 1, cut to n, padded with 0",
               "results are identified by the path, not by what the files hold"}},
    {param("path", &Params::path,
           "folder with train and test, each with pos and neg, or a CSV or TSV file"),
     param("bytes_literal", &Params::bytes_literal,
           "texts of a table are Python bytes literals, b'...'")}};

}  // namespace
}  // namespace subquad
