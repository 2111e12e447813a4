// ListOps: the evaluator, the text form, the generator against a sample of the reference's output,
// and damaged files.
#include <catch2/catch.hpp>
#include <fstream>
#include <map>
#include <sstream>

#include "tasks/listops_expression.h"
#include "tests/tasks/damage.h"
#include "tests/tasks/labelled.h"
#include "tests/tasks/statistics.h"

using namespace subquad;
using namespace subquad::listops;

namespace {

const std::string kFixtures = SUBQUAD_SOURCE_DIR "/tests/fixtures/listops/";

std::int32_t value_of(const std::string& text) {
  std::string unknown;
  return evaluate(from_text(text, &unknown)).value;
}

Tokens expression(const TokenBatch& batch, Index e) {
  const std::int32_t* x = example(batch, e).x;
  return {x, x + batch.lengths[static_cast<std::size_t>(e)]};
}

// Columns of a CSV fixture of numbers.
std::map<std::string, std::vector<double>> columns_of(const std::string& path) {
  std::ifstream file(path);
  std::string line, field;
  std::getline(file, line);
  std::vector<std::string> names;
  for (std::istringstream in(line); std::getline(in, field, ',');) names.push_back(field);
  std::map<std::string, std::vector<double>> columns;
  while (std::getline(file, line)) {
    std::istringstream in(line);
    for (const std::string& name : names) {
      std::getline(in, field, ',');
      columns[name].push_back(std::stod(field));
    }
  }
  return columns;
}

}  // namespace

TEST_CASE("listops evaluates by the published rules", "[listops]") {
  CHECK(value_of("[MED 1 2 ]") == 1);
  CHECK(value_of("[MED 9 0 4 ]") == 4);
  CHECK(value_of("[MED 1 9 2 8 ]") == 5);
  CHECK(value_of("[SM 9 9 ]") == 8);
  CHECK(value_of("[MIN 3 ]") == 3);
  CHECK(value_of("( ( ( ( [MAX 4 ) 3 ) 7 ) ] )") == 7);
  CHECK(value_of("[MAX 2 [MIN 4 7 ] [SM 5 5 ] 1 ]") == 4);
  CHECK(value_of("7") == 7);
  for (const char* broken :
       {"", "]", "[MIN", "[MIN ]", "[MIN 1", "[MIN 1 ] ]", "[MIN 1 ] 2", "1 2", "[MAX [MIN ] 1 ]"})
    CHECK(value_of(broken) == -1);
}

TEST_CASE("listops prints expressions as the data files do", "[listops]") {
  std::string unknown;
  const auto round_trip = [&](const std::string& text) {
    return to_text(from_text(text, &unknown));
  };
  CHECK(round_trip("[MAX 4 3 7 ]") == "( ( ( ( [MAX 4 ) 3 ) 7 ) ] )");
  CHECK(round_trip("5") == "5");
  for (const char* name : {"nyu_sample.tsv", "lra_sample.tsv"}) {
    std::ifstream file(kFixtures + name);
    Index lines = 0;
    for (std::string line; std::getline(file, line);) {
      if (line.ends_with('\r')) line.pop_back();
      if (line.starts_with("Source")) continue;
      const std::size_t tab = line.find('\t');
      const std::string text = tab == 1 ? line.substr(2) : line.substr(0, tab);
      if (round_trip(text) != text) FAIL_CHECK(name << ": " << text);
      ++lines;
    }
    CHECK(lines == (name[0] == 'n' ? 400 : 20));
  }
}

