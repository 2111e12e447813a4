// What a human sees of a run, on stderr: a bar with the time that is left on a terminal, one line
// per finished cell elsewhere.
#pragma once

#include <chrono>
#include <cstdio>
#include <string>

#include "harness/sweep/cell.h"
#include "harness/sweep/plan.h"

namespace subquad {

class Progress {
 public:
  explicit Progress(std::FILE* stream);  // null: says nothing

  void begin(std::size_t steps, double estimated_seconds);  // that are to run now
  void reference(const Cell& cell);                         // its exact reference is being computed
  void started(const Cell& cell, int round);
  void finished(const Cell& cell, int round, Status status, const std::string& reason,
                const std::string& time_s);
  void note(const std::string& line);  // a line that stays
  void end();

 private:
  void draw(const std::string& what);
  void clear();
  double seconds_left() const;

  std::FILE* stream_;
  bool terminal_ = false, drawn_ = false;
  std::size_t steps_ = 0, done_ = 0, failed_ = 0;
  double estimated_ = 0, estimated_done_ = 0;
  std::chrono::steady_clock::time_point start_;
};

std::string human_seconds(double seconds);  // "1.23 ms", "2 min 05 s", "3 h 20 min"

}  // namespace subquad
