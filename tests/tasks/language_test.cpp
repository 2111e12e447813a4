// Language modelling of characters, words and pixels.
#include "tasks/language.h"

#include <catch2/catch.hpp>

#include "tests/tasks/damage.h"
#include "tests/tasks/labelled.h"

using namespace subquad;

TEST_CASE("n-gram floors are what a hand calculation gives", "[language]") {
  // train 0 1 0 1 0, test 0 1 1: counts + 1 of 3 ids are 4, 3, 1 of 8.
  const auto floors = ngram_floors({{0, 1, 0, 1, 0}}, {{0, 1, 1}}, 3);
  REQUIRE(floors.size() == 3);
  CHECK(floors[0].value == Approx(std::log2(3.0)));
  CHECK(floors[1].value == Approx(-std::log2(3.0 / 8)));
  // After 0: 1 twice, one kind: P(1|0) = (2 + 3/8) / 3. After 1: 0 twice: P(1|1) = (3/8) / 3.
  CHECK(floors[2].value == Approx(-(std::log2((2 + 3.0 / 8) / 3) + std::log2(3.0 / 8 / 3)) / 2));
  for (const Floor& floor : floors) CHECK(floor.metric == "bits_per_token");
  // An unseen token before: the frequencies.
  CHECK(ngram_floors({{0, 1}}, {{2, 0}}, 3)[2].value == Approx(-std::log2(2.0 / 5)));
  // Probabilities sum to 1 over the next token.
  for (const std::int32_t before : {0, 1, 2}) {
    double sum = 0;
    for (const std::int32_t next : {0, 1, 2})
      sum += std::exp2(-ngram_floors({{0, 1, 0, 2, 1, 1}}, {{before, next}}, 3)[2].value);
    CHECK(sum == Approx(1));
  }
}

TEST_CASE("char_lm labels are the next characters, in windows that follow each other",
          "[language]") {
  const TemporaryFolder files;
  std::string train, validation, test;
  for (int i = 0; i < 200; ++i)
    train += "ab\xc3\xa9" + std::string(1, static_cast<char>('a' + i % 7));
  for (int i = 0; i < 60; ++i) validation += std::string(1, static_cast<char>('a' + i % 5));
  test = "abcz" + validation;
  files.write("train", train);
  files.write("validation", validation);
  files.write("test", test);
  const auto task = make_task("char_lm", {{"path", files.path("train")},
                                          {"validation", files.path("validation")},
                                          {"test", files.path("test")}});
  CHECK(task->labels(8).vocabulary == 9);  // a to g, e with acute, and unknown
  const TokenBatch test_batch = task->tokens(Split::test, 0, 1, 8, 1);
  CHECK(test_batch.tokens == std::vector<std::int32_t>{0, 1, 2, 8, 0, 1, 2, 3});
  CHECK(test_batch.labels == std::vector<std::int32_t>{1, 2, 8, 0, 1, 2, 3, 4});
  // 59 pairs in windows of 8: seven, then from the beginning.
  const TokenBatch windows = task->tokens(Split::validation, 0, 8, 8, 1);
  for (Index e = 0; e < 8; ++e)
    for (Index t = 0; t < 8; ++t) {
      CHECK(example(windows, e).x[t] == (e % 7 * 8 + t) % 5);
      CHECK(example(windows, e).y[t] == (e % 7 * 8 + t + 1) % 5);
    }
  const TokenBatch random = task->tokens(Split::train, 0, 50, 8, 1);
  for (Index e = 0; e < 50; ++e)
    for (Index t = 0; t + 1 < 8; ++t)
      if (example(random, e).y[t] != example(random, e).x[t + 1]) FAIL_CHECK("label");
  CHECK_THROWS_WITH(task->tokens(Split::validation, 0, 1, 60, 1),
                    "char_lm: the validation part has 60 tokens, n=60 needs 61");
  CHECK(not_made("char_lm", {{"test", files.path("test")}}) ==
        "char_lm: got validation or test without path; expected path");
  CHECK(not_made("char_lm", {{"path", files.path("no")}}) ==
        "char_lm: " + files.path("no") + ": No such file or directory");
  CHECK(not_made("char_lm", {{"path", files.path("")}}) ==
        "char_lm: " + files.path("") + ": is a directory, expected a file");
  files.write("bad", "abc\xff" + std::string(100, 'x'));
  CHECK(not_made("char_lm", {{"path", files.path("bad")}}).find("invalid UTF-8 at byte offset 3") !=
        std::string::npos);
  files.write("tiny", "a");
  CHECK(not_made("char_lm", {{"path", files.path("tiny")}}) ==
        "char_lm: " + files.path("tiny") +
            ": got no text for the validation part, expected more text");
  CHECK(survives_damage(train, files, "x", 200, [&](const std::string& path) {
          make_task("char_lm", {{"path", path}})->tokens(Split::train, 0, 2, 16, 1);
        }) > 20);
}

