// Q, K, V of the user's own, captured from a trained model: .npy files of [batch, heads, n, d],
// [heads, n, d] or [n, d].
//
// Either q, k and v name three files, or dir names a directory of layers, where layer i is
//   dir/layer<i>_q.npy, ..._k.npy, ..._v.npy   or   dir/layer<i>/q.npy, k.npy, v.npy.
// Only headers are read until data are asked for.

#include "harness/core/npy.h"

#include <fmt/ranges.h>

#include <filesystem>
#include <set>

#include "tasks/common.h"

namespace subquad {
namespace {

struct Params {
  std::string q, k, v, dir;
  Index layer = 0;
};

class Npy final : public Task {
 public:
  explicit Npy(const Params& params) {
    if (!params.dir.empty()) {
      if (!params.q.empty() || !params.k.empty() || !params.v.empty())
        throw UserError("npy: got dir and files; expected q, k and v, or dir and layer");
      find_layer(params.dir, params.layer);
    } else {
      const std::string* given[] = {&params.q, &params.k, &params.v};
      for (int i = 0; i < 3; ++i) {
        if (given[i]->empty())
          throw UserError(
              fmt::format("npy: {} is missing; expected the files q, k and v, or dir "
                          "and layer",
                          kNames[i]));
        paths_[i] = *given[i];
      }
    }
    Shape shapes[3];
    for (int i = 0; i < 3; ++i) shapes[i] = shape_of(paths_[i]);
    const auto require = [&](bool equal, int i, int j, const char* what) {
      if (!equal)
        throw UserError(fmt::format("npy: {} has shape {} and {} has {}; expected the same {}",
                                    paths_[i], shapes[i].str(), paths_[j], shapes[j].str(), what));
    };
    for (int i = 1; i < 3; ++i) {
      require(shapes[i].batch == shapes[0].batch, i, 0, "batch");
      require(shapes[i].heads == shapes[0].heads, i, 0, "number of heads");
    }
    require(shapes[1].d == shapes[0].d, 1, 0, "width");
    require(shapes[2].n == shapes[1].n, 2, 1, "length");
    q_ = shapes[0];
    k_ = shapes[1];
    v_ = shapes[2];
  }

  Problem adapt(const Problem& requested) const override {
    Problem p = requested;
    p.batch = std::min(p.batch, q_.batch);
    p.heads = q_.heads;
    p.d_k = q_.d;
    p.d_v = v_.d;
    if (q_.n != k_.n) p.n_kv = k_.n;  // every key; there is no common cut
    return p;
  }

  std::string unsupported(const Problem& p) const override {
    if (!(adapt(p) == p)) return fmt::format("the files hold {}, got {}", adapt(p).str(), p.str());
    if (p.n > q_.n || p.n_kv > k_.n)
      return fmt::format("the files hold {} queries and {} keys, got n={} and n_kv={}", q_.n, k_.n,
                         p.n, p.n_kv);
    return "";
  }

  void fill(const Problem& p, Seed, Index set, QKV* out) const override {
    const Tensor q = load(0), k = load(1), v = load(2);
    // Row of the file that is query 0. With the keys cut to the first n_kv, the last query is the
    // one at the last key; where queries and keys differ in number and the problem is causal, the
    // last query sees every key.
    const Index first = q_.n == k_.n ? std::max<Index>(p.n_kv - p.n, 0) : p.causal ? q_.n - p.n : 0;
    for_heads(p.batch, p.heads, [&](Index b, Index h) {
      // Sets run through the batch, then through rotations of the heads, then of the columns.
      const Index window = set * p.batch + b;
      const Index from_b = window % q_.batch;
      const Index turn = window / q_.batch;
      const Index from_h = (h + turn) % q_.heads;
      const Index columns = turn / q_.heads;
      const auto copy = [&](const Tensor& from, Index row, Tensor* to) {
        const Index d = from.d();
        const float* source = from.view().head_data(from_b, from_h) + row * d;
        float* target = to->view().head_data(b, h);
        for (Index i = 0; i < to->n(); ++i)
          for (Index c = 0; c < d; ++c) target[i * d + c] = source[i * d + (c + columns) % d];
      };
      copy(q, first, &out->q);
      copy(k, 0, &out->k);
      copy(v, 0, &out->v);
    });
  }

