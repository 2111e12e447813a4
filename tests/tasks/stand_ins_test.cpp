// The stand-ins that need no download: text_majority, retrieval_match, image_shapes.
#include <catch2/catch.hpp>
#include <map>

#include "tasks/shapes.h"
#include "tasks/words.h"
#include "tests/tasks/labelled.h"
#include "tests/tasks/statistics.h"

using namespace subquad;

namespace {

std::string text_of(const std::int32_t* tokens, Index n) {
  std::string text;
  for (Index t = 0; t < n; ++t) text += static_cast<char>(tokens[t] - 1);
  return text;
}
std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t begin = text.find_first_not_of(' ', at);
    if (begin == std::string::npos) break;
    const std::size_t end = std::min(text.find(' ', begin), text.size());
    words.push_back(text.substr(begin, end - begin));
    at = end;
  }
  return words;
}

}  // namespace

TEST_CASE("lexicons have distinct words, and no word that matters inside another", "[stand_ins]") {
  for (const auto& [owner, keys] :
       {std::pair("text_majority", 32), std::pair("retrieval_match", 64)}) {
    const Lexicon lexicon = make_lexicon(owner, static_cast<std::size_t>(keys));
    std::vector<std::string> all = lexicon.keys;
    all.insert(all.end(), lexicon.alike.begin(), lexicon.alike.end());
    all.insert(all.end(), lexicon.fillers.begin(), lexicon.fillers.end());
    CHECK(std::set<std::string>(all.begin(), all.end()).size() ==
          static_cast<std::size_t>(keys) + 32 + 256);
    for (const std::string& word : all) {
      CHECK((word.size() >= 3 && word.size() <= 8));
      for (const std::string& key : lexicon.keys)
        if (word != key && word.find(key) != std::string::npos) FAIL_CHECK(key << " in " << word);
    }
    for (std::size_t i = 0; i < 32; ++i) {
      const std::string& key = lexicon.keys[i % static_cast<std::size_t>(keys)];
      int differ = 0;
      REQUIRE(lexicon.alike[i].size() == key.size());
      for (std::size_t c = 0; c < key.size(); ++c) differ += lexicon.alike[i][c] != key[c];
      CHECK(differ == 1);
    }
  }
}

