// Linear attention in all its forms: the same function however it is evaluated, for long sequences
// and inputs that are not centred; invariants of the papers.
#include <fmt/core.h>

#include <catch2/catch.hpp>
#include <cstring>

#include "tests/methods/method_fixture.h"

using namespace subquad;
using namespace subquad::testing;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

Problem one_head(Index n, Index d_k, Index d_v, bool causal = true) {
  return {.batch = 1, .heads = 1, .n = n, .n_kv = n, .d_k = d_k, .d_v = d_v, .causal = causal};
}

void shift(Tensor* x, float factor, float by) {
  for (Index e = 0; e < x->size(); ++e) x->data()[e] = x->data()[e] * factor + by;
}

// Row i of causal linear attention with elu(x) + 1, summed in double.
VectorD exact_row(const Problem& p, const QKV& in, Index i) {
  const auto phi = [](float x) {
    const auto y = static_cast<double>(x);
    return y > 0 ? y + 1 : std::exp(y);
  };
  VectorD sum = VectorD::Zero(p.d_v);
  double norm = 1e-6;
  for (Index j = 0; j < p.visible(i); ++j) {
    double weight = 0;
    for (Index c = 0; c < p.d_k; ++c)
      weight += phi(in.q.data()[i * p.d_k + c]) * phi(in.k.data()[j * p.d_k + c]);
    norm += weight;
    for (Index c = 0; c < p.d_v; ++c)
      sum[c] += weight * static_cast<double>(in.v.data()[j * p.d_v + c]);
  }
  return sum / norm;
}

double row_error(const Problem& p, const QKV& in, const Tensor& out, Index i) {
  const VectorD want = exact_row(p, in, i);
  double error = 0;
  for (Index c = 0; c < p.d_v; ++c)
    error = std::max(error, std::fabs(static_cast<double>(out.data()[i * p.d_v + c]) - want[c]));
  return error / want.cwiseAbs().maxCoeff();
}

Tensor decoded(const std::string& name, const Settings& settings, const Problem& p, const QKV& in) {
  const auto decoder = make_method(name, settings)
                           ->make_decoder({.batch = p.batch,
                                           .heads = p.heads,
                                           .capacity = p.n,
                                           .d_k = p.d_k,
                                           .d_v = p.d_v,
                                           .scale = p.scale});
  Tensor out(p.batch, p.heads, p.n, p.d_v);
  const double first = decoder->bytes().kv;
  for (Index t = 0; t < p.n; ++t)
    decoder->step({in.q.data() + t * p.d_k, in.k.data() + t * p.d_k, in.v.data() + t * p.d_v},
                  out.data() + t * p.d_v);
  CHECK(decoder->bytes().kv == first);  // the state does not grow
  return out;
}

void require_same_bits(const Tensor& a, const Tensor& b, Index rows) {
  for (Index e = 0; e < rows * a.d(); ++e)
    if (std::memcmp(a.data() + e, b.data() + e, sizeof(float)) != 0)
      FAIL("row " << e / a.d() << " column " << e % a.d() << ": " << a.data()[e] << " and "
                  << b.data()[e]);
}

}  // namespace

TEST_CASE("chunked, sequential, recurrent and parallel forms agree over 65,536 tokens",
          "[methods][linear]") {
  for (const Index n : {Index{1000}, Index{65536}}) {
    const Problem p = one_head(n, 32, 32);
    QKV in = random_inputs(p, 3);
    shift(&in.q, 1, 0.5f);  // nothing is centred: the sums grow with the position
    shift(&in.k, 1, 1);
    shift(&in.v, 1, 5);
    const Tensor chunked = run_method("linear", {}, p, in).out;
    for (const Index chunk : {16, 48, 256}) {
      INFO(n << " tokens, chunk " << chunk);
      CHECK(relative_error(run_method("linear", {{"chunk", chunk}}, p, in).out,
                           cast<double>(chunked)) <= 1e-5);
    }
    CHECK(relative_error(run_method("linear", {{"form", "sequential"}}, p, in).out,
                         cast<double>(chunked)) <= 1e-5);
    CHECK(relative_error(decoded("linear", {}, p, in), cast<double>(chunked)) <= 1e-5);
    for (const Index i : {Index{0}, n / 3, n - 1}) CHECK(row_error(p, in, chunked, i) <= 1e-5);
    const Tensor parallel = run_method("linear", {}, one_head(n, 32, 32, false), in).out;
    CHECK(row_error(p, in, parallel, n - 1) <= 1e-5);  // the last query sees every key
  }
}

