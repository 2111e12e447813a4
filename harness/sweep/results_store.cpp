#include "harness/sweep/results_store.h"

#include <algorithm>
#include <string_view>

#include "harness/core/error.h"
#include "harness/sweep/csv.h"
#include "harness/sweep/row.h"
#include "harness/sweep/utc_time.h"

namespace subquad {
namespace {

constexpr std::string_view kSamplesHeader = "cell_id,round,attempt,index,seconds\n";
constexpr std::string_view kCurvesHeader =
    "cell_id,round,attempt,step,train_loss,validation_loss,validation_accuracy,learning_rate,"
    "seconds\n";

// samples.csv holds nothing but five plain fields a line.
void check_samples(const std::string& text, const std::string& path) {
  std::size_t number = 0;
  for (std::size_t start = 0; start < text.size();) {
    const std::size_t end = text.find('\n', start);
    const std::string_view line = std::string_view(text).substr(start, end - start);
    ++number;
    const auto fields = split_csv(line);
    const bool header = line == kSamplesHeader.substr(0, kSamplesHeader.size() - 1);
    if (!fields || fields->size() != 5 || header != (number == 1) ||
        (!header && ((*fields)[0].size() != 16 || (*fields)[4].empty())))
      throw StorageError(fmt::format(
          "{}:{}: byte {}: malformed line, expected cell_id,round,attempt,index,seconds", path,
          number, start));
    start = end + 1;
  }
}

}  // namespace

std::string results_header() {
  std::string line;
  for (const Column& column : kColumns) {
    if (!line.empty()) line += ',';
    line += column.name;
  }
  return line + "\n";
}

std::string results_line(const RowFields& row) {
  for (const auto& [column, text] : row)
    SUBQUAD_CHECK(std::any_of(std::begin(kColumns), std::end(kColumns),
                              [&, &column = column](const Column& c) { return c.name == column; }),
                  "no column {}", column);
  std::vector<std::string> fields;
  std::size_t crc_field = 0;
  for (const Column& column : kColumns) {
    if (column.name == "line_crc") crc_field = fields.size();
    const auto found = row.find(std::string(column.name));
    fields.push_back(found == row.end() ? "" : single_line(found->second));
  }
  fields[crc_field] = line_checksum(fields, crc_field);
  std::string line;
  for (const std::string& field : fields) {
    if (&field != fields.data()) line += ',';
    line += csv_field(field);
  }
  return line + "\n";
}

ResultsStore::ResultsStore(int directory_fd, const std::string& directory, const FileCalls& calls)
    : directory_fd_(directory_fd),
      directory_(directory),
      results_(directory_fd, directory, "results.csv", Durability::power_loss, calls),
      samples_(directory_fd, directory, "samples.csv", Durability::process_death, calls) {
  cut_torn_tail(results_, directory_fd, directory);
  cut_torn_tail(samples_, directory_fd, directory);
  const std::string text = results_.read();
  if (text.empty()) {
    results_.append(results_header());
  } else {
    rows_ = parse_results_csv(text, results_.path());
    if (!text.starts_with(results_header()))
      throw StorageError(
          fmt::format("{}:1: byte 0: its columns are those of another version; --fresh starts over",
                      results_.path()));
  }
  const std::string samples = samples_.read();
  if (samples.empty())
    samples_.append(kSamplesHeader);
  else
    check_samples(samples, samples_.path());
}

void ResultsStore::cut_torn_tail(AppendFile& file, int directory_fd, const std::string& directory) {
  const std::string text = file.read();
  if (text.empty() || text.back() == '\n') return;
  const std::size_t last = text.rfind('\n');
  const std::size_t keep = last == std::string::npos ? 0 : last + 1;
  AppendFile aside(directory_fd, directory, "torn.csv", Durability::power_loss);
  aside.append(fmt::format("{},{},{},{}\n", utc_time(), csv_field(single_line(file.path())), keep,
                           csv_field(single_line(text.substr(keep), 1 << 16))));
  aside.close();
  file.truncate(static_cast<off_t>(keep));
  torn_.push_back(fmt::format("{}: a torn last line of {} bytes was cut off and kept in torn.csv",
                              file.path(), text.size() - keep));
}

void ResultsStore::append_curve(const RowFields& row, const std::vector<std::string>& curve) {
  AppendFile file(directory_fd_, directory_, "curves.csv", Durability::process_death);
  cut_torn_tail(file, directory_fd_, directory_);
  std::string lines = file.read().empty() ? std::string(kCurvesHeader) : "";
  for (const std::string& line : curve)
    lines += fmt::format("{},{},{},{}\n", row.at("cell_id"), row.at("round"), row.at("attempt"),
                         single_line(line));
  file.append(lines);
  file.close();
}

void ResultsStore::append(const RowFields& row, const std::vector<double>& samples,
                          const std::vector<std::string>& curve) {
  const std::string line = results_line(row);
  try {
    if (!samples.empty()) {
      std::string lines;
      for (std::size_t i = 0; i < samples.size(); ++i)
        lines += fmt::format("{},{},{},{},{}\n", row.at("cell_id"), row.at("round"),
                             row.at("attempt"), i, samples[i]);
      samples_.append(lines);
    }
    if (!curve.empty()) append_curve(row, curve);
    results_.append(line);
  } catch (const StorageError& error) {
    throw UnsavedRow(error.what(), line);
  }
}

void ResultsStore::close() {
  results_.close();
  samples_.close();
}

}  // namespace subquad
