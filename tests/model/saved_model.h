// A few steps of a small model on a registered task, with its checkpoint in a folder of its own.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>

#include "harness/core/registry.h"
#include "harness/model/trainer.h"

namespace subquad {

class SavedModel {
 public:
  SavedModel(const std::string& task, const Settings& task_settings, const Settings& options,
             Index n, const std::string& method = "dense") {
    std::filesystem::remove_all(folder_);
    TrainSetup& s = setup_;
    s.task_name = task;
    s.task_settings = resolve(task, Registry::instance().task(task).params, task_settings);
    task_ = make_task(task, s.task_settings);
    s.task = task_.get();
    Settings given = options;
    for (const auto& [key, value] : Settings{{"layers", Index{2}},
                                             {"steps", Index{3}},
                                             {"warmup", Index{1}},
                                             {"eval_every", Index{3}},
                                             {"eval_examples", Index{4}},
                                             {"init_std", 0.3}})
      given.emplace(key, value);
    s.train = resolve("train", specs_of(train_fields()), given);
    s.options = subquad::bind(train_fields(), s.train);
    for (Index i = 0; i < s.options.layers; ++i)
      s.methods.push_back(
          {method, resolve(method, Registry::instance().method(method).params, {})});
    s.problem = {.batch = 4, .heads = 2, .n = n, .n_kv = n, .d_k = 8, .d_v = 6, .causal = true};
    s.seed = 3;
    s.identity = "saved";
    train(s, {folder_.string(), false}, {});
  }
  ~SavedModel() { std::filesystem::remove_all(folder_); }
  SavedModel(const SavedModel&) = delete;
  SavedModel& operator=(const SavedModel&) = delete;
  std::string path() const { return folder_.string(); }
  const Task& task() const { return *task_; }
  const TrainSetup& setup() const { return setup_; }

 private:
  std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / fmt::format("subquad_saved_{}", getpid());
  std::unique_ptr<Task> task_;
  TrainSetup setup_;
};

}  // namespace subquad
