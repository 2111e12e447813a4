// The sparse stage of SEA alone, by the format that its keys are kept in: exact attention over the
// keys of randomly kept cells. What the formats cost (Table 3 of the paper); not a competitor.
// Source: Lee et al. 2024 (arXiv 2310.01777), section 3.2 and Table 3, "random inputs".
// The keys are those of `sea` with mask=random, group=per_query and gates=one, drawn before the
// call. Our choices: entries of `coo_unsorted` come in any order, as a tensor library has to
// expect, and each call sorts them first. SEA itself expands the runs of one query at a time and
// keeps nothing (sea.cpp).

#include "methods/engines/sea_sparse.h"

#include <numeric>

#include "harness/core/random.h"
#include "harness/core/registry.h"
#include "methods/engines/sea_cells.h"

namespace subquad {
namespace {

using engine::SeaCells;

struct Params {
  Index top_k = 64;
  Index cells = 256;
  std::string format = "csr";
};

class SeaSparseStage final : public Method {
 public:
  explicit SeaSparseStage(const Params& params) : params_(params) {}

  std::string unsupported(const Problem& p, Pass) const override {
    const double columns = static_cast<double>(p.heads) * static_cast<double>(p.n);
    return columns < 2147483648.0
               ? ""
               : fmt::format("columns of {} heads times {} keys do not fit 32 bits", p.heads, p.n);
  }

  void prepare(const Problem& problem, const Env& env) override {
    problem_ = problem;
    seed_ = env.seed;
    entries_ = 0;
    masks_.clear();
    for (Index b = 0; b < problem.batch; ++b) {
      Mask& mask = masks_.emplace_back();
      mask.csr = drawn(b);
      entries_ += static_cast<Index>(mask.csr.columns.size());
      if (params_.format == "csr") continue;
      if (params_.format == "runs") {
        mask.runs = runs_of(mask.csr, problem.n);
      } else {
        mask.coo = coo_of(mask.csr);
        if (params_.format == "coo_unsorted") shuffle(b, &mask.coo);
      }
      mask.csr = {};
    }
    const bool sorting = params_.format == "coo_unsorted";
    const Index most = most_entries(problem);
    sparse_ = {};
    sparse_.reserve(problem.heads, problem.n, problem.d_k, most, params_.format == "csr",
                    sorting || params_.format == "coo", sorting);
    sorted_ = {};
    if (!sorting) return;
    sorted_.rows.reserve(static_cast<std::size_t>(most));
    sorted_.columns.reserve(static_cast<std::size_t>(most));
  }

  // Time O(entries (d_k + d_v)), one thread.
  void forward(const Inputs& in, TensorView out, Saved*) override {
    const auto item = [](const ConstTensorView& x, Index b) {
      return ConstTensorView(x.head_data(b, 0), {1, x.heads(), x.n(), x.d()});
    };
    for (Index b = 0; b < problem_.batch; ++b) {
      const Mask& mask = masks_[static_cast<std::size_t>(b)];
      sparse_.q = item(in.q, b);
      sparse_.k = item(in.k, b);
      sparse_.v = item(in.v, b);
      sparse_.scale = problem_.logit_scale();
      const TensorView to(out.head_data(b, 0), {1, out.heads(), out.n(), out.d()});
      if (params_.format == "csr") {
        sparse_.csr(mask.csr, to);
      } else if (params_.format == "runs") {
        sparse_.runs(mask.runs, to);
      } else if (params_.format == "coo") {
        sparse_.coo(mask.coo, to);
      } else {
        sparse_.sort(mask.coo, &sorted_);
        sparse_.coo(sorted_, to);
      }
    }
  }

  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    weights.setZero();
    const Index d = problem_.d_k;
    for (std::size_t r = 0; r < rows.size(); ++r) {
      std::vector<std::pair<Index, double>> seen;
      double most = -1e300, sum = 0;
      each_key(b * problem_.heads + h, rows[r], [&](Index j) {
        double dot = 0;
        for (Index c = 0; c < d; ++c)
          dot += static_cast<double>(in.q.head_data(b, h)[rows[r] * d + c]) *
                 static_cast<double>(in.k.head_data(b, h)[j * d + c]);
        seen.emplace_back(j, dot * problem_.logit_scale());
        most = std::max(most, seen.back().second);
      });
      for (auto& [j, weight] : seen) sum += weight = std::exp(weight - most);
      for (const auto& [j, weight] : seen)
        weights(static_cast<Index>(r), j) = static_cast<float>(weight / sum);
    }
    return true;
  }

  Budget budget(const Problem& p) const override {
    return {.keys_per_query = static_cast<double>(std::min(params_.top_k, p.n))};
  }
  double extra_bytes(const Problem& p, Pass) const override {
    const auto items = static_cast<double>(p.batch), rows = static_cast<double>(p.n),
               groups = static_cast<double>(p.heads * p.n),
               one = static_cast<double>(most_entries(p));
    if (params_.format == "csr") return items * (4 * one + 8 * rows) + 4 * one + 4 * rows;
    if (params_.format == "runs")
      return items * (8 * groups * static_cast<double>(kept_cells(p)) + 8 * rows) + 4 * groups;
    const double coo = items * 16 * one + 4 * one + 8 * groups;
    return params_.format == "coo" ? coo : coo + 48 * one;
  }
  double flops(const Problem& p, Pass) const override {
    return 2.0 * static_cast<double>(p.batch * p.heads * p.n * std::min(params_.top_k, p.n)) *
           static_cast<double>(p.d_k + p.d_v);
  }
  std::vector<Metric> metrics() const override {
    return {{"entries", static_cast<double>(entries_)},
            {"format_bytes", static_cast<double>(format_bytes())}};
  }

