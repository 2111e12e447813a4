#include "harness/sweep/outcome.h"

#include <fmt/core.h>
#include <signal.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <nlohmann/json.hpp>

#include "harness/sweep/row.h"

namespace subquad {
namespace {

JobResult outcome(Status status, std::string reason) {
  JobResult result;
  result.status = status;
  result.reason = std::move(reason);
  return result;
}

std::string signal_name(int number) {
  const char* abbreviation = sigabbrev_np(number);
  return abbreviation == nullptr ? fmt::format("signal {}", number)
                                 : fmt::format("SIG{}", abbreviation);
}

// The last line that the worker printed, for the reason of a crash: ": free(): invalid pointer".
std::string last_words(const std::string& log) {
  std::string text = log;
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())) != 0)
    text.pop_back();
  text = text.substr(text.rfind('\n') + 1);  // npos + 1 is 0
  if (text.empty()) return "";
  if (text.size() > 300) return fmt::format(": ...{}", text.substr(text.size() - 300));
  return fmt::format(": {}", text);
}

bool ran_out_of_memory(const std::string& log) {
  // A failed allocation outside of the worker's own try block: in another thread, in a destructor,
  // in a C library.
  return log.find("std::bad_alloc") != std::string::npos ||
         log.find("libgomp: Out of memory") != std::string::npos;
}

bool not_finite(std::string text) {
  if (text.starts_with('-') || text.starts_with('+')) text.erase(0, 1);
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text == "nan" || text == "inf" || text == "infinity";
}

JobResult from_answer(const std::string& body) {
  try {
    JobResult result = nlohmann::json::parse(body).get<JobResult>();
    if (result.status == Status::interrupted)
      return outcome(Status::error, "the worker answered \"interrupted\", which is not its to say");
    std::map<std::string, std::string> columns;
    for (const Column& column : kColumns) {
      const auto found = result.columns.find(std::string(column.name));
      if (column.filled_by == "worker" && found != result.columns.end() &&
          !not_finite(found->second))
        columns.insert(*found);
    }
    result.columns = std::move(columns);
    return result;
  } catch (const std::exception& error) {
    return outcome(Status::crash,
                   fmt::format("the worker's answer is no result: {}", error.what()));
  }
}

JobResult without_answer(const ProcessEnd& end, const ProcessSpec& spec) {
  if (end.answer_limit)
    return outcome(Status::error, fmt::format("the worker's answer is longer than {} bytes",
                                              spec.answer_limit_bytes));
  if (end.timed_out)
    return outcome(Status::timeout,
                   fmt::format("still running after {} s{}", spec.timeout_s,
                               end.killed_by_us ? ", and SIGTERM did not end it" : ""));
  if (end.stopped) return outcome(Status::interrupted, "the run was interrupted");
  if (end.signal != 0 && ran_out_of_memory(end.log))
    return outcome(Status::oom, fmt::format("{}{}", signal_name(end.signal), last_words(end.log)));
  if (end.signal == SIGKILL)
    return outcome(Status::oom,
                   "killed by SIGKILL from outside, as the kernel does when memory runs out");
  if (end.signal != 0) return outcome(Status::crash, signal_name(end.signal) + last_words(end.log));
  if (ran_out_of_memory(end.log)) return outcome(Status::oom, last_words(end.log).substr(2));
  const std::string what = end.answer.empty() ? "without an answer" : "with a broken answer";
  return outcome(Status::crash, fmt::format("ended with exit status {} {}{}", end.exit_status, what,
                                            last_words(end.log)));
}

}  // namespace

void add_flag(JobResult& result, const std::string& flag, const std::string& reason) {
  std::string& flags = result.columns["flags"];
  flags += (flags.empty() ? "" : ";") + flag;
  if (result.status == Status::ok) {
    result.status = Status::unstable;
    result.reason = reason;
  } else if (result.status == Status::unstable) {
    result.reason += (result.reason.empty() ? "" : "; ") + reason;
  }
}

JobResult judge(const ProcessEnd& end, const ProcessSpec& spec) {
  const Frame frame = parse_frame(end.answer);
  JobResult result;
  if (frame.state == Frame::State::none) {
    result = without_answer(end, spec);
  } else if (frame.state == Frame::State::followed_by_more) {
    // A method that forks and returns in both processes ends like this.
    result = outcome(Status::error, "the worker answered more than once");
  } else {
    result = from_answer(frame.body);
    if (end.signal != 0 && !end.killed_by_us && !end.stopped)
      add_flag(result, "died_after_answer",
               fmt::format("after its answer the worker died of {}", signal_name(end.signal)));
    if (end.killed_by_us && !end.stopped)
      add_flag(result, "hung_after_answer", "after its answer the worker did not end");
  }
  if (end.left_processes > 0)
    add_flag(result, "left_processes",
             fmt::format("it left {} processes running", end.left_processes));
  if (end.suspended) add_flag(result, "suspended", "the machine slept while it ran");
  return result;
}

}  // namespace subquad