TEST_CASE("text_majority holds the keywords it promises, one in each stretch", "[stand_ins]") {
  const Lexicon lexicon = make_lexicon("text_majority", 32);
  std::map<std::string, int> polarity;
  for (std::size_t i = 0; i < 32; ++i) polarity[lexicon.keys[i]] = i < 16 ? 1 : 0;
  for (const double negation : {0.0, 0.5})
    for (const auto& [n, keywords, gap] :
         {std::tuple(Index{64}, Index{0}, Index{1}), std::tuple(Index{256}, Index{0}, Index{3}),
          std::tuple(Index{1000}, Index{15}, Index{1})}) {
      if (negation > 0 && n == 64) continue;
      const Index count = keywords > 0 ? keywords : n == 64 ? 5 : 7;
      Settings settings{{"keywords", keywords}, {"gap", gap}, {"negation", negation}};
      const auto task = make_task("text_majority", settings);
      const Index examples = 2000;
      const TokenBatch batch = task->tokens(Split::train, 0, examples, n, 1);
      double full = 0, one = 0, positive = 0, negated = 0;
      std::vector<double> places(4);
      for (Index e = 0; e < examples; ++e) {
        const std::string text = text_of(example(batch, e).x, n);
        const std::int32_t label = *example(batch, e).y;
        Index votes = 0, found = 0;
        int first_vote = 0;
        for (Index i = 0; i < count; ++i) {
          const std::size_t begin = stretch_begin(n, count, i),
                            end = stretch_begin(n, count, i + 1);
          const std::string stretch = text.substr(begin, end - begin);
          if (stretch.back() != ' ') FAIL_CHECK("words could join");
          const std::vector<std::string> words = words_of(stretch);
          for (std::size_t w = 0; w < words.size(); ++w) {
            const auto at = polarity.find(words[w]);
            if (at == polarity.end()) continue;
            const bool no = w > 0 && words[w - 1] == "not";
            const int vote = no ? 1 - at->second : at->second;
            negated += no;
            votes += vote;
            ++found;
            if (i == 0) first_vote = vote;
            const double share = static_cast<double>(stretch.find(words[w])) /
                                 static_cast<double>(stretch.size() - words[w].size());
            places[static_cast<std::size_t>(std::min(3.0, 4 * share))] += 1;
          }
        }
        if (found != count) FAIL_CHECK("keywords: " << found);
        const Index expected = label == 1 ? (count + gap) / 2 : (count - gap) / 2;
        if (votes != expected) FAIL_CHECK("votes: " << votes);
        full += (2 * votes > count) == (label == 1);
        one += first_vote == label;
        positive += label;
      }
      CHECK(full == static_cast<double>(examples));
      const auto floors = task->floors(n, 1);
      const double p = static_cast<double>(count + gap) / (2.0 * static_cast<double>(count));
      CHECK(floors[1].value == Approx(p));
      const double d = static_cast<double>(examples);
      CHECK(std::fabs(one / d - p) < 3 * std::sqrt(p * (1 - p) / d));
      CHECK(std::fabs(positive / d - 0.5) < 4 * 0.5 / std::sqrt(d));
      CHECK(floors[2].value > p);
      CHECK(floors[2].value < 1);
      CHECK(negated / d / static_cast<double>(count) == Approx(negation).margin(0.02));
      for (const double quarter : places) CHECK(quarter > 0.1 * d * static_cast<double>(count));
    }
  // Three of five of the label: two drawn of the five are both right in 3/10, one in 6/10.
  const Settings five{{"keywords", Index{5}}, {"gap", Index{1}}};
  CHECK(make_task("text_majority", five)->floors(100, 1)[2].value == Approx(0.3 + 0.6 / 2));
  CHECK(refused("text_majority", {{"keywords", Index{15}}}, 64) ==
        "text_majority: 15 keywords need n >= 135, got n=64");
  CHECK(not_made("text_majority", {{"gap", Index{2}}}) ==
        "text_majority: keywords=0 and gap=2, expected odd numbers");
}

TEST_CASE("retrieval_match shares three topics or one, and one document says nothing",
          "[stand_ins]") {
  const Lexicon lexicon = make_lexicon("retrieval_match", 64);
  std::map<std::string, std::size_t> topic;
  for (std::size_t i = 0; i < 64; ++i) topic[lexicon.keys[i]] = i;
  const Index n = 128, examples = 8000;
  const TokenBatch batch = make_task("retrieval_match")->tokens(Split::train, 0, examples, n, 1);
  std::vector<std::vector<double>> counts[2];
  for (auto& c : counts) c.assign(2, std::vector<double>(64));
  double positive = 0;
  for (Index e = 0; e < examples; ++e) {
    const std::int32_t label = *example(batch, e).y;
    positive += label;
    std::set<std::size_t> topics[2];
    for (std::size_t doc = 0; doc < 2; ++doc) {
      const std::string text = text_of(example(batch, e).x + static_cast<Index>(doc) * n, n);
      std::size_t found = 0;
      for (const std::string& word : words_of(text)) {
        const auto at = topic.find(word);
        if (at == topic.end()) continue;
        ++found;
        topics[doc].insert(at->second);
        counts[doc][static_cast<std::size_t>(label)][at->second] += 1;
      }
      if (found != 4 || topics[doc].size() != 4) FAIL_CHECK("topics");
    }
    std::size_t shared = 0;
    for (const std::size_t t : topics[0]) shared += topics[1].count(t);
    if (shared != (label == 1 ? 3u : 1u)) FAIL_CHECK("shared " << shared);
  }
  for (const auto& table : counts) CHECK(chi_square_table(table) < chi_square_limit(63));
  CHECK(positive / 8000 == Approx(0.5).margin(4 * 0.5 / std::sqrt(8000.0)));
  CHECK(refused("retrieval_match", {}, 35) == "retrieval_match: 4 topics need n >= 36, got n=35");
}

