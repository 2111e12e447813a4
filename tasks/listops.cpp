// ListOps: the value of a nested expression of MIN, MAX, MED and SM (sum modulo 10) over digits.
// Source: Nangia and Bowman 2018, arXiv 1804.06028; Tay et al. 2021 (Long Range Arena), arXiv
// 2011.04006. The expressions are in listops_expression.h.
//
// Without a path examples are generated; presets (max_depth, max_args, length strictly between):
//   lra (10, 10, 500, 2000), mid (10, 10, 200, 500), mini (6, 6, 16, 128).
// Splits share no expression: the hash of an expression decides which split it may be in (half of
// all are for training, a quarter each for validation and test). Within a split two examples are
// equal with the small probability that two draws are.
//
// With a path: a directory with basic_train.tsv, basic_val.tsv and basic_test.tsv (Long Range
// Arena: header, expression, label), or one file of that form or of the original form (label,
// expression, no header). Every label is checked against the value of its expression.

#include "tasks/files.h"
#include "tasks/listops_expression.h"

namespace subquad {
namespace {

using namespace listops;

struct Params {
  std::string preset = "auto";
  Index max_depth = 0, max_args = 0, longer_than = 0, shorter_than = 0;
  bool balance = false;
  std::string path;
};

struct Row {
  Tokens tokens;
  std::int32_t label = 0;
};

// Rows of one file. UserError with the line of the first fault.
std::vector<Row> read_tsv(const std::string& path) {
  const std::string bytes = read_file("listops", path, "without path: expressions are generated");
  std::vector<Row> rows;
  bool label_first = true;
  for_lines(bytes, [&](std::string_view line, Index number) {
    const auto fail = [&](const std::string& got, const std::string& expected) {
      throw UserError(
          fmt::format("listops: {}:{}: got {}, expected {}", path, number, got, expected));
    };
    const std::size_t tab = line.find('\t');
    if (tab == std::string_view::npos || line.find('\t', tab + 1) != std::string_view::npos)
      fail(fmt::format("\"{}\"", excerpt(line)), "two fields with a tab between them");
    if (number == 1) {
      if (line == "Source\tTarget") {
        label_first = false;
        return;
      }
      label_first = tab == 1;
    }
    const std::string_view label = label_first ? line.substr(0, tab) : line.substr(tab + 1);
    const std::string_view text = label_first ? line.substr(tab + 1) : line.substr(0, tab);
    if (label.size() != 1 || label[0] < '0' || label[0] > '9')
      fail(fmt::format("label \"{}\"", excerpt(label)), "a digit");
    std::string unknown;
    Row row{from_text(text, &unknown), label[0] - '0'};
    if (!unknown.empty())
      fail(fmt::format("\"{}\"", excerpt(unknown)), "a digit, [MIN, [MAX, [MED, [SM, ], ( or )");
    const std::int32_t value = evaluate(row.tokens).value;
    if (value < 0) fail(fmt::format("\"{}\"", excerpt(text)), "a complete expression");
    if (value != row.label)
      fail(fmt::format("label {}", row.label),
           fmt::format("{}, the value of the expression", value));
    rows.push_back(std::move(row));
  });
  require_rows("listops", path, static_cast<Index>(rows.size()));
  return rows;
}

class ListOps final : public SequenceTask {
 public:
  explicit ListOps(const Params& params) : SequenceTask("listops"), params_(params) {
    if (params.path.empty()) {
      if (params.longer_than > 0 && params.shorter_than > 0 &&
          params.longer_than + 2 > params.shorter_than)
        throw UserError(
            fmt::format("listops: longer_than={} and shorter_than={} leave no length between them",
                        params.longer_than, params.shorter_than));
      return;
    }
    namespace fs = std::filesystem;
    std::error_code error;
    if (fs::is_directory(params.path, error)) {
      for (const char* name : {"basic_train.tsv", "basic_val.tsv", "basic_test.tsv"}) {
        std::vector<Row> more = read_tsv((fs::path(params.path) / name).string());
        const auto begin = static_cast<Index>(rows_.size());
        rows_.insert(rows_.end(), std::make_move_iterator(more.begin()),
                     std::make_move_iterator(more.end()));
        splits_.push_back({begin, static_cast<Index>(rows_.size())});
      }
    } else {
      rows_ = read_tsv(params.path);
      for (const Split split : {Split::train, Split::validation, Split::test})
        splits_.push_back(split_rows(static_cast<Index>(rows_.size()), split));
    }
  }

