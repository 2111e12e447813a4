// Hashes of generated data: any change of what a task generates is noticed here. A change that is
// meant replaces the hash and belongs into the change log, since results before and after it do not
// compare.
#include <catch2/catch.hpp>
#include <cstring>

#include "tests/tasks/attention.h"

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