 private:
  // The keys of one sequence, in one of the formats.
  struct Mask {
    SeaCsr csr;
    SeaCoo coo;
    SeaRuns runs;
  };

  Index kept_cells(const Problem& p) const {
    return engine::sea_budget(params_.cells, params_.top_k, params_.cells, p.n);
  }
  // Of one sequence: cells are as wide as each other to within one key.
  Index most_entries(const Problem& p) const {
    const Index widest = (p.n + params_.cells - 1) / params_.cells;
    return p.heads * p.n * std::min(p.n, kept_cells(p) * std::min(widest, params_.top_k));
  }

  // Keys of a query in ascending order; bh = b * heads + h.
  template <class Take>
  void each_key(Index bh, Index t, const Take& take) const {
    const Index cells = params_.cells, n = problem_.n;
    const Index keep = kept_cells(problem_);
    std::vector<std::pair<float, Index>> drawn(static_cast<std::size_t>(cells));
    const SeaCells map{cells, n};
    for (Index c = 0; c < cells; ++c)
      drawn[static_cast<std::size_t>(c)] = {
          map.width(c) == 0 ? 0.0f : engine::sea_hashed(seed_, (bh * n + t) * cells + c), c};
    std::nth_element(drawn.begin(), drawn.begin() + keep - 1, drawn.end(), std::greater<>());
    std::sort(drawn.begin(), drawn.begin() + keep,
              [](const auto& a, const auto& b) { return a.second < b.second; });
    for (Index i = 0; i < keep; ++i) {
      const Index c = drawn[static_cast<std::size_t>(i)].second;
      engine::sea_stretch(map.first(c), map.first(c + 1), params_.top_k, take);
    }
  }

  SeaCsr drawn(Index b) const {
    SeaCsr csr;
    csr.row_ptr.reserve(static_cast<std::size_t>(problem_.n + 1));
    csr.row_ptr.push_back(0);
    csr.columns.reserve(static_cast<std::size_t>(most_entries(problem_)));
    for (Index t = 0; t < problem_.n; ++t) {
      for (Index h = 0; h < problem_.heads; ++h)
        each_key(b * problem_.heads + h, t, [&](Index j) {
          csr.columns.push_back(static_cast<std::int32_t>(h * problem_.n + j));
        });
      csr.row_ptr.push_back(static_cast<Index>(csr.columns.size()));
    }
    return csr;
  }

  void shuffle(Index b, SeaCoo* coo) const {
    std::vector<std::size_t> order(coo->rows.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    Random(seed_, "sea_sparse.order", {static_cast<std::uint64_t>(b)}).shuffle(order);
    SeaCoo mixed;
    mixed.rows.resize(order.size());
    mixed.columns.resize(order.size());
    for (std::size_t e = 0; e < order.size(); ++e) {
      mixed.rows[e] = coo->rows[order[e]];
      mixed.columns[e] = coo->columns[order[e]];
    }
    *coo = std::move(mixed);
  }

  Index format_bytes() const {
    const Index rows = 8 * problem_.batch * (problem_.n + 1);
    if (params_.format == "csr") return 4 * entries_ + rows;
    if (params_.format != "runs") return 16 * entries_;
    Index bytes = rows;
    for (const Mask& mask : masks_) bytes += 8 * static_cast<Index>(mask.runs.first.size());
    return bytes;
  }

  Params params_;
  Problem problem_;
  Seed seed_ = 0;
  Index entries_ = 0;  // of the whole batch
  std::vector<Mask> masks_;
  SeaCoo sorted_;
  SeaSparse sparse_;
};

const RegisterMethod<SeaSparseStage, Params> kRegistration{
    {.name = "sea_sparse",
     .family = "hybrid",
     .source = "Lee et al. 2024, arXiv 2310.01777, Table 3",
     .summary = "the sparse stage of SEA over randomly kept cells, in one of several formats",
     .random = true,
     .exact_limit =
         [](const Problem& p) {
           return Settings{{"top_k", p.n_kv}};
         },
     .time_exponent = 1,
     .memory_exponent = 1,
     .notes = {"for comparing formats: what it attends to is drawn, not estimated",
               "one thread, whatever the number asked for",
               "a call of coo_unsorted sorts its entries first, by a radix sort",
               "metrics: entries of the whole batch, and the bytes that the format keeps them in"}},
    {param("top_k", &Params::top_k, {1, 1 << 24}, "keys per query and head, on average (k)"),
     param("cells", &Params::cells, {1, 4096}, "cells that the keys are divided into (K_c)"),
     choice("format", &Params::format, {"csr", "coo", "coo_unsorted", "runs"},
            "flat CSR, coordinates (in order, or in any), runs of neighbouring keys")}};

}  // namespace
}  // namespace subquad
