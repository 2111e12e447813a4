// SEA: the cell map, the choice of cells, what the paper's equations imply, and gradients in
// double.
#include "tests/reference/sea.h"

#include <catch2/catch.hpp>

#include "methods/engines/sea_attention.h"
#include "methods/engines/sea_graph.h"
#include "methods/engines/sea_teacher.h"
#include "tests/methods/method_fixture.h"
#include "tests/methods/sea_problem.h"

using namespace subquad;
using namespace subquad::testing;
using engine::SeaCells;

namespace {

Matrix shown_rows(Method& method, const QKV& in, Index h) {
  const Index n = in.q.n();
  std::vector<Index> rows(static_cast<std::size_t>(n));
  for (Index i = 0; i < n; ++i) rows[static_cast<std::size_t>(i)] = i;
  Matrix weights(n, n);
  REQUIRE(method.attention_rows(in.inputs(), 0, h, rows, weights));
  return weights;
}

Matrix shown(const Settings& settings, const Problem& p, const QKV& in, Index h) {
  const auto method = make_method("sea", settings);
  method->prepare(p, {});
  return shown_rows(*method, in, h);
}

}  // namespace

TEST_CASE("sea: the cell map has its test vectors and partitions the keys", "[sea]") {
  const auto cells_of = [](Index cells, Index length) {
    std::vector<Index> of;
    for (Index j = 0; j < length; ++j) of.push_back(SeaCells{cells, length}.of_key(j));
    return of;
  };
  CHECK(cells_of(4, 6) == std::vector<Index>{0, 0, 1, 2, 2, 3});
  CHECK(cells_of(4, 10) == std::vector<Index>{0, 0, 0, 1, 1, 2, 2, 2, 3, 3});
  CHECK(cells_of(8, 5) == std::vector<Index>{0, 2, 3, 5, 7});
  CHECK(cells_of(8, 3) == std::vector<Index>{1, 3, 6});
  CHECK(cells_of(4, 1) == std::vector<Index>{1});
  for (const Index cells : {1, 2, 3, 16, 64, 100})
    for (Index length = 1; length < 300; length += 7) {
      const SeaCells map{cells, length};
      CHECK(map.first(0) == 0);
      CHECK(map.first(cells) == length);
      bool fits = true;
      for (Index c = 0; c < cells; ++c)
        fits = fits && map.width(c) >= length / cells && map.width(c) <= length / cells + 1;
      CHECK(fits);
      bool inside = true;
      for (Index j = 0; j < length; ++j) {
        const Index c = map.of_key(j);
        inside = inside && map.first(c) <= j && j < map.first(c + 1);
      }
      CHECK(inside);
      if (length == cells) CHECK(map.of_key(length / 2) == length / 2);
    }
  // Where floating point goes wrong: exact in integers.
  const SeaCells large{64, 1000003};
  CHECK(large.first(64) == 1000003);
  CHECK(large.first(32) == 500002);
}

TEST_CASE("sea: budgets round halves to even, and wide cells are thinned from the right", "[sea]") {
  CHECK(engine::round_half_even(5, 2) == 2);
  CHECK(engine::round_half_even(7, 2) == 4);
  CHECK(engine::round_half_even(8, 3) == 3);
  CHECK(engine::sea_budget(128, 32, 64, 512) == 8);
  CHECK(engine::sea_budget(128, 32, 64, 16) == 128);  // fewer keys than wanted: all cells
  CHECK(engine::sea_budget(64, 1, 64, 1 << 20) == 1);
  std::vector<Index> keys;
  engine::sea_stretch(10, 20, 4, [&](Index j) { keys.push_back(j); });
  CHECK(keys == std::vector<Index>{12, 14, 17, 19});
}

