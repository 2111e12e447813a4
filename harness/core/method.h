// The interface of an attention method, and what a method declares about itself.
//
// Life of a method: construct(params) -> prepare(problem, env) -> forward / backward any number of
// times. `prepare` makes plans, buffers and random features (timed apart as setup_s); the passes
// allocate nothing. A method knows nothing of files, configs, processes or the clock.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "harness/core/params.h"
#include "harness/core/problem.h"
#include "harness/core/random.h"
#include "harness/core/tensor.h"

namespace subquad {

// Which causal promise a method makes (see methods/README.md).
//   none:    it has no causal form.
//   weights: no value of a future token leaks, but what is attended may depend on the future.
//   strict:  output i is a function of tokens <= i only, bit for bit.
enum class Causality { none, weights, strict };

// What the output stands for.
//   softmax:    exact softmax attention or an approximation of it; error against dense has meaning.
//   own_kernel: another function on purpose (linear attention); error against dense is descriptive.
//   nothing:    a control that does not try (uniform attention).
enum class Approximates { softmax, own_kernel, nothing };

// A distance between attention matrices in which an oracle can be the nearest of its family.
//   frobenius: ||method - exact||_F / ||exact||_F over the whole matrix (column matrix_error).
//   row_tv:    mean over rows of sum_j |method - exact| / 2, for rows that sum to one (row_tv).
enum class MatrixDistance { none, frobenius, row_tv };

std::string_view name(Causality causality);
std::string_view name(Approximates approximates);
// The column of results.csv with that distance: "matrix_error", "row_tv"; "" for none.
std::string_view name(MatrixDistance distance);

// What makes approximate methods comparable. Zero where it has no meaning.
struct Budget {
  double keys_per_query = 0;  // keys or features that one query meets
  double state_bytes = 0;     // recurrent state or cache, whole batch
};

// The tensors of one call. Views into the caller's memory, never written, not kept after the call.
struct Inputs {
  ConstTensorView q;  // [batch, heads, n, d_k]
  ConstTensorView k;  // [batch, heads, n_kv, d_k]
  ConstTensorView v;  // [batch, heads, n_kv, d_v]
  // Layer input [batch, 1, n, d_model], for methods with projections of their own (uses_hidden);
  // else empty.
  ConstTensorView x;
  // 1 = a real key, 0 = padding; [batch, n_kv] row-major, or empty when every key is real.
  // A query that sees no key gets a zero row.
  std::span<const std::uint8_t> key_mask;
  bool training = false;   // dropout, jitter and redraws are on
  std::uint64_t step = 0;  // optimizer step, a counter for those draws
};

// What forward leaves for backward (row log-sum-exp, chosen indices, ...). One per call that is to
// be differentiated; made by Method::make_saved, opaque to everybody else.
struct Saved {
  virtual ~Saved() = default;
};

// Where backward writes. dq, dk, dv (and dx where uses_hidden) are overwritten; the gradients of
// learned parameters are added to Parameter::grad.
struct Gradients {
  TensorView dq;  // [batch, heads, n, d_k]
  TensorView dk;  // [batch, heads, n_kv, d_k]
  TensorView dv;  // [batch, heads, n_kv, d_v]
  TensorView dx;  // [batch, 1, n, d_model], or empty
};

// A learned tensor of a method.
struct Parameter {
  std::string name;
  std::vector<Index> shape;
  AlignedArray<float> value;
  AlignedArray<float> grad;
  bool decay = true;  // weight decay applies (not to biases and norms)
};

// What a process grants a method in prepare().
struct Env {
  Seed seed = 0;           // for methods that declare `random`
  bool gradients = false;  // backward will be called
  Index d_model = 0;       // width of Inputs::x, 0 when there is none
};

// ---- decoding ----

struct DecodeConfig {
  Index batch = 1, heads = 1;
  Index capacity = 0;  // tokens that will come at most (history + new)
  Index d_k = 64, d_v = 64;
  Index d_e = 0;  // width of DecodeStep::x, 0 when there is none
  // Of the layer, where k = w_k x and v = w_v x and it is known: [heads, d, d_e], else null.
  const float *w_k = nullptr, *w_v = nullptr;
  double scale = 0;  // 0 means 1 / sqrt(d_k)
  Seed seed = 0;

  double logit_scale() const;
};

// One token of every (batch, head). Pointers to contiguous arrays of the caller.
struct DecodeStep {
  const float* q = nullptr;  // [batch, heads, d_k]
  const float* k = nullptr;  // [batch, heads, d_k]
  const float* v = nullptr;  // [batch, heads, d_v]
  const float* x = nullptr;  // [batch, d_e] token embedding, or null
};

struct CacheBytes {
  double kv = 0;       // keys and values kept for attention, or the recurrent state
  double aux = 0;      // scores, indices, controller state
  double cold = 0;     // what a rebuilding policy keeps outside the cache
  double scratch = 0;  // work space of one step
};

struct VisibleKey {
  Index position;
  float weight;
};

// Token-by-token attention with a state. The token that is fed is visible to itself.
class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual void reset() = 0;  // back to an empty history; keeps its memory
  // Feeds `length` tokens without asking for their outputs: q, k [batch, heads, length, d_k],
  // v [batch, heads, length, d_v], x [batch, 1, length, d_e] or empty. Default: calls of step.
  virtual void prefill(ConstTensorView q, ConstTensorView k, ConstTensorView v, ConstTensorView x);
  // Feeds one token and writes its output [batch, heads, d_v]. Allocates nothing.
  virtual void step(const DecodeStep& in, float* out) = 0;
  virtual CacheBytes bytes() const = 0;  // now; the runner keeps the peak
  // Positions that the last step of (batch, head) attended to, with their weights; empty for
  // methods that have none.
  virtual std::vector<VisibleKey> visible(Index, Index) const { return {}; }
};

