// What holds for every task.
#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>

#include "harness/core/parallel.h"
#include "tests/tasks/labelled.h"

using namespace subquad;

namespace {

bool same(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() &&
         std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(float)) == 0;
}
bool same(const QKV& a, const QKV& b) { return same(a.q, b.q) && same(a.k, b.k) && same(a.v, b.v); }

QKV filled(const Task& task, const Problem& p, Seed seed, Index set) {
  QKV data(p);
  for (Tensor* t : {&data.q, &data.k, &data.v}) t->fill(std::nanf(""));
  task.fill(p, seed, set, &data);
  return data;
}

Problem ragged(bool causal) {
  Problem p;
  p.batch = 2, p.heads = 3, p.n = 37, p.n_kv = 37, p.d_k = 10, p.d_v = 7, p.causal = causal;
  return p;
}

}  // namespace

TEST_CASE("every task file registers one task of its name", "[tasks]") {
  CHECK_NOTHROW(Registry::instance().check());
  std::set<std::string> files, names;
  for (const auto& entry : std::filesystem::directory_iterator(SUBQUAD_SOURCE_DIR "/tasks"))
    if (entry.path().extension() == ".cpp") files.insert(entry.path().stem().string());
  for (const TaskEntry* entry : Registry::instance().tasks())
    if (("/" + entry->file).find("/tasks/") != std::string::npos) names.insert(entry->info.name);
  CHECK(files == names);
}

TEST_CASE("every task says what it is and what its parameters mean", "[tasks]") {
  for (const TaskEntry* entry : Registry::instance().tasks()) {
    INFO(entry->info.name);
    CHECK(!entry->info.summary.empty());
    for (const ParamSpec& spec : entry->params) {
      INFO(spec.name);
      CHECK(spec.help.size() > 5);
      CHECK(spec.help.find('\n') == std::string::npos);
      CHECK_NOTHROW(spec.checked(spec.default_value));
    }
  }
}

TEST_CASE("data are finite, fill every entry, and do not depend on threads or on what was there",
          "[tasks]") {
  const int before = thread_count();
  for (const TaskEntry* entry : Registry::instance().tasks())
    for (const bool causal : {false, true}) {
      INFO(entry->info.name << " causal=" << causal);
      const auto task = make_task(entry->info.name, runnable(entry->info.name));
      Problem p = ragged(causal);
      if (entry->info.name == "npy") p.n = p.n_kv = 9;
      p = task->adapt(p);
      REQUIRE(task->unsupported(p) == "");
      omp_set_num_threads(1);
      const QKV one = filled(*task, p, 5, 2);
      omp_set_num_threads(3);
      const QKV three = filled(*task, p, 5, 2);
      CHECK(same(one, three));
      for (const Tensor* t : {&one.q, &one.k, &one.v})
        CHECK(std::all_of(t->data(), t->data() + t->size(),
                          [](float x) { return std::isfinite(x); }));
      CHECK(!same(one, filled(*task, p, 5, 3)));
      if (entry->info.name != "npy") CHECK(!same(one, filled(*task, p, 6, 2)));
    }
  omp_set_num_threads(before);
}

TEST_CASE("batch elements and heads hold different data", "[tasks]") {
  for (const TaskEntry* entry : Registry::instance().tasks()) {
    INFO(entry->info.name);
    const auto task = make_task(entry->info.name, runnable(entry->info.name));
    Problem p = ragged(false);
    if (entry->info.name == "npy") p.n = p.n_kv = 9;
    p = task->adapt(p);
    const QKV data = filled(*task, p, 5, 0);
    for (const Tensor* t : {&data.k, &data.v}) {
      CHECK(t->head(0, 0) != t->head(0, 1));
      CHECK(t->head(0, 0) != t->head(1, 0));
    }
  }
}

TEST_CASE("every size is filled or refused with a reason", "[tasks]") {
  for (const TaskEntry* entry : Registry::instance().tasks()) {
    const auto task = make_task(entry->info.name, runnable(entry->info.name));
    for (const Index n : {1, 2, 3, 4, 17, 300})
      for (const Index n_kv : {1, 2, 3, 4, 17, 300})
        for (const Index d : {1, 2, 5, 16})
          for (const bool causal : {false, true}) {
            Problem p;
            p.n = n, p.n_kv = n_kv, p.d_k = d, p.d_v = d == 16 ? 3 : d + 1, p.causal = causal;
            p.scale = d == 5 ? -0.3 : 0;
            p = task->adapt(p);
            if (!invalid_reason(p).empty() || !task->unsupported(p).empty()) continue;
            INFO(entry->info.name << " " << p.str());
            const QKV data = filled(*task, p, 3, 1);
            for (const Tensor* t : {&data.q, &data.k, &data.v}) {
              const bool finite = std::all_of(t->data(), t->data() + t->size(),
                                              [](float x) { return std::isfinite(x); });
              if (!finite) FAIL_CHECK("not every entry was filled");
            }
          }
  }
  SUCCEED();
}