TEST_CASE("listops reads both forms of file, whose labels are the values", "[listops]") {
  for (const char* name : {"nyu_sample.tsv", "lra_sample.tsv"}) {
    const auto task = make_task("listops", {{"path", kFixtures + name}});
    const Index rows = name[0] == 'n' ? 400 : 20;
    std::set<Tokens> seen;
    for (const auto& [split, share] :
         {std::pair(Split::train, 80), std::pair(Split::validation, 10),
          std::pair(Split::test, 10)}) {
      const Index size = rows * share / 100;
      const TokenBatch batch = task->tokens(split, 0, 2 * size, 2000, 1);
      std::set<Tokens> first, second;
      for (Index e = 0; e < 2 * size; ++e) {
        const Tokens tokens = expression(batch, e);
        CHECK(evaluate(tokens).value == batch.labels[static_cast<std::size_t>(e)]);
        (e < size ? first : second).insert(tokens);
        seen.insert(tokens);
      }
      CHECK(first == second);  // an epoch holds every row once
    }
    CHECK(seen.size() >= static_cast<std::size_t>(rows * 98 / 100));  // rows can be equal
    CHECK(task->floors(2000, 1).size() == 3);
  }
}

TEST_CASE("listops expressions keep to their bounds, and splits share none", "[listops]") {
  struct Case {
    Settings settings;
    Index n, longer, shorter, depth, args;
  };
  for (const Case& c :
       {Case{{{"preset", std::string("mini")}}, 128, 16, 128, 6, 6}, Case{{}, 64, 16, 65, 6, 6},
        Case{{}, 512, 200, 500, 10, 10}, Case{{}, 2048, 500, 2000, 10, 10},
        Case{{{"max_args", Index{3}}, {"longer_than", Index{20}}, {"shorter_than", Index{60}}},
             60,
             20,
             60,
             6,
             3}}) {
    const auto task = make_task("listops", c.settings);
    std::set<Tokens> all;
    for (const Split split : {Split::train, Split::validation, Split::test}) {
      const TokenBatch batch = task->tokens(split, 0, 300, c.n, 1);
      std::set<Tokens> here;
      for (Index e = 0; e < 300; ++e) {
        const Tokens tokens = expression(batch, e);
        const auto length = static_cast<Index>(tokens.size());
        const Evaluation result = evaluate(tokens);
        if (!(length > c.longer && length < c.shorter)) FAIL_CHECK("length " << length);
        if (result.value != batch.labels[static_cast<std::size_t>(e)]) FAIL_CHECK("label");
        if (result.depth > c.depth - 1) FAIL_CHECK("depth " << result.depth);
        std::vector<Index> args;
        for (const std::int32_t token : tokens) {
          if (token != kEnd && !args.empty()) ++args.back();
          if (is_operator(token)) args.push_back(0);
          if (token == kEnd) {
            if (!(args.back() >= 2 && args.back() <= c.args)) FAIL_CHECK("arguments");
            args.pop_back();
          }
        }
        here.insert(tokens);
        std::string unknown;
        if (from_text(to_text(tokens), &unknown) != tokens) FAIL_CHECK("text form");
      }
      for (const Tokens& tokens : here)
        if (!all.insert(tokens).second) FAIL_CHECK("an expression in two splits");
      CHECK(here.size() >= 298);
    }
  }
  CHECK(refused("listops", {{"preset", std::string("lra")}}, 512) ==
        "listops: expressions have up to 1999 tokens, got n=512");
  CHECK(refused("listops", {}, 7) == "listops: n=7, expected at least 8");
  CHECK(refused("listops", {{"shorter_than", Index{10}}}, 64) ==
        "listops: no length between longer_than=16 and shorter_than=10");
}

