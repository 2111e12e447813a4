// Ctrl-C and its relatives. The first signal asks the sweep to stop, the second ends the process
// at once (its worker dies with it).
#pragma once

namespace subquad {

class StopRequest {
 public:
  virtual ~StopRequest() = default;
  virtual int signal() const = 0;  // 0 while nothing was asked
  virtual int fd() const = 0;      // readable once something was asked; -1 = none, ask signal()
};

// Handles SIGINT, SIGTERM and SIGHUP while it lives. One at a time.
class StopSignals final : public StopRequest {
 public:
  StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  ~StopSignals() override;
  int signal() const override;
  int fd() const override;
};

}  // namespace subquad
