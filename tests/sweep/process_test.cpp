#include "harness/sweep/process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <set>

#include "harness/sweep/outcome.h"
#include "tests/fixtures/sweep_fixture.h"

using namespace subquad;

namespace {

ProcessSpec spec_for(const std::string& method, double timeout_s = 20) {
  Job job;
  job.cell = fixture::make_cell(method);
  ProcessSpec spec;
  spec.command = {SUBQUAD_SWEEP_FIXTURE, "worker"};
  spec.environment = worker_environment(1);
  spec.input = nlohmann::json(job).dump();
  spec.timeout_s = timeout_s;
  spec.grace_s = 0.2;
  return spec;
}

struct Ending {
  ProcessEnd end;
  JobResult result;
};

Ending end_of(const ProcessSpec& spec) {
  const ProcessEnd end = run_process(spec);
  return {end, judge(end, spec)};
}

// Live processes that are instances of the fixture's worker.
int workers_alive() {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string command = fixture::slurp(entry.path() / "cmdline");
    const std::string wanted = std::string(SUBQUAD_SWEEP_FIXTURE) + '\0' + "worker";
    if (command.starts_with(wanted)) ++count;
  }
  return count;
}

}  // namespace

TEST_CASE("a worker's answer comes back whole", "[process]") {
  const auto [end, result] = end_of(spec_for("ok"));
  CHECK(result.status == Status::ok);
  CHECK(result.reason.empty());
  CHECK(result.columns.at("time_s") == "0.00125");
  CHECK(result.samples == std::vector<double>{0.00125, 0.0013});
  CHECK(end.left_processes == 0);
  CHECK(end.wall_s > 0);
}

TEST_CASE("ways to die without an answer are crashes with their reason", "[process]") {
  const auto reason = [](const std::string& method) {
    const auto [end, result] = end_of(spec_for(method));
    INFO(method << ": " << result.reason);
    CHECK(result.status == Status::crash);
    CHECK(result.columns.empty());
    return result.reason;
  };
  CHECK(reason("null_dereference") == "SIGSEGV");
  CHECK(reason("stack_overflow") == "SIGSEGV");
  CHECK(reason("abort") == "SIGABRT");
  CHECK(reason("throw_int") == "SIGABRT: terminate called after throwing an instance of 'int'");
  CHECK(reason("terminate_in_thread").starts_with("SIGABRT: terminate called"));
  CHECK(reason("double_free").starts_with("SIGABRT: "));
  CHECK(reason("exit_immediately") == "ended with exit status 0 without an answer");
  CHECK(reason("exit") == "ended with exit status 0 without an answer");
  CHECK(reason("exit_3") == "ended with exit status 3 without an answer: giving up");
  CHECK(reason("garbage") == "ended with exit status 0 with a broken answer");
  CHECK(reason("torn_answer") == "ended with exit status 0 with a broken answer");
  CHECK(reason("bad_json").starts_with("the worker's answer is no result: "));
}

TEST_CASE("running out of memory is oom, however it shows", "[process]") {
  ProcessSpec spec = spec_for("allocates_without_end");
  spec.address_space_bytes = std::int64_t{128} << 20;
  CHECK(end_of(spec).result.status == Status::oom);
  const JobResult in_thread = end_of(spec_for("bad_alloc_in_thread")).result;
  CHECK(in_thread.status == Status::oom);
  CHECK(in_thread.reason.find("bad_alloc") != std::string::npos);
  CHECK(end_of(spec_for("killed_from_outside")).result.status == Status::oom);
}

TEST_CASE("a worker that does not end is ended at its deadline", "[process]") {
  for (const char* method : {"busy_loop", "ignores_sigterm", "loops_in_thread", "all_loop"}) {
    const auto [end, result] = end_of(spec_for(method, 0.3));
    INFO(method << ": " << result.reason);
    CHECK(result.status == Status::timeout);
    CHECK(result.reason.starts_with("still running after 0.3 s"));
    CHECK(end.killed_by_us == (std::string(method) == "ignores_sigterm"));
    CHECK(workers_alive() == 0);
  }
}

TEST_CASE("processes that a worker left behind are killed and told of", "[process]") {
  for (const char* method :
       {"grandchild_loops", "grandchild_in_own_session_loops", "double_forked_loops"}) {
    const auto [end, result] = end_of(spec_for(method));
    INFO(method << ": " << result.reason);
    CHECK(result.status == Status::unstable);
    CHECK(result.columns.at("flags") == "left_processes");
    CHECK(end.left_processes == 1);
    CHECK(workers_alive() == 0);
  }
  CHECK(end_of(spec_for("all_loop", 0.2)).end.left_processes >= 1);
}