TEST_CASE("sea: the chosen cells are the largest, ties from the left", "[sea]") {
  Random random(3, "sea.select");
  std::vector<float> values(160, -1.0f);
  for (int round = 0; round < 200; ++round) {
    const auto all = static_cast<Index>(1 + random.below(150));
    const auto keep = static_cast<Index>(1 + random.below(static_cast<std::uint64_t>(all)));
    std::fill(values.begin(), values.end(), -1.0f);
    for (Index i = 0; i < all; ++i)  // few distinct numbers: many ties
      values[static_cast<std::size_t>(i)] = round % 2 == 0
                                                ? static_cast<float>(random.below(5)) * 0.125f
                                                : static_cast<float>(random.uniform());
    std::vector<Index> order(static_cast<std::size_t>(all));
    for (Index i = 0; i < all; ++i) order[static_cast<std::size_t>(i)] = i;
    std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) {
      return values[static_cast<std::size_t>(a)] > values[static_cast<std::size_t>(b)];
    });
    std::vector<bool> want(static_cast<std::size_t>(all)), got(want);
    for (Index i = 0; i < keep; ++i)
      want[static_cast<std::size_t>(order[static_cast<std::size_t>(i)])] = true;
    engine::SeaLimit limit = engine::select_largest(values.data(), 160, all, keep);
    for (Index i = 0; i < all; ++i)
      got[static_cast<std::size_t>(i)] =
          limit.keeps(values[static_cast<std::size_t>(i)], &limit.ties);
    CHECK(got == want);
  }
}

TEST_CASE("sea: kept cells, sums of rows, and causality", "[sea]") {
  for (const bool causal : {false, true}) {
    const Problem p = sea_problem(96, causal);
    const QKV in = random_inputs(p, 11);
    // Sums of rows are s_prob without the pooled part; with gates of one, exactly one where the
    // head has a key. No budget is exceeded: cells of 96 / 16 = 6 keys, 4 per head in 16 cells.
    const Settings settings{
        {"cells", Index{16}}, {"top_k", Index{24}}, {"gates", std::string("one")}};
    const Matrix first = shown(settings, p, in, 0), second = shown(settings, p, in, 1);
    for (Index t = 0; t < p.n; ++t) {
      for (const Matrix* m : {&first, &second}) {
        const float sum = m->row(t).sum();
        CHECK((sum == 0 || std::fabs(sum - 1) <= 1e-5f));
        if (causal)
          for (Index j = t + 1; j < p.n; ++j) CHECK((*m)(t, j) == 0);
      }
      const auto kept = (first.row(t).array() != 0).count() + (second.row(t).array() != 0).count();
      if (!causal) CHECK(kept == 2 * 24);  // b_t n / K_c keys exactly
    }
  }
}

TEST_CASE("sea: more keys only add to the mask", "[sea]") {
  const Problem p = sea_problem(128, true);
  const QKV in = random_inputs(p, 12);
  Matrix before = Matrix::Zero(p.n, p.n);
  for (const Index k : {8, 16, 32, 64, 128}) {
    const Matrix now =
        shown({{"cells", Index{16}}, {"top_k", k}, {"gates", std::string("one")}}, p, in, 0);
    bool subset = true;
    for (Index t = 0; t < p.n; ++t)
      for (Index j = 0; j < p.n; ++j) subset = subset && (before(t, j) == 0 || now(t, j) != 0);
    CHECK(subset);
    before = now;
  }
  CHECK((before.array() != 0).count() == p.n * (p.n + 1) / 2);
}

TEST_CASE("sea: a constant value passes as the gates say", "[sea]") {
  for (const bool causal : {false, true}) {
    const Problem p = sea_problem(64, causal, 1);
    QKV in = random_inputs(p, 13);
    in.v.fill(2);
    const Settings settings{{"cells", Index{16}}, {"avg_normalize", true}};
    const auto method = make_method("sea", settings);
    method->prepare(p, {});
    Tensor out(1, 1, p.n, p.d_v);
    method->forward(in.inputs(), out, nullptr);
    const Matrix weights = shown(settings, p, in, 0);
    for (Index t = 0; t < p.n; ++t) {
      CHECK(weights.row(t).sum() < 1);  // s_mix s_prob + 1 - s_mix
      CHECK(out.head(0, 0)(t, 3) == Approx(2 * weights.row(t).sum()).epsilon(1e-5));
    }
  }
}

TEST_CASE("sea: with all keys and gates of one every mask gives dense attention", "[sea]") {
  for (const bool causal : {false, true})
    for (const std::string mask : {"learned", "oracle", "random", "local"}) {
      const Problem p = sea_problem(70, causal);
      const QKV in = random_inputs(p, 14);
      const TensorD want = reference::references().at("dense").forward({}, double_call(p, in));
      const Settings settings{{"mask", mask}, {"top_k", Index{70}}, {"gates", std::string("one")}};
      INFO(mask << " " << p.str());
      CHECK(relative_error(run_method("sea", settings, p, in).out, want) <= 1e-5);
    }
}

