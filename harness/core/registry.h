// The registries: the only global state. A method or task registers itself as the last statement
// of its file:
//
//   const RegisterMethod<Linear, Params> kRegistration{
//       {.name = "linear", .family = "linear", ...},
//       {param("eps", &Params::eps, {0, 1e-2}, "added to the normalizer")}};
//
// Order of registration across files is unspecified; everything that lists names gets them sorted.
#pragma once

#include <deque>
#include <source_location>
#include <string>
#include <vector>

#include "harness/core/method.h"
#include "harness/core/task.h"

namespace subquad {

class Registry {
 public:
  static Registry& instance();

  void add(MethodEntry entry);
  void add(TaskEntry entry);

  const MethodEntry* find_method(const std::string& name) const;  // null when unknown
  const TaskEntry* find_task(const std::string& name) const;
  // As find, but UserError with the nearest name when unknown.
  const MethodEntry& method(const std::string& name) const;
  const TaskEntry& task(const std::string& name) const;
  std::vector<const MethodEntry*> methods() const;  // sorted by name
  std::vector<const TaskEntry*> tasks() const;

  // Throws UserError that names both files if a name was registered twice or is malformed. Called
  // at start and after a plugin was loaded (registration itself runs before main).
  void check() const;

 private:
  std::deque<MethodEntry> methods_;  // deques: pointers to entries stay valid while plugins load
  std::deque<TaskEntry> tasks_;
  std::vector<std::string> problems_;
};

template <class M, class P = NoParams>
struct RegisterMethod {
  explicit RegisterMethod(MethodInfo info, std::vector<Field<P>> fields = {},
                          std::source_location where = std::source_location::current()) {
    Registry::instance().add(
        MethodEntry{std::move(info), specs_of(fields),
                    [fields](const Settings& settings) -> std::unique_ptr<Method> {
                      if constexpr (std::is_same_v<P, NoParams>) {
                        return std::make_unique<M>();
                      } else {
                        return std::make_unique<M>(bind(fields, settings));
                      }
                    },
                    where.file_name()});
  }
};

template <class T, class P = NoParams>
struct RegisterTask {
  explicit RegisterTask(TaskInfo info, std::vector<Field<P>> fields = {},
                        std::source_location where = std::source_location::current()) {
    Registry::instance().add(TaskEntry{std::move(info), specs_of(fields),
                                       [fields](const Settings& settings) -> std::unique_ptr<Task> {
                                         if constexpr (std::is_same_v<P, NoParams>) {
                                           return std::make_unique<T>();
                                         } else {
                                           return std::make_unique<T>(bind(fields, settings));
                                         }
                                       },
                                       where.file_name()});
  }
};

// A method or task by name with these settings (missing ones at their default).
std::unique_ptr<Method> make_method(const std::string& name, const Settings& settings = {});
std::unique_ptr<Task> make_task(const std::string& name, const Settings& settings = {});

}  // namespace subquad