TEST_CASE("figures differ, and the nearest template finds each", "[stand_ins]") {
  for (const Index size : {16, 32}) {
    const double side = static_cast<double>(size), middle = side / 2;
    std::vector<std::vector<double>> templates;
    for (Index kind = 0; kind < kFigures; ++kind)
      templates.push_back(coverage({kind, middle, middle, middle}, size));
    for (Index kind = 0; kind < kFigures; ++kind)
      for (const double half : {0.48, 0.49, 0.5}) {
        const auto image = coverage({kind, middle, middle, half * side}, size);
        std::size_t best = 0;
        double least = 1e300;
        for (std::size_t other = 0; other < templates.size(); ++other) {
          double distance = 0;
          for (std::size_t i = 0; i < image.size(); ++i)
            distance += (image[i] - templates[other][i]) * (image[i] - templates[other][i]);
          if (distance < least) least = distance, best = other;
        }
        INFO(kFigureNames[kind] << " at " << size << ", " << half);
        CHECK(best == static_cast<std::size_t>(kind));
      }
  }
}

TEST_CASE("image_shapes labels are balanced and brightness says nothing", "[stand_ins]") {
  const TokenBatch batch = make_task("image_shapes")->tokens(Split::train, 0, 10000, 256, 1);
  std::vector<double> labels(10);
  std::vector<std::vector<double>> means(10);
  for (Index e = 0; e < batch.batch; ++e) {
    const auto label = static_cast<std::size_t>(*example(batch, e).y);
    labels[label] += 1;
    double sum = 0;
    for (Index t = 0; t < 256; ++t) sum += example(batch, e).x[t];
    means[label].push_back(sum / 256);
  }
  CHECK(chi_square_uniform(labels) < chi_square_limit(9));
  std::vector<double> all;
  for (const auto& m : means) all.insert(all.end(), m.begin(), m.end());
  for (const auto& m : means)
    CHECK(std::fabs(moments(m).mean - moments(all).mean) < 3.3 * moments(m).error());
  CHECK(refused("image_shapes", {}, 65) ==
        "image_shapes: n=65, expected the square of a side of 8 or more");
  CHECK(refused("image_shapes", {}, 49).ends_with("8 or more"));
  CHECK(make_task("image_shapes")->floors(256, 1)[0].value == Approx(0.1).margin(0.025));
}

TEST_CASE("image_shapes with pair: neither half knows the label", "[stand_ins]") {
  // Without noise a half is its figure and background; its brightness classes carry no label.
  const TokenBatch batch = make_task("image_shapes", {{"pair", true}, {"noise", 0.0}})
                               ->tokens(Split::test, 0, 8000, 256, 1);
  std::vector<std::vector<double>> table[2];
  for (auto& t : table) t.assign(2, std::vector<double>(17));
  double same = 0;
  for (Index e = 0; e < batch.batch; ++e) {
    const std::int32_t* x = example(batch, e).x;
    const auto label = static_cast<std::size_t>(*example(batch, e).y);
    same += static_cast<double>(label);
    for (Index half = 0; half < 2; ++half) {
      // The background touches the border; everything else counts as figure.
      Index figure = 0;
      for (Index t = 128 * half; t < 128 * (half + 1); ++t)
        figure += std::abs(x[t] - x[half == 0 ? 7 : 248]) > 20;
      table[half][label][static_cast<std::size_t>(std::min<Index>(16, figure / 3))] += 1;
    }
  }
  for (auto& t : table) CHECK(chi_square_table(t) < chi_square_limit(16));
  CHECK(same / 8000 == Approx(0.5).margin(4 * 0.5 / std::sqrt(8000.0)));
}
