// Hashes of generated data: any change of what a task generates is noticed here. A change that is
// meant replaces the hash and belongs into the change log, since results before and after it do not
// compare.
#include <catch2/catch.hpp>
#include <cstring>

#include "tests/tasks/labelled.h"

using namespace subquad;

namespace {

// FNV-1a, 64 bits, over the bytes of each number, low byte first.
struct Hash {
  std::uint64_t value = 0xcbf29ce484222325ULL;
  void add(std::uint32_t word) {
    for (int i = 0; i < 4; ++i) {
      value ^= word >> (8 * i) & 0xff;
      value *= 0x100000001b3ULL;
    }
  }
  void add(const Tensor& tensor) {
    for (Index i = 0; i < tensor.size(); ++i) {
      std::uint32_t word = 0;
      std::memcpy(&word, tensor.data() + i, 4);
      add(word);
    }
  }
};

std::string hash_of(const QKV& data) {
  Hash hash;
  hash.add(data.q);
  hash.add(data.k);
  hash.add(data.v);
  return fmt::format("{:016x}", hash.value);
}

std::string hash_of(const TokenBatch& batch) {
  Hash hash;
  for (const std::int32_t token : batch.tokens) hash.add(static_cast<std::uint32_t>(token));
  for (const std::int32_t label : batch.labels) hash.add(static_cast<std::uint32_t>(label));
  return fmt::format("{:016x}", hash.value);
}

}  // namespace

TEST_CASE("q, k, v of every task are what they were", "[golden]") {
  struct Case {
    const char* task;
    Settings settings;
    const char* hash;
  };
  const std::string layers = SUBQUAD_SOURCE_DIR "/tests/fixtures/npy/layers";
  for (const Case& c : {
           Case{"gaussian", {}, "4a437ea4d6254c62"},
           Case{"gaussian", {{"temperature", 3.0}, {"correlation", 0.5}}, "080a15f1bfab37bc"},
           Case{"clustered", {}, "963d3de7deb32057"},
           Case{"clustered", {{"query_clusters", Index{3}}, {"spread", 1.0}}, "dbfb8eb906405cf9"},
           Case{"needle", {}, "1f9ab35b69aca06e"},
           Case{"needle",
                {{"placement", std::string("depth")}, {"per_query", Index{2}}},
                "84b28eb952a2ea59"},
           Case{"heavy_hitter", {}, "aa9c0f5d9769d94e"},
           Case{"heavy_hitter", {{"exponent", 1.7}, {"sinks", Index{0}}}, "ffba2735509b7e69"},
           Case{"toeplitz", {}, "53ae15b9854a2ca9"},
           Case{"toeplitz",
                {{"profile", std::string("random")}, {"noise", 0.3}},
                "e443efdaa10b127b"},
           Case{"mqar", {}, "02418ed2a5fb8c3c"},
           Case{"mqar", {{"random_non_queries", false}, {"passes", Index{2}}}, "89d8666aa64bb1dd"},
           Case{"text", {}, "ca2feacd6538035e"},
           Case{"text", {{"unit", std::string("char")}}, "021a7ab5acde2f0d"},
           Case{"npy", {{"dir", layers}}, "94470cb44f217ad3"},
       }) {
    const auto task = make_task(c.task, c.settings);
    Problem p;
    p.batch = 2, p.heads = 3, p.n = 33, p.n_kv = 40, p.d_k = 10, p.d_v = 6, p.causal = true;
    if (std::string(c.task) == "npy") p.n = 4, p.n_kv = 9;
    p = task->adapt(p);
    REQUIRE(task->unsupported(p) == "");
    QKV data(p);
    task->fill(p, 2024, 3, &data);
    INFO(c.task << " " << to_string(c.settings));
    CHECK(hash_of(data) == c.hash);
  }
}

TEST_CASE("tokens of every labelled task are what they were", "[golden]") {
  struct Case {
    const char* task;
    Settings settings;
    const char* train;
    const char* test;
  };
  for (const Case& c : {
           Case{"mqar", {}, "76c327d52432f811", "4583b502ab60e718"},
           Case{"mqar",
                {{"random_non_queries", false}, {"pairs", Index{8}}, {"power_a", 0.5}},
                "cff8db13d87c5175",
                "863a0c0e9410673d"},
           Case{"text", {}, "23a3e87ec0a0d0eb", "0a7ef2192debce03"},
           Case{"text", {{"unit", std::string("char")}}, "b92dc9cf5762bb4f", "aa68118ac4e31b67"},
       }) {
    const auto task = make_task(c.task, c.settings);
    INFO(c.task << " " << to_string(c.settings));
    CHECK(hash_of(task->tokens(Split::train, 5, 20, 64, 2024)) == c.train);
    CHECK(hash_of(task->tokens(Split::test, 5, 20, 64, 2024)) == c.test);
  }
}

