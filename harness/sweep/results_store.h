// The results of a run directory: results.csv is the store itself.
//
// One row per finished cell and round, appended by one write of a whole line that is on the disk
// (fdatasync) before the next cell starts. A row counts once its newline is there.
#pragma once

#include <string>
#include <vector>

#include "harness/sweep/append_file.h"
#include "harness/sweep/results_csv.h"

namespace subquad {

// A row that could not be saved; `row` is its line, so that the measurement is not lost.
struct UnsavedRow : StorageError {
  UnsavedRow(const std::string& message, std::string line)
      : StorageError(message), row(std::move(line)) {}
  std::string row;
};

std::string results_header();                    // the first line, with its newline
std::string results_line(const RowFields& row);  // one row, with its newline; InternalError on a
                                                 // column that does not exist

class ResultsStore {
 public:
  // Opens results.csv and samples.csv in an open directory, creating them when missing. A tail
  // without newline is cut off and kept in torn.csv; a malformed line anywhere else is a
  // StorageError that names file, line and byte offset.
  ResultsStore(int directory_fd, const std::string& directory, const FileCalls& calls = {});

  const std::vector<RowFields>& rows() const { return rows_; }    // that were there when it opened
  const std::vector<std::string>& torn() const { return torn_; }  // one note per tail cut off

  // Appends the samples (seconds per call), then the row. The samples' loss when the power fails
  // is harmless, so only the row waits for the disk. UnsavedRow when it cannot be stored.
  // `curve` are lines of curves.csv, a file that is there once a row has one.
  void append(const RowFields& row, const std::vector<double>& samples,
              const std::vector<std::string>& curve = {});
  void close();

 private:
  void append_curve(const RowFields& row, const std::vector<std::string>& curve);
  void cut_torn_tail(AppendFile& file, int directory_fd, const std::string& directory);

  int directory_fd_;
  std::string directory_;
  AppendFile results_;
  AppendFile samples_;
  std::vector<RowFields> rows_;
  std::vector<std::string> torn_;
};

}  // namespace subquad
