#include "harness/core/params.h"

#include <catch2/catch.hpp>
#include <cmath>

using namespace subquad;

namespace {

struct Params {
  Index window = 128;
  double decay = 0.5;
  bool causal = true;
  std::string order = "first";
  std::string path;
  float eps = 0.25f;
  int blocks = 3;
};

const std::vector<Field<Params>> kFields = {
    param("window", &Params::window, {1, 4096}, "keys"),
    param("decay", &Params::decay, {0, 1}, "per step"),
    param("causal", &Params::causal, "mask"),
    choice("order", &Params::order, {"first", "last"}, "which"),
    param("path", &Params::path, "file"),
    param("eps", &Params::eps, {0}, "floor"),
    param("blocks", &Params::blocks, "count")};

const ParamSpec& spec(const std::string& name) {
  static const std::vector<ParamSpec> specs = specs_of(kFields);
  for (const ParamSpec& s : specs)
    if (s.name == name) return s;
  throw std::runtime_error(name);
}

template <class Call>
std::string message(Call&& call) {
  try {
    call();
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("types and defaults follow from the struct", "[params]") {
  CHECK(spec("window").type == ParamType::integer);
  CHECK(spec("blocks").type == ParamType::integer);
  CHECK(spec("decay").type == ParamType::real);
  CHECK(spec("eps").type == ParamType::real);
  CHECK(spec("causal").type == ParamType::boolean);
  CHECK(spec("order").type == ParamType::choice);
  CHECK(spec("path").type == ParamType::text);
  CHECK(spec("window").default_value == ParamValue(Index{128}));
  CHECK(spec("eps").default_value == ParamValue(0.25));
}

TEST_CASE("settings bind to the struct, missing ones at their default", "[params]") {
  const Settings given{{"window", Index{7}}, {"decay", Index{1}}, {"order", std::string("last")}};
  const Settings resolved = resolve("m", specs_of(kFields), given);
  CHECK(resolved.size() == kFields.size());
  CHECK(std::holds_alternative<double>(resolved.at("decay")));  // an integer where a real is wanted
  const Params params = bind(kFields, resolved);
  CHECK(params.window == 7);
  CHECK(params.decay == 1.0);
  CHECK(params.order == "last");
  CHECK(params.causal);
  CHECK(params.eps == 0.25f);
  CHECK(params.blocks == 3);
}

TEST_CASE("a value of the wrong type or out of range says what is expected", "[params]") {
  CHECK(message([] { spec("window").checked(Index{0}); }) ==
        "window: got \"0\", expected an integer in [1, 4096]");
  CHECK(message([] { spec("window").checked(Index{4097}); }) ==
        "window: got \"4097\", expected an integer in [1, 4096]");
  CHECK(message([] { spec("window").checked(2.0); }) ==
        "window: got \"2\", expected an integer in [1, 4096]");
  CHECK(message([] { spec("window").checked(true); }) ==
        "window: got \"true\", expected an integer in [1, 4096]");
  CHECK(message([] { spec("decay").checked(std::string("x")); }) ==
        "decay: got \"x\", expected a number in [0, 1]");
  CHECK(message([] { spec("decay").checked(1.0000001); }) ==
        "decay: got \"1.0000001\", expected a number in [0, 1]");
  CHECK(message([] { spec("eps").checked(-1.0); }) == "eps: got \"-1\", expected a number >= 0");
  CHECK(message([] { spec("causal").checked(Index{1}); }) ==
        "causal: got \"1\", expected true or false");
  CHECK(message([] { spec("order").checked(std::string("frist")); }) ==
        "order: got \"frist\", expected one of: first, last; did you mean \"first\"?");
  CHECK(message([] { spec("order").checked(std::string("middle")); }) ==
        "order: got \"middle\", expected one of: first, last");
  CHECK(message([] { spec("path").checked(Index{1}); }) == "path: got \"1\", expected a string");
  CHECK(spec("window").checked(Index{1}) == ParamValue(Index{1}));
  CHECK(spec("window").checked(Index{4096}) == ParamValue(Index{4096}));
}

TEST_CASE("numbers that are not finite are refused", "[params]") {
  for (const double x : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    CHECK_THROWS_AS(spec("decay").checked(x), UserError);
    CHECK_THROWS_AS(spec("eps").checked(x), UserError);
  }
  CHECK_THROWS_AS(parse(spec("eps"), "inf"), UserError);
  CHECK_THROWS_AS(parse(spec("eps"), "nan"), UserError);
}

TEST_CASE("an unknown parameter is refused with the nearest name", "[params]") {
  const auto unknown = [](const std::string& name) {
    return message([&] { resolve("m", specs_of(kFields), {{name, Index{1}}}); });
  };
  CHECK(unknown("windwo") ==
        "m: unknown parameter \"windwo\"; did you mean \"window\"?; it has window, decay, causal, "
        "order, path, eps, blocks");
  CHECK(unknown("qqq").find("did you mean") == std::string::npos);
  CHECK(message([] {
          resolve("m", {}, {{"x", Index{1}}});
        }) == "m: unknown parameter \"x\"; it has no parameters");
  CHECK(message([] {
          resolve("m", specs_of(kFields), {{"window", Index{0}}});
        }) == "m.window: got \"0\", expected an integer in [1, 4096]");
}

TEST_CASE("text of the command line is parsed whole, in decimal, without locale", "[params]") {
  CHECK(parse(spec("window"), "12") == ParamValue(Index{12}));
  CHECK(parse(spec("decay"), "1e-3") == ParamValue(1e-3));
  CHECK(parse(spec("decay"), "1") == ParamValue(1.0));
  CHECK(parse(spec("causal"), "false") == ParamValue(false));
  CHECK(parse(spec("path"), "12") == ParamValue(std::string("12")));
  CHECK(parse(spec("window"), "012") == ParamValue(Index{12}));
  for (const char* text : {"", " 12", "12 ", "0x10", "1e3", "12.0", "99999999999999999999", "+1"}) {
    INFO(text);
    CHECK_THROWS_AS(parse(spec("window"), text), UserError);
  }
  for (const char* text : {"", "0,5", "0.5x", "--1", "1e-400000"}) {
    INFO(text);
    CHECK_THROWS_AS(parse(spec("decay"), text), UserError);
  }
  for (const char* text : {"yes", "1", "True", ""}) {
    INFO(text);
    CHECK_THROWS_AS(parse(spec("causal"), text), UserError);
  }
}

TEST_CASE("the text of a value reads back as the same value", "[params]") {
  ParamSpec real = spec("eps");
  real.min = -HUGE_VAL;
  for (const double x : {0.1, 1.0 / 3, 1e-300, 1e22, -0.0, 123456789.123, 5e-324, 1.0})
    CHECK(std::get<double>(parse(real, to_string(ParamValue(x)))) == x);
  CHECK(to_string(ParamValue(0.1)) == "0.1");
  CHECK(to_string(ParamValue(true)) == "true");
  CHECK(to_string(ParamValue(Index{-3})) == "-3");
  CHECK(to_string(Settings{{"b", 0.5}, {"a", Index{1}}}) == "a=1;b=0.5");
}

TEST_CASE("the nearest name allows for typing errors and no more", "[params]") {
  const std::vector<std::string> known = {"gaussian", "clustered", "needle", "mqar", "text"};
  CHECK(nearest_name("gausian", known) == "gaussian");
  CHECK(nearest_name("guassian", known) == "gaussian");
  CHECK(nearest_name("need", known) == "needle");
  CHECK(nearest_name("mqra", known) == "mqar");
  CHECK(nearest_name("xyzzy", known) == "");
  CHECK(nearest_name("", known) == "");
  CHECK(nearest_name(std::string(1000, 'g'), known) == "");
}