TEST_CASE("chunks of any size meet the state of all keys, at the width of the large blocks",
          "[methods][linear]") {
  const Problem p = one_head(333, 64, 64, false);
  const QKV in = random_inputs(p, 11);
  for (const Index chunk : {0, 32, 64, 80, 96, 112}) {
    INFO("chunk " << chunk);
    const Tensor out = run_method("linear", {{"chunk", chunk}}, p, in).out;
    for (Index i = 0; i < p.n; ++i) CHECK(row_error(p, in, out, i) <= 1e-5);
  }
}

TEST_CASE("equal tokens do not bias the prefix sums of the chunked form", "[methods][linear]") {
  // Adding the same number again and again, float32 rounds the same way every time.
  const Index n = 65536;
  const Problem p = one_head(n, 16, 16);
  QKV in(p);
  for (Index e = 0; e < in.q.size(); ++e) {
    in.q.data()[e] = 0.3f + 0.01f * static_cast<float>(e % 16);
    in.k.data()[e] = 0.7f - 0.02f * static_cast<float>(e % 16);
    in.v.data()[e] = e < 16 * n / 2 ? 3.1f : 0.1f;
  }
  const Tensor out = run_method("linear", {}, p, in).out;
  for (const Index i : {n / 2 - 1, n - 1}) CHECK(row_error(p, in, out, i) <= 1e-6);
}

TEST_CASE("long causal scans are strictly causal and the same for any number of threads",
          "[methods][linear]") {
  const Index n = GENERATE(300, 1200, 2111);  // with an empty segment; three and five of them
  for (const std::string name : {"linear", "performer", "lightning2", "deltanet"}) {
    const Problem p = one_head(n, 16, 24);
    const QKV in = random_inputs(p, 4);
    Tensor dout(1, 1, p.n, p.d_v);
    fill_normal(5, dout.data(), dout.size());
    const auto run = [&](int threads, const QKV& inputs) {
      const Threads restore(threads);
      return run_method(name, {}, p, inputs, &dout);
    };
    const Outcome one = run(1, in);
    for (const int threads : {2, 3}) {
      INFO(name << " with " << threads << " threads");
      const Outcome more = run(threads, in);
      require_same_bits(more.out, one.out, p.n);
      require_same_bits(more.dq, one.dq, p.n);
      require_same_bits(more.dk, one.dk, p.n);
      require_same_bits(more.dv, one.dv, p.n);
    }
    for (const Index from : {Index{1}, n / 4, n / 2, n - 1}) {
      INFO(name << " changed from token " << from);
      for (const float value : {kNaN, 1e3f}) {
        QKV changed = in;
        for (Tensor* x : {&changed.q, &changed.k, &changed.v})
          std::fill(x->data() + from * x->d(), x->data() + x->size(), value);
        for (const int threads : {1, 2}) {
          const Threads restore(threads);
          require_same_bits(run_method(name, {}, p, changed).out, one.out, from);
        }
      }
    }
  }
}

TEST_CASE("at the width with code of its own too, threads change no bit", "[methods][linear]") {
  const Problem p = one_head(2111, 64, 64);
  const QKV in = random_inputs(p, 12);
  Tensor dout(1, 1, p.n, p.d_v);
  fill_normal(13, dout.data(), dout.size());
  for (const Index chunk : {0, 32, 48}) {  // four, two chunks of a group, one
    const auto run = [&](int threads) {
      const Threads restore(threads);
      return run_method("linear", {{"chunk", chunk}}, p, in, &dout);
    };
    const Outcome one = run(1);
    for (const int threads : {2, 3}) {
      INFO("chunk " << chunk << ", " << threads << " threads");
      const Outcome more = run(threads);
      require_same_bits(more.out, one.out, p.n);
      require_same_bits(more.dq, one.dq, p.n);
      require_same_bits(more.dk, one.dk, p.n);
      require_same_bits(more.dv, one.dv, p.n);
    }
    const auto want = reference::references().at("linear").gradient(
        resolved("linear", {}), double_call(p, in), cast<double>(dout));
    CHECK(relative_error(one.dq, want.dq) <= 1e-5);
    CHECK(relative_error(one.dk, want.dk) <= 1e-5);
    CHECK(relative_error(one.dv, want.dv) <= 1e-5);
  }
}

