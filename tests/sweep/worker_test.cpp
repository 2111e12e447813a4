// The life of a cell, with methods that do each thing wrong that a method can do.
#include "harness/sweep/worker.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "harness/measure/alloc_counter.h"
#include "harness/measure/checksum.h"
#include "harness/measure/error_metrics.h"
#include "harness/measure/memory.h"
#include "harness/sweep/row.h"

using namespace subquad;

namespace {

// ---- an honest method: exact attention, plain and small, in every timed pass ----

class Honest : public Method {
 public:
  struct Weights final : Saved {
    Tensor p;
  };

  void prepare(const Problem& problem, const Env&) override {
    problem_ = problem;
    p_ = Tensor(problem.batch, problem.heads, problem.n, problem.n_kv);
    dp_ = Tensor(problem.batch, problem.heads, problem.n, problem.n_kv);
  }

  void forward(const Inputs& in, TensorView out, Saved* saved) override { attend(in, out, saved); }

  std::unique_ptr<Saved> make_saved() const override {
    auto saved = std::make_unique<Weights>();
    saved->p = Tensor(problem_.batch, problem_.heads, problem_.n, problem_.n_kv);
    return saved;
  }

  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved& saved,
                const Gradients& g) override {
    const Tensor& p = dynamic_cast<const Weights&>(saved).p;
    for (Index bh = 0; bh < problem_.batch * problem_.heads; ++bh) {
      const auto weights = p.view().head(bh);
      auto ds = dp_.view().head(bh);
      ds.noalias() = dout.head(bh) * in.v.head(bh).transpose();
      for (Index i = 0; i < problem_.n; ++i) {
        const float d = dout.head(bh).row(i).dot(out.head(bh).row(i));
        ds.row(i).array() = weights.row(i).array() * (ds.row(i).array() - d);
      }
      ds *= static_cast<float>(problem_.logit_scale());
      g.dq.head(bh).noalias() = ds * in.k.head(bh);
      g.dk.head(bh).noalias() = ds.transpose() * in.q.head(bh);
      g.dv.head(bh).noalias() = weights.transpose() * dout.head(bh);
    }
  }

  class Cache final : public Decoder {
   public:
    explicit Cache(const DecodeConfig& c)
        : c_(c), k_(c.batch, c.heads, c.capacity, c.d_k), v_(c.batch, c.heads, c.capacity, c.d_v) {}
    void reset() override { length_ = 0; }
    void step(const DecodeStep& in, float* out) override {
      for (Index bh = 0; bh < c_.batch * c_.heads; ++bh) {
        std::copy_n(in.k + bh * c_.d_k, c_.d_k, k_.view().head(bh).row(length_).data());
        std::copy_n(in.v + bh * c_.d_v, c_.d_v, v_.view().head(bh).row(length_).data());
        Eigen::Map<RowVector> o(out + bh * c_.d_v, c_.d_v);
        o.setZero();
        const Eigen::Map<const RowVector> q(in.q + bh * c_.d_k, c_.d_k);
        const auto logit = [&](Index j) {
          return static_cast<float>(c_.logit_scale()) * q.dot(k_.view().head(bh).row(j));
        };
        float largest = -1e30f, sum = 0;
        for (Index j = 0; j <= length_; ++j) largest = std::max(largest, logit(j));
        for (Index j = 0; j <= length_; ++j) {
          const float w = std::exp(logit(j) - largest);
          sum += w;
          o += w * v_.view().head(bh).row(j);
        }
        o /= sum;
      }
      ++length_;
    }
    CacheBytes bytes() const override {
      const auto tokens = static_cast<double>(length_ * c_.batch * c_.heads);
      return {.kv = 4 * tokens * static_cast<double>(c_.d_k + c_.d_v), .aux = 8};
    }

