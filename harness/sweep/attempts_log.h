// attempts.log: one line per start of a cell, written before its worker starts, so that a start
// that left no row is seen and numbered.
#pragma once

#include <map>
#include <string>
#include <utility>

#include "harness/sweep/append_file.h"

namespace subquad {

class AttemptsLog {
 public:
  // Opens DIR/attempts.log; a torn last line is completed and ignored.
  AttemptsLog(int directory_fd, const std::string& directory, const FileCalls& calls = {});

  int last(const std::string& cell_id, int round) const;  // highest number so far, 0 = none
  void known(const std::string& cell_id, int round, int attempt);  // from a row
  // Records a start and returns its number, 1 for the first. The line is "cell_id round attempt
  // time pid", pid being the runner's. It is not forced to the disk: when the power fails, what is
  // lost is a number in a count, and waiting would cost every cell as much as its row does.
  int start(const std::string& cell_id, int round);
  void close() { file_.close(); }

 private:
  AppendFile file_;
  std::map<std::pair<std::string, int>, int> last_;
};

}  // namespace subquad
