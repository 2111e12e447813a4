// What the generated checks share: problems and inputs, calls of the method under test, comparisons
// that name the place, and exact attention to compare with. The checks are
// declared in conformance_checks.h.
#pragma once

#include <fmt/core.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "harness/core/method.h"
#include "harness/core/random.h"
#include "harness/core/registry.h"
#include "harness/core/task.h"

namespace subquad::conformance {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr Index kHiddenWidth = 16;  // width of Inputs::x for methods that use it

// Thrown by a check that does not apply.
struct Skip {
  std::string reason;
};

// Thrown by a check that found something wrong.
struct Violation {
  std::string detail;
};

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> text, Args&&... args) {
  throw Violation{fmt::format(text, std::forward<Args>(args)...)};
}

class ThreadCount {  // restores the number of threads
 public:
  ThreadCount() : before_(omp_get_max_threads()) {}
  ~ThreadCount() { omp_set_num_threads(before_); }

 private:
  int before_;
};
// ---- inputs and runs ----

QKV make_inputs(const MethodInfo& info, const Problem& p, Seed seed);

// A third of the keys are padding; the last batch item sees nothing at all.
std::vector<std::uint8_t> make_mask(const Problem& p, Seed seed);

Env make_env(const MethodInfo& info, Seed seed, bool gradients);

struct Runner {
  const MethodEntry& entry;
  Seed seed;

  std::unique_ptr<Method> create(const Settings& given = {}) const;
  // A prepared method, or Skip when it does not support the problem.
  std::unique_ptr<Method> prepared(const Problem& p, const Settings& given = {},
                                   bool gradients = false) const;
  bool supports(const Problem& p, Pass pass, const Settings& given = {}) const;
  Tensor forward(const Problem& p, const QKV& in, const Settings& given = {},
                 float filling = kNaN) const;
};

Problem make_problem(Index n, Index n_kv, bool causal, Index d_k = 12, Index d_v = 20);

// Ragged problems that the method at these settings supports; Skip when there are none.
std::vector<Problem> problems(const Runner& run, const Settings& given = {},
                              Pass pass = Pass::forward);

// A causal problem of moderate size, drawn at random among those that the method supports.
Problem causal_problem(const Runner& run, Random& random);

Problem largest(const std::vector<Problem>& from);

// ---- comparisons ----

// Where in `x` element e lies.
std::string position(const Tensor& x, Index e);

void require_finite(const Tensor& x, const std::string& what);

// Rows [0, rows) of every head must have the same bits.
void require_same(const Tensor& got, const Tensor& want, Index rows, const std::string& what);

// q, k, v and x must have the bits of the copy.
void require_untouched(const QKV& in, const QKV& copy, const std::string& what);

// ||got - want||_F / ||want||_F in double; want zero: ||got||_F. NaN when anything is NaN.
template <class Want>
double relative_error(const Tensor& got, const Want& want) {
  double difference = 0, norm = 0;
  for (Index e = 0; e < got.size(); ++e) {
    const double w = static_cast<double>(want.data()[e]);
    const double d = static_cast<double>(got.data()[e]) - w;
    difference += d * d;
    norm += w * w;
  }
  return std::sqrt(norm > 0 ? difference / norm : difference);
}

template <class Want>
void require_close(const Tensor& got, const Want& want, double tolerance, const std::string& what) {
  const double error = relative_error(got, want);
  if (error <= tolerance) return;
  Index worst = 0;
  for (Index e = 0; e < got.size(); ++e) {
    const auto distance = [&](Index at) {
      return std::fabs(static_cast<double>(got.data()[at]) - static_cast<double>(want.data()[at]));
    };
    if (!(distance(e) <= distance(worst))) worst = e;
  }
  fail("{}: relative error {:.3g}, allowed {:.3g}; worst {:.9g} instead of {:.9g} at {}", what,
       error, tolerance, got.data()[worst], want.data()[worst], position(got, worst));
}

// Softmax attention in double, plain loops. Rows without a visible key are zero.
TensorD exact_attention(const Problem& p, const QKV& in);

}  // namespace subquad::conformance
