// Models made again from checkpoints, and the task that shows what their attention sees.
#include "harness/model/trained_model.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "harness/core/capture.h"
#include "harness/core/registry.h"
#include "harness/model/checkpoint.h"
#include "tests/model/model_fixture.h"
#include "tests/model/saved_model.h"

namespace subquad {
namespace {

const Settings kSmall{{"vocabulary", Index{64}}, {"pairs", Index{2}}};

bool same(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() &&
         std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(float)) == 0;
}

std::vector<float> values(const TensorFile& file, const std::string& name) {
  const auto& bytes = file.tensors.at(name).bytes;
  std::vector<float> out(bytes.size() / 4);
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

// Layer norm of a row in double.
std::vector<double> normed(const std::vector<double>& x, const std::vector<float>& weight,
                           const std::vector<float>& bias) {
  double mean = 0, square = 0;
  for (const double e : x) mean += e / static_cast<double>(x.size());
  for (const double e : x) square += (e - mean) * (e - mean) / static_cast<double>(x.size());
  std::vector<double> out;
  for (std::size_t i = 0; i < x.size(); ++i)
    out.push_back((x[i] - mean) / std::sqrt(square + 1e-5) * static_cast<double>(weight[i]) +
                  static_cast<double>(bias[i]));
  return out;
}

// Largest difference of `head` to W x + b for the rows of W from `first` on.
double projection_error(const Tensor& seen, const Tensor& x, const std::vector<float>& weight,
                        const std::vector<float>& bias, Index first) {
  double worst = 0;
  const Index width = x.d();
  for (Index h = 0; h < seen.heads(); ++h)
    for (Index t = 0; t < seen.n(); ++t)
      for (Index c = 0; c < seen.d(); ++c) {
        const Index row = first + h * seen.d() + c;
        double sum = static_cast<double>(bias[static_cast<std::size_t>(row)]);
        for (Index i = 0; i < width; ++i)
          sum += static_cast<double>(weight[static_cast<std::size_t>(row * width + i)]) *
                 static_cast<double>(x.data()[t * width + i]);
        worst = std::max(
            worst,
            std::abs(sum - static_cast<double>(seen.view().head_data(0, h)[t * seen.d() + c])));
      }
  return worst;
}

TEST_CASE("captured q, k and v are the projections of the layer's input", "[model][capture]") {
  const SavedModel saved("mqar", kSmall, {{"positions", std::string("none")}}, 16);
  const TrainedModel model(saved.path());
  CHECK(model.steps() == 3);
  CHECK(model.sequences() == 1);
  const std::vector<QKV> layers = model.capture(Split::test, 5);
  REQUIRE(layers.size() == 2);
  const TensorFile file = read_safetensors(model.path());
  for (std::size_t l = 0; l < 2; ++l) {
    const auto weight = values(file, fmt::format("layers.{}.attn.qkv.weight", l));
    const auto bias = values(file, fmt::format("layers.{}.attn.qkv.bias", l));
    const QKV& seen = layers[l];
    REQUIRE(seen.x.shape() == Shape{1, 1, 16, 12});
    CHECK(seen.key_mask.empty());
    CHECK(projection_error(seen.q, seen.x, weight, bias, 0) <= 1e-5);
    CHECK(projection_error(seen.k, seen.x, weight, bias, 16) <= 1e-5);
    CHECK(projection_error(seen.v, seen.x, weight, bias, 32) <= 1e-5);
  }
  // The first layer's input is the norm of the embedding of the test split's example 5.
  const TokenBatch batch = saved.task().tokens(Split::test, 5, 1, 16, saved.setup().seed);
  const auto embed = values(file, "embed.weight"), weight = values(file, "layers.0.ln1.weight"),
             bias = values(file, "layers.0.ln1.bias");
  for (Index p = 0; p < 16; ++p) {
    const auto token = static_cast<std::ptrdiff_t>(batch.tokens[static_cast<std::size_t>(p)]);
    const std::vector<double> row(embed.begin() + token * 12, embed.begin() + (token + 1) * 12);
    const std::vector<double> expected = normed(row, weight, bias);
    for (Index c = 0; c < 12; ++c) {
      INFO("token " << p << " column " << c);
      CHECK(std::abs(static_cast<double>(layers[0].x.data()[p * 12 + c]) -
                     expected[static_cast<std::size_t>(c)]) <= 1e-5);
    }
  }
}

TEST_CASE("rotary positions are turned into what is captured", "[model][capture]") {
  const SavedModel saved("mqar", kSmall, {{"positions", std::string("rope")}}, 16);
  const TrainedModel model(saved.path());
  const QKV seen = model.capture(Split::test, 0).front();
  const TensorFile file = read_safetensors(model.path());
  const auto weight = values(file, "layers.0.attn.qkv.weight"),
             bias = values(file, "layers.0.attn.qkv.bias");
  CHECK(projection_error(seen.q, seen.x, weight, bias, 0) > 0.01);
  CHECK(projection_error(seen.v, seen.x, weight, bias, 32) <= 1e-5);
}

TEST_CASE("a captured task supplies heads, sets and splits of its own", "[model][capture]") {
  const SavedModel saved("mqar", kSmall, {}, 16);
  const TrainedModel model(saved.path());
  Settings settings{{"from", saved.path()}, {"layer", Index{1}}};
  const auto all = make_task("mqar", settings);
  const Problem wanted{.batch = 3, .heads = 7, .n = 99, .n_kv = 99, .d_k = 4, .d_v = 4};
  const Problem p = all->adapt(wanted);
  CHECK(p ==
        Problem{.batch = 3, .heads = 2, .n = 16, .n_kv = 16, .d_k = 8, .d_v = 6, .causal = true});
  CHECK(all->unsupported(p) == "");
  CHECK(all->unsupported(wanted) != "");
  const auto filled = [](const Task& task, const Problem& problem, Seed seed, Index set) {
    QKV data(problem);
    task.fill(problem, seed, set, &data);
    return data;
  };
  const QKV first = filled(*all, p, 1, 0);
  CHECK(first.x.shape() == Shape{3, 1, 16, 12});
  {
    const Threads threads(3);
    CHECK(same(filled(*all, p, 1, 0).q, first.q));
  }
  CHECK_FALSE(same(filled(*all, p, 1, 1).q, first.q));
  CHECK_FALSE(same(filled(*all, p, 2, 0).q, first.q));

  // Which examples these are: of the test split, one after another; fitting takes the others.
  const Index start = static_cast<Index>(derive(1, "captured examples") >> 34);
  for (Index b = 0; b < 3; ++b) {
    const QKV one = model.capture(Split::test, start + b)[1];
    CHECK(std::equal(one.q.data(), one.q.data() + one.q.size(), first.q.data() + b * one.q.size()));
    CHECK(std::equal(one.v.data(), one.v.data() + one.v.size(), first.v.data() + b * one.v.size()));
  }
  const QKV fit = filled(*all, p, 1, kFirstFitSet);
  const QKV train_example = model.capture(Split::train, start)[1];
  CHECK(std::equal(train_example.k.data(), train_example.k.data() + train_example.k.size(),
                   fit.k.data()));
  CHECK_FALSE(same(fit.q, first.q));

  settings["head"] = Index{1};
  const auto single = make_task("mqar", settings);
  const Problem one_head = single->adapt(wanted);
  CHECK(one_head.heads == 1);
  const QKV head = filled(*single, one_head, 1, 0);
  for (Index b = 0; b < 3; ++b)
    CHECK(std::equal(head.k.view().head_data(b, 0), head.k.view().head_data(b, 0) + 16 * 8,
                     first.k.view().head_data(b, 1)));
}

TEST_CASE("two towers, a CLS token, padding and methods with parameters can be captured",
          "[model][capture]") {
  SECTION("two sequences an example, one more position for CLS") {
    const SavedModel saved("retrieval_match", {}, {{"pool", std::string("cls")}}, 64);
    const auto task = make_task("retrieval_match", {{"from", saved.path()}});
    const Problem p = task->adapt({.batch = 3, .n = 5, .n_kv = 5});
    CHECK(p.n == 65);
    QKV data(p);
    task->fill(p, 1, 0, &data);
    const TrainedModel model(saved.path());
    CHECK(model.sequences() == 2);
    const auto start = static_cast<Index>(derive(1, "captured examples") >> 34);
    const QKV second = model.capture(Split::test, start + 1).front();  // sequence 2 is its first
    CHECK(std::equal(second.q.view().head_data(0, 0), second.q.view().head_data(0, 0) + 65 * 8,
                     data.q.view().head_data(2, 0)));
  }
  SECTION("padded sequences come with their mask") {
    const SavedModel saved("listops", {}, {}, 64);
    const auto task = make_task("listops", {{"from", saved.path()}});
    const Problem p = task->adapt({.batch = 8, .n = 64, .n_kv = 64});
    QKV data(p);
    task->fill(p, 1, 0, &data);
    REQUIRE(data.key_mask.size() == 8 * 64);
    CHECK(std::count(data.key_mask.begin(), data.key_mask.end(), 0) > 0);
    CHECK(std::count(data.key_mask.begin(), data.key_mask.end(), 1) > 0);
  }
  SECTION("a method's own parameters are taken up") {
    const SavedModel saved("mqar", kSmall, {{"learning_rate", 0.5}}, 16, "zeta");
    // The second layer sees what the first one's trained parameters made of it.
    const TrainedModel model(saved.path());
    const QKV second = model.capture(Split::test, 0)[1];
    TensorFile file = read_safetensors(model.path());
    auto& theta = file.tensors.at("layers.0.method.theta");
    const float changed = 3;
    std::memcpy(theta.bytes.data(), &changed, sizeof changed);
    std::vector<FileTensor> tensors;
    for (const auto& [name, entry] : file.tensors)
      tensors.push_back({name, entry.shape, entry.type, entry.bytes.data()});
    write_safetensors(model.path(), tensors, file.metadata);
    CHECK_FALSE(same(TrainedModel(saved.path()).capture(Split::test, 0)[1].q, second.q));
  }
}

TEST_CASE("all layers side by side come with the tokens' embeddings", "[model][capture]") {
  const SavedModel saved("mqar", kSmall, {}, 16);
  const TrainedModel model(saved.path());
  const auto task = make_task("mqar", {{"from", saved.path()}, {"layer", Index{-1}}});
  CHECK(task->adapt({.batch = 2, .n = 5, .n_kv = 5}).n == 5);
  const Problem p = task->adapt({.batch = 2, .n = 99, .n_kv = 99});
  CHECK(p.n == 16);
  CHECK(p.heads == 4);
  QKV data(p);
  task->fill(p, 1, 0, &data);
  CHECK(data.x.shape() == Shape{2, 1, 16, 12});
  const auto embed = values(read_safetensors(model.path()), "embed.weight");
  for (Index b = 0; b < 2; ++b) {
    const Index example = first_example(1) + b;
    const std::vector<QKV> layers = model.capture(Split::test, example);
    for (Index h = 0; h < 4; ++h) {
      const QKV& from = layers[static_cast<std::size_t>(h / 2)];
      CHECK(std::equal(from.k.view().head_data(0, h % 2),
                       from.k.view().head_data(0, h % 2) + 16 * 8, data.k.view().head_data(b, h)));
    }
    const TokenBatch batch = saved.task().tokens(Split::test, example, 1, 16, saved.setup().seed);
    for (Index c = 0; c < 12; ++c)
      CHECK(data.x.view().head_data(b, 0)[3 * 12 + c] ==
            embed[static_cast<std::size_t>(batch.tokens[3] * 12 + c)]);
  }
}

TEST_CASE("what cannot be captured is an error in one line", "[model][capture]") {
  const SavedModel saved("mqar", kSmall, {}, 16);
  const std::string path = saved.path() + "/checkpoint.safetensors";
  const auto make = [&](Settings settings, const std::string& task = "mqar") {
    settings.emplace("from", path);
    make_task(task, settings);
  };
  CHECK_NOTHROW(make({}));
  CHECK_NOTHROW(make(kSmall));
  CHECK_THROWS_WITH(make({}, "listops"), Catch::Contains("trained on the task mqar"));
  CHECK_THROWS_WITH(make({{"pairs", Index{3}}}),
                    Catch::Contains("trained with pairs=2, got pairs=3"));
  CHECK_THROWS_WITH(make({{"layer", Index{2}}}), Catch::Contains("layer=2, expected 0 to 1"));
  CHECK_THROWS_WITH(make({{"head", Index{2}}}), Catch::Contains("head=2, expected 0 to 1"));
  CHECK_THROWS_WITH(make({{"from", std::string("nowhere")}}),
                    Catch::Contains("nowhere: no such file"));

  const TensorFile file = read_safetensors(path);
  const auto rewrite = [&](const std::string& leave_out, const std::string& shape_of,
                           std::map<std::string, std::string> metadata) {
    std::vector<FileTensor> tensors;
    for (const auto& [name, entry] : file.tensors) {
      if (name == leave_out) continue;
      auto shape = entry.shape;
      if (name == shape_of) shape = {shape[1], shape[0]};
      tensors.push_back({name, shape, entry.type, entry.bytes.data()});
    }
    write_safetensors(path, tensors, metadata);
  };
  rewrite("ln_f.weight", "", file.metadata);
  CHECK_THROWS_WITH(make({}), Catch::Contains("ln_f.weight"));
  rewrite("", "layers.1.mlp.up.weight", file.metadata);
  CHECK_THROWS_WITH(make({}), Catch::Contains("layers.1.mlp.up.weight"));
  auto metadata = file.metadata;
  metadata.erase("model");
  rewrite("", "", metadata);
  CHECK_THROWS_WITH(make({}), Catch::Contains("does not say what its model is"));
  metadata["model"] = "{\"format\": 2}";
  rewrite("", "", metadata);
  CHECK_THROWS_WITH(make({}), Catch::Contains("written by another version (model format 2)"));
  metadata["model"] = "{\"format\": 1, \"task\": 7}";
  rewrite("", "", metadata);
  CHECK_THROWS_WITH(make({}), Catch::Contains("cannot be read"));
  metadata["model"] = "nonsense";
  rewrite("", "", metadata);
  CHECK_THROWS_WITH(make({}), Catch::Contains("cannot be read"));
  std::filesystem::resize_file(path, 5000);
  CHECK_THROWS_AS(make({}), UserError);
}

}  // namespace
}  // namespace subquad
