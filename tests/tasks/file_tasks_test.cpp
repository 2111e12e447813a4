// The tasks over files of the user's: byte_text, byte_retrieval, pixel_image; and what they share.
#include <catch2/catch.hpp>
#include <fstream>

#include "tasks/files.h"
#include "tests/tasks/damage.h"
#include "tests/tasks/labelled.h"
#include "tests/tasks/statistics.h"

using namespace subquad;

namespace {

std::string text_of(const std::int32_t* tokens, Index length) {
  std::string text;
  for (Index t = 0; t < length; ++t) text += static_cast<char>(tokens[t] - 1);
  return text;
}

// Every (text, label) of a split, with the tokens checked to be padded.
std::multiset<std::pair<std::string, std::int32_t>> rows_of(const Task& task, Split split,
                                                            Index count, Index n) {
  const TokenBatch batch = task.tokens(split, 0, count, n, 1);
  std::multiset<std::pair<std::string, std::int32_t>> rows;
  for (Index e = 0; e < count; ++e) {
    const auto [x, y] = example(batch, e);
    const Index length = batch.lengths[static_cast<std::size_t>(e * batch.inputs)];
    for (Index t = length; t < n; ++t)
      if (x[t] != 0) FAIL_CHECK("not padded");
    rows.emplace(text_of(x, length), *y);
  }
  return rows;
}

}  // namespace

TEST_CASE("epochs are permutations, different for each and each seed", "[files]") {
  for (const Index size : {1, 2, 3, 10, 17, 64, 1000}) {
    std::set<Index> seen;
    for (Index i = 0; i < size; ++i) seen.insert(permuted(i, size, 5));
    CHECK(seen.size() == static_cast<std::size_t>(size));
    CHECK(*seen.begin() == 0);
    CHECK(*seen.rbegin() == size - 1);
  }
  // Where the first lands is uniform over seeds.
  std::vector<double> places(10);
  for (Seed seed = 0; seed < 5000; ++seed)
    places[static_cast<std::size_t>(permuted(0, 10, derive(seed, "x")))] += 1;
  CHECK(chi_square_uniform(places) < chi_square_limit(9));
  const Rows rows{20, 30};
  std::vector<Index> first, second, test;
  for (Index i = 0; i < 10; ++i) {
    first.push_back(row_of(rows, Split::train, i, 1));
    second.push_back(row_of(rows, Split::train, 10 + i, 1));
    test.push_back(row_of(rows, Split::test, 10 + i, 1));
  }
  CHECK(first != second);
  CHECK(std::is_permutation(first.begin(), first.end(), second.begin()));
  CHECK(std::is_permutation(first.begin(), first.end(), test.begin()));
  CHECK(std::is_sorted(test.begin(), test.end()));
}

TEST_CASE("byte_text reads quoted tables and undoes Python's bytes literals", "[files]") {
  const TemporaryFolder files;
  std::string table = "id,sentiment,review\r\n";
  for (int i = 0; i < 8; ++i) table += fmt::format("{},{},plain {}\r\n", i, i % 2, i);
  table += "8,positive,\"two\nlines, a comma and \"\"quotes\"\"\"\r\n9,negative,last";
  files.write("t.csv", table);
  const auto task = make_task("byte_text", {{"path", files.path("t.csv")}});
  auto rows = rows_of(*task, Split::train, 8, 60);
  rows.merge(rows_of(*task, Split::validation, 1, 60));
  rows.merge(rows_of(*task, Split::test, 1, 60));
  CHECK(rows.size() == 10);
  CHECK(rows.count({"plain 3", 1}) == 1);
  CHECK(rows.count({"two\nlines, a comma and \"quotes\"", 1}) == 1);
  CHECK(rows.count({"last", 0}) == 1);
  CHECK(rows_of(*task, Split::train, 8, 3).begin()->first.size() == 3);  // cut to n

  std::string literals = "review\tsentiment\n";
  for (int i = 0; i < 9; ++i) literals += "b'ok'\t1\n";
  literals += "\"b'it\\'s \"\"x\"\" \\xe9\\n\\\\'\"\t0\n";
  files.write("l.tsv", literals);
  const auto undone =
      make_task("byte_text", {{"path", files.path("l.tsv")}, {"bytes_literal", true}});
  auto all = rows_of(*undone, Split::train, 8, 40);
  all.merge(rows_of(*undone, Split::validation, 1, 40));
  all.merge(rows_of(*undone, Split::test, 1, 40));
  CHECK(all.count({"ok", 1}) == 9);
  CHECK(all.count({"it's \"x\" \xe9\n\\", 0}) == 1);
}