TEST_CASE("gradients of long causal scans equal the reference, with padding and ragged ends",
          "[methods][linear]") {
  const Index n = GENERATE(200, 300, 1900);  // one segment, with an empty one, several
  for (const std::string name : {"linear", "performer", "lightning2"}) {
    Problem p = one_head(n, 20, 24);
    p.heads = 2;
    QKV in = random_inputs(p, 8);
    pad_keys(p, 6, 0.2, &in);
    Tensor dout(1, 2, p.n, p.d_v);
    fill_normal(9, dout.data(), dout.size());
    const Settings settings = name == "performer" ? Settings{{"eps", 0.0}} : Settings{};
    const Outcome got = run_method(name, settings, p, in, &dout);
    const auto want = reference::references().at(name).gradient(
        resolved(name, settings), double_call(p, in), cast<double>(dout));
    INFO(name << ", " << n << " tokens");
    CHECK(relative_error(got.dq, want.dq) <= 1e-5);
    CHECK(relative_error(got.dk, want.dk) <= 1e-5);
    CHECK(relative_error(got.dv, want.dv) <= 1e-5);
  }
}

TEST_CASE("long keys before the first query count in forward and backward", "[methods][linear]") {
  for (const std::string name : {"linear", "performer", "lightning2", "deltanet"}) {
    const Problem p{
        .batch = 1, .heads = 2, .n = 90, .n_kv = 1290, .d_k = 8, .d_v = 5, .causal = true};
    QKV in = random_inputs(p, 6);
    pad_keys(p, 6, 0.2, &in);
    Tensor dout(1, 2, p.n, p.d_v);
    fill_normal(7, dout.data(), dout.size());
    const Settings settings = name == "performer" ? Settings{{"eps", 0.0}} : Settings{};
    const auto& reference = reference::references().at(name);
    const Outcome got = run_method(name, settings, p, in, &dout);
    INFO(name);
    const auto call = double_call(p, in);
    CHECK(relative_error(got.out, reference.forward(resolved(name, settings), call)) <= 1e-5);
    const auto want = reference.gradient(resolved(name, settings), call, cast<double>(dout));
    CHECK(relative_error(got.dq, want.dq) <= 3e-5);
    CHECK(relative_error(got.dk, want.dk) <= 3e-5);
    CHECK(relative_error(got.dv, want.dv) <= 3e-5);
  }
}

TEST_CASE("the reference gradients equal central differences in double", "[methods][linear]") {
  struct Case {
    std::string name;
    Settings settings;
  };
  const std::vector<Case> cases{{"linear", {}},
                                {"linear", {{"feature_map", "exp"}}},
                                {"linear", {{"feature_map", "relu"}, {"relu_shift", 0.3}}},
                                {"performer", {}},
                                {"performer", {{"form", "positive"}}},
                                {"performer", {{"form", "trigonometric"}, {"features", Index{64}}}},
                                {"lightning2", {}},
                                {"deltanet", {}},
                                {"deltanet", {{"normalize", false}, {"beta", 0.1}}}};
  for (const auto& [name, settings] : cases)
    for (const bool causal : {false, true}) {
      if (!causal && !Registry::instance().method(name).info.bidirectional) continue;
      const Problem p{.batch = 2,
                      .heads = 2,
                      .n = 4,
                      .n_kv = causal ? 6 : 4,
                      .d_k = 3,
                      .d_v = 4,
                      .causal = causal};
      QKV in = random_inputs(p, 8);
      pad_keys(p, 8, 0.2, &in);
      reference::Call call = double_call(p, in);
      Tensor weights(p.batch, p.heads, p.n, p.d_v);
      fill_normal(9, weights.data(), weights.size());
      const TensorD dout = cast<double>(weights);
      const auto& reference = reference::references().at(name);
      const Settings all = resolved(name, settings);
      const auto loss = [&] {
        const TensorD out = reference.forward(all, call);
        double sum = 0;
        for (Index e = 0; e < out.size(); ++e) sum += out.data()[e] * dout.data()[e];
        return sum;
      };
      const auto want = reference.gradient(all, call, dout);
      const auto error = [&](TensorD& x, const TensorD& gradient) {
        TensorD numeric(x.shape());
        for (Index e = 0; e < x.size(); ++e) {
          constexpr double kStep = 1e-5;
          const double kept = x.data()[e];
          x.data()[e] = kept + kStep;
          const double up = loss();
          x.data()[e] = kept - kStep;
          numeric.data()[e] = (up - loss()) / (2 * kStep);
          x.data()[e] = kept;
        }
        return relative_error(gradient, numeric);
      };
      INFO(name << " " << to_string(settings) << " " << p.str());
      CHECK(error(call.q, want.dq) <= 1e-6);
      CHECK(error(call.k, want.dk) <= 1e-6);
      CHECK(error(call.v, want.dv) <= 1e-6);
    }
}