   private:
    DecodeConfig c_;
    Tensor k_, v_;
    Index length_ = 0;
  };
  std::unique_ptr<Decoder> make_decoder(const DecodeConfig& c) const override {
    return std::make_unique<Cache>(c);
  }

  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const auto row = static_cast<Index>(r);
      weights.row(row) = (static_cast<float>(problem_.logit_scale()) * in.k.head(b, h) *
                          in.q.head(b, h).row(rows[r]).transpose())
                             .transpose();
      weights.row(row).tail(problem_.n_kv - problem_.visible(rows[r])).setConstant(-1e30f);
      weights.row(row).array() = (weights.row(row).array() - weights.row(row).maxCoeff()).exp();
      weights.row(row) /= weights.row(row).sum();
    }
    return true;
  }
  Budget budget(const Problem& p) const override {
    return {.keys_per_query = static_cast<double>(p.n_kv)};
  }
  double extra_bytes(const Problem& p, Pass) const override {
    return 8.0 * static_cast<double>(p.batch * p.heads * p.n * p.n_kv);
  }
  double flops(const Problem& p, Pass) const override {
    return 2 * p.visible_entries() * static_cast<double>(p.d_k + p.d_v);
  }
  std::vector<Metric> metrics() const override { return {{"kept", 0.5}, {"guarded", 0}}; }

 protected:
  void attend(const Inputs& in, TensorView out, Saved* saved) {
    for (Index bh = 0; bh < problem_.batch * problem_.heads; ++bh) {
      auto w = p_.view().head(bh);
      w.noalias() = in.q.head(bh) * in.k.head(bh).transpose();
      for (Index i = 0; i < problem_.n; ++i) {
        const Index visible = problem_.visible(i);
        w.row(i).tail(problem_.n_kv - visible).setZero();
        auto seen = w.row(i).head(visible).array();
        seen *= static_cast<float>(problem_.logit_scale());
        seen = (seen - seen.maxCoeff()).exp();
        seen /= seen.sum();
      }
      out.head(bh).noalias() = w * in.v.head(bh);
    }
    if (saved != nullptr)
      std::copy_n(p_.data(), p_.size(), dynamic_cast<Weights&>(*saved).p.data());
  }

  Problem problem_;
  Tensor p_, dp_;
};

MethodInfo fixture(const std::string& name) {
  MethodInfo info;
  info.name = "fixture_" + name;
  info.family = "fixture";
  info.causality = Causality::strict;
  info.passes = {Pass::forward, Pass::backward, Pass::decode};
  info.exact = true;
  return info;
}
const RegisterMethod<Honest> kHonest{fixture("honest")};

// A method that is Honest but for what `forward` does around it. `calls` counts forward calls.
using Misdeed = std::function<void(Honest&, const Inputs&, TensorView, int calls)>;

struct Wrong : Honest {
  explicit Wrong(Misdeed deed) : misdeed(std::move(deed)) {}
  void forward(const Inputs& in, TensorView out, Saved* saved) override {
    if (saved != nullptr || calls < 0) return attend(in, out, saved);
    misdeed(*this, in, out, calls++);
  }
  Misdeed misdeed;
  int calls = 0;
};

void honestly(Honest& m, const Inputs& in, TensorView out) { m.Honest::forward(in, out, nullptr); }

// Registers a method with this misdeed; `change` edits its declaration.
const std::string& wrong_method(const std::string& name, Misdeed deed,
                                const std::function<void(MethodInfo&)>& change = {}) {
  static std::map<std::string, std::string> names;
  if (names.contains(name)) return names.at(name);
  MethodInfo info = fixture(name);
  info.passes = {Pass::forward};
  if (change) change(info);
  Registry::instance().add(MethodEntry{
      info, {}, [deed](const Settings&) { return std::make_unique<Wrong>(deed); }, __FILE__});
  return names[name] = info.name;
}

// ---- jobs ----

Job job_for(const std::string& method, Pass pass = Pass::forward, Index n = 64) {
  Job job;
  Cell& c = job.cell;
  c.method = method;
  c.label = method;
  c.task = "gaussian";
  c.problem = {.batch = 1, .heads = 2, .n = n, .n_kv = n, .d_k = 16, .d_v = 8};
  c.problem.causal = pass == Pass::decode;
  c.pass = pass;
  c.threads = 1;
  c.seed = 3;
  c.measure.min_time_s = 0.002;
  c.measure.warmup_s = 0.001;
  c.measure.repetitions = 3;
  c.measure.decode_tokens = 8;
  c.measure.max_spread = 1e9;  // the machine of the tests may be busy
  return job;
}

