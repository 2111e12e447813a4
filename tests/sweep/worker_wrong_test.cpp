// The life of a cell, with methods that do each thing wrong that a method can do.
#include <atomic>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <thread>

#include "harness/core/registry.h"
#include "harness/measure/alloc_counter.h"
#include "harness/measure/checksum.h"
#include "tests/sweep/worker_fixture.h"

using namespace subquad;
using namespace subquad::fixture;

TEST_CASE("NaN, infinity and untouched outputs are wrong", "[worker]") {
  CHECK_WRONG(wrong_method("nan_last",
                           [](Honest& m, const Inputs& in, TensorView out, int) {
                             honestly(m, in, out);
                             out.data()[out.size() - 1] = std::nanf("");
                           }),
              "out has NaN or infinity in 1 of 1024 elements, first at [0, 1, 63, 7]");
  CHECK_WRONG(wrong_method("infinite",
                           [](Honest& m, const Inputs& in, TensorView out, int) {
                             honestly(m, in, out);
                             out.data()[0] = std::numeric_limits<float>::infinity();
                           }),
              "first at [0, 0, 0, 0]");
  CHECK_WRONG(wrong_method("untouched", [](Honest&, const Inputs&, TensorView, int) {}),
              "out left untouched: 1024 of 1024");
  CHECK_WRONG(wrong_method("last_row_untouched",
                           [](Honest& m, const Inputs& in, TensorView out, int) {
                             Tensor own(out.shape());
                             honestly(m, in, own);
                             std::copy_n(own.data(), out.size() - out.d(), out.data());
                           }),
              "out left untouched: 8 of 1024");
  CHECK_WRONG(wrong_method("adds",
                           [](Honest& m, const Inputs& in, TensorView out, int) {
                             Tensor own(out.shape());
                             honestly(m, in, own);
                             for (Index i = 0; i < out.size(); ++i) out.data()[i] += own.data()[i];
                           }),
              "left untouched");
}

TEST_CASE("an exact method beyond its tolerance is wrong, another only has its error", "[worker]") {
  const Misdeed zeros = [](Honest&, const Inputs&, TensorView out, int) {
    std::fill_n(out.data(), out.size(), 0.f);
  };
  CHECK_WRONG(wrong_method("zeros", zeros), "relative error of the output");
  const JobResult r = run_method(wrong_method("zeros_approximate", zeros, [](MethodInfo& info) {
    info.exact = false;
    info.linear_in_v = false;  // so that no matrix has to give this output
  }));
  REQUIRE(measured(r));
  CHECK(number(r, "rel_error") == 1);
  CHECK(number(r, "cosine") == 0);

  // At its declared exact limit an approximation must be exact too.
  const auto at_limit = [](MethodInfo& info) {
    info.exact = false;
    info.exact_limit = [](const Problem&) { return Settings{}; };
  };
  CHECK_WRONG(wrong_method("zeros_at_limit", zeros, at_limit), "a method at its exact limit");
}

TEST_CASE("an output that is not the shown matrix times v is wrong", "[worker]") {
  const auto not_exact = [](MethodInfo& info) { info.exact = false; };
  const char* const kWords = "differs from the product of the method's own attention matrix and v";
  CHECK_WRONG(wrong_method(
                  "unnormalised",
                  [](Honest& m, const Inputs& in, TensorView out, int) {
                    honestly(m, in, out);
                    for (Index i = 0; i < out.size(); ++i) out.data()[i] *= 1.01f;
                  },
                  not_exact),
              kWords);
  // Each row is that of the token before: a mask that is off by one.
  CHECK_WRONG(wrong_method(
                  "row_before",
                  [](Honest& m, const Inputs& in, TensorView out, int) {
                    honestly(m, in, out);
                    const Index d = in.v.head(0, 0).cols();
                    for (Index i = out.size() / d - 1; i > 0; --i)
                      std::copy_n(out.data() + (i - 1) * d, d, out.data() + i * d);
                  },
                  not_exact),
              kWords);
  // Rounding is no fault.
  CHECK(measured(run_method(wrong_method(
      "rounds",
      [](Honest& m, const Inputs& in, TensorView out, int) {
        honestly(m, in, out);
        for (Index i = 0; i < out.size(); ++i) out.data()[i] *= 1.001f;
      },
      not_exact))));
}

