#include "harness/sweep/worker.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <new>
#include <nlohmann/json.hpp>

#include "harness/core/error.h"
#include "harness/core/plugin.h"
#include "harness/measure/decode_model_cell.h"
#include "harness/measure/life_cycle.h"
#include "harness/measure/limits.h"
#include "harness/measure/processors.h"
#include "harness/measure/train_cell.h"

namespace subquad {
namespace {

constexpr int kJobDescriptor = 3, kAnswerDescriptor = 4;
constexpr int kPrivateDescriptor = 200;  // the answer's, out of the way of method code

void measure_bandwidth(const Cell& cell, JobResult* result) {
  set_threads(cell.threads);
  if (cell.measure.pin) pin_threads(cell.threads);
  const Bandwidth bandwidth = memory_bandwidth(bandwidth_buffer_bytes());
  result->columns["bandwidth_gbs"] = to_string(ParamValue(bandwidth.best()));
  result->status = Status::ok;
}

void run(const Job& job, JobResult* result) {
  if (job.measure_bandwidth) {  // nothing of a method, not even its plugin
    measure_bandwidth(job.cell, result);
    return;
  }
  for (const std::string& plugin : job.cell.plugins) load_plugin(plugin);
  if (job.make_reference) {
    make_reference_file(job.cell, job.reference_path);
    result->status = Status::ok;
  } else if (job.cell.pass == Pass::train) {
    train_cell(job.cell, job.train_directory, result);
  } else if (job.cell.whole_model()) {
    decode_model_cell(job.cell, result);
  } else {
    measure_cell(job.cell, job.reference_path, result);
  }
}

// One line of printable text.
std::string one_line(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  return text;
}

void fail(JobResult* result, Status status, const std::string& reason) {
  result->status = status;
  result->reason = one_line(reason);
  result->samples.clear();
  result->curve.clear();
}

bool write_all(int descriptor, const std::string& text) {
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t wrote = write(descriptor, text.data() + done, text.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return false;
    done += static_cast<std::size_t>(wrote);
  }
  return true;
}

std::string read_all(int descriptor) {
  std::string text;
  char buffer[65536];
  for (;;) {
    const ssize_t got = read(descriptor, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return text;
    text.append(buffer, static_cast<std::size_t>(got));
  }
}

}  // namespace

JobResult run_job(const Job& job) {
  JobResult result;
  try {
    run(job, &result);
  } catch (const std::bad_alloc&) {
    fail(&result, Status::oom, "out of memory");
  } catch (const Unsupported& error) {
    fail(&result, Status::unsupported, error.what());
  } catch (const std::exception& error) {
    fail(&result, Status::error, error.what());
  } catch (...) {
    fail(&result, Status::error, "threw something that is not a std::exception");
  }
  return result;
}

int worker_main() {
  const int answer = fcntl(kAnswerDescriptor, F_DUPFD_CLOEXEC, kPrivateDescriptor);
  if (answer < 0) {
    std::fputs("subquad worker: started by `subquad run` only (descriptor 4 is not open)\n",
               stderr);
    return 2;
  }
  close(kAnswerDescriptor);
  const std::string request = read_all(kJobDescriptor);
  close(kJobDescriptor);
  JobResult result;
  try {
    result = run_job(nlohmann::json::parse(request).get<Job>());
  } catch (const std::exception& error) {  // of the protocol; run_job does not throw
    fail(&result, Status::error, fmt::format("worker: bad job: {}", error.what()));
  }
  // What a method throws or reports may be any bytes: invalid UTF-8 is replaced.
  const std::string body =
      nlohmann::json(result).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  std::fflush(nullptr);
  const bool whole = write_all(answer, fmt::format("SQ1 {}\n{}\n", body.size(), body));
  close(answer);
  return whole ? 0 : 3;
}

}  // namespace subquad