TEST_CASE("listops of the lra preset match the reference generator's output", "[listops]") {
  constexpr Index kRows = 4000;
  const TokenBatch batch = make_task("listops", {{"preset", std::string("lra")}})
                               ->tokens(Split::train, 0, kRows, 1999, 1);
  std::vector<double> labels(10), operators(4), lengths, depths, shares, digits;
  double by_root = 0, tokens_total = 0, operators_total = 0;
  for (Index e = 0; e < kRows; ++e) {
    const Tokens tokens = expression(batch, e);
    const std::int32_t label = batch.labels[static_cast<std::size_t>(e)];
    double ops = 0, digit_sum = 0;
    for (const std::int32_t token : tokens) {
      if (is_operator(token)) ++ops, ++operators[static_cast<std::size_t>(token - kMin)];
      if (is_digit(token)) digit_sum += token - kDigit0;
    }
    labels[static_cast<std::size_t>(label)] += 1;
    lengths.push_back(static_cast<double>(tokens.size()));
    depths.push_back(static_cast<double>(evaluate(tokens).depth));
    shares.push_back(ops / lengths.back());
    digits.push_back(digit_sum / lengths.back());
    tokens_total += lengths.back();
    operators_total += ops;
    const std::int32_t guess[] = {0, 9, 4, 0};
    by_root += guess[tokens[0] - kMin] == label;
  }
  // The published table and figures (9000 and 4000 samples of the reference generator).
  const double shares_of[] = {.175, .084, .081, .084, .094, .091, .076, .068, .085, .163};
  for (std::size_t i = 0; i < 10; ++i) CHECK(labels[i] / kRows == Approx(shares_of[i]).margin(.02));
  CHECK(moments(lengths).mean == Approx(1038).margin(25));
  CHECK(operators_total / tokens_total == Approx(.142).margin(.003));
  CHECK(by_root / kRows == Approx(.364).margin(.02));
  CHECK(chi_square_uniform(operators) < chi_square_limit(3) * 1.0);
  // Against 150 of its rows: two-sample tests.
  auto reference = columns_of(kFixtures + "lra_statistics.csv");
  REQUIRE(reference["label"].size() == 150);
  std::vector<std::vector<double>> by_label{std::vector<double>(10), labels};
  for (const double label : reference["label"]) by_label[0][static_cast<std::size_t>(label)] += 1;
  std::vector<std::vector<double>> by_operator{std::vector<double>(4), operators};
  std::vector<double> reference_shares, reference_digits;
  for (std::size_t i = 0; i < 150; ++i) {
    for (std::size_t j = 0; j < 4; ++j)
      by_operator[0][j] += reference[std::vector<std::string>{"min", "max", "med", "sm"}[j]][i];
    reference_shares.push_back(reference["operators"][i] / reference["length"][i]);
    reference_digits.push_back(reference["digit_sum"][i] / reference["length"][i]);
  }
  const double labels_x2 = chi_square_table(by_label), operators_x2 = chi_square_table(by_operator);
  const double length_ks = kolmogorov_smirnov(lengths, reference["length"]);
  const double share_ks = kolmogorov_smirnov(shares, reference_shares);
  const double digit_ks = kolmogorov_smirnov(digits, reference_digits);
  const auto nine = [](const std::vector<double>& x) {
    return std::count(x.begin(), x.end(), 9.0);
  };
  if (std::getenv("SUBQUAD_SHOW_STATISTICS"))
    WARN("listops lra, 4000 rows against 150 of the reference: length mean "
         << moments(lengths).mean << " / " << moments(reference["length"]).mean << ", KS "
         << length_ks << " (limit 1.95); operator share " << operators_total / tokens_total
         << ", KS " << share_ks << "; digits per token KS " << digit_ks << "; labels X2 "
         << labels_x2 << " (limit " << chi_square_limit(9) << "); operators X2 " << operators_x2
         << " (limit " << chi_square_limit(3) << "); root operator right " << by_root / kRows
         << "; depth 9 in " << nine(depths) << "/4000 and " << nine(reference["depth"]) << "/150");
  CHECK(length_ks < 1.95);
  CHECK(share_ks < 1.95);
  CHECK(digit_ks < 1.95);
  CHECK(labels_x2 < chi_square_limit(9));
  CHECK(operators_x2 < chi_square_limit(3));
  CHECK(nine(depths) >= kRows * 99 / 100);
  CHECK(nine(reference["depth"]) == 150);
}