TEST_CASE("the shipped text is what it was", "[golden]") {
  const auto batch = make_task("text")->tokens(Split::validation, 0, 100, 70, 1);
  CHECK(hash_of(batch) == "3254a40bc857c23c");
}

TEST_CASE("tokens, labels and q, k, v of the labelled tasks are what they were", "[golden]") {
  struct Case {
    const char* task;
    Settings settings;
    const char* train;
    const char* test;
    const char* qkv;
  };
  for (const Case& c : {
           Case{"byte_retrieval", {}, "2c68d524d5892499", "be78b8e785278a81", "61a732ca5dff71d2"},
           Case{"byte_text", {}, "54ed16f32a95b95c", "48be9fda85115be2", "03faabe71d1f0fd4"},
           Case{"causal_copy", {}, "5e1a2969b7c25925", "978abc6dc2161f1b", "a8f5a11e7ad4cd87"},
           Case{"char_lm", {}, "989ffefd5e35b217", "355a662912660c23", "13ec69e2ce18dabc"},
           Case{"copying", {}, "fec4cdc380e44385", "6bf4e656d30dbc65", "ac2ea5e95d3585b8"},
           Case{"id_text", {}, "327ed7a6c93c6fc9", "4f28394890f936e8", "ecac6ff2ee3210f0"},
           Case{"image_shapes", {}, "d92d781437371bc4", "b69cc89636872fa3", "a7d273f537f0fb2d"},
           Case{"induction", {}, "2fe7eb9e5f4d7189", "44ddc48ca116a12e", "766f625908df9ab6"},
           Case{"listops", {}, "90a982add886d464", "5cd4ce7cb184ae53", "0af47e9c67eb09b8"},
           Case{"mqar_forgetting", {}, "e34609fc63678af1", "092b0ef83929aab8", "b6f5f54e8a80f518"},
           Case{"mqar_fused", {}, "54a328bbddbc1d67", "b8cb3748f553ce13", "68de78003e297a9c"},
           Case{"mqar_stacked", {}, "71a3f32f977c2715", "921ec754aa587ebd", "76bc7e5fab9b8331"},
           Case{"noisy_recall", {}, "9c5480bb2516e2f2", "9314f68713710178", "9ef3aa902d81d4aa"},
           Case{"pathfinder", {}, "9a306f608e956252", "6bda6ae00a188bd8", "06b9e43238988fa4"},
           Case{"pixel_image", {}, "cc29a274e9cdec70", "913cfd55f3bc65a5", "f60cf780b2c685ac"},
           Case{"pixel_lm", {}, "e9160fd3e45e3e4a", "faef9270c52eb9ad", "f6c0caeeed1513b1"},
           Case{"retrieval_match", {}, "ce8f302333ab0276", "8ed02730322a61cc", "77aa6abc93f1804f"},
           Case{
               "selective_copying", {}, "f2787e143dae6545", "5da4e04d769aa945", "e03310571e2610d9"},
           Case{"single_query_recall",
                {},
                "1c2a8546566efd45",
                "5ef5c493a84546cb",
                "b8a623474d21f575"},
           Case{"text_majority", {}, "b824d547bd49484e", "979c3feb9e88976d", "d79d199bf4d37c46"},
           Case{"word_lm", {}, "f5a1947a1ffab6a3", "2721e715b1cde993", "abe494037f95bb83"},
           Case{"listops",
                {{"preset", std::string("mini")}, {"balance", true}},
                "4848018d54b7ece9",
                "e65c3fd6caf634bb",
                "1de8b759535d5427"},
           Case{"image_shapes",
                {{"pair", true}},
                "167286953ca06609",
                "18273a5c54083d7c",
                "0180d3e9d5079328"},
           Case{"text_majority",
                {{"negation", 0.3}},
                "6d9e753a68f36f34",
                "97c2ffc9b5aa21d5",
                "4cbc026a6ea9e867"},
           Case{"pathfinder",
                {{"contour", Index{6}}},
                "3b81eefa059e9dd6",
                "8f44cd9839812588",
                "2c49e888820927a3"},
       }) {
    Settings settings = runnable(c.task);
    settings.insert(c.settings.begin(), c.settings.end());
    const auto task = make_task(c.task, settings);
    const Index n = c.settings.contains("contour") ? 1024
                    : c.settings.empty()           ? token_length(c.task)
                                                   : 256;
    Problem p;
    p.batch = 2, p.heads = 3, p.n = 33, p.n_kv = 40, p.d_k = 10, p.d_v = 6, p.causal = true;
    QKV data(p);
    task->fill(p, 2024, 3, &data);
    INFO(c.task << " " << to_string(c.settings));
    CHECK(hash_of(task->tokens(Split::train, 5, 20, n, 2024)) == c.train);
    CHECK(hash_of(task->tokens(Split::test, 5, 20, n, 2024)) == c.test);
    CHECK(hash_of(data) == c.qkv);
  }
}
