#include "harness/measure/reference.h"

#include <unistd.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "harness/measure/reference_file.h"

using namespace subquad;

namespace {

struct Case {
  Problem problem;
  QKV inputs;
  Tensor dout;
};

Case make_case(const Problem& problem, bool masked = false, Seed seed = 5) {
  Case c{problem, QKV(problem), make_dout(problem, seed, 0)};
  make_task("gaussian")->fill(problem, seed, 0, &c.inputs);
  if (masked) {
    Random random(seed, "mask");
    for (Index i = 0; i < problem.batch * problem.n_kv; ++i)
      c.inputs.key_mask.push_back(random.uniform() < 0.7);
    c.inputs.key_mask[0] = 0;  // causal: query 0 sees no key
  }
  return c;
}

struct Plain {
  TensorD out, dq, dk, dv;
};

// The equations of the header, by scalar loops.
Plain plain(const Case& c) {
  const Problem& p = c.problem;
  Plain r{TensorD(p.batch, p.heads, p.n, p.d_v), TensorD(p.batch, p.heads, p.n, p.d_k),
          TensorD(p.batch, p.heads, p.n_kv, p.d_k), TensorD(p.batch, p.heads, p.n_kv, p.d_v)};
  const TensorD q = cast<double>(c.inputs.q), k = cast<double>(c.inputs.k),
                v = cast<double>(c.inputs.v), dout = cast<double>(c.dout);
  for (Index b = 0; b < p.batch; ++b)
    for (Index h = 0; h < p.heads; ++h)
      for (Index i = 0; i < p.n; ++i) {
        std::vector<double> w(static_cast<std::size_t>(p.n_kv), 0);
        double sum = 0;
        for (Index j = 0; j < p.visible(i); ++j) {
          if (!c.inputs.key_mask.empty() &&
              c.inputs.key_mask[static_cast<std::size_t>(b * p.n_kv + j)] == 0)
            continue;
          double s = 0;
          for (Index e = 0; e < p.d_k; ++e) s += q.head(b, h)(i, e) * k.head(b, h)(j, e);
          sum += w[static_cast<std::size_t>(j)] = std::exp(p.logit_scale() * s);
        }
        if (sum == 0) continue;
        double d = 0;
        for (Index j = 0; j < p.n_kv; ++j) {
          w[static_cast<std::size_t>(j)] /= sum;
          for (Index e = 0; e < p.d_v; ++e)
            r.out.head(b, h)(i, e) += w[static_cast<std::size_t>(j)] * v.head(b, h)(j, e);
        }
        for (Index e = 0; e < p.d_v; ++e) d += dout.head(b, h)(i, e) * r.out.head(b, h)(i, e);
        for (Index j = 0; j < p.n_kv; ++j) {
          const double weight = w[static_cast<std::size_t>(j)];
          double dp = 0;
          for (Index e = 0; e < p.d_v; ++e) {
            dp += dout.head(b, h)(i, e) * v.head(b, h)(j, e);
            r.dv.head(b, h)(j, e) += weight * dout.head(b, h)(i, e);
          }
          const double ds = p.logit_scale() * weight * (dp - d);
          for (Index e = 0; e < p.d_k; ++e) {
            r.dq.head(b, h)(i, e) += ds * k.head(b, h)(j, e);
            r.dk.head(b, h)(j, e) += ds * q.head(b, h)(i, e);
          }
        }
      }
  return r;
}

double off(const TensorD& got, const TensorD& expected) {
  REQUIRE(got.shape() == expected.shape());
  double difference = 0, norm = 0;
  for (Index i = 0; i < got.size(); ++i) {
    difference += std::pow(got.data()[i] - expected.data()[i], 2);
    norm += std::pow(expected.data()[i], 2);
  }
  return std::sqrt(difference / std::max(norm, 1e-300));
}

bool same_bits(const TensorD& a, const TensorD& b) {
  return a.shape() == b.shape() && std::equal(a.data(), a.data() + a.size(), b.data());
}

const ReferenceOptions kWithGradients{.gradients = true};

std::vector<Problem> problems() {
  std::vector<Problem> list;
  for (const bool causal : {false, true}) {
    for (const Index n : {1, 2, 17, 33, 100})
      list.push_back(
          {.batch = 2, .heads = 2, .n = n, .n_kv = n, .d_k = 5, .d_v = 3, .causal = causal});
    list.push_back({.batch = 1,
                    .heads = 3,
                    .n = 40,
                    .n_kv = 71,
                    .d_k = 4,
                    .d_v = 6,
                    .causal = causal,
                    .scale = 0.7});
  }
  list.push_back({.batch = 1, .heads = 1, .n = 50, .n_kv = 9, .d_k = 4, .d_v = 4});
  return list;
}

std::string temporary(const std::string& name) {
  return (std::filesystem::temp_directory_path() / (name + std::to_string(getpid()))).string();
}

}  // namespace