TEST_CASE("byte_text reads the folder of the data set", "[files]") {
  const TemporaryFolder files;
  for (const char* part : {"train", "test"})
    for (const char* label : {"neg", "pos"})
      for (int i = 0; i < 10; ++i)
        files.write(fmt::format("{}/{}/{}_7.txt", part, label, i),
                    fmt::format("{} {} {}", part, label, i));
  const auto task = make_task("byte_text", {{"path", files.path("")}});
  const auto train = rows_of(*task, Split::train, 18, 32);
  const auto validation = rows_of(*task, Split::validation, 2, 32);
  const auto test = rows_of(*task, Split::test, 20, 32);
  auto both = train;
  for (const auto& row : validation) both.insert(row);
  CHECK(both.size() == 20);
  for (int i = 0; i < 10; ++i) {
    CHECK(both.count({fmt::format("train pos {}", i), 1}) == 1);
    CHECK(both.count({fmt::format("train neg {}", i), 0}) == 1);
    CHECK(test.count({fmt::format("test pos {}", i), 1}) == 1);
    CHECK(test.count({fmt::format("test neg {}", i), 0}) == 1);
  }
  files.write("test/pos/3_7.txt", "");
  CHECK_THROWS_WITH(
      task->tokens(Split::test, 0, 20, 32, 1),
      "byte_text: " + files.path("test/pos/3_7.txt") + ": got an empty file, expected a review");
  std::filesystem::remove_all(files.dir / "test" / "pos");
  CHECK(not_made("byte_text", {{"path", files.path("")}}) ==
        "byte_text: " + files.path("test/pos") +
            ": not a directory; without data of your own use text_majority");
}

TEST_CASE("byte_text names file and line of what is wrong", "[files]") {
  const TemporaryFolder files;
  std::string good = "review,sentiment\n";
  for (int i = 0; i < 10; ++i) good += "text,1\n";
  const auto refusal = [&](const std::string& text, bool literal = false) {
    files.write("x.csv", text);
    const std::string message =
        not_made("byte_text", {{"path", files.path("x.csv")}, {"bytes_literal", literal}});
    const std::string prefix = "byte_text: " + files.path("x.csv") + ":";
    return message.starts_with(prefix) ? message.substr(prefix.size()) : message;
  };
  CHECK(refusal(good).empty());
  CHECK(refusal("a,b\n1,2\n") ==
        "1: got header \"a,b\", expected columns review and sentiment, text "
        "and label, or Source and Target");
  CHECK(refusal(good + "text\n") == "12: got 1 fields, expected 2 as in the header");
  CHECK(refusal(good + "text,2\n") == "12: got label \"2\", expected 0, 1, negative or positive");
  CHECK(refusal(good + ",1\n") == "12: got an empty text, expected at least one byte");
  CHECK(refusal(good + "\"a\nb,1\n") ==
        "12: got no end of the quoted field that begins here, "
        "expected a closing quote");
  CHECK(refusal(good + "\"a\nb\"c,1\n") ==
        "13: got \"c\" after a closing quote, expected a "
        "separator or the end of the line");
  CHECK(refusal(good, true) == "2: got \"text\", expected a Python bytes literal, b'...'");
  CHECK(refusal("") == " got 0 rows, expected at least 10");
  CHECK(not_made("byte_text", {}) ==
        "byte_text: path is missing; expected a folder of reviews or a "
        "CSV or TSV file; without data of your own use text_majority");
  CHECK(not_made("byte_text", {{"path", files.path("none")}}) ==
        "byte_text: " + files.path("none") +
            ": No such file or directory; without data of your own use text_majority");
  std::ifstream file(SUBQUAD_SOURCE_DIR "/tests/fixtures/labelled/reviews.csv");
  const std::string sample((std::istreambuf_iterator<char>(file)), {});
  CHECK(survives_damage(sample, files, "x.csv", 400, [&](const std::string& path) {
          make_task("byte_text", {{"path", path}})->tokens(Split::train, 0, 30, 16, 1);
          make_task("byte_text", {{"path", path}, {"bytes_literal", true}});
        }) == 400);
  std::string literals = "text,label\n";
  for (int i = 0; i < 12; ++i) literals += "\"b'it\\'s \"\"x\"\" \\xe9\\n'\",1\n";
  CHECK(survives_damage(literals, files, "x.csv", 400, [&](const std::string& path) {
          make_task("byte_text", {{"path", path}, {"bytes_literal", true}});
        }) > 100);
}