  LabelSpec labels(Index) const override {
    return {LabelKind::per_sequence, kVocabulary, kClasses, 1};
  }

  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    if (rows_.empty()) shape_for(n);  // refuses once, with the reason
    return make_batch(first, batch, n, 1, [&](Index e) {
      Row row = rows_.empty() ? generated(split, e, shape_for(n), seed)
                              : rows_[static_cast<std::size_t>(row_of(
                                    splits_[static_cast<std::size_t>(split)], split, e, seed))];
      const std::size_t length = std::min(row.tokens.size(), static_cast<std::size_t>(n));
      row.tokens.resize(static_cast<std::size_t>(n), kPad);
      return Example{std::move(row.tokens), {row.label}, {static_cast<std::int32_t>(length)}};
    });
  }

  // Of predictors that see the label frequencies, the root operator, and the digits directly under
  // it; what they have to learn comes from 2000 examples of training, they are judged on 2000 of
  // test.
  std::vector<Floor> floors(Index n, Seed seed) const override {
    constexpr Index kRows = 2000;
    const auto some = [&](Split split) {
      std::vector<Row> rows(kRows);
      parallel_for(kRows, [&](Index e, int) {
        rows[static_cast<std::size_t>(e)] =
            rows_.empty() ? generated(split, e, shape_for(n), seed)
                          : rows_[static_cast<std::size_t>(
                                row_of(splits_[static_cast<std::size_t>(split)], split, e, seed))];
      });
      return rows;
    };
    const std::vector<Row> train = some(Split::train), test = some(Split::test);
    std::vector<std::int32_t> train_labels, test_labels;
    std::array<std::array<Index, kClasses>, kVocabulary> count{};
    for (const Row& row : train) {
      train_labels.push_back(row.label);
      ++count[static_cast<std::size_t>(row.tokens[0])][static_cast<std::size_t>(row.label)];
    }
    const auto by_root = [&](const Row& row) {
      const auto& of = count[static_cast<std::size_t>(row.tokens[0])];
      return static_cast<std::int32_t>(std::max_element(of.begin(), of.end()) - of.begin());
    };
    double root = 0, digits = 0;
    for (const Row& row : test) {
      test_labels.push_back(row.label);
      root += by_root(row) == row.label;
      const std::vector<std::int32_t> direct = evaluate(row.tokens).root_digits;
      // The sum of some arguments says nothing about the sum of all.
      const bool known = is_operator(row.tokens[0]) && row.tokens[0] != kSum && !direct.empty();
      digits += (known ? apply(row.tokens[0], direct) : by_root(row)) == row.label;
    }
    return {majority_floor(train_labels, test_labels, kClasses),
            {"root operator", "accuracy", root / kRows},
            {"root operator on its direct digits", "accuracy", digits / kRows}};
  }

 private:
  // Bounds for sequences of n tokens: those of the preset, or (auto) the longest preset that fits.
  Bounds shape_for(Index n) const {
    constexpr Bounds kLra{10, 10, 500, 2000}, kMid{10, 10, 200, 500}, kMini{6, 6, 16, 128};
    Bounds shape = params_.preset == "lra"    ? kLra
                   : params_.preset == "mid"  ? kMid
                   : params_.preset == "mini" ? kMini
                   : n >= 1999                ? kLra
                   : n >= 499                 ? kMid
                                              : kMini;
    if (params_.preset == "auto" && n < 127) {
      if (n < 8) refuse("n={}, expected at least 8", n);
      shape.shorter_than = n + 1;
      shape.longer_than = std::min<Index>(16, n / 4);
    }
    if (params_.max_depth > 0) shape.max_depth = params_.max_depth;
    if (params_.max_args > 0) shape.max_args = params_.max_args;
    if (params_.longer_than > 0) shape.longer_than = params_.longer_than;
    if (params_.shorter_than > 0) shape.shorter_than = params_.shorter_than;
    if (shape.longer_than + 2 > shape.shorter_than)
      refuse("no length between longer_than={} and shorter_than={}", shape.longer_than,
             shape.shorter_than);
    if (shape.shorter_than - 1 > n)
      refuse("expressions have up to {} tokens, got n={}", shape.shorter_than - 1, n);
    return shape;
  }

