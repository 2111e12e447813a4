// subquad apply METHOD: runs a method once on arrays of the user, forward and if wanted backward.
#include <fmt/core.h>
#include <omp.h>

#include <cmath>
#include <memory>

#include "harness/cli/options.h"
#include "harness/core/npy.h"
#include "harness/core/registry.h"

namespace subquad {
namespace {

struct Options {
  std::string method, q, k, v, x, out, dout, grad_prefix;
  std::vector<std::string> plugins, assignments;
  bool causal = false;
  double scale = 0;
  int threads = 0;
  Seed seed = 0;
};

struct Array {
  Tensor tensor;  // [batch, heads, n, d]; missing leading axes are 1
  int axes = 4;
};

std::string shape_text(const Array& array) {
  const Shape& s = array.tensor.shape();
  switch (array.axes) {
    case 2:
      return fmt::format("[{}, {}]", s.n, s.d);
    case 3:
      return fmt::format("[{}, {}, {}]", s.heads, s.n, s.d);
    default:
      return s.str();
  }
}

Array read(const std::string& path) {
  NpyArray array = read_npy(path);
  const std::size_t axes = array.shape.size();
  if (axes < 2 || axes > 4)
    throw UserError(fmt::format(
        "{}: {} axes, expected 2 [n, d], 3 [heads, n, d] or 4 [batch, heads, n, d]", path, axes));
  array.shape.insert(array.shape.begin(), 4 - axes, 1);
  Array result{Tensor(array.shape[0], array.shape[1], array.shape[2], array.shape[3]),
               static_cast<int>(axes)};
  std::copy(array.values.begin(), array.values.end(), result.tensor.data());
  return result;
}

// UserError unless the two agree; `what` says in words what has to.
void need_equal(bool equal, const char* name, const std::string& path, const Array& array,
                const std::string& what) {
  if (!equal)
    throw UserError(
        fmt::format("--{} {}: shape {}, expected {}", name, path, shape_text(array), what));
}

void write(const std::string& path, const Tensor& tensor, int axes) {
  write_npy(path, tensor, axes);
  for (Index i = 0; i < tensor.size(); ++i)
    if (!std::isfinite(tensor.data()[i]))
      throw std::runtime_error(
          fmt::format("{}: element {} of {} is {}", path, i, tensor.size(), tensor.data()[i]));
}

void run(const Options& options) {
  load_plugins(options.plugins);
  const MethodEntry* found = Registry::instance().find_method(options.method);
  if (found == nullptr) unknown_name(options.method, false);
  const MethodEntry& entry = *found;
  const auto method =
      entry.create(settings_from(options.method, entry.params, options.assignments));
  if (options.dout.empty() != options.grad_prefix.empty())
    throw UserError("--dout and --grad-prefix go together");
  if (entry.info.uses_hidden && options.x.empty())
    throw UserError(
        fmt::format("{} needs the layer's input: --x X.npy [batch, n, d_model]", entry.info.name));

  const Array q = read(options.q), k = read(options.k), v = read(options.v);
  const Shape &qs = q.tensor.shape(), &ks = k.tensor.shape(), &vs = v.tensor.shape();
  need_equal(k.axes == q.axes && ks.batch == qs.batch && ks.heads == qs.heads && ks.d == qs.d, "k",
             options.k, k, fmt::format("that of q {} but for the length", shape_text(q)));
  need_equal(v.axes == k.axes && vs.batch == ks.batch && vs.heads == ks.heads && vs.n == ks.n, "v",
             options.v, v, fmt::format("that of k {} but for the width", shape_text(k)));
  const Problem problem{qs.batch, qs.heads, qs.n, ks.n, qs.d, vs.d, options.causal, options.scale};
  if (const std::string reason = invalid_reason(problem); !reason.empty())
    throw UserError(fmt::format("{}: {}", options.q, reason));
  const bool gradients = !options.dout.empty();
  for (const Pass pass : {Pass::forward, Pass::backward})
    if (pass == Pass::forward || gradients)
      if (const std::string reason = unsupported_reason(entry, *method, problem, pass);
          !reason.empty())
        throw Unsupported(reason);

  Inputs inputs;
  inputs.q = q.tensor;
  inputs.k = k.tensor;
  inputs.v = v.tensor;
  Tensor x;
  if (!options.x.empty()) {
    x = read(options.x).tensor;
    // Three axes are [batch, n, d_model] here: the layer's input has no heads.
    if (x.batch() == 1 && x.heads() == problem.batch) {
      Tensor moved(x.heads(), 1, x.n(), x.d());
      std::copy_n(x.data(), x.size(), moved.data());
      x = std::move(moved);
    }
    if (x.batch() != problem.batch || x.heads() != 1 || x.n() != problem.n)
      throw UserError(fmt::format("--x {}: shape {}, expected [{}, {}, d_model]", options.x,
                                  x.shape().str(), problem.batch, problem.n));
    inputs.x = x;
  }

  if (options.threads > 0) omp_set_num_threads(options.threads);
  method->prepare(problem, {.seed = options.seed, .gradients = gradients, .d_model = x.d()});
  Tensor out(qs.batch, qs.heads, qs.n, vs.d);
  if (!gradients) {
    method->forward(inputs, out, nullptr);
    write(options.out, out, q.axes);
    return;
  }

  const Array dout = read(options.dout);
  need_equal(dout.axes == q.axes && dout.tensor.shape() == out.shape(), "dout", options.dout, dout,
             "that of the output " + shape_text({out, q.axes}));
  const auto saved = method->make_saved();
  method->forward(inputs, out, saved.get());
  Tensor dq(qs), dk(ks), dv(vs), dx(x.shape());
  Gradients gradients_out{dq, dk, dv, {}};
  if (!x.empty()) gradients_out.dx = dx;
  method->backward(inputs, out, dout.tensor, *saved, gradients_out);
  write(options.out, out, q.axes);
  write(options.grad_prefix + "dq.npy", dq, q.axes);
  write(options.grad_prefix + "dk.npy", dk, q.axes);
  write(options.grad_prefix + "dv.npy", dv, q.axes);
  if (!x.empty()) write(options.grad_prefix + "dx.npy", dx, 4);
}

}  // namespace

void add_apply(CLI::App& app, int*) {
  const auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("apply", "Run a method on arrays of your own (.npy files)");
  command->add_option("method", options->method, "Registered name")->required();
  command->add_option("--q", options->q, "Queries [batch, heads, n, d_k], or fewer leading axes")
      ->required();
  command->add_option("--k", options->k, "Keys, as q but for the length")->required();
  command->add_option("--v", options->v, "Values, as k but for the width")->required();
  command->add_option("--x", options->x,
                      "Layer input [batch, n, d_model], where a method needs it");
  command->add_option("-o,--out", options->out, "Output, with as many axes as q")->required();
  command->add_flag("--causal", options->causal, "Query i sees keys j <= i + n_kv - n");
  command->add_option("--scale", options->scale, "Factor on the logits; default 1 / sqrt(d_k)");
  command->add_option("--dout", options->dout, "Gradient of the output; asks for gradients");
  command->add_option("--grad-prefix", options->grad_prefix,
                      "Gradients go to PREFIXdq.npy, PREFIXdk.npy, PREFIXdv.npy");
  command->add_option("--threads", options->threads, "OpenMP threads; default all")
      ->check(CLI::Range(1, 1024));
  command->add_option("--seed", options->seed, "Seed of a random method");
  add_set_option(command, &options->assignments);
  add_plugin_option(command, &options->plugins);
  command->callback([options] { run(*options); });
}

}  // namespace subquad