TEST_CASE("byte_retrieval reads pairs line by line", "[files]") {
  const TemporaryFolder files;
  const auto lines = [](const std::string& what, int count) {
    std::string text;
    for (int i = 0; i < count; ++i)
      text += fmt::format("{}.0\ta{}\tb{}\t{} left {}\t{} right \xff{}\n", i % 2, i, i, what, i,
                          what, i);
    return text;
  };
  files.write("new_aan_pairs.train.tsv", lines("train", 12));
  files.write("new_aan_pairs.eval.tsv", lines("eval", 10));
  files.write("new_aan_pairs.test.tsv", lines("test", 11));
  const auto task = make_task("byte_retrieval", {{"path", files.path("")}});
  const Index n = 20;
  for (const auto& [split, what, count] :
       {std::tuple(Split::train, "train", 12), std::tuple(Split::validation, "eval", 10),
        std::tuple(Split::test, "test", 11)}) {
    const TokenBatch batch = task->tokens(split, 0, count, n, 1);
    std::set<std::string> seen;
    for (Index e = 0; e < count; ++e) {
      const auto [x, y] = example(batch, e);
      const Index left = batch.lengths[static_cast<std::size_t>(2 * e)];
      const Index right = batch.lengths[static_cast<std::size_t>(2 * e + 1)];
      const std::string a = text_of(x, left), b = text_of(x + n, right);
      const std::string number = a.substr(a.rfind(' ') + 1);
      CHECK(a == fmt::format("{} left {}", what, number));
      CHECK(b == fmt::format("{} right \xff{}", what, number));
      CHECK(*y == std::stoi(number) % 2);
      for (Index t = left; t < n; ++t) CHECK(x[t] == 0);
      seen.insert(number);
    }
    CHECK(seen.size() == static_cast<std::size_t>(count));
  }
  CHECK(task->tokens(Split::train, 0, 1, 5, 1).lengths == std::vector<std::int32_t>{5, 5});

  files.write("bad.tsv", lines("x", 12) + "1.0\ta\tb\tonly one\n");
  CHECK_THROWS_WITH(make_task("byte_retrieval", {{"path", files.path("bad.tsv")}})
                        ->tokens(Split::train, 0, 1, 5, 1),
                    "byte_retrieval: " + files.path("bad.tsv") +
                        ":13: got \"1.0\\x09a\\x09b\\x09only one\", expected five fields between "
                        "tabs: label 0.0 or "
                        "1.0, two ids, two texts");
  CHECK(not_made("byte_retrieval", {{"path", files.path("none.tsv")}}) ==
        "byte_retrieval: " + files.path("none.tsv") +
            ": no such file; without data of your own use retrieval_match");
  CHECK(survives_damage(lines("x", 12), files, "bad.tsv", 300, [&](const std::string& path) {
          make_task("byte_retrieval", {{"path", path}})->tokens(Split::train, 0, 12, 16, 1);
        }) > 50);
}