TEST_CASE("the reference equals plain loops, forward and gradients", "[reference]") {
  for (const bool masked : {false, true})
    for (const Problem& problem : problems()) {
      const Case c = make_case(problem, masked);
      CAPTURE(problem.str(), masked);
      const Reference r = exact_reference(c.inputs.inputs(), &c.dout, problem, 1, kWithGradients);
      const Plain expected = plain(c);
      CHECK(r.all_rows());
      CHECK(off(r.out, expected.out) < 1e-13);
      CHECK(off(r.dq, expected.dq) < 1e-12);
      CHECK(off(r.dk, expected.dk) < 1e-12);
      CHECK(off(r.dv, expected.dv) < 1e-13);
    }
}

TEST_CASE("large logits do not overflow the reference", "[reference]") {
  const Problem problem{.n = 20, .n_kv = 20, .d_k = 4, .d_v = 4, .scale = 5000};
  const Case c = make_case(problem);
  const Reference r = exact_reference(c.inputs.inputs(), &c.dout, problem, 1, kWithGradients);
  for (const TensorD* t : {&r.out, &r.dq, &r.dk, &r.dv})
    for (Index i = 0; i < t->size(); ++i) REQUIRE(std::isfinite(t->data()[i]));
}

TEST_CASE("the reference has the same bits for any number of threads", "[reference]") {
  const Problem problem{.batch = 1, .heads = 2, .n = 300, .n_kv = 300, .causal = true};
  const Case c = make_case(problem);
  const int before = thread_count();
  std::vector<Reference> results;
  for (const int threads : {1, 2, 5}) {
    omp_set_num_threads(threads);
    results.push_back(exact_reference(c.inputs.inputs(), &c.dout, problem, 1, kWithGradients));
  }
  omp_set_num_threads(before);
  for (const Reference& r : results) {
    CHECK(same_bits(r.out, results[0].out));
    CHECK(same_bits(r.dq, results[0].dq));
    CHECK(same_bits(r.dk, results[0].dk));
    CHECK(same_bits(r.dv, results[0].dv));
  }
}

TEST_CASE("above the cost limit sampled rows equal those of the whole reference", "[reference]") {
  const Problem problem{
      .batch = 2, .heads = 2, .n = 90, .n_kv = 100, .d_k = 8, .d_v = 8, .causal = true};
  const Case c = make_case(problem);
  const auto with = [&](double max_gflop, Index rows, bool gradients, Seed seed = 3) {
    return exact_reference(c.inputs.inputs(), &c.dout, problem, seed,
                           {.gradients = gradients, .max_gflop = max_gflop, .rows = rows});
  };
  const Reference whole = with(20, 256, true), sample = with(0, 37, true);
  REQUIRE(sample.rows.size() == 4);
  CHECK(sample.dk.empty());
  CHECK(sample.dv.empty());
  CHECK(sample.rows[0] != sample.rows[1]);
  CHECK(sample.out.n() == 37);
  for (std::size_t bh = 0; bh < 4; ++bh) {
    REQUIRE(sample.rows[bh].size() == 37);
    CHECK(std::is_sorted(sample.rows[bh].begin(), sample.rows[bh].end()));
    const auto head = static_cast<Index>(bh);
    for (std::size_t r = 0; r < 37; ++r) {
      const Index row = static_cast<Index>(r), place = sample.rows[bh][r];
      CHECK(
          (sample.out.view().head(head).row(row) - whole.out.view().head(head).row(place)).norm() <
          1e-12);
      CHECK((sample.dq.view().head(head).row(row) - whole.dq.view().head(head).row(place)).norm() <
            1e-12);
    }
  }
  CHECK(with(0, 37, true).rows == sample.rows);
  CHECK(with(0, 37, true, 4).rows != sample.rows);
  CHECK(with(0, 90, false).all_rows());  // a sample of all rows is no sample
  // The limit counts 2 (d_k + d_v) flops per visible entry, four times that with gradients.
  const double gflop = 2e-9 * 4 * problem.visible_entries() * 16;
  CHECK(reference_gflop(problem, false) == Approx(gflop));
  CHECK(reference_gflop(problem, true) == Approx(4 * gflop));
  CHECK(with(gflop * 1.001, 5, false).all_rows());
  CHECK_FALSE(with(gflop * 0.999, 5, false).all_rows());
}