TEST_CASE("sea: position values that are not there cannot be read", "[sea]") {
  Settings settings{{"mask", std::string("identity")}, {"cells", Index{16}}};
  const Problem p = sea_problem(20, false);
  const auto refusal = [&] {
    return make_method("sea", resolved("sea", settings))->unsupported(p, Pass::forward);
  };
  CHECK(refusal().empty());
  settings.insert({"position", std::string("none")});
  CHECK(refusal() == "mask=identity reads the position values: position=none has none");
}

TEST_CASE("sea: the oracle's mask holds more attention than random cells", "[sea]") {
  const Problem p = sea_problem(256, true);
  const QKV in = random_inputs(p, 15, 3);
  const TensorD want = reference::references().at("dense").forward({}, double_call(p, in));
  double error[2];
  for (const int which : {0, 1}) {
    const Settings settings{{"mask", std::string(which == 0 ? "oracle" : "random")},
                            {"top_k", Index{32}}};
    error[which] = relative_error(run_method("sea", settings, p, in).out, want);
  }
  CHECK(error[0] < 0.5 * error[1]);
}

TEST_CASE("sea: the approximation loss over cells equals the loss over keys", "[sea]") {
  Random random(5, "sea.loss");
  for (const auto& [cells, length] : {std::pair<Index, Index>{8, 37}, {16, 16}, {16, 9}, {4, 64}}) {
    const Index d = 16;
    std::vector<float> q(static_cast<std::size_t>(d)), k(static_cast<std::size_t>(d * length)),
        tail(64), row(static_cast<std::size_t>(length + 64)),
        masses(static_cast<std::size_t>(cells));
    for (auto* a : {&q, &k})
      for (float& x : *a) x = static_cast<float>(random.normal());
    std::vector<double> scores(static_cast<std::size_t>(cells)), ds(scores), mass_d(scores);
    for (double& s : scores) s = random.normal();
    const SeaCells map{cells, length};
    const auto keys = [&](Index c) { return std::pair(map.first(c), map.first(c + 1)); };
    const auto teacher =
        engine::teacher_masses(engine::RowQuery(q.data(), d, tail.data()), k.data(), d, length,
                               cells, keys, row.data(), masses.data());
    std::vector<double> t(static_cast<std::size_t>(length));
    double sum = 0;
    for (Index j = 0; j < length; ++j) {
      double dot = 0;
      for (Index c = 0; c < d; ++c)
        dot += static_cast<double>(q[static_cast<std::size_t>(c)]) *
               static_cast<double>(k[static_cast<std::size_t>(j * d + c)]);
      sum += t[static_cast<std::size_t>(j)] = std::exp2(dot);
    }
    for (double& e : t) e /= sum;
    const engine::ApproximationWeights w{.kl = 0.1, .mse = 1, .rows = 3, .entries = 50};
    const auto brute = [&](const std::vector<double>& s) {  // over keys
      double norm = 0, kl = 0, mse = 0;
      for (Index j = 0; j < length; ++j)
        norm += std::exp(s[static_cast<std::size_t>(map.of_key(j))]);
      for (Index j = 0; j < length; ++j) {
        const double p = std::exp(s[static_cast<std::size_t>(map.of_key(j))]) / norm,
                     e = t[static_cast<std::size_t>(j)];
        kl += e * std::log(e / p);
        mse += (p - e) * (p - e);
      }
      return w.kl / w.rows * kl + w.mse / w.entries * mse;
    };
    for (std::size_t c = 0; c < masses.size(); ++c) mass_d[c] = static_cast<double>(masses[c]);
    const auto size = [&](Index c) { return map.width(c); };
    const double loss = engine::approximation_loss(scores.data(), mass_d.data(), teacher, cells,
                                                   size, w, ds.data());
    CHECK(loss == Approx(brute(scores)).epsilon(1e-5));
    for (Index c = 0; c < cells; ++c) {
      std::vector<double> up = scores, down = scores;
      up[static_cast<std::size_t>(c)] += 1e-5;
      down[static_cast<std::size_t>(c)] -= 1e-5;
      const double numeric = (brute(up) - brute(down)) / 2e-5;
      CHECK(std::fabs(ds[static_cast<std::size_t>(c)] - numeric) <= 1e-6);
      if (size(c) == 0) CHECK(ds[static_cast<std::size_t>(c)] == 0);
    }
  }
}

