// The interface of a task: where the data comes from.
//
// Every task supplies Q, K, V for a problem. A labelled task also supplies token batches with
// labels on which a model trains. Everything is a pure function of the seed, bit for bit on every
// machine: tasks use core/random.h, plain loops and no libm transcendental (task sources are
// compiled without floating-point contraction; Eigen's sums depend on the vector width and are not
// used).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "harness/core/method.h"
#include "harness/core/params.h"
#include "harness/core/problem.h"
#include "harness/core/random.h"
#include "harness/core/tensor.h"

namespace subquad {

// Owned inputs of one attention call.
struct QKV {
  Tensor q, k, v;
  Tensor x;  // token embeddings [batch, 1, n, d_e] where the task has them, else empty
  std::vector<std::uint8_t> key_mask;

  QKV() = default;
  explicit QKV(const Problem& p)
      : q(p.batch, p.heads, p.n, p.d_k),
        k(p.batch, p.heads, p.n_kv, p.d_k),
        v(p.batch, p.heads, p.n_kv, p.d_v) {}
  Inputs inputs() const {
    Inputs in;
    in.q = q;
    in.k = k;
    in.v = v;
    if (!x.empty()) in.x = x;
    in.key_mask = key_mask;
    return in;
  }
};

enum class Split { train, validation, test };
std::string_view name(Split split);

inline constexpr std::int32_t kIgnore = -100;  // label of a position that is not scored

enum class LabelKind { per_token, per_sequence };

// What the labels of a task are, for a given sequence length.
struct LabelSpec {
  LabelKind kind = LabelKind::per_token;
  Index vocabulary = 0;           // token ids are in [0, vocabulary)
  Index classes = 0;              // labels are in [0, classes) or kIgnore
  Index inputs = 1;               // sequences per example (2 for retrieval)
  Index tokens_per_position = 1;  // embeddings side by side: 2 in stacked recall, a patch's pixels
};

// tokens [batch, inputs, n, tokens_per_position]; labels [batch, n] (per_token) or [batch]
// (per_sequence).
struct TokenBatch {
  Index batch = 0, inputs = 1, n = 0, tokens_per_position = 1;
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> labels;
  std::vector<std::int32_t> lengths;  // [batch, inputs] tokens that are not padding; empty = n
};

// A trivial predictor that an accuracy table prints beside the models.
struct Floor {
  std::string name;
  std::string metric;  // "accuracy", "bits_per_token"
  double value = 0;
};

class Task {
 public:
  virtual ~Task() = default;

  // The problem that the task can really supply for a request: fixed widths or lengths of captured
  // data are filled in. Default: the request.
  virtual Problem adapt(const Problem& requested) const { return requested; }
  // Why the task cannot supply this (adapted) problem, or "".
  virtual std::string unsupported(const Problem&) const { return ""; }

  // Fills out.q, out.k, out.v (already of the problem's shape). `set` numbers independent draws
  // under one seed.
  virtual void fill(const Problem& problem, Seed seed, Index set, QKV* out) const = 0;

  // Labelled tasks only; the defaults refuse.
  virtual LabelSpec labels(Index n) const;
  // Examples first .. first + batch - 1 of a split: any order of calls gives the same examples.
  virtual TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const;
  virtual std::vector<Floor> floors(Index /*n*/, Seed /*seed*/) const { return {}; }
};

struct TaskInfo {
  std::string name;
  std::string source;   // paper or origin
  std::string summary;  // one line
  bool labelled = false;
  std::vector<std::string> notes = {};
};

struct TaskEntry {
  TaskInfo info;
  std::vector<ParamSpec> params;
  std::function<std::unique_ptr<Task>(const Settings& resolved)> create;
  std::string file;
};

}  // namespace subquad