  Row generated(Split split, Index number, const Bounds& shape, Seed seed) const {
    Random random(example_seed(seed, owner_, split, number));
    return drawn(random, split, shape);
  }

  Row drawn(Random& random, Split split, const Bounds& shape) const {
    constexpr Index kAttempts = 10000000;
    const std::int32_t wanted =
        params_.balance ? static_cast<std::int32_t>(random.below(kClasses)) : -1;
    for (Index i = 0; i < kAttempts; ++i) {
      Row row;
      if (!draw(random, shape, kAttempts, &row.tokens)) break;
      std::uint64_t hash = 0xcbf29ce484222325ULL;  // FNV-1a
      for (const std::int32_t token : row.tokens)
        hash = (hash ^ static_cast<std::uint64_t>(token)) * 0x100000001b3ULL;
      const auto quarter = (hash ^ hash >> 32) % 4;
      if (split != (quarter < 2 ? Split::train : quarter == 2 ? Split::validation : Split::test))
        continue;
      row.label = evaluate(row.tokens).value;
      if (wanted < 0 || row.label == wanted) return row;
    }
    refuse("no expression with {} < length < {}, depth <= {} and {} arguments at most came up",
           shape.longer_than, shape.shorter_than, shape.max_depth, shape.max_args);
  }

  Tokens sequence(Index length, Seed, Seed seed) const override {
    Random random(seed);
    const Bounds shape = rows_.empty() ? shape_for(std::max(length, shortest())) : Bounds{};
    return laid_end_to_end(length, [&] {
      return rows_.empty() ? drawn(random, Split::train, shape).tokens
                           : rows_[random.below(rows_.size())].tokens;
    });
  }

  // A length that the settings take, for Q, K, V of shorter ones.
  Index shortest() const {
    if (params_.shorter_than > 0) return params_.shorter_than - 1;
    const Index preset = params_.preset == "lra"    ? 1999
                         : params_.preset == "mid"  ? 499
                         : params_.preset == "mini" ? 127
                                                    : 16;
    return std::max(preset, params_.longer_than + 16);
  }

  Params params_;
  std::vector<Row> rows_;     // of the files
  std::vector<Rows> splits_;  // train, validation, test
};

const RegisterTask<ListOps, Params> kRegistration{
    {.name = "listops",
     .source = "Nangia and Bowman 2018, arXiv 1804.06028; Long Range Arena, arXiv 2011.04006",
     .summary = "the value (0 to 9) of a nested expression of MIN, MAX, MED and SM over digits",
     .labelled = true,
     .notes =
         {"token ids: 0 pads, 1 to 10 are the digits, then [MIN, [MAX, [MED, [SM and ]; brackets "
          "of "
          "the text form are no tokens",
          "expressions of a file that are longer than n are cut",
          "preset auto: lra from n = 1999, mid from 499, else mini, cut to n below 127",
          "labels are not uniform and the root operator alone is right in more than a third: read "
          "the floors",
          "Q, K, V: expressions laid end to end, with codes as in mqar"}},
    {choice("preset", &Params::preset, {"auto", "mini", "mid", "lra"},
            "depth, arguments and length of the expressions"),
     param("max_depth", &Params::max_depth, {0, 64},
           "operators nested in each other, plus one; 0 = "
           "the preset's"),
     param("max_args", &Params::max_args, {0, 100},
           "most arguments of an operator; 0 = the preset's"),
     param("longer_than", &Params::longer_than, {0, 1 << 20},
           "tokens, exclusive lower bound; 0 = the preset's"),
     param("shorter_than", &Params::shorter_than, {0, 1 << 20},
           "tokens, exclusive upper bound; 0 = the preset's"),
     param("balance", &Params::balance, "draw labels uniformly (generated expressions only)"),
     param("path", &Params::path,
           "directory with basic_train.tsv, basic_val.tsv, basic_test.tsv, or one TSV file (split "
           "80/10/10); empty = generate")}};

}  // namespace
}  // namespace subquad
