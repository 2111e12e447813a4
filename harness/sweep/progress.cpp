#include "harness/sweep/progress.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace subquad {
namespace {

std::size_t terminal_width(std::FILE* stream) {
  winsize size{};
  if (ioctl(fileno(stream), TIOCGWINSZ, &size) == 0 && size.ws_col > 20) return size.ws_col;
  return 80;
}

}  // namespace

std::string human_seconds(double seconds) {
  if (!(seconds >= 0)) return "?";
  if (seconds < 1e-6) return fmt::format("{:.3g} ns", 1e9 * seconds);
  if (seconds < 1e-3) return fmt::format("{:.3g} us", 1e6 * seconds);
  if (seconds < 1) return fmt::format("{:.3g} ms", 1e3 * seconds);
  if (seconds < 60) return fmt::format("{:.3g} s", seconds);
  const long whole = std::lround(std::min(seconds, 1e15));
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole % 3600 / 60);
}

Progress::Progress(std::FILE* stream)
    : stream_(stream), terminal_(stream != nullptr && isatty(fileno(stream)) == 1) {}

void Progress::begin(std::size_t steps, double estimated_seconds) {
  steps_ = steps;
  estimated_ = estimated_seconds;
  start_ = std::chrono::steady_clock::now();
}

void Progress::reference(const Cell& cell) {
  if (terminal_) draw(fmt::format("exact reference: {} {}", cell.task, cell.problem.str()));
}

void Progress::started(const Cell& cell, int) {
  // Drawn once per cell, not by a clock: while a worker measures, this process sleeps.
  if (terminal_) draw(cell.str());
}

void Progress::finished(const Cell& cell, int round, Status status, const std::string& reason,
                        const std::string& time_s) {
  ++done_;
  estimated_done_ += estimated_seconds(cell);
  if (failed(status)) ++failed_;
  if (stream_ == nullptr || (terminal_ && status == Status::ok)) return;
  std::string text = fmt::format("[{:{}}/{}] {} round {}: {}", done_, std::to_string(steps_).size(),
                                 steps_, cell.str(), round, name(status));
  if (!time_s.empty())
    text += fmt::format(" {}", human_seconds(std::strtod(time_s.c_str(), nullptr)));
  if (!reason.empty()) text += fmt::format(": {}", reason);
  note(text);
}

void Progress::note(const std::string& line) {
  if (stream_ == nullptr) return;
  clear();
  fmt::print(stream_, "{}\n", line);
  std::fflush(stream_);
}

void Progress::end() { clear(); }

double Progress::seconds_left() const {
  if (done_ == 0) return estimated_;
  const double elapsed =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  return elapsed * (estimated_ - estimated_done_) / std::max(estimated_done_, 1e-9);
}

void Progress::draw(const std::string& what) {
  constexpr std::size_t kBar = 20;
  const std::size_t full = steps_ == 0 ? kBar : kBar * done_ / steps_;
  std::string text =
      fmt::format("[{}{}] {}/{}  {} left{}  {}", std::string(full, '#'),
                  std::string(kBar - full, '.'), done_, steps_, human_seconds(seconds_left()),
                  failed_ > 0 ? fmt::format("  {} failed", failed_) : "", what);
  const std::size_t width = terminal_width(stream_) - 1;
  if (text.size() > width) text.resize(width);
  fmt::print(stream_, "\r\033[K{}", text);
  std::fflush(stream_);
  drawn_ = true;
}

void Progress::clear() {
  if (drawn_) fmt::print(stream_, "\r\033[K");
  drawn_ = false;
}

}  // namespace subquad