TEST_CASE("char_lm cuts validation and test from the end of one text", "[language]") {
  const auto task = make_task("char_lm");
  const auto floors = task->floors(64, 1);
  CHECK(floors[0].value > floors[1].value);
  CHECK(floors[1].value > floors[2].value);
  CHECK(floors[1].value == Approx(4.8).margin(0.3));  // English letters
  CHECK(floors[2].value == Approx(3.6).margin(0.4));
}

TEST_CASE("word_lm reads WikiText's format: unk, eos, vocabulary by frequency", "[language]") {
  const TemporaryFolder files;
  const std::string text = " \n = A = \n \n the cat <unk> the dog \n the cat . \n";
  files.write("train", text);
  files.write("test", " the bird . \n \n the dog saw the cat and the cat saw the dog \n");
  files.write("validation", " the cat \n the the the cat \n");
  const Settings paths{{"path", files.path("train")},
                       {"validation", files.path("validation")},
                       {"test", files.path("test")}};
  const auto task = make_task("word_lm", paths);
  // <eos> 5, the 3, = 2, cat 2, then ".", "A", "dog" once each.
  CHECK(task->labels(4).vocabulary == 8);
  CHECK(task->tokens(Split::test, 0, 1, 4, 1).tokens == std::vector<std::int32_t>{2, 0, 5, 1});
  CHECK(task->tokens(Split::test, 0, 1, 4, 1).labels == std::vector<std::int32_t>{0, 5, 1, 1});
  CHECK(task->tokens(Split::test, 1, 1, 4, 1).tokens == std::vector<std::int32_t>{1, 2, 7, 0});
  const TokenBatch whole = task->tokens(Split::train, 0, 1, 15, 1);  // 16 tokens in all
  CHECK(std::count(whole.tokens.begin(), whole.tokens.end(), 0) == 1);
  CHECK_THROWS_WITH(task->tokens(Split::train, 0, 1, 16, 1),
                    "word_lm: the train part has 16 tokens, n=16 needs 17");
  Settings small = paths;
  small["vocabulary"] = Index{3};
  const auto cut = make_task("word_lm", small);
  CHECK(cut->labels(4).vocabulary == 3);
  CHECK(cut->tokens(Split::test, 0, 1, 4, 1).tokens == std::vector<std::int32_t>{2, 0, 0, 1});
}

TEST_CASE("pixel_lm predicts the next pixel of drawn figures and of files", "[language]") {
  for (const Index levels : {8, 256}) {
    const auto task = make_task("pixel_lm", {{"levels", levels}});
    for (const Index n : {1, 195, 200, 255}) {
      const TokenBatch batch = task->tokens(Split::train, 0, 20, n, 1);
      for (Index e = 0; e < 20; ++e)
        for (Index t = 0; t + 1 < n; ++t)
          if (example(batch, e).y[t] != example(batch, e).x[t + 1]) FAIL_CHECK("label");
    }
    const auto floors = task->floors(195, 1);
    CHECK(floors[2].value < floors[1].value);
    CHECK(floors[1].value < floors[0].value);
  }
  const std::string path = SUBQUAD_SOURCE_DIR "/tests/fixtures/pathfinder/len14-images-idx3-ubyte";
  const auto coarse = make_task("pixel_lm", {{"path", path}, {"levels", Index{8}}});
  const auto fine = make_task("pixel_lm", {{"path", path}});
  const TokenBatch a = coarse->tokens(Split::test, 0, 2, 1023, 1);
  const TokenBatch b = fine->tokens(Split::test, 0, 2, 1023, 1);
  for (std::size_t i = 0; i < a.tokens.size(); ++i)
    if (a.tokens[i] != b.tokens[i] / 32) FAIL_CHECK("levels");
  CHECK_THROWS_WITH(fine->tokens(Split::train, 0, 1, 1024, 1),
                    "pixel_lm: images have 1024 pixels, n=1024 needs 1025");
}

TEST_CASE("the language tasks read the real texts where they are", "[.][reference_data]") {
  const char* folder = std::getenv("SUBQUAD_REFERENCE_DATA");
  REQUIRE(folder != nullptr);
  const std::string at = std::string(folder) + "/";
  const auto show = [](const std::string& what, const Task& task, Index n) {
    for (const Floor& floor : task.floors(n, 1))
      WARN(what << " " << floor.name << " " << floor.value);
  };
  const auto characters = make_task("char_lm", {{"path", at + "tiny_shakespeare.txt"}});
  CHECK(characters->labels(64).vocabulary == 66);
  show("tiny_shakespeare characters", *characters, 64);
  const auto words = make_task(
      "word_lm", {{"path", at + "wikitext2_valid.txt"}, {"test", at + "wikitext2_test.txt"}});
  // The usual count of tokens, <eos> included.
  CHECK_NOTHROW(words->tokens(Split::test, 0, 1, 245568, 1));
  CHECK_THROWS_AS(words->tokens(Split::test, 0, 1, 245569, 1), Unsupported);
  show("wikitext2 words", *words, 64);
  const auto pixels = make_task("pixel_lm", {{"path", at + "mnist_t10k-images-idx3-ubyte.gz"}});
  show("mnist pixels", *pixels, 783);
  show("drawn pixels", *make_task("pixel_lm"), 195);
}