JobResult run_method(const std::string& method, Pass pass = Pass::forward, Index n = 64) {
  return run_job(job_for(method, pass, n));
}

bool measured(const JobResult& r) { return r.status == Status::ok || r.status == Status::unstable; }

double number(const JobResult& r, const std::string& column) {
  const auto found = r.columns.find(column);
  if (found == r.columns.end()) FAIL("column " << column << " is missing");
  double value = std::numeric_limits<double>::quiet_NaN();
  const std::string& text = found->second;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    FAIL("column " << column << " is not a number: " << text);
  return value;
}

bool has_flag(const JobResult& r, const std::string& flag) {
  return (";" + r.columns.at("flags") + ";").find(";" + flag + ";") != std::string::npos;
}

#define CHECK_WRONG(method, words)                      \
  do {                                                  \
    const JobResult result_ = run_method(method);       \
    CHECK(name(result_.status) == "wrong");             \
    CHECK_THAT(result_.reason, Catch::Contains(words)); \
    CHECK(result_.samples.empty());                     \
    CHECK(result_.columns.count("time_s") == 0);        \
  } while (false)

}  // namespace

// ---- honest work ----

TEST_CASE("an honest method is measured in every pass", "[worker]") {
  for (const Pass pass : {Pass::forward, Pass::backward, Pass::forward_backward, Pass::decode})
    for (const bool causal : {false, true}) {
      if (pass == Pass::decode && !causal) continue;
      Job job = job_for("fixture_honest", pass);
      job.cell.problem.causal = causal;
      const JobResult r = run_job(job);
      CAPTURE(name(pass), causal, r.reason);
      REQUIRE(measured(r));
      CHECK(r.samples.size() == 3);
      CHECK(number(r, "time_s") > 0);
      CHECK(number(r, "time_min_s") <= number(r, "time_s"));
      CHECK(number(r, "time_q25_s") <= number(r, "time_q75_s"));
      CHECK(number(r, "time_s") <= number(r, "time_max_s"));
      CHECK(number(r, "repetitions") == 3);
      CHECK(number(r, "iterations") >= 1);
      const bool gradients = job.cell.wants_gradients();
      CHECK(number(r, "rel_error") < (gradients ? 1e-4 : 1e-5));
      CHECK(number(r, "cosine") == Approx(1));
      CHECK(r.columns.at("error_of") == (gradients ? "gradient" : "output"));
      CHECK(number(r, "error_rows") == number(r, "error_rows_total"));
      CHECK(number(r, "error_rows") == (pass == Pass::decode ? 16 : 128));
      CHECK(number(r, "gflops") > 0);
      CHECK(number(r, "keys_per_query") == 64);
      CHECK(r.columns.at("method_metrics") == "kept=0.5;guarded=0");
      CHECK(number(r, "setup_s") >= 0);
      CHECK(number(r, "vm_hwm_bytes") > 1e6);
      CHECK_FALSE(has_flag(r, "not_reproducible"));
      CHECK_FALSE(has_flag(r, "leaked_threads"));
    }
}

TEST_CASE("every column that a worker writes is one of the table, and finite", "[worker]") {
  std::set<std::string> known, written;
  for (const Column& column : kColumns)
    if (column.filled_by == "worker" && !column.help.starts_with("train: "))  // train_test.cpp
      known.insert(std::string(column.name));
  for (const Pass pass : {Pass::forward, Pass::forward_backward, Pass::decode})
    for (const auto& [column, text] : run_method("fixture_honest", pass).columns) {
      written.insert(column);
      CHECK(known.contains(column));
      CHECK(text.find("nan") == std::string::npos);
      CHECK(text.find("inf") == std::string::npos);
    }
  known.erase("fit_s");
  known.erase("fit_steps");
  known.erase("state_bytes");
  known.erase("mhz");  // not on every machine
  if (!hooks_active()) {
    known.erase("peak_bytes");
    known.erase("timed_allocs");
  }
  for (const std::string& column : known) {
    CAPTURE(column);
    CHECK(written.contains(column));
  }
}

