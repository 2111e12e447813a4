// Where the time of a call goes, by stage. A method marks the ends of its stages; whoever wants to
// know gives it a probe, and has the clock.
#pragma once

#include <string>
#include <vector>

namespace subquad {

class StageProbe {
 public:
  virtual ~StageProbe() = default;
  virtual void start(int thread) = 0;  // what follows on that thread belongs to a stage ...
  virtual void lap(int thread, int stage) = 0;  // ... namely this one; the next begins
};

// A method that marks stages in forward().
class HasStages {
 public:
  virtual ~HasStages() = default;
  virtual std::vector<std::string> stages() const = 0;  // names, by number
  virtual void set_probe(StageProbe* probe) = 0;        // null: none. Outlives the calls between
};

}  // namespace subquad
