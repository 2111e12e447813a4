#include "harness/core/npy.h"

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>

#include "tests/tasks/attention.h"

using namespace subquad;
namespace fs = std::filesystem;

namespace {

const std::string kLayers = SUBQUAD_SOURCE_DIR "/tests/fixtures/npy/layers";

struct Files {
  fs::path dir;
  Files() {
    std::string name = (fs::temp_directory_path() / "subquad_task_npy_XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    dir = name;
  }
  ~Files() { fs::remove_all(dir); }
  void write(const std::string& name, const Shape& shape, Seed seed = 1) const {
    Tensor tensor(shape);
    fill_normal(seed, tensor.data(), tensor.size());
    write_npy((dir / name).string(), tensor);
  }
  Settings settings() const {
    return {{"q", (dir / "q.npy").string()},
            {"k", (dir / "k.npy").string()},
            {"v", (dir / "v.npy").string()}};
  }
};

std::string refusal(const Settings& settings) {
  try {
    make_task("npy", settings);
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}

Settings layer(Index i) { return {{"dir", kLayers}, {"layer", i}}; }

}  // namespace

TEST_CASE("npy supplies the sizes of the files", "[npy]") {
  Problem request;
  request.batch = 4, request.n = request.n_kv = 6, request.causal = true;
  const auto task = make_task("npy", layer(0));
  const Problem p = task->adapt(request);
  CHECK(p.batch == 2);
  CHECK(p.heads == 3);
  CHECK(p.d_k == 5);
  CHECK(p.d_v == 4);
  CHECK(p.n == 6);
  CHECK(p.n_kv == 6);
  CHECK(p.causal);
  CHECK(task->unsupported(p) == "");
  CHECK(task->unsupported(request) != "");
  Problem longer = p;
  longer.n = longer.n_kv = 10;
  CHECK(task->unsupported(longer) == "the files hold 9 queries and 9 keys, got n=10 and n_kv=10");
  CHECK(make_task("npy", layer(3))->adapt(request).heads == 1);  // [n, d] in a folder of its own
}

TEST_CASE("npy hands out the first tokens, bit for bit", "[npy]") {
  const Tensor q = read_npy_tensor(kLayers + "/layer0_q.npy"),
               k = read_npy_tensor(kLayers + "/layer0_k.npy"),
               v = read_npy_tensor(kLayers + "/layer0_v.npy");
  Problem p;
  p.batch = 2, p.heads = 3, p.n = p.n_kv = 6, p.d_k = 5, p.d_v = 4;
  const QKV data = fill("npy", layer(0), p);
  for (Index b = 0; b < 2; ++b)
    for (Index h = 0; h < 3; ++h) {
      CHECK(data.q.head(b, h) == q.head(b, h).topRows(6));
      CHECK(data.k.head(b, h) == k.head(b, h).topRows(6));
      CHECK(data.v.head(b, h) == v.head(b, h).topRows(6));
    }
  p.n = 2;  // the last queries of the first six tokens
  CHECK(fill("npy", layer(0), p).q.head(0, 1) == q.head(0, 1).middleRows(4, 2));
}

TEST_CASE("npy's sets are different inputs with the attention of the files", "[npy]") {
  Problem p;
  p.heads = 3, p.n = p.n_kv = 9, p.d_k = 5, p.d_v = 4;
  const QKV first = fill("npy", layer(0), p, 1, 0);
  std::vector<MatrixD> logits;
  for (Index b = 0; b < 2; ++b)
    for (Index h = 0; h < 3; ++h)
      logits.push_back(logits_of(fill("npy", layer(0), p, 1, b), p, 0, h));
  for (Index set = 1; set < 12; ++set) {
    const QKV other = fill("npy", layer(0), p, 1, set);
    CHECK(other.q.head(0, 0) != first.q.head(0, 0));
    CHECK(other.v.head(0, 0) != first.v.head(0, 0));
    for (Index h = 0; h < 3; ++h) {
      const MatrixD got = logits_of(other, p, 0, h);
      CHECK(std::any_of(logits.begin(), logits.end(),
                        [&](const MatrixD& l) { return (l - got).norm() <= 1e-5 * l.norm(); }));
    }
  }
  Problem one = p;
  one.heads = 1;
  const auto single = [&](Index set) { return fill("npy", layer(3), one, 1, set); };
  CHECK(single(0).q.head(0, 0) != single(1).q.head(0, 0));  // one head of one sequence
  CHECK((logits_of(single(0), one) - logits_of(single(1), one)).norm() < 1e-5);
  CHECK(single(0).v.head(0, 0).col(1) == single(1).v.head(0, 0).col(0));
}

TEST_CASE("npy with fewer queries than keys keeps every key", "[npy]") {
  const Files files;
  files.write("q.npy", {1, 1, 4, 6}, 1);
  files.write("k.npy", {1, 1, 20, 6}, 2);
  files.write("v.npy", {1, 1, 20, 3}, 3);
  const auto task = make_task("npy", files.settings());
  Problem request;
  request.n = request.n_kv = 2;
  for (const bool causal : {false, true}) {
    request.causal = causal;
    const Problem p = task->adapt(request);
    CHECK(p.n == 2);
    CHECK(p.n_kv == 20);
    CHECK(task->unsupported(p) == "");
    const Tensor q = read_npy_tensor((files.dir / "q.npy").string());
    CHECK(fill("npy", files.settings(), p).q.head(0, 0) ==
          (causal ? q.head(0, 0).bottomRows(2) : q.head(0, 0).topRows(2)));
  }
}

TEST_CASE("npy says which file is missing or does not fit", "[npy]") {
  CHECK(refusal({}) == "npy: q is missing; expected the files q, k and v, or dir and layer");
  Files files;
  const std::string at = files.dir.string();
  Settings both = files.settings();
  both["dir"] = at;
  CHECK(refusal(both) == "npy: got dir and files; expected q, k and v, or dir and layer");
  CHECK(refusal(files.settings()) == at + "/q.npy: No such file or directory");
  files.write("q.npy", {1, 2, 8, 6});
  files.write("k.npy", {1, 2, 8, 5});
  files.write("v.npy", {1, 2, 8, 3});
  CHECK(refusal(files.settings()) == "npy: " + at + "/k.npy has shape [1, 2, 8, 5] and " + at +
                                         "/q.npy has [1, 2, 8, 6]; expected the same width");
  files.write("k.npy", {1, 2, 9, 6});
  CHECK(refusal(files.settings()).ends_with("expected the same length"));
  files.write("k.npy", {1, 3, 8, 6});
  CHECK(refusal(files.settings()).ends_with("expected the same number of heads"));
  files.write("k.npy", {2, 2, 8, 6});
  CHECK(refusal(files.settings()).ends_with("expected the same batch"));
  files.write("k.npy", {1, 2, 8, 6});
  CHECK(refusal(files.settings()) == "");

  CHECK(refusal({{"dir", at + "/none"}}) == "npy: " + at + "/none: not a directory");
  CHECK(refusal({{"dir", at}, {"layer", Index{2}}}) ==
        fmt::format("npy: {0} has no layer 2 ({0}/layer2_q.npy or {0}/layer2/q.npy); it has no "
                    "layers",
                    at));
  CHECK(refusal(layer(1)).ends_with("it has the layers 0, 3"));
}

TEST_CASE("npy refuses a value that is not finite, and a file that changed its shape", "[npy]") {
  Files files;
  for (const char* name : {"q.npy", "k.npy", "v.npy"}) files.write(name, {2, 3, 4, 5});
  Settings settings = files.settings();
  settings["q"] = std::string(SUBQUAD_SOURCE_DIR "/tests/fixtures/npy/nan_c.npy");
  Problem p;
  p.batch = 2, p.heads = 3, p.n = p.n_kv = 4, p.d_k = p.d_v = 5;
  CHECK_THROWS_WITH(fill("npy", settings, p), Catch::Contains("value nan at [1, 0, 2, 3]"));

  const auto task = make_task("npy", files.settings());
  files.write("v.npy", {2, 3, 4, 6});
  QKV data(p);
  CHECK_THROWS_WITH(task->fill(p, 1, 0, &data), Catch::Contains("when the run began"));
}