TEST_CASE("memory is the high-water mark of prepare and one pass", "[worker]") {
  if (!hooks_active()) return;
  // p_ and dp_ of [1, 2, n, n] float32; backward holds the saved weights too.
  const double matrix = 2.0 * 256 * 256 * 4;
  CHECK(number(run_method("fixture_honest", Pass::forward, 256), "peak_bytes") ==
        Approx(2 * matrix).epsilon(0.02));
  CHECK(number(run_method("fixture_honest", Pass::forward, 256), "analytic_bytes") == 2 * matrix);
  CHECK(number(run_method("fixture_honest", Pass::backward, 256), "peak_bytes") ==
        Approx(3 * matrix).epsilon(0.05));
  // Decoding: the cache alone, without what prepare made for the parallel form.
  const JobResult decode = run_method("fixture_honest", Pass::decode, 256);
  CHECK(number(decode, "peak_bytes") == Approx(2.0 * 256 * (16 + 8) * 4).epsilon(0.25));
  CHECK(number(decode, "kv_bytes") == 2.0 * 256 * (16 + 8) * 4);
  CHECK(number(decode, "aux_bytes") == 8);
  CHECK(number(decode, "cold_bytes") == 0);
}

TEST_CASE("allocations inside a timed call are counted", "[worker]") {
  if (!hooks_active()) return;
  const std::string& method =
      wrong_method("allocates", [](Honest& m, const Inputs& in, TensorView out, int) {
        honestly(m, in, out);
        for (int i = 0; i < 7; ++i) std::free(std::malloc(static_cast<std::size_t>(100 + i)));
      });
  const double honest = number(run_method("fixture_honest"), "timed_allocs");
  CHECK(number(run_method(method), "timed_allocs") >= honest);
  std::vector<void*> kept;
  kept.reserve(1 << 20);
  const std::string& hoards =
      wrong_method("hoards", [&kept](Honest& m, const Inputs& in, TensorView out, int) {
        honestly(m, in, out);
        for (int i = 0; i < 7 && kept.size() < kept.capacity(); ++i)
          kept.push_back(std::malloc(16));
      });
  CHECK(number(run_method(hoards), "timed_allocs") == honest + 7);
  for (void* block : kept) std::free(block);
}

TEST_CASE("attention rows give divergence and top-k mass", "[worker]") {
  for (const bool causal : {false, true}) {
    Job job = job_for("fixture_honest");
    job.cell.problem.causal = causal;
    job.cell.error.top_k = 5;
    const JobResult r = run_job(job);
    CHECK(number(r, "kl") == Approx(0).margin(1e-6));
    CHECK(number(r, "topk_mass") == Approx(1).epsilon(1e-4));
    CHECK(number(r, "topk") == 5);
  }
  Job off = job_for("fixture_honest");
  off.cell.error.matrix_rows = 0;
  CHECK(run_job(off).columns.count("kl") == 0);
}

TEST_CASE("one input set, one token, one query and odd widths are measured", "[worker]") {
  Job job = job_for("fixture_honest");
  job.cell.measure.input_sets = 1;
  CHECK(measured(run_job(job)));
  job.cell.problem = {.batch = 2, .heads = 1, .n = 1, .n_kv = 1, .d_k = 3, .d_v = 1};
  const JobResult one = run_job(job);
  CAPTURE(one.reason);
  CHECK(measured(one));
  Job decode = job_for("fixture_honest", Pass::decode, 5);
  decode.cell.measure.decode_tokens = 64;  // more than there are: no history
  const JobResult r = run_job(decode);
  CAPTURE(r.reason);
  REQUIRE(measured(r));
  CHECK(number(r, "error_rows") == 10);
}

