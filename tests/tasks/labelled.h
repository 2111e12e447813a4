// Labelled tasks in tests: settings with which each runs, a length that it takes, its examples.
#pragma once

#include <filesystem>
#include <set>

#include "tests/tasks/attention.h"

namespace subquad {

// Settings with which a task runs on its own: those that read files have no default.
inline Settings runnable(const std::string& task) {
  const std::string fixtures = SUBQUAD_SOURCE_DIR "/tests/fixtures/";
  if (task == "npy") return {{"dir", fixtures + "npy/layers"}};
  if (task == "byte_text") return {{"path", fixtures + "labelled/reviews.csv"}};
  if (task == "byte_retrieval") return {{"path", fixtures + "labelled/pairs.tsv"}};
  if (task == "id_text") return {{"path", fixtures + "labelled/ids"}};
  if (task == "pixel_image")
    return {{"path", fixtures + "pathfinder/len14-images-idx3-ubyte"},
            {"labels", fixtures + "pathfinder/len14-labels-idx1-ubyte"}};
  return {};
}

// A short sequence length that the task's tokens take.
inline Index token_length(const std::string& task) {
  return task == "pathfinder" ? 256 : task == "pixel_image" ? 1024 : 64;
}

struct ExampleView {
  const std::int32_t* x;  // [inputs, n, tokens_per_position]
  const std::int32_t* y;  // [n] or [1]
};
inline ExampleView example(const TokenBatch& batch, Index e) {
  const auto labels = static_cast<Index>(batch.labels.size()) / batch.batch;
  return {batch.tokens.data() + e * batch.inputs * batch.n * batch.tokens_per_position,
          batch.labels.data() + e * labels};
}

// What tokens() refuses, or "".
inline std::string refused(const std::string& task, const Settings& settings, Index n) {
  try {
    make_task(task, settings)->tokens(Split::train, 0, 1, n, 1);
    return "";
  } catch (const Unsupported& error) {
    return error.what();
  }
}
// What making the task refuses, or "".
inline std::string not_made(const std::string& task, const Settings& settings) {
  try {
    make_task(task, settings);
    return "";
  } catch (const UserError& error) {
    return error.what();
  }
}

// Distinct examples among the first `count` of every split.
inline std::size_t distinct_examples(const Task& task, Index count, Index n, Seed seed) {
  std::set<std::vector<std::int32_t>> seen;
  for (const Split split : {Split::train, Split::validation, Split::test}) {
    const TokenBatch batch = task.tokens(split, 0, count, n, seed);
    const auto size = static_cast<Index>(batch.tokens.size()) / count;
    for (Index e = 0; e < count; ++e) seen.emplace(example(batch, e).x, example(batch, e).x + size);
  }
  return seen.size();
}

}  // namespace subquad
