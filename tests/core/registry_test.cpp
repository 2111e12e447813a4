#include "harness/core/registry.h"

#include <catch2/catch.hpp>

using namespace subquad;

namespace {

struct NoTask final : Task {
  void fill(const Problem&, Seed, Index, QKV*) const override {}
};

TaskEntry entry(const std::string& name, const std::string& file) {
  TaskEntry e;
  e.info.name = name;
  e.info.source = "";
  e.info.summary = "";
  e.create = [](const Settings&) { return std::make_unique<NoTask>(); };
  e.file = file;
  return e;
}

std::string complaint(const Registry& registry) {
  try {
    registry.check();
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("names are listed sorted, whatever the order of registration", "[registry]") {
  Registry registry;
  for (const char* name : {"needle", "clustered", "mqar"}) registry.add(entry(name, "f.cpp"));
  REQUIRE(registry.tasks().size() == 3);
  CHECK(registry.tasks()[0]->info.name == "clustered");
  CHECK(registry.tasks()[1]->info.name == "mqar");
  CHECK(registry.tasks()[2]->info.name == "needle");
  CHECK(complaint(registry) == "");
}

TEST_CASE("a name that is registered twice is reported with both files", "[registry]") {
  Registry registry;
  registry.add(entry("needle", "tasks/needle.cpp"));
  registry.add(entry("needle", "tasks/pin.cpp"));
  CHECK(complaint(registry) ==
        "task \"needle\" is registered twice: in tasks/needle.cpp and in tasks/pin.cpp");
  CHECK(registry.task("needle").file == "tasks/needle.cpp");  // the first one stays

  MethodEntry method;
  method.info.name = "needle";  // methods and tasks are named apart
  method.file = "methods/x.cpp";
  registry.add(method);
  method.file = "methods/y.cpp";
  registry.add(method);
  CHECK(complaint(registry).find("method \"needle\" is registered twice: in methods/x.cpp and in "
                                 "methods/y.cpp") != std::string::npos);
}

TEST_CASE("malformed names are reported with their file", "[registry]") {
  for (const std::string& name :
       {std::string(), std::string("Needle"), std::string("2d"), std::string("a-b"),
        std::string("a b"), std::string("../x"), std::string("_a"), std::string(65, 'a'),
        std::string("a\0b", 3), std::string("na\xc3\xafve")}) {
    Registry registry;
    registry.add(entry(name, "tasks/odd.cpp"));
    INFO(name);
    CHECK(complaint(registry).starts_with("tasks/odd.cpp: task name \""));
  }
  Registry good;
  good.add(entry("a2_b", "f.cpp"));
  good.add(entry(std::string(64, 'a'), "f.cpp"));
  CHECK(complaint(good) == "");

  Registry bad_param;
  TaskEntry with_param = entry("fine", "tasks/fine.cpp");
  with_param.params.push_back(ParamSpec{.name = "Top-K", .help = ""});
  bad_param.add(with_param);
  CHECK(complaint(bad_param) ==
        "tasks/fine.cpp: task fine: parameter name \"Top-K\" is not [a-z][a-z0-9_]*");
}

TEST_CASE("all complaints are reported at once", "[registry]") {
  Registry registry;
  registry.add(entry("A", "a.cpp"));
  registry.add(entry("B", "b.cpp"));
  CHECK(complaint(registry).find("a.cpp") != std::string::npos);
  CHECK(complaint(registry).find("b.cpp") != std::string::npos);
}

TEST_CASE("pointers to entries stay valid while more are registered", "[registry]") {
  Registry registry;
  registry.add(entry("first", "f.cpp"));
  const TaskEntry* first = registry.find_task("first");
  for (int i = 0; i < 1000; ++i) registry.add(entry(fmt::format("task{}", i), "f.cpp"));
  CHECK(registry.find_task("first") == first);
  CHECK(first->info.name == "first");
}

TEST_CASE("an unknown name is refused with the nearest one", "[registry]") {
  Registry registry;
  registry.add(entry("needle", "f.cpp"));
  registry.add(entry("mqar", "f.cpp"));
  CHECK(registry.find_task("nothing") == nullptr);
  CHECK_THROWS_WITH(registry.task("neddle"),
                    "unknown task \"neddle\"; did you mean \"needle\"?; known: mqar, needle");
  CHECK_THROWS_WITH(registry.task("zzzzzz"), "unknown task \"zzzzzz\"; known: mqar, needle");
  CHECK_THROWS_AS(registry.method("dense"), UserError);
}

TEST_CASE("a method or task is made by name with its settings checked", "[registry]") {
  CHECK(make_task("gaussian") != nullptr);
  CHECK(make_task("gaussian", {{"temperature", Index{2}}}) != nullptr);
  CHECK_THROWS_WITH(make_task("gaussian", {{"temprature", 2.0}}),
                    Catch::Contains("did you mean \"temperature\"?"));
  CHECK_THROWS_WITH(make_task("gaussian", {{"correlation", 1.0}}),
                    Catch::Contains("gaussian.correlation: got \"1\""));
}

TEST_CASE("everything that is compiled in is registered once under a good name", "[registry]") {
  CHECK(complaint(Registry::instance()) == "");
  CHECK(!Registry::instance().methods().empty());
  CHECK(!Registry::instance().tasks().empty());
}