TEST_CASE("the output is compared where timed calls left the first set out", "[worker]") {
  for (const Pass pass : {Pass::forward, Pass::forward_backward}) {
    Job job = job_for("fixture_honest", pass);
    job.cell.measure.input_sets = 5;
    job.cell.measure.min_time_s = 1e-6;  // a call a repetition: the last one is of set 1
    job.cell.measure.repetitions = 2;
    const JobResult r = run_job(job);
    CAPTURE(r.reason);
    REQUIRE(measured(r));
    CHECK(number(r, "matrix_error") < 1e-5);
  }
}

TEST_CASE("right only at the first call is wrong", "[worker]") {
  CHECK_WRONG(wrong_method("first_only",
                           [](Honest& m, const Inputs& in, TensorView out, int calls) {
                             honestly(m, in, out);
                             if (calls > 4) out.data()[5] *= 1.5f;
                           }),
              "differs from the checked call");
  CHECK_WRONG(wrong_method("lazy_later",
                           [](Honest& m, const Inputs& in, TensorView out, int calls) {
                             if (calls < 5) honestly(m, in, out);
                           }),
              "in a timed call: out left untouched");
}

TEST_CASE("other bits on the same input are noted", "[worker]") {
  const JobResult r = run_method(
      wrong_method("jitters", [](Honest& m, const Inputs& in, TensorView out, int calls) {
        honestly(m, in, out);
        if (calls > 4) out.data()[5] *= 1 + 2e-7f;
      }));
  CAPTURE(r.reason);
  REQUIRE(measured(r));
  CHECK(has_flag(r, "not_reproducible"));
}

TEST_CASE("answers remembered by pointer or by content are wrong", "[worker]") {
  using Memory = std::map<std::uint64_t, Tensor>;
  const auto remembers = [](auto key_of) {
    return [key_of, memory = std::make_shared<Memory>()](Honest& m, const Inputs& in,
                                                         TensorView out, int calls) {
      if (calls == 0) memory->clear();
      const std::uint64_t key = key_of(in);
      if (!memory->contains(key)) {
        Tensor fresh(out.shape());
        honestly(m, in, fresh);
        memory->emplace(key, fresh);
      }
      const Tensor& known = memory->at(key);
      std::copy_n(known.data(), known.size(), out.data());
    };
  };
  const auto by_pointer = [](const Inputs& in) {
    return reinterpret_cast<std::uint64_t>(in.q.data());
  };
  const auto content_of = [](const ConstTensorView& t) {
    return checksum64(t.data(), static_cast<std::size_t>(t.size()) * sizeof(float));
  };
  const auto by_content = [content_of](const Inputs& in) {
    return content_of(in.q) ^ 3 * content_of(in.k) ^ 7 * content_of(in.v);
  };
  const auto by_queries = [content_of](const Inputs& in) { return content_of(in.q); };
  CHECK_WRONG(wrong_method("by_pointer", remembers(by_pointer)), "returned a remembered answer");

  // Large enough for the computation to stand out from copying the answer.
  const auto large = [](const std::string& method) {
    return run_method(method, Pass::forward, 512);
  };
  const auto not_exact = [](MethodInfo& info) { info.exact = false; };
  for (const std::string& method :
       {wrong_method("by_content", remembers(by_content)),
        wrong_method("by_content_approximate", remembers(by_content), not_exact)}) {
    const JobResult r = large(method);
    CHECK(name(r.status) == "wrong");
    CHECK_THAT(r.reason, Catch::StartsWith("remembers answers: unseen inputs take "));
  }
  CHECK_WRONG(wrong_method("by_queries", remembers(by_queries), not_exact),
              "returned a remembered answer");
  // Nothing is known about how its output follows v, yet the time gives it away.
  const JobResult odd =
      large(wrong_method("by_content_nonlinear", remembers(by_content), [](MethodInfo& info) {
        info.exact = false;
        info.linear_in_v = false;
      }));
  CHECK(name(odd.status) == "wrong");
}