// ---- fitting ----

// A source of training calls: inputs of the task's training stream, and exact dense outputs.
class FitData {
 public:
  virtual ~FitData() = default;
  virtual void next(Inputs* inputs, ConstTensorView* dense_out) = 0;  // valid until the next call
};

struct FitOptions {
  Index steps = 0;
  double learning_rate = 1e-3;
  Seed seed = 0;
  std::function<void(Index step, double loss)> progress;  // may be empty
};

struct FitReport {
  Index steps = 0;
  double first_loss = 0, last_loss = 0;
};

// ---- the method ----

struct Metric {
  std::string name;
  double value = 0;
};

class Method {
 public:
  virtual ~Method() = default;

  // Why this method with these parameters cannot run this problem and pass, or "". Asked before
  // anything else; combinations that MethodInfo already excludes need not be repeated.
  virtual std::string unsupported(const Problem&, Pass) const { return ""; }

  virtual void prepare(const Problem& problem, const Env& env) = 0;

  // out [batch, heads, n, d_v], overwritten entirely. `saved` is null, or an object of make_saved
  // that this call fills for backward.
  virtual void forward(const Inputs& in, TensorView out, Saved* saved) = 0;
  virtual std::unique_ptr<Saved> make_saved() const { return std::make_unique<Saved>(); }
  // Gradients of sum(out * dout) for the call that filled `saved`. out is that call's output.
  virtual void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout,
                        const Saved& saved, const Gradients& grads);
  virtual std::unique_ptr<Decoder> make_decoder(const DecodeConfig& config) const;

  // Learned parameters, stable addresses; empty for most methods. After prepare().
  virtual std::vector<Parameter*> parameters() { return {}; }
  // Trains only the method's own parameters to reproduce dense attention. Default: fit.h.
  virtual FitReport fit(FitData& data, const FitOptions& options);

  // Rows `rows` of the attention matrix of head (b, h) -> weights [rows, n_kv], as this method
  // would weigh the values. Returns false when the method cannot show one.
  virtual bool attention_rows(const Inputs&, Index /*b*/, Index /*h*/,
                              std::span<const Index> /*rows*/, Eigen::Ref<Matrix> /*weights*/) {
    return false;
  }

  virtual Budget budget(const Problem&) const { return {}; }
  // Analytic extra memory of a pass in bytes (beyond inputs, outputs and gradients), all threads
  // included; and useful floating-point operations (a multiply-add counts two). 0 = not declared.
  virtual double extra_bytes(const Problem&, Pass) const { return 0; }
  virtual double flops(const Problem&, Pass) const { return 0; }
  // Numbers about the last call that are worth a column (kept entries, guarded rows, ...).
  virtual std::vector<Metric> metrics() const { return {}; }
  // Oracles: the distance in which no method that names this oracle in `bounded_by` is nearer to
  // the exact attention matrix at the same keys_per_query.
  virtual MatrixDistance bounds_in() const { return MatrixDistance::none; }
};

struct MethodInfo {
  std::string name;     // [a-z][a-z0-9_]*
  std::string family;   // folder below methods/
  std::string source;   // paper, arXiv id
  std::string summary;  // one line
  Approximates approximates = Approximates::softmax;
  Causality causality = Causality::none;
  bool bidirectional = true;
  bool cross_attention = false;  // n != n_kv
  bool key_padding = false;      // Inputs::key_mask
  std::vector<Pass> passes = {Pass::forward};
  bool random = false;            // takes Env::seed
  bool learned = false;           // has parameters() to be trained or fitted
  bool uses_hidden = false;       // needs Inputs::x
  bool linear_in_v = true;        // output is a matrix times v
  bool structure_from_v = false;  // that matrix depends on v
  bool exact = false;             // equals softmax attention at every setting
  bool oracle = false;            // sees the exact attention matrix: a bound, not a competitor
  double tolerance = 1e-5;        // relative Frobenius error allowed where it must be exact
  Index max_n = 0;                // largest n it accepts, 0 = no limit (quadratic oracles)
  // Oracles that bound this method: at the same keys_per_query, and for problems that the oracle
  // supports, its attention matrix is never nearer to the exact one than theirs (bounds_in()).
  // With topk_exact in mind: rows sum to one.
  std::vector<std::string> bounded_by = {};
  // Oracles that bound others: the settings at which a query meets `keys` keys or features.
  std::function<Settings(double keys)> at_budget = {};
  // Settings at which the method must equal exact softmax attention (empty function: never).
  std::function<Settings(const Problem&)> exact_limit = {};
  double time_exponent = 0;  // claimed growth in n, 0 = no claim
  double memory_exponent = 0;
  std::vector<std::string> notes =
      {};  // shown by `describe`: our choices, known quirks, why not strict

  bool supports(Pass pass) const;
};

// Everything that is registered under a name.
struct MethodEntry {
  MethodInfo info;
  std::vector<ParamSpec> params;
  std::function<std::unique_ptr<Method>(const Settings& resolved)> create;
  std::string file;  // where it was registered
};

// Why `method` (registered as `entry`) cannot run the problem and pass, or "".
std::string unsupported_reason(const MethodEntry& entry, const Method& method,
                               const Problem& problem, Pass pass);

}  // namespace subquad