TEST_CASE("single rows of output and matrix agree with the whole", "[reference]") {
  for (const bool masked : {false, true}) {
    const Problem problem{
        .batch = 2, .heads = 2, .n = 60, .n_kv = 60, .d_k = 8, .d_v = 4, .causal = true};
    const Case c = make_case(problem, masked);
    const Inputs in = c.inputs.inputs();
    const Reference whole = exact_reference(in, nullptr, problem, 1, {});
    const std::vector<Index> rows{0, 3, 58, 59};
    const TensorD some = exact_rows(in, problem, rows);
    for (Index b = 0; b < 2; ++b)
      for (Index h = 0; h < 2; ++h) {
        const MatrixD matrix = exact_attention_rows(in, problem, b, h, rows);
        const MatrixD from_matrix = matrix * cast<double>(c.inputs.v).view().head(b, h);
        for (Index r = 0; r < 4; ++r) {
          const Index row = rows[static_cast<std::size_t>(r)];
          const auto expected = whole.out.head(b, h).row(row);
          CHECK((some.head(b, h).row(r) - expected).norm() < 1e-13);
          CHECK((from_matrix.row(r) - expected).norm() < 1e-13);
          const double sum = matrix.row(r).sum();
          CHECK((sum == 0 || std::abs(sum - 1) < 1e-13));
          CHECK(matrix.row(r).tail(60 - row - 1).isZero(0));
        }
      }
  }
}

TEST_CASE("a reference file gives back what was written", "[reference]") {
  const std::string path = temporary("reference_round_trip");
  const std::string id = "0123456789abcdef";
  for (const bool sampled : {false, true})
    for (const bool gradients : {false, true}) {
      const Problem problem{.batch = 1, .heads = 2, .n = 30, .n_kv = 30, .d_k = 4, .d_v = 6};
      const Reference r =
          task_reference(*make_task("gaussian"), problem, 9,
                         {.gradients = gradients, .max_gflop = sampled ? 0.0 : 20.0, .rows = 7});
      write_reference(path, id, r);
      const Reference back = read_reference(path, id, problem);
      CHECK(back.inputs_hash == r.inputs_hash);
      CHECK(back.problem == problem);
      CHECK(back.rows == r.rows);
      CHECK(same_bits(back.out, r.out));
      CHECK(same_bits(back.dq, r.dq));
      CHECK(same_bits(back.dk, r.dk));
      CHECK(same_bits(back.dv, r.dv));
    }
  std::filesystem::remove(path);
}

TEST_CASE("a damaged or foreign reference file is refused with the reason", "[reference]") {
  const std::string path = temporary("reference_damage"), id = "0123456789abcdef";
  const Problem problem{.n = 12, .n_kv = 12, .d_k = 4, .d_v = 2};
  write_reference(path, id, task_reference(*make_task("gaussian"), problem, 9, {}));
  CHECK_THROWS_WITH(read_reference(path, "ffffffffffffffff", problem),
                    Catch::Contains("belongs to 0123456789abcdef, expected ffffffffffffffff"));
  Problem other = problem;
  other.causal = true;
  CHECK_THROWS_WITH(read_reference(path, id, other), Catch::Contains("another problem"));
  CHECK_THROWS_WITH(read_reference(path + "x", id, problem), Catch::Contains("cannot be read"));

  std::ifstream file(path, std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(file)), {});
  const auto refused = [&](const std::string& bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    try {
      read_reference(path, id, problem);
      return false;
    } catch (const StorageError& error) {
      return std::string(error.what()).starts_with("reference " + path + ": ");
    }
  };
  CHECK_FALSE(refused(whole));
  for (std::size_t i = 0; i < whole.size(); i += 1) {
    std::string flipped = whole;
    flipped[i] = static_cast<char>(flipped[i] ^ 0x10);
    if (!refused(flipped)) FAIL("byte " << i << " was changed and nobody noticed");
  }
  for (std::size_t length = 0; length < whole.size(); length += 7)
    if (!refused(whole.substr(0, length))) FAIL("cut at " << length << " and nobody noticed");
  CHECK(refused(whole + "x"));
  std::filesystem::remove(path);
  CHECK_THROWS_AS(write_reference("/nowhere/at/all", id, Reference{}), StorageError);
}
