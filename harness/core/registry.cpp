#include "harness/core/registry.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "harness/core/capture.h"

namespace subquad {
namespace {

bool valid_name(const std::string& name) {
  if (name.empty() || name.size() > 64 || name[0] < 'a' || name[0] > 'z') return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
  });
}

template <class Entry>
const Entry* find(const std::deque<Entry>& entries, const std::string& name) {
  const auto found = std::find_if(entries.begin(), entries.end(),
                                  [&](const Entry& e) { return e.info.name == name; });
  return found == entries.end() ? nullptr : &*found;
}

template <class Entry>
std::vector<const Entry*> sorted(const std::deque<Entry>& entries) {
  std::vector<const Entry*> list;
  for (const Entry& entry : entries) list.push_back(&entry);
  std::sort(list.begin(), list.end(),
            [](const Entry* a, const Entry* b) { return a->info.name < b->info.name; });
  return list;
}

template <class Entry>
const Entry& lookup(const std::deque<Entry>& entries, const std::string& name, const char* what) {
  if (const Entry* entry = find(entries, name)) return *entry;
  std::vector<std::string> known;
  for (const Entry* entry : sorted(entries)) known.push_back(entry->info.name);
  const std::string near = nearest_name(name, known);
  throw UserError(fmt::format("unknown {} \"{}\"{}; known: {}", what, name,
                              near.empty() ? "" : fmt::format("; did you mean \"{}\"?", near),
                              fmt::join(known, ", ")));
}

// A source file of this project by its path within it; what lies before is the place of the build.
std::string within_project(const std::string& file) {
  constexpr std::string_view kThis = "harness/core/registry.cpp", kHere = __FILE__;
  static_assert(kHere.ends_with(kThis));
  const std::string_view root = kHere.substr(0, kHere.size() - kThis.size());
  return file.starts_with(root) ? file.substr(root.size()) : file;
}

template <class Entry>
void insert(std::deque<Entry>& entries, Entry entry, const char* what,
            std::vector<std::string>& problems) {
  const std::string& name = entry.info.name;
  entry.file = within_project(entry.file);
  if (!valid_name(name))
    problems.push_back(fmt::format("{}: {} name \"{}\" is not [a-z][a-z0-9_]* of at most 64",
                                   entry.file, what, name));
  for (const ParamSpec& spec : entry.params)
    if (!valid_name(spec.name))
      problems.push_back(fmt::format("{}: {} {}: parameter name \"{}\" is not [a-z][a-z0-9_]*",
                                     entry.file, what, name, spec.name));
  if (const Entry* other = find(entries, name)) {
    problems.push_back(fmt::format("{} \"{}\" is registered twice: in {} and in {}", what, name,
                                   other->file, entry.file));
    return;
  }
  entries.push_back(std::move(entry));
}

}  // namespace

Registry& Registry::instance() {
  static Registry registry;
  return registry;
}

void Registry::add(MethodEntry entry) { insert(methods_, std::move(entry), "method", problems_); }
void Registry::add(TaskEntry entry) {
  accept_capture(&entry);
  insert(tasks_, std::move(entry), "task", problems_);
}

const MethodEntry* Registry::find_method(const std::string& name) const {
  return find(methods_, name);
}
const TaskEntry* Registry::find_task(const std::string& name) const { return find(tasks_, name); }
const MethodEntry& Registry::method(const std::string& name) const {
  return lookup(methods_, name, "method");
}
const TaskEntry& Registry::task(const std::string& name) const {
  return lookup(tasks_, name, "task");
}
std::vector<const MethodEntry*> Registry::methods() const { return sorted(methods_); }
std::vector<const TaskEntry*> Registry::tasks() const { return sorted(tasks_); }

void Registry::check() const {
  if (!problems_.empty()) throw UserError(fmt::format("{}", fmt::join(problems_, "; ")));
}

std::unique_ptr<Method> make_method(const std::string& name, const Settings& settings) {
  const MethodEntry& entry = Registry::instance().method(name);
  return entry.create(resolve(name, entry.params, settings));
}

std::unique_ptr<Task> make_task(const std::string& name, const Settings& settings) {
  const TaskEntry& entry = Registry::instance().task(name);
  return entry.create(resolve(name, entry.params, settings));
}

}  // namespace subquad