TEST_CASE("sea: the graph for gradients computes what the estimator does", "[sea]") {
  for (const bool causal : {false, true})
    for (const bool cnn : {false, true})
      for (const Index n : {1, 2, 9, 40, 151})
        for (const Index stretch : {1, 2, 4}) {
          SeaShape s;
          s.causal = causal;
          s.heads = 2;
          s.n = n;
          s.d_v = 12;
          s.cells = 16;
          s.channels = 3;
          s.stretch = cnn ? stretch : 1;
          s.cnn = cnn;
          s.block_norm = n % 2 == 0;
          s.quirks = causal && stretch == 2;
          SeaWeights weights;
          weights.make(s, 7, false);
          Tensor kernel(1, 2, n, 24), v(1, 2, n, 12);
          fill_normal(1, kernel.data(), kernel.size());
          fill_normal(2, v.data(), v.size());
          autodiff::Tape<double> tape;
          std::vector<std::unique_ptr<AlignedArray<double>>> kept;
          const auto place = [&](const float* from, Index size) {
            kept.push_back(std::make_unique<AlignedArray<double>>(size));
            for (Index i = 0; i < size; ++i) (*kept.back())[i] = static_cast<double>(from[i]);
            return kept.back()->data();
          };
          const auto graph = record_sea<double>(
              s, weights, tape.leaf(place(kernel.data(), kernel.size()), {1, 2, n, 24}),
              tape.leaf(place(v.data(), v.size()), {1, 2, n, 12}), true, [&](Parameter& p) {
                autodiff::Dims dims;
                for (const Index size : p.shape) dims.push_back(size);
                return tape.constant(place(p.value.data(), p.value.size()), dims);
              });
          SeaEstimator fast;
          fast.prepare(s);
          fast.pack(weights);
          double worst = 0;
          for (const Index block : {n, Index{7}}) {  // any division into blocks
            for (Index first = 0; first < n; first += block) {
              const Index last = std::min(n, first + block);
              std::vector<float> work(
                  static_cast<std::size_t>(SeaEstimator::work_floats(s, last - first))),
                  scores(static_cast<std::size_t>((last - first) * 2 * fast.wide_cells())),
                  gates(static_cast<std::size_t>((last - first) * 4));
              fast.rows(kernel.data(), v.data(), first, last, work.data(), scores.data(),
                        gates.data());
              for (Index t = first; t < last; ++t)
                for (Index h = 0; h < 2; ++h) {
                  for (Index c = 0; c < 16; ++c)
                    worst = std::max(
                        worst, std::fabs(graph.scores.data()[(h * n + t) * 16 + c] -
                                         static_cast<double>(scores[static_cast<std::size_t>(
                                             ((t - first) * 2 + h) * fast.wide_cells() + c)])));
                  for (Index g = 0; g < 2; ++g) {
                    const double want =
                        1 / (1 + std::exp(-graph.gates.data()[(h * n + t) * 2 + g]));
                    worst = std::max(
                        worst, std::fabs(want - static_cast<double>(gates[static_cast<std::size_t>(
                                                    ((t - first) * 2 + h) * 2 + g)])));
                  }
                }
            }
          }
          INFO("causal " << causal << " cnn " << cnn << " n " << n << " stretch " << stretch);
          CHECK(worst <= 2e-5);
        }
}