TEST_CASE("invariants of normalised linear attention hold", "[methods][linear]") {
  const Settings exact{{"eps", 0.0}};
  for (const std::string name : {"linear", "performer"})
    for (const bool causal : {false, true}) {
      INFO(name << (causal ? " causal" : " bidirectional"));
      const Problem p = one_head(150, 12, 8, causal);
      QKV in = random_inputs(p, 10);
      const Tensor out = run_method(name, exact, p, in).out;

      QKV constant = in;
      constant.v.fill(2.5f);  // rows of weights sum to one
      const Tensor same = run_method(name, exact, p, constant).out;
      for (Index e = 0; e < same.size(); ++e)
        if (!(std::fabs(same.data()[e] - 2.5f) <= 1e-5f)) FAIL("element " << e << same.data()[e]);

      const Problem one = one_head(1, 12, 8, causal);  // a single token returns its value
      const QKV single = random_inputs(one, 11);
      CHECK(relative_error(run_method(name, exact, one, single).out, cast<double>(single.v)) <=
            1e-6);

      if (!causal) {  // the order of the keys is without effect
        QKV reversed = in;
        for (Tensor* x : {&reversed.k, &reversed.v})
          for (Index i = 0; i < p.n; ++i)
            std::copy_n((x == &reversed.k ? in.k : in.v).data() + (p.n - 1 - i) * x->d(), x->d(),
                        x->data() + i * x->d());
        CHECK(relative_error(run_method(name, exact, p, reversed).out, cast<double>(out)) <= 1e-6);
      }
    }

  // A factor on the features of the keys cancels: relu is homogeneous.
  const Settings relu{{"feature_map", "relu"}, {"relu_shift", 0.0}, {"eps", 0.0}};
  const Problem p = one_head(150, 12, 8);
  QKV in = random_inputs(p, 12), scaled = in;
  shift(&in.k, 1, 3);
  shift(&scaled.k, 1, 3);
  shift(&in.q, 1, 3);
  shift(&scaled.q, 1, 3);
  shift(&scaled.k, 4, 0);
  CHECK(relative_error(run_method("linear", relu, p, scaled).out,
                       cast<double>(run_method("linear", relu, p, in).out)) <= 1e-6);
}

TEST_CASE("a decay of zero leaves only the token itself, and none all of them alike",
          "[methods][linear]") {
  const Problem p = one_head(100, 12, 8);
  const QKV in = random_inputs(p, 13);
  const Tensor out = run_method("lightning2", {{"decay", "constant"}, {"lambda", 0.0}}, p, in).out;
  for (Index i = 0; i < p.n; ++i) {
    const float weight = in.q.head(0, 0).row(i).dot(in.k.head(0, 0).row(i));
    for (Index c = 0; c < p.d_v; ++c)
      CHECK(out.data()[i * p.d_v + c] == Approx(weight * in.v.data()[i * p.d_v + c]).margin(1e-5));
  }
  CHECK(relative_error(
            run_method("lightning2", {{"decay", "constant"}, {"lambda", 1.0}}, p, in).out,
            cast<double>(run_method("lightning2", {{"decay", "none"}}, p, in).out)) <= 1e-6);
  CHECK(relative_error(decoded("lightning2", {}, p, in),
                       cast<double>(run_method("lightning2", {}, p, in).out)) <= 1e-5);
}