TEST_CASE("other children of the caller are left alone", "[process]") {
  const pid_t child = fork();
  if (child == 0) {
    while (true) pause();
  }
  CHECK(end_of(spec_for("grandchild_in_own_session_loops")).end.left_processes == 1);
  CHECK(waitpid(child, nullptr, WNOHANG) == 0);  // still there
  kill(child, SIGKILL);
  CHECK(waitpid(child, nullptr, 0) == child);
}

TEST_CASE("more than one answer is an error, and an answer has a largest size", "[process]") {
  CHECK(end_of(spec_for("garbage_after_answer")).result.reason ==
        "the worker answered more than once");
  CHECK(end_of(spec_for("forks_and_returns_twice")).result.status == Status::error);
  ProcessSpec spec = spec_for("huge_answer");
  spec.answer_limit_bytes = 8 << 20;
  const auto [end, result] = end_of(spec);
  CHECK(result.status == Status::error);
  CHECK(result.reason == "the worker's answer is longer than 8388608 bytes");
  CHECK(end.answer.size() < (10 << 20));
  CHECK(end_of(spec_for("answers_interrupted")).result.status == Status::error);
}

TEST_CASE("trouble after the answer makes a row doubtful, not lost", "[process]") {
  const JobResult crashed = end_of(spec_for("crash_after_answer")).result;
  CHECK(crashed.status == Status::unstable);
  CHECK(crashed.columns.at("flags") == "died_after_answer");
  CHECK(crashed.columns.at("time_s") == "0.00125");
  const auto [end, hung] = end_of(spec_for("hang_after_answer"));
  CHECK(hung.columns.at("time_s") == "0.00125");
  CHECK_FALSE(end.timed_out);
  CHECK(hung.columns.at("flags") == "died_after_answer");
}

TEST_CASE("what a worker prints is bounded and its end kept", "[process]") {
  const ProcessEnd end = run_process(spec_for("prints_much"));
  CHECK(end.log.size() < 32 << 10);
  CHECK(end.log.starts_with("....."));
  CHECK(end.log.ends_with("the last line\n"));
  CHECK(end.log.find("bytes left out") != std::string::npos);
}

TEST_CASE("numbers that are not finite are missing, and foreign columns are dropped", "[process]") {
  const JobResult result = end_of(spec_for("nan_columns")).result;
  CHECK(result.status == Status::wrong);
  CHECK(result.columns == std::map<std::string, std::string>{{"time_s", "0.5"}});
}

TEST_CASE("a worker starts in clean surroundings", "[process]") {
  setenv("FIXTURE_SECRET", "1", 1);
  ProcessSpec spec = spec_for("shows_surroundings");
  spec.environment = worker_environment(3);
  spec.address_space_bytes = std::int64_t{4096} << 20;
  // A descriptor of ours that is not close-on-exec does not reach it either.
  const int leak = open("/dev/null", O_WRONLY);
  const std::string reason = end_of(spec).result.reason;
  close(leak);
  unsetenv("FIXTURE_SECRET");
  CHECK(reason ==
        "omp=3 lang=C secret=(none) core=0 space=4096 group=true oom=1000 stdin=0 reference=none "
        "fd5=-1");
}

TEST_CASE("a program that cannot be started is our error, at once", "[process]") {
  ProcessSpec spec = spec_for("ok");
  spec.command = {"/no/such/program"};
  CHECK_THROWS_WITH(run_process(spec), Catch::Contains("cannot start /no/such/program"));
}

TEST_CASE("a stop request ends the worker within its grace", "[process]") {
  struct Asked final : StopRequest {
    int signal() const override { return SIGINT; }
    int fd() const override { return -1; }
  } asked;
  ProcessSpec spec = spec_for("ignores_sigterm");
  spec.stop = &asked;
  spec.stop_grace_s = 0.1;
  const auto [end, result] = end_of(spec);
  CHECK(result.status == Status::interrupted);
  CHECK(end.wall_s < spec.timeout_s / 2);
}

TEST_CASE("a frame is recognised only when it is whole", "[process]") {
  using State = Frame::State;
  const std::string whole = "SQ1 2\n{}\n";
  for (std::size_t size = 0; size < whole.size(); ++size)
    CHECK(parse_frame(whole.substr(0, size)).state == State::none);
  CHECK(parse_frame(whole).state == State::whole);
  CHECK(parse_frame(whole).body == "{}");
  CHECK(parse_frame(whole + "x").state == State::followed_by_more);
  CHECK(parse_frame(whole + whole).body == "{}");
  CHECK(parse_frame("SQ1 \n\n").state == State::none);
  CHECK(parse_frame("SQ1 3\n{}\nx").state == State::none);
  CHECK(parse_frame("SQ1 -1\n{}\n").state == State::none);
  CHECK(parse_frame("SQ2 2\n{}\n").state == State::none);
  CHECK(parse_frame("SQ1 99999999999999999999\n{}\n").state == State::none);
}