TEST_CASE("sampled rows are judged when the exact reference is too expensive", "[worker]") {
  Job job = job_for("fixture_honest", Pass::forward, 100);
  job.cell.error.max_gflop = 0;
  job.cell.error.rows = 10;
  const JobResult r = run_job(job);
  CHECK(number(r, "error_rows") == 20);
  CHECK(number(r, "error_rows_total") == 200);
  CHECK(number(r, "rel_error") < 1e-5);
  job.cell.pass = Pass::backward;
  const JobResult g = run_job(job);
  CAPTURE(g.reason);
  CHECK(g.columns.at("error_of") == "dq");
  CHECK(number(g, "rel_error") < 1e-4);
}

TEST_CASE("a stored reference is used, and a bad one is passed over and said", "[worker]") {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("worker_reference" + std::to_string(getpid())))
          .string();
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    Job job = job_for("fixture_honest", pass);
    job.reference_path = path;
    job.make_reference = true;
    REQUIRE(run_job(job).status == Status::ok);
    job.make_reference = false;
    const JobResult with = run_job(job);
    REQUIRE(measured(with));
    CHECK_FALSE(has_flag(with, "reference_recomputed"));
    Job without = job;
    without.reference_path = "";
    CHECK(run_job(without).columns.at("rel_error") == with.columns.at("rel_error"));

    std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
    const JobResult cut = run_job(job);
    REQUIRE(measured(cut));
    CHECK(has_flag(cut, "reference_recomputed"));
    CHECK(cut.columns.at("rel_error") == with.columns.at("rel_error"));
  }
  std::filesystem::remove(path);
  Job nowhere = job_for("fixture_honest");
  nowhere.make_reference = true;
  nowhere.reference_path = "/nowhere/at/all";
  CHECK(run_job(nowhere).status == Status::error);
}

// ---- misdeeds ----

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
  const JobResult r = run_method(
      wrong_method("zeros_approximate", zeros, [](MethodInfo& info) { info.exact = false; }));
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
const RegisterMethod<WrongGradient> kWrongGradient{fixture("wrong_gradient")};

struct ForgottenGradient : Honest {
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved& saved,
                const Gradients& g) override {
    Tensor unused(g.dv.shape());
    Honest::backward(in, out, dout, saved, {g.dq, g.dk, unused.view(), {}});
  }
};
const RegisterMethod<ForgottenGradient> kForgottenGradient{fixture("forgotten_gradient")};

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
const RegisterMethod<RememberedGradient> kRememberedGradient{fixture("remembered_gradient")};

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
const RegisterMethod<Forgetful> kForgetful{fixture("forgetful")};

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

// ---- fit ----

namespace {

// Learns one number: the mean of the dense outputs.
struct Learner : Honest {
  FitReport fit(FitData& data, const FitOptions& options) override {
    Inputs in;
    ConstTensorView dense;
    std::set<const float*> seen;
    for (Index i = 0; i < options.steps; ++i) {
      data.next(&in, &dense);
      seen.insert(in.q.data());
      Tensor own(dense.shape());
      prepare(problem_, {});
      attend(in, own, nullptr);
      worst = std::max(worst, relative_difference(own, dense));
    }
    distinct = static_cast<double>(seen.size());
    return {options.steps, 1, 0.5};
  }
  std::vector<Metric> metrics() const override { return {{"worst", worst}, {"sets", distinct}}; }
  double worst = 0, distinct = 0;
};
const RegisterMethod<Learner> kLearner{[] {
  MethodInfo info = fixture("learner");
  info.passes = {Pass::forward, Pass::fit};
  info.learned = true;
  return info;
}()};

}  // namespace

TEST_CASE("a fit trains on inputs of its own with exact outputs and is judged on another",
          "[worker]") {
  const JobResult r = run_method("fixture_learner", Pass::fit, 32);
  CAPTURE(r.reason);
  REQUIRE(r.status == Status::ok);
  CHECK(number(r, "fit_s") > 0);
  CHECK(number(r, "fit_steps") == 200);
  CHECK(number(r, "rel_error") < 1e-5);
  CHECK_THAT(r.columns.at("method_metrics"), Catch::EndsWith("sets=8"));
  CHECK_THAT(r.columns.at("method_metrics"),
             Catch::StartsWith("worst=") && Catch::Contains("e-07"));
}

// ---- the process ----

