// How far the output of a cell is from exact attention, and whether it may be that far.
#pragma once

#include <string>

#include "harness/measure/cell_report.h"
#include "harness/measure/error_metrics.h"
#include "harness/measure/pass_run.h"
#include "harness/measure/reference.h"

namespace subquad {

ReferenceOptions reference_options(const Cell& cell);

class Judgement {
 public:
  Judgement(const Cell& cell, const MethodEntry& entry, PassRun& run, CellReport& report)
      : cell_(cell), entry_(entry), run_(run), report_(report) {}

  // Reads the exact reference of set 0 from its file, or computes it when the path is empty or the
  // file cannot be used.
  void load_reference(const std::string& reference_path);
  // Judges the outputs of set 0: fills the error columns; WrongResult when they cannot be right.
  void judge();
  // The last judgement proves little: the exact output hardly differs between queries.
  bool weak() const { return weak_; }

 private:
  ErrorMetrics error_of(bool gradients);
  std::string exactness() const;
  void require_exact(const ErrorMetrics& m, double tolerance, const char* what) const;

  const Cell& cell_;
  const MethodEntry& entry_;
  PassRun& run_;
  CellReport& report_;
  Reference reference_;
  bool weak_ = false;
};

}  // namespace subquad
