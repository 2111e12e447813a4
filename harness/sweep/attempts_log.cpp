#include "harness/sweep/attempts_log.h"

#include <unistd.h>

#include <algorithm>
#include <sstream>

#include "harness/sweep/utc_time.h"

namespace subquad {

AttemptsLog::AttemptsLog(int directory_fd, const std::string& directory, const FileCalls& calls)
    : file_(directory_fd, directory, "attempts.log", Durability::process_death, calls) {
  const std::string text = file_.read();
  if (!text.empty() && text.back() != '\n') file_.append("\n");
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string cell_id, time, pid;
    int round = 0, attempt = 0;
    if (words >> cell_id >> round >> attempt >> time >> pid) known(cell_id, round, attempt);
  }
}

int AttemptsLog::last(const std::string& cell_id, int round) const {
  const auto found = last_.find({cell_id, round});
  return found == last_.end() ? 0 : found->second;
}

void AttemptsLog::known(const std::string& cell_id, int round, int attempt) {
  int& last = last_[{cell_id, round}];
  last = std::max(last, attempt);
}

int AttemptsLog::start(const std::string& cell_id, int round) {
  const int attempt = last(cell_id, round) + 1;
  file_.append(fmt::format("{} {} {} {} {}\n", cell_id, round, attempt, utc_time(), getpid()));
  known(cell_id, round, attempt);
  return attempt;
}

}  // namespace subquad