namespace {

// Methods for a worker process of its own: the test executable, asked for one hidden test. (A
// forked child cannot run this: OpenMP's threads do not survive a fork.)
void register_process_methods() {
  wrong_method("noisy", [](Honest& m, const Inputs& in, TensorView out, int calls) {
    honestly(m, in, out);
    if (calls > 0) return;
    std::puts("SQ1 2\n{}");  // to standard output, where no answer belongs
    // Neither descriptor of the protocol can be reached by its number.
    if (write(4, "SQ1 2\n{}\n", 9) >= 0 || write(3, "x", 1) >= 0)
      throw std::runtime_error("descriptors 3 and 4 are open");
  });
  wrong_method("odd_bytes", [](Honest&, const Inputs&, TensorView, int) {
    throw std::runtime_error("\xff\xfe \x01 bytes");
  });
  wrong_method("leaves", [](Honest&, const Inputs&, TensorView, int) { _exit(0); });
}

struct Answer {
  int status = -1;
  std::string frame;
};

// Starts a worker process with the request on descriptor 3 and collects descriptor 4.
Answer ask_worker(const std::string& request) {
  int in[2], out[2];
  REQUIRE(pipe2(in, O_CLOEXEC) == 0);
  REQUIRE(pipe2(out, O_CLOEXEC) == 0);
  const pid_t child = fork();
  if (child == 0) {
    // By way of high numbers: a pipe's end may itself be 3 or 4.
    const int nothing = open("/dev/null", O_WRONLY | O_CLOEXEC);
    dup2(fcntl(in[0], F_DUPFD_CLOEXEC, 100), 3);
    dup2(fcntl(out[1], F_DUPFD_CLOEXEC, 100), 4);
    dup2(nothing, 1);
    execl("/proc/self/exe", "test_sweep", "worker process", nullptr);
    _exit(99);
  }
  close(in[0]);
  close(out[1]);
  REQUIRE(write(in[1], request.data(), request.size()) == static_cast<ssize_t>(request.size()));
  close(in[1]);
  Answer answer;
  char buffer[4096];
  for (ssize_t got = 0; (got = read(out[0], buffer, sizeof buffer)) > 0;)
    answer.frame.append(buffer, static_cast<std::size_t>(got));
  close(out[0]);
  int status = 0;
  waitpid(child, &status, 0);
  answer.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return answer;
}

JobResult parsed(const Answer& answer) {
  const std::size_t line = answer.frame.find('\n');
  REQUIRE(line != std::string::npos);
  REQUIRE(answer.frame.starts_with("SQ1 "));
  const std::string body = answer.frame.substr(line + 1, answer.frame.size() - line - 2);
  CHECK(answer.frame.back() == '\n');
  CHECK(answer.frame.substr(4, line - 4) == std::to_string(body.size()));
  return nlohmann::json::parse(body).get<JobResult>();
}

std::string request_for(const std::string& method) {
  return nlohmann::json(job_for(method)).dump();
}

}  // namespace

TEST_CASE("worker process", "[.worker_process]") {
  register_process_methods();
  _exit(worker_main());
}

TEST_CASE("the worker answers with one frame, whatever the method prints", "[worker]") {
  const Answer answer = ask_worker(request_for("fixture_noisy"));
  CHECK(answer.status == 0);
  const JobResult r = parsed(answer);
  CAPTURE(r.reason);
  CHECK(measured(r));
  CHECK(r.samples.size() == 3);
}

TEST_CASE("a bad job and bytes that are no text still make a frame", "[worker]") {
  const JobResult bad = parsed(ask_worker("{\"cell\": 3"));
  CHECK(bad.status == Status::error);
  CHECK_THAT(bad.reason, Catch::StartsWith("worker: bad job: "));
  const JobResult r = parsed(ask_worker(request_for("fixture_odd_bytes")));
  CHECK(r.status == Status::error);
  CHECK_THAT(r.reason, Catch::Contains("bytes"));
}

TEST_CASE("a method that ends the process leaves no frame", "[worker]") {
  const Answer answer = ask_worker(request_for("fixture_leaves"));
  CHECK(answer.status == 0);
  CHECK(answer.frame.empty());
}
