// The worker as a process: one frame on its descriptor, whatever the method does.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "harness/sweep/worker.h"
#include "tests/sweep/worker_fixture.h"

using namespace subquad;
using namespace subquad::fixture;

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