TEST_CASE("a method that writes into its inputs is wrong", "[worker]") {
  for (const int which : {0, 1, 2})
    CHECK_WRONG(
        wrong_method("writes_" + std::to_string(which),
                     [which](Honest& m, const Inputs& in, TensorView out, int calls) {
                       honestly(m, in, out);
                       const ConstTensorView& t = which == 0 ? in.q : which == 1 ? in.k : in.v;
                       if (calls == 2) const_cast<float*>(t.data())[7] += 1e-4f;
                     }),
        "wrote into its inputs");
}

TEST_CASE("threads left running make a row unstable", "[worker]") {
  static std::atomic<bool> stop;
  static std::atomic<int> running;
  stop = false;
  const JobResult r = run_method(
      wrong_method("leaks_threads", [](Honest& m, const Inputs& in, TensorView out, int calls) {
        honestly(m, in, out);
        if (calls == 3) {
          ++running;
          std::thread([] {
            while (!stop) std::this_thread::sleep_for(std::chrono::milliseconds(1));
            --running;
          }).detach();
        }
      }));
  stop = true;
  while (running > 0) std::this_thread::yield();
  CHECK(r.status == Status::unstable);
  CHECK(has_flag(r, "leaked_threads"));
  CHECK_THAT(r.reason, Catch::Contains("left 1 thread of its own running"));
}

TEST_CASE("exceptions become oom, unsupported or error", "[worker]") {
  struct Expected {
    std::string name;
    std::function<void()> raise;
    Status status;
    std::string reason;
  };
  const std::vector<Expected> cases{
      {"int", [] { throw 7; }, Status::error, "threw something that is not a std::exception"},
      {"runtime", [] { throw std::runtime_error("two\nlines"); }, Status::error, "two lines"},
      {"no_memory", [] { throw std::bad_alloc(); }, Status::oom, "out of memory"},
      {"huge",
       [] {
         volatile Index much = Index{1} << 58;
         const AlignedArray<float> array(much);
         CHECK(array.size() == 0);
       },
       Status::oom, "out of memory"},
      {"refuses", [] { throw Unsupported("not today"); }, Status::unsupported, "not today"}};
  for (const Expected& e : cases) {
    if (e.name == "huge" && !hooks_active()) continue;  // a sanitizer ends the process there
    for (const int at : {0, 2, 6}) {                    // the check, another set, a timed call
      const JobResult r =
          run_method(wrong_method("throws_" + e.name + std::to_string(at),
                                  [e, at](Honest& m, const Inputs& in, TensorView out, int calls) {
                                    if (calls == at) e.raise();
                                    honestly(m, in, out);
                                  }));
      CAPTURE(e.name, at);
      CHECK(name(r.status) == name(e.status));
      CHECK(r.reason == e.reason);
      CHECK(r.samples.empty());
    }
  }
}

TEST_CASE("what is not supported is refused before anything runs", "[worker]") {
  static int calls;
  calls = 0;
  const std::string& method = wrong_method(
      "forward_only", [](Honest&, const Inputs&, TensorView, int) { ++calls; },
      [](MethodInfo& info) { info.causality = Causality::none; });
  for (const Pass pass :
       {Pass::backward, Pass::forward_backward, Pass::decode, Pass::fit, Pass::train}) {
    const JobResult r = run_method(method, pass);
    CHECK(r.status == Status::unsupported);
    CHECK_FALSE(r.reason.empty());
  }
  Job causal = job_for(method);
  causal.cell.problem.causal = true;
  CHECK(run_job(causal).reason == "fixture_forward_only has no causal form");
  CHECK(calls == 0);
  Job unknown = job_for("fixture_honset");
  CHECK(run_job(unknown).status == Status::error);
  CHECK_THAT(run_job(unknown).reason, Catch::Contains("did you mean \"fixture_honest\"?"));
  Job empty = job_for("fixture_honest");
  empty.cell.problem.n = 0;
  CHECK(run_job(empty).status == Status::error);
}

