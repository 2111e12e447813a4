#include "harness/cli/plot_attention.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>

#include "harness/cli/options.h"
#include "harness/cli/programs.h"
#include "harness/cli/python_script.h"
#include "harness/core/learns_matrix.h"
#include "harness/core/npy.h"
#include "harness/model/trained_model.h"

namespace subquad {
namespace {

namespace fs = std::filesystem;

void write_matrix(const fs::path& path, const Matrix& matrix) {
  Tensor tensor(1, 1, matrix.rows(), matrix.cols());
  std::copy_n(matrix.data(), matrix.size(), tensor.data());
  write_npy(path.string(), tensor, 2);
}

Matrix dense_attention(const QKV& in, const Problem& p, Index h) {
  Matrix weights = Matrix::Zero(p.n, p.n);
  for (Index t = 0; t < p.n; ++t) {
    const Index seen = p.causal ? t + 1 : p.n;
    std::vector<double> row(static_cast<std::size_t>(seen));
    double most = -1e300, sum = 0;
    for (Index j = 0; j < seen; ++j) {
      double dot = 0;
      for (Index c = 0; c < p.d_k; ++c)
        dot += static_cast<double>(in.q.view().head(0, h)(t, c)) *
               static_cast<double>(in.k.view().head(0, h)(j, c));
      const bool real = in.key_mask.empty() || in.key_mask[static_cast<std::size_t>(j)] != 0;
      row[static_cast<std::size_t>(j)] = real ? dot * p.logit_scale() : -1e300;
      most = std::max(most, row[static_cast<std::size_t>(j)]);
    }
    for (double& e : row) sum += e = std::exp(e - most);
    for (Index j = 0; j < seen; ++j)
      weights(t, j) = static_cast<float>(row[static_cast<std::size_t>(j)] / sum);
  }
  return weights;
}

}  // namespace

int plot_attention(const std::string& checkpoint, const AttentionPlotOptions& options) {
  load_plugins(options.plugins);
  const TrainedModel model(checkpoint);
  const Problem& p = model.problem();
  const auto layers = static_cast<Index>(model.setup().methods.size());
  if (options.layer >= layers)
    throw UserError(fmt::format("--layer {}: {} has {} layers, expected 0 to {}", options.layer,
                                model.path(), layers, layers - 1));
  if (options.head >= p.heads)
    throw UserError(fmt::format("--head {}: {} has {} heads, expected 0 to {}", options.head,
                                model.path(), p.heads, p.heads - 1));
  const std::vector<QKV> seen = model.capture(Split::test, options.example);
  const QKV& in = seen[static_cast<std::size_t>(options.layer)];
  Method& method = model.method(options.layer);
  const std::string& name = model.setup().methods[static_cast<std::size_t>(options.layer)].name;

  std::vector<Index> rows(static_cast<std::size_t>(p.n));
  std::iota(rows.begin(), rows.end(), Index{0});
  Matrix shown = Matrix::Zero(p.n, p.n), estimated(p.n, p.n);
  if (!method.attention_rows(in.inputs(), 0, options.head, rows, shown))
    throw Unsupported(fmt::format("{} shows no attention matrix", name));
  auto* const learner = dynamic_cast<LearnsMatrix*>(&method);
  const bool estimates = learner != nullptr && learner->learns_matrix();
  if (estimates) learner->estimated_matrix(in.inputs(), 0, options.head, estimated);
  const Matrix dense = dense_attention(in, p, options.head);

  fs::path out = options.out;
  if (out.empty()) out = fs::path(model.path()).parent_path() / "attention";
  std::error_code error;
  fs::create_directories(out, error);
  if (error) throw StorageError(fmt::format("{}: {}", out.string(), error.message()));
  write_matrix(out / "dense.npy", dense);
  write_matrix(out / "method.npy", shown);
  fs::remove(out / "estimated.npy", error);
  if (estimates) write_matrix(out / "estimated.npy", estimated);
  if (options.csv) {
    std::string text =
        estimates ? "query,key,dense,estimated,method\n" : "query,key,dense,method\n";
    for (Index t = 0; t < p.n; ++t)
      for (Index j = 0; j < (p.causal ? t + 1 : p.n); ++j)
        text += estimates ? fmt::format("{},{},{},{},{}\n", t, j, dense(t, j), estimated(t, j),
                                        shown(t, j))
                          : fmt::format("{},{},{},{}\n", t, j, dense(t, j), shown(t, j));
    write_text(out / "attention.csv", text);
  }
  nlohmann::ordered_json about;
  about["checkpoint"] = model.path();
  about["method"] = name;
  about["settings"] =
      to_string(model.setup().methods[static_cast<std::size_t>(options.layer)].settings);
  about["task"] = model.setup().task_name;
  about["layer"] = options.layer;
  about["head"] = options.head;
  about["example"] = options.example;
  about["n"] = p.n;
  about["causal"] = p.causal;
  write_text(out / "attention.json", about.dump(2) + "\n");

  std::vector<std::string> arguments;
  for (const std::string& format : options.formats) arguments.push_back("--format=" + format);
  arguments.insert(arguments.end(), {"--", out.string()});
  return run_python_script("attention.py", arguments);
}

}  // namespace subquad