TEST_CASE("sea: gradients of the learned tensors equal central differences in double", "[sea]") {
  const auto with = [](Settings more) {
    more.insert({"top_k", Index{4}});
    more.insert({"cells", Index{8}});
    more.insert({"kernel", std::string("relu")});
    return more;
  };
  for (const Settings& settings : {with({{"avg_normalize", true}}),
                                   with({{"query_skip", Index{2}},
                                         {"input_norm", std::string("block_ln")},
                                         {"position", std::string("learned")}}),
                                   with({{"cnn", false},
                                         {"cells", Index{16}},
                                         {"cell_map", std::string("absolute")},
                                         {"n_max", Index{24}}})})
    for (const bool causal : {false, true}) {
      const Problem p{
          .batch = 2, .heads = 2, .n = 19, .n_kv = 19, .d_k = 6, .d_v = 8, .causal = causal};
      const QKV in = random_inputs(p, 8);
      Tensor out(p.batch, p.heads, p.n, p.d_v), dout = out, dq(in.q.shape()), dk = dq,
                                                dv(in.v.shape());
      fill_normal(derive(8, "dout"), dout.data(), dout.size());
      const auto method = make_method("sea", settings);
      Env env;
      env.gradients = true;
      method->prepare(p, env);
      const auto saved = method->make_saved();
      method->forward(in.inputs(), out, saved.get());
      method->backward(in.inputs(), out, dout, *saved, {dq, dk, dv, {}});
      const reference::Call call = double_call(p, in);
      const Settings full = resolved("sea", settings);
      auto tensors = reference::sea_tensors(reference::SeaRule::from(full, call), p, 0);
      for (Parameter* parameter : method->parameters()) {
        INFO(to_string(settings) << " " << p.str() << " " << parameter->name);
        std::vector<double>& x = tensors.at(parameter->name).x;
        std::vector<float> direction(x.size());
        fill_normal(derive(3, parameter->name), direction.data(),
                    static_cast<Index>(direction.size()));
        const std::vector<double> here = x;
        const auto loss = [&](double step) {
          for (std::size_t i = 0; i < x.size(); ++i)
            x[i] = here[i] + step * static_cast<double>(direction[i]);
          const TensorD moved = reference::sea_attention(full, call, tensors, 0);
          x = here;
          double sum = 0;
          for (Index i = 0; i < moved.size(); ++i)
            sum += moved.data()[i] * static_cast<double>(dout.data()[i]);
          return sum;
        };
        double analytic = 0, norm = 0;
        for (std::size_t i = 0; i < x.size(); ++i) {
          const auto g = static_cast<double>(parameter->grad[static_cast<Index>(i)]);
          analytic += g * static_cast<double>(direction[i]);
          norm += g * g;
        }
        // What only moves the choice of cells has no gradient: in causal calls all behind W2.
        if (causal &&
            (parameter->name.starts_with("decoder") || parameter->name.starts_with("conv") ||
             parameter->name.starts_with("image") || parameter->name.starts_with("score"))) {
          CHECK(norm == 0);
          continue;
        }
        if (!causal && (parameter->name == "conv3.bias")) continue;  // a softmax does not see it
        double best = std::numeric_limits<double>::infinity();
        for (const double step :
             {1e-4, 1e-5, 1e-6}) {  // a smaller step may avoid a change of choice
          const double numeric = (loss(step) - loss(-step)) / (2 * step);
          best = std::min(best, std::fabs(numeric - analytic) /
                                    std::max(std::fabs(numeric), 0.1 * std::sqrt(norm)));
        }
        CHECK(best <= 2e-4);
      }
    }
}

TEST_CASE("sea: heads permuted with their channels permute the output", "[sea]") {
  const Problem p = sea_problem(40, true, 2, 8);
  const QKV in = random_inputs(p, 17);
  QKV swapped = in;
  for (Tensor QKV::*x : {&QKV::q, &QKV::k, &QKV::v})
    for (const Index h : {0, 1}) (swapped.*x).head(0, h) = (in.*x).head(0, 1 - h);
  const Settings settings{{"cells", Index{8}}, {"top_k", Index{6}}};
  const auto method = make_method("sea", settings);
  method->prepare(p, {});
  Tensor first(1, 2, p.n, 8), second = first;
  method->forward(in.inputs(), first, nullptr);
  for (Parameter* x : method->parameters()) {  // channels h * 2 .. h * 2 + 1 belong to head h
    const bool by_head = x->name == "conv3.weight" || x->name == "conv3.bias";
    if (!x->name.starts_with("conv")) continue;
    const AlignedArray<float>& v = x->value;
    std::vector<float> old(v.data(), v.data() + v.size());
    const Index out = x->shape[0], in_channels = x->shape.size() > 1 ? x->shape[1] : 1,
                taps = v.size() / out / in_channels;
    const auto moved = [](Index c, bool heads) { return heads ? 1 - c : (c + 2) % 4; };
    for (Index o = 0; o < out; ++o)
      for (Index i = 0; i < in_channels; ++i)
        for (Index t = 0; t < taps; ++t)
          x->value[(moved(o, by_head) * in_channels + (in_channels > 1 ? moved(i, false) : 0)) *
                       taps +
                   t] = old[static_cast<std::size_t>((o * in_channels + i) * taps + t)];
  }
  method->forward(swapped.inputs(), second, nullptr);
  TensorD want(second.shape());
  for (const Index h : {0, 1}) want.head(0, h) = first.head(0, 1 - h).cast<double>();
  CHECK(relative_error(second, want) <= 1e-5);
}
