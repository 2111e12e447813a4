#include <catch2/catch.hpp>
#include <cmath>

#include "harness/core/npy.h"
#include "harness/core/random.h"
#include "tests/cli/shell.h"

using namespace subquad;
using namespace subquad::test;

namespace {

Tensor normal(Seed seed, Index batch, Index heads, Index n, Index d) {
  Tensor tensor(batch, heads, n, d);
  fill_normal(seed, tensor.data(), tensor.size());
  return tensor;
}

// Softmax attention by its definition, in double.
TensorD plain_attention(const Tensor& q, const Tensor& k, const Tensor& v, bool causal,
                        double scale) {
  TensorD out(q.batch(), q.heads(), q.n(), v.d());
  for (Index b = 0; b < q.batch(); ++b)
    for (Index h = 0; h < q.heads(); ++h)
      for (Index i = 0; i < q.n(); ++i) {
        const Index visible = causal ? i + k.n() - q.n() + 1 : k.n();
        double normalizer = 0;
        for (Index j = 0; j < visible; ++j) {
          double logit = 0;
          for (Index c = 0; c < q.d(); ++c)
            logit +=
                static_cast<double>(q.head(b, h)(i, c)) * static_cast<double>(k.head(b, h)(j, c));
          const double weight = std::exp(scale * logit);
          normalizer += weight;
          for (Index c = 0; c < v.d(); ++c)
            out.head(b, h)(i, c) += weight * static_cast<double>(v.head(b, h)(j, c));
        }
        out.head(b, h).row(i) /= normalizer;
      }
  return out;
}

double relative_error(const NpyArray& found, const TensorD& expected) {
  if (static_cast<Index>(found.values.size()) != expected.size()) return INFINITY;
  double difference = 0, total = 0;
  for (Index i = 0; i < expected.size(); ++i) {
    const double x = expected.data()[i];
    const double e = static_cast<double>(found.values[static_cast<std::size_t>(i)]) - x;
    difference += e * e;
    total += x * x;
  }
  return std::sqrt(difference / total);
}

struct Files {
  TemporaryDirectory dir;
  Tensor q, k, v;
  Files(Index batch, Index heads, Index n, Index n_kv, Index d_k, Index d_v, int axes)
      : q(normal(1, batch, heads, n, d_k)),
        k(normal(2, batch, heads, n_kv, d_k)),
        v(normal(3, batch, heads, n_kv, d_v)) {
    write_npy(dir / "q.npy", q, axes);
    write_npy(dir / "k.npy", k, axes);
    write_npy(dir / "v.npy", v, axes);
  }
  std::string arguments() const {
    return fmt::format("--q '{}' --k '{}' --v '{}' -o '{}' ", dir / "q.npy", dir / "k.npy",
                       dir / "v.npy", dir / "o.npy");
  }
};

}  // namespace

TEST_CASE("apply keeps the number of axes and equals plain attention", "[cli][apply]") {
  const struct {
    Index batch, heads;
    int axes;
    std::vector<Index> shape;
  } cases[] = {{1, 1, 2, {17, 5}}, {1, 3, 3, {3, 17, 5}}, {2, 3, 4, {2, 3, 17, 5}}};
  for (const auto& c : cases)
    for (const bool causal : {false, true}) {
      CAPTURE(c.axes, causal);
      const Files files(c.batch, c.heads, 17, causal ? 17 : 23, 8, 5, c.axes);
      const Finished result = subquad::test::subquad("apply dense_naive " + files.arguments() +
                                                     (causal ? "--causal" : ""));
      REQUIRE(result.err == "");
      REQUIRE(result.status == 0);
      const NpyArray out = read_npy(files.dir / "o.npy");
      CHECK(out.shape == c.shape);
      CHECK(relative_error(out, plain_attention(files.q, files.k, files.v, causal,
                                                1 / std::sqrt(8.0))) <= 1e-5);
    }
}

TEST_CASE("apply uses the given scale", "[cli][apply]") {
  const Files files(1, 1, 9, 9, 4, 4, 2);
  REQUIRE(subquad::test::subquad("apply dense_naive --scale 0.1 " + files.arguments()).status == 0);
  const NpyArray out = read_npy(files.dir / "o.npy");
  CHECK(relative_error(out, plain_attention(files.q, files.k, files.v, false, 0.1)) <= 1e-5);
  CHECK(relative_error(out, plain_attention(files.q, files.k, files.v, false, 0.5)) > 1e-2);
}

TEST_CASE("apply refuses shapes that do not fit, in one line with both shapes", "[cli][apply]") {
  const Files files(1, 2, 6, 7, 4, 3, 3);
  const auto refused = [&](const std::string& change, const std::string& needle) {
    const Finished result =
        subquad::test::subquad("apply dense_naive " + files.arguments() + change);
    CAPTURE(change, result.err);
    CHECK(result.status == 2);
    CHECK(line_count(result.err) == 1);
    CHECK(result.err.find(needle) != std::string::npos);
    CHECK_FALSE(fs::exists(files.dir / "o.npy"));
  };
  const auto with = [&](const char* option, const char* name, const Tensor& tensor, int axes) {
    write_npy(files.dir / name, tensor, axes);
    return fmt::format("--{} '{}'", option, files.dir / name);
  };
  // CLI11 takes an option once, so the whole command line is written anew.
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string text = files.arguments();
    const std::string whole = fmt::format("--{} '{}'", from, files.dir / (from + ".npy"));
    text.replace(text.find(whole), whole.size(), to);
    const Finished result = subquad::test::subquad("apply dense_naive " + text);
    CHECK(result.status == 2);
    CHECK(line_count(result.err) == 1);
    return result.err;
  };
  CHECK(replaced("k", with("k", "k5.npy", normal(4, 1, 2, 7, 5), 3))
            .find("shape [2, 7, 5], expected that of q [2, 6, 4] but for the length") !=
        std::string::npos);
  CHECK(replaced("v", with("v", "v9.npy", normal(4, 1, 2, 9, 3), 3))
            .find("shape [2, 9, 3], expected that of k [2, 7, 4] but for the width") !=
        std::string::npos);
  CHECK(replaced("k", with("k", "k4.npy", normal(4, 1, 2, 7, 4), 4)).find("expected that of q") !=
        std::string::npos);
  refused("--causal --set a=1", "--set a=1: dense_naive: unknown parameter \"a\"");
  refused("--dout x.npy", "go together");
  CHECK(subquad::test::subquad("apply dense_naive --threads 0 " + files.arguments()).status == 2);
}

TEST_CASE("apply names the file that is missing or no array", "[cli][apply]") {
  const Files files(1, 1, 4, 4, 4, 4, 2);
  std::ofstream(files.dir / "v.npy") << "not an array";
  const Finished result = subquad::test::subquad("apply dense_naive " + files.arguments());
  CHECK(result.status == 2);
  CHECK(result.err.find("v.npy") != std::string::npos);
  CHECK(line_count(result.err) == 1);
}

TEST_CASE("apply of an unknown method suggests the nearest", "[cli][apply]") {
  const Files files(1, 1, 4, 4, 4, 4, 2);
  const Finished result = subquad::test::subquad("apply dense_nave " + files.arguments());
  CHECK(result.status == 2);
  CHECK(result.err.find("did you mean \"dense_naive\"?") != std::string::npos);
}