 private:
  static constexpr const char* kNames[] = {"q", "k", "v"};

  static Shape shape_of(const std::string& path) {
    const std::vector<Index> axes = read_npy_shape(path);
    std::vector<Index> full(axes.size() < 4 ? 4 - axes.size() : 0, 1);
    full.insert(full.end(), axes.begin(), axes.end());
    const Shape shape{full[0], full[1], full[2], full[3]};
    if (axes.size() < 2 || axes.size() > 4 || shape.size() == 0)
      throw UserError(
          fmt::format("{}: shape ({}); expected [batch, heads, n, d], [heads, n, d] or "
                      "[n, d] without an axis of length 0",
                      path, fmt::join(axes, ", ")));
    return shape;
  }

  void find_layer(const std::string& dir, Index layer) {
    namespace fs = std::filesystem;
    std::error_code error;
    if (!fs::is_directory(dir, error))
      throw UserError(fmt::format("npy: {}: not a directory", dir));
    const fs::path flat = fs::path(dir) / fmt::format("layer{}_", layer);
    const fs::path nested = fs::path(dir) / fmt::format("layer{}", layer);
    const bool in_folder = fs::is_directory(nested, error);
    for (int i = 0; i < 3; ++i)
      paths_[i] = in_folder ? (nested / (std::string(kNames[i]) + ".npy")).string()
                            : flat.string() + kNames[i] + ".npy";
    if (in_folder || fs::exists(paths_[0], error) || fs::exists(paths_[1], error)) return;
    std::set<Index> found;
    for (const fs::directory_entry& entry : fs::directory_iterator(dir)) {
      const std::string name = entry.path().filename().string();
      std::size_t end = 5;
      Index number = 0;
      if (!name.starts_with("layer")) continue;
      for (; end < name.size() && end < 14 && name[end] >= '0' && name[end] <= '9'; ++end)
        number = 10 * number + (name[end] - '0');
      if (end > 5) found.insert(number);
    }
    throw UserError(fmt::format(
        "npy: {} has no layer {} ({} or {}/q.npy); {}", dir, layer, paths_[0], nested.string(),
        found.empty() ? "it has no layers"
                      : fmt::format("it has the layers {}", fmt::join(found, ", "))));
  }

  // The tensor of file i, which must still have the shape seen at first.
  Tensor load(int i) const {
    Tensor tensor = read_npy_tensor(paths_[i]);
    const Shape& expected = i == 0 ? q_ : i == 1 ? k_ : v_;
    if (!(tensor.shape() == expected))
      throw UserError(fmt::format("{}: shape {}, but it was {} when the run began", paths_[i],
                                  tensor.shape().str(), expected.str()));
    return tensor;
  }

  std::string paths_[3];  // of q, k, v
  Shape q_, k_, v_;       // of the files
};

const RegisterTask<Npy, Params> kRegistration{
    {.name = "npy",
     .source = "the user's own files",
     .summary = "captured q, k, v from .npy files, or a directory of layers",
     .notes =
         {"heads and widths are those of the files, batch at most theirs; a smaller n takes the "
          "first tokens, a larger one is unsupported",
          "with n_kv > n the queries are the last n of the first n_kv tokens; files with different "
          "numbers of queries and keys keep all keys, and take the last n queries in a causal "
          "problem, else the first",
          "sets run through the batch of the files; when it is used up, heads are rotated by one, "
          "and after that the columns of q, k and v: other inputs, the same attention",
          "the seed changes nothing; results are identified by the path, not by what the file "
          "holds"}},
    {param("q", &Params::q, "file of the queries, relative to the current directory"),
     param("k", &Params::k, "file of the keys"), param("v", &Params::v, "file of the values"),
     param("dir", &Params::dir,
           "directory of layers, instead of q, k and v: layer<i>_q.npy or layer<i>/q.npy"),
     param("layer", &Params::layer, {0, 1000000}, "layer of dir")}};

}  // namespace
}  // namespace subquad
