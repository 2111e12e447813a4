// Methods and tasks that exist for the tests of configs alone: every type of parameter, a task that
// fixes the length, and one that refuses to be made.
#include "harness/core/registry.h"

namespace subquad {
namespace {

class Nothing : public Method {
 public:
  void prepare(const Problem&, const Env&) override {}
  void forward(const Inputs&, TensorView, Saved*) override {}
};

const RegisterMethod<Nothing> kPlain{{
    .name = "fixture_plain",
    .family = "fixture",
    .source = "",
    .summary = "a method without parameters",
}};

struct WindowParams {
  Index window = 64;
  int sinks = 0;
  double ratio = 0.5;
  bool exact = false;
  std::string mode = "fast";
  std::string note = "none";
};

class Window final : public Nothing {
 public:
  explicit Window(const WindowParams&) {}
};

const RegisterMethod<Window, WindowParams> kWindow{
    {
        .name = "fixture_window",
        .family = "fixture",
        .source = "",
        .summary = "a method with a parameter of every type",
    },
    {param("window", &WindowParams::window, {1, 4096}, "keys that a query sees"),
     param("sinks", &WindowParams::sinks, {0, 64}, "first keys that every query sees"),
     param("ratio", &WindowParams::ratio, {0, 1}, "a real"),
     param("exact", &WindowParams::exact, "a boolean"),
     choice("mode", &WindowParams::mode, {"fast", "slow", "careful"}, "a choice"),
     param("note", &WindowParams::note, "a text")}};

struct LabelParams {
  Index label = 1;
};

class Labelled final : public Nothing {
 public:
  explicit Labelled(const LabelParams&) {}
};

const RegisterMethod<Labelled, LabelParams> kLabelled{
    {
        .name = "fixture_reserved",
        .family = "fixture",
        .source = "",
        .summary = "a method whose parameter has the name of a key",
    },
    {param("label", &LabelParams::label, "collides")}};

struct DataParams {
  Index needles = 1;
  double temperature = 1;
};

class Data final : public Task {
 public:
  explicit Data(const DataParams&) {}
  void fill(const Problem&, Seed, Index, QKV*) const override {}
};

const RegisterTask<Data, DataParams> kData{
    {.name = "fixture_data", .source = "", .summary = "data of any size"},
    {param("needles", &DataParams::needles, {1, 100}, "an integer"),
     param("temperature", &DataParams::temperature, {0.01, 100}, "a real")}};

struct FixedParams {
  Index length = 100;
  std::string path = "";
};

// Captured data: length and widths are those of the file, whatever is asked for.
class Fixed final : public Task {
 public:
  explicit Fixed(const FixedParams& params) : params_(params) {
    if (params.path == "missing.npy") throw UserError("missing.npy: no such file");
  }
  Problem adapt(const Problem& requested) const override {
    Problem problem = requested;
    problem.n = problem.n_kv = params_.length;
    problem.d_k = problem.d_v = 32;
    return problem;
  }
  void fill(const Problem&, Seed, Index, QKV*) const override {}

 private:
  FixedParams params_;
};

const RegisterTask<Fixed, FixedParams> kFixed{
    {.name = "fixture_fixed", .source = "", .summary = "data of one length"},
    {param("length", &FixedParams::length, "its length"),
     param("path", &FixedParams::path, "its file")}};

}  // namespace
}  // namespace subquad