TEST_CASE("pixel_image reads CIFAR-10 records as gray, and IDX pairs", "[files]") {
  const TemporaryFolder files;
  const auto records = [](int first, int count) {
    std::string bytes;
    for (int i = first; i < first + count; ++i) {
      bytes += static_cast<char>(i % 10);
      bytes += std::string(1024, static_cast<char>(i));
      bytes += std::string(1024, static_cast<char>(2 * i));
      bytes += std::string(1023, static_cast<char>(255)) + static_cast<char>(0);
    }
    return bytes;
  };
  const auto gray = [](double r, double g, double b) {
    return static_cast<std::int32_t>(std::floor(0.2989 * r + 0.5870 * g + 0.1140 * b + 0.5));
  };
  for (int i = 1; i <= 5; ++i)
    files.write(fmt::format("data_batch_{}.bin", i), records(20 * (i - 1), 20));
  files.write("test_batch.bin", records(100, 10));
  const auto task = make_task("pixel_image", {{"path", files.path("")}});
  const auto check = [&](Split split, int first, int count) {
    const TokenBatch batch = task->tokens(split, 0, count, 1024, 1);
    std::set<int> seen;
    for (Index e = 0; e < count; ++e) {
      const auto [x, y] = example(batch, e);
      int i = first;
      while (i < first + count && !(i % 10 == *y && x[0] == gray(i, 2 * i, 255))) ++i;
      CHECK(x[1023] == gray(i, 2 * i, 0));
      if (split != Split::train) CHECK(i == first + e);
      seen.insert(i);
    }
    CHECK(seen.size() == static_cast<std::size_t>(count));
  };
  check(Split::train, 0, 90);
  check(Split::validation, 90, 10);
  check(Split::test, 100, 10);
  CHECK_THROWS_WITH(task->tokens(Split::train, 0, 1, 784, 1),
                    "pixel_image: images have 32 x 32 = 1024 pixels, got n=784");

  files.write("short.bin", records(0, 20).substr(1));
  CHECK(
      not_made("pixel_image", {{"path", files.path("short.bin")}}) ==
      "pixel_image: " + files.path("short.bin") +
          ": got 61459 bytes, expected a multiple of 3073 (CIFAR-10 records), or an IDX file with "
          "labels");
  std::string wrong = records(0, 20);
  wrong[3073] = 10;
  files.write("wrong.bin", wrong);
  CHECK(not_made("pixel_image", {{"path", files.path("wrong.bin")}}) ==
        "pixel_image: " + files.path("wrong.bin") +
            ": label 10 at offset 3073, expected less than 10");
  CHECK(not_made("pixel_image", {}).ends_with("without data of your own use image_shapes"));
  CHECK(survives_damage(records(0, 12), files, "d.bin", 60, [&](const std::string& path) {
          make_task("pixel_image", {{"path", path}})->tokens(Split::train, 0, 2, 1024, 1);
        }) > 30);
}