TEST_CASE("tasks without labels refuse tokens", "[tasks]") {
  for (const TaskEntry* entry : Registry::instance().tasks()) {
    INFO(entry->info.name);
    const auto task = make_task(entry->info.name, runnable(entry->info.name));
    if (entry->info.labelled) {
      const Index n = token_length(entry->info.name);
      const LabelSpec spec = task->labels(n);
      CHECK(spec.classes > 0);
      const TokenBatch batch = task->tokens(Split::train, 0, 3, n, 1);
      CHECK(batch.batch == 3);
      CHECK(batch.n == n);
      CHECK(batch.inputs == spec.inputs);
      CHECK(batch.tokens_per_position == spec.tokens_per_position);
      CHECK(batch.tokens.size() ==
            static_cast<std::size_t>(3 * n * spec.inputs * spec.tokens_per_position));
      CHECK(batch.labels.size() ==
            static_cast<std::size_t>(spec.kind == LabelKind::per_token ? 3 * n : 3));
      for (const std::int32_t token : batch.tokens)
        if (!(token >= 0 && token < spec.vocabulary)) FAIL_CHECK("token " << token);
      Index scored = 0;
      for (const std::int32_t label : batch.labels) {
        scored += label != kIgnore;
        if (!(label == kIgnore || (label >= 0 && label < spec.classes)))
          FAIL_CHECK("label " << label);
      }
      CHECK(scored >= 3);
      CHECK((batch.lengths.empty() ||
             batch.lengths.size() == static_cast<std::size_t>(3 * spec.inputs)));
      for (const std::int32_t length : batch.lengths)
        if (!(length >= 1 && length <= n)) FAIL_CHECK("length " << length);
      CHECK(!task->floors(n, 1).empty());
      for (const Floor& floor : task->floors(n, 1)) {
        INFO(floor.name << " " << floor.value);
        CHECK((floor.metric == "accuracy" || floor.metric == "bits_per_token"));
        CHECK(floor.value >= 0);
        CHECK(floor.value <= (floor.metric == "accuracy" ? 1 : 32));
      }
    } else {
      CHECK_THROWS_AS(task->labels(64), Unsupported);
      CHECK_THROWS_AS(task->tokens(Split::train, 0, 1, 64, 1), Unsupported);
    }
  }
}

TEST_CASE("examples are the same in any order of calls, and splits differ", "[tasks]") {
  for (const TaskEntry* entry : Registry::instance().tasks()) {
    if (!entry->info.labelled) continue;
    INFO(entry->info.name);
    const auto task = make_task(entry->info.name, runnable(entry->info.name));
    const Index n = token_length(entry->info.name);
    const auto get = [&](Split split, Index first, Index count, Seed seed) {
      return task->tokens(split, first, count, n, seed);
    };
    const int before = thread_count();
    for (const Split split : {Split::train, Split::validation, Split::test}) {
      omp_set_num_threads(3);
      const TokenBatch all = get(split, 10, 6, 9);
      omp_set_num_threads(1);
      const auto row = static_cast<Index>(all.tokens.size()) / 6;
      const auto labels = static_cast<Index>(all.labels.size()) / 6;
      for (Index e = 5; e >= 0; --e) {
        const TokenBatch one = get(split, 10 + e, 1, 9);
        CHECK(std::equal(one.tokens.begin(), one.tokens.end(), all.tokens.begin() + e * row));
        CHECK(std::equal(one.labels.begin(), one.labels.end(), all.labels.begin() + e * labels));
      }
    }
    omp_set_num_threads(before);
    const auto tokens = get(Split::train, 0, 4, 9).tokens;
    CHECK(tokens != get(Split::test, 0, 4, 9).tokens);
    CHECK(tokens != get(Split::train, 0, 4, 10).tokens);
    CHECK(tokens != get(Split::train, 4, 4, 9).tokens);
  }
}