TEST_CASE("listops prints its floors from what it generates", "[listops]") {
  const auto floors = make_task("listops")->floors(2000, 1);
  REQUIRE(floors.size() == 3);
  // The published figures are 17.1 to 17.5, 36.4 and 47.7 %; 2000 examples have an error of 1.1 %.
  CHECK(floors[0].value == Approx(.173).margin(.03));
  CHECK(floors[1].value == Approx(.364).margin(.035));
  CHECK(floors[2].value == Approx(.477).margin(.035));
  if (std::getenv("SUBQUAD_SHOW_STATISTICS"))
    for (const Index n : {128, 512, 2000})
      for (const Floor& floor : make_task("listops")->floors(n, 1))
        WARN("listops n=" << n << " " << floor.name << " " << floor.value);
}

TEST_CASE("listops with balance draws every label as often", "[listops]") {
  const TokenBatch batch =
      make_task("listops", {{"balance", true}})->tokens(Split::train, 0, 3000, 128, 1);
  std::vector<double> labels(10);
  for (const std::int32_t label : batch.labels) labels[static_cast<std::size_t>(label)] += 1;
  CHECK(chi_square_uniform(labels) < chi_square_limit(9));
}

TEST_CASE("listops names file and line of what is wrong", "[listops]") {
  const TemporaryFolder folder;
  const auto refusal = [&](const std::string& text) {
    folder.write("x.tsv", text);
    std::string message = not_made("listops", {{"path", folder.path("x.tsv")}});
    const std::string prefix = "listops: " + folder.path("x.tsv") + ":";
    return message.starts_with(prefix) ? message.substr(prefix.size()) : message;
  };
  std::string good;
  for (int i = 0; i < 10; ++i) good += "2\t( ( ( [MIN 2 ) 5 ) ] )\n";
  CHECK(refusal(good).empty());
  CHECK(refusal(good + "3 4\n") == "11: got \"3 4\", expected two fields with a tab between them");
  CHECK(refusal(good + "x\t[MIN 2 ]\n") == "11: got label \"x\", expected a digit");
  CHECK(refusal(good + "2\t[MEAN 2 ]\n") ==
        "11: got \"[MEAN\", expected a digit, [MIN, [MAX, [MED, [SM, ], ( or )");
  CHECK(refusal(good + "2\t[MIN 2\n") == "11: got \"[MIN 2\", expected a complete expression");
  CHECK(refusal(good + "3\t[MIN 2 ]\n") ==
        "11: got label 3, expected 2, the value of the expression");
  CHECK(refusal("1\t1\n") == " got 1 rows, expected at least 10");
  CHECK(refusal("") == " got 0 rows, expected at least 10");
  CHECK(not_made("listops", {{"path", folder.path("none.tsv")}}) ==
        "listops: " + folder.path("none.tsv") +
            ": No such file or directory; without path: expressions are generated");
  CHECK(not_made("listops", {{"path", folder.path("")}}) ==
        "listops: " + folder.path("basic_train.tsv") +
            ": No such file or directory; without path: expressions are generated");
  std::ifstream file(kFixtures + "nyu_sample.tsv");
  const std::string sample((std::istreambuf_iterator<char>(file)), {});
  CHECK(survives_damage(sample.substr(0, 4000), folder, "x.tsv", 300, [&](const std::string& path) {
          make_task("listops", {{"path", path}})->tokens(Split::train, 0, 4, 64, 1);
        }) > 30);
}

TEST_CASE("listops reads the whole reference files where they are", "[.][reference_data]") {
  const char* folder = std::getenv("SUBQUAD_REFERENCE_DATA");
  REQUIRE(folder != nullptr);
  for (const char* name : {"listops_nyu_test_d20s.tsv", "listops_lra_reference_sample.tsv"})
    CHECK_NOTHROW(make_task("listops", {{"path", std::string(folder) + "/" + name}}));
}