TEST_CASE("id_text reads ids and labels line by line", "[files]") {
  const TemporaryFolder files;
  const auto refusal = [&](const std::string& source, const std::string& labels) {
    for (const char* part : {"train", "valid", "test"}) {
      files.write(fmt::format("{}.src", part), source);
      files.write(fmt::format("{}.label", part), labels);
    }
    const std::string message = not_made("id_text", {{"path", files.path("")}});
    const std::string prefix = "id_text: " + files.path("train");
    return message.starts_with(prefix) ? message.substr(prefix.size()) : message;
  };
  CHECK(refusal("5 1  9\r\n7\n", "2\n0\n").empty());
  const auto task = make_task("id_text", {{"path", files.path("")}});
  CHECK(task->labels(4).vocabulary == 10);
  CHECK(task->labels(4).classes == 3);
  const TokenBatch batch = task->tokens(Split::test, 0, 2, 2, 1);
  CHECK(batch.tokens == std::vector<std::int32_t>{5, 1, 7, 0});
  CHECK(batch.labels == std::vector<std::int32_t>{2, 0});
  CHECK(batch.lengths == std::vector<std::int32_t>{2, 1});
  CHECK(refusal("1 x\n", "0\n") == ".src:1: got \"x\", expected an integer in [0, 16777215]");
  CHECK(refusal("1\n-2\n", "0\n0\n") == ".src:2: got \"-2\", expected an integer in [0, 16777215]");
  CHECK(refusal("1\n\n2\n", "0\n0\n0\n") == ".src:2: got no ids, expected one at least");
  CHECK(refusal("1\n2\n", "0\n") ==
        ".label: got 1 labels, expected 2, one for each line of " + files.path("train.src"));
  CHECK(refusal("", "") == ".src: got no lines, expected one at least");
  CHECK(refusal("1\n", "0\n").empty());
  CHECK(survives_damage("5 1 9\n7 12 3\n8\n", files, "valid.src", 300, [&](const std::string&) {
          make_task("id_text", {{"path", files.path("")}})->tokens(Split::train, 0, 4, 8, 1);
        }) > 100);
}

TEST_CASE("the tasks over files read the real ones where they are", "[.][reference_data]") {
  const char* folder = std::getenv("SUBQUAD_REFERENCE_DATA");
  REQUIRE(folder != nullptr);
  const std::string at = std::string(folder) + "/";
  const auto text =
      make_task("byte_text", {{"path", at + "imdb_sample.csv"}, {"bytes_literal", true}});
  double length = 0, positive = 0;
  Index longest = 0;
  for (const auto& [split, count] :
       {std::pair(Split::train, Index{800}), std::pair(Split::validation, Index{100}),
        std::pair(Split::test, Index{100})}) {
    const TokenBatch batch = text->tokens(split, 0, count, 8192, 1);
    for (Index e = 0; e < count; ++e) {
      const Index bytes = batch.lengths[static_cast<std::size_t>(e)];
      length += static_cast<double>(bytes);
      longest = std::max(longest, bytes);
      positive += *example(batch, e).y;
    }
  }
  WARN("imdb: mean " << length / 1000 << " bytes, longest " << longest << ", positive "
                     << positive);
  CHECK(positive == 502);
  for (const auto& [path, n] : {std::pair("cifar10_small_train.bin", Index{1024}),
                                std::pair("cifar10_small_test.bin", Index{1024})}) {
    const auto task = make_task("pixel_image", {{"path", at + path}});
    CHECK(task->floors(n, 1)[0].value == Approx(0.1).margin(0.05));
  }
  const auto mnist = make_task("pixel_image", {{"path", at + "mnist_t10k-images-idx3-ubyte.gz"},
                                               {"labels", at + "mnist_t10k-labels-idx1-ubyte.gz"}});
  std::vector<double> labels(10);
  double pixels = 0;
  for (const auto& [split, count] :
       {std::pair(Split::train, Index{8000}), std::pair(Split::validation, Index{1000}),
        std::pair(Split::test, Index{1000})}) {
    const TokenBatch batch = mnist->tokens(split, 0, count, 784, 1);
    for (const std::int32_t label : batch.labels) labels[static_cast<std::size_t>(label)] += 1;
    for (const std::int32_t token : batch.tokens) pixels += token;
  }
  CHECK(labels == std::vector<double>{980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009});
  CHECK(pixels / 7840000 == Approx(33.79).margin(0.005));
}