// ---- wrong gradients and wrong decoders ----

namespace {

struct WrongGradient : Honest {
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved& saved,
                const Gradients& g) override {
    Honest::backward(in, out, dout, saved, g);
    g.dk.data()[3] += 0.1f;
  }
};
const RegisterMethod<WrongGradient> kWrongGradient{fixture_info("wrong_gradient")};

struct ForgottenGradient : Honest {
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved& saved,
                const Gradients& g) override {
    Tensor unused(g.dv.shape());
    Honest::backward(in, out, dout, saved, {g.dq, g.dk, unused.view(), {}});
  }
};
const RegisterMethod<ForgottenGradient> kForgottenGradient{fixture_info("forgotten_gradient")};

struct RememberedGradient : Honest {
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved& saved,
                const Gradients& g) override {
    std::vector<Tensor>& known = memory[&saved];
    if (known.empty()) {
      for (const TensorView& t : {g.dq, g.dk, g.dv}) known.emplace_back(t.shape());
      Honest::backward(in, out, dout, saved, {known[0], known[1], known[2], {}});
    }
    const TensorView to[] = {g.dq, g.dk, g.dv};
    for (std::size_t i = 0; i < 3; ++i) std::copy_n(known[i].data(), known[i].size(), to[i].data());
  }
  std::map<const Saved*, std::vector<Tensor>> memory;
};
const RegisterMethod<RememberedGradient> kRememberedGradient{fixture_info("remembered_gradient")};

struct Forgetful : Honest {  // its decoder's reset keeps the old history
  struct Keeps final : Decoder {
    explicit Keeps(std::unique_ptr<Decoder> to) : inner(std::move(to)) {}
    void reset() override {
      if (resets++ == 0) inner->reset();
    }
    void step(const DecodeStep& in, float* out) override { inner->step(in, out); }
    CacheBytes bytes() const override { return inner->bytes(); }
    std::unique_ptr<Decoder> inner;
    int resets = 0;
  };
  std::unique_ptr<Decoder> make_decoder(const DecodeConfig& c) const override {
    DecodeConfig larger = c;
    larger.capacity = 1 << 16;
    return std::make_unique<Keeps>(std::make_unique<Cache>(larger));
  }
};
const RegisterMethod<Forgetful> kForgetful{fixture_info("forgetful")};

}  // namespace

TEST_CASE("wrong, missing and remembered gradients are wrong", "[worker]") {
  for (const Pass pass : {Pass::backward, Pass::forward_backward}) {
    CAPTURE(name(pass));
    const JobResult off = run_method("fixture_wrong_gradient", pass);
    CHECK(off.status == Status::wrong);
    CHECK_THAT(off.reason, Catch::Contains("relative error of the gradient"));
    const JobResult missing = run_method("fixture_forgotten_gradient", pass);
    CHECK(missing.status == Status::wrong);
    CHECK_THAT(missing.reason, Catch::Contains("dv left untouched"));
    const JobResult remembered = run_method("fixture_remembered_gradient", pass);
    CHECK(remembered.status == Status::wrong);
    CHECK_THAT(remembered.reason, Catch::Contains("remembered"));
  }
}

TEST_CASE("a decoder whose state is wrong is found out", "[worker]") {
  const JobResult r = run_method("fixture_forgetful", Pass::decode, 32);
  CHECK(r.status == Status::wrong);
  CHECK_THAT(r.reason, Catch::Contains("differs from the checked call"));
}
