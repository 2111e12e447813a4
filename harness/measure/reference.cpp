#include "harness/measure/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "harness/core/parallel.h"
#include "harness/measure/checksum.h"

namespace subquad {
namespace {

constexpr Index kRowBlock = 32;  // query rows (second pass: keys) of one work item
using Rows = std::vector<Index>;

struct Workspace {  // of one thread
  MatrixD weights, dweights;
};

struct Doubles {  // the inputs, converted once
  TensorD q, k, v, dout;
};

class Attention {
 public:
  Attention(const Inputs& in, const Tensor* dout, const Problem& problem)
      : problem_(problem), mask_(in.key_mask) {
    x_.q = cast<double>(in.q);
    x_.k = cast<double>(in.k);
    x_.v = cast<double>(in.v);
    if (dout != nullptr) x_.dout = cast<double>(*dout);
  }

  // Rows `rows` of head bh: weights [rows, visible of the last row] into work.weights.
  // `lse` (may be null) gets log sum exp of each row, +infinity for a row without keys.
  void weights(Index bh, std::span<const Index> rows, Workspace& work, double* lse) const {
    const Index count = static_cast<Index>(rows.size()), keys = problem_.visible(rows.back());
    const auto q = x_.q.view().head(bh);
    MatrixD block(count, problem_.d_k);
    for (Index r = 0; r < count; ++r)
      block.row(r) = problem_.logit_scale() * q.row(rows[static_cast<std::size_t>(r)]);
    if (work.weights.cols() != keys || work.weights.rows() != count)
      work.weights.resize(count, keys);
    work.weights.noalias() = block * x_.k.view().head(bh).topRows(keys).transpose();
    for (Index r = 0; r < count; ++r) {
      const Index visible = problem_.visible(rows[static_cast<std::size_t>(r)]);
      auto row = work.weights.row(r);
      hide(bh, row.head(visible));
      row.tail(keys - visible).setZero();
      auto seen = row.head(visible).array();
      const double largest = visible > 0 ? seen.maxCoeff() : kNever;
      double sum = 0;
      if (largest == kNever) {
        seen.setZero();
      } else {
        seen = (seen - largest).exp();
        show_zero(bh, row.head(visible));
        sum = seen.sum();
        seen /= sum;
      }
      if (lse != nullptr)
        lse[r] = sum > 0 ? largest + std::log(sum) : std::numeric_limits<double>::infinity();
    }
  }

  // out [rows, d_v] and, when dq is not null, dq [rows, d_k] of those rows; lse and delta
  // (dout.out) of each row for the second pass where wanted.
  void rows(Index bh, std::span<const Index> rows, Workspace& work, double* out, double* dq,
            double* lse, double* delta) const {
    const Index count = static_cast<Index>(rows.size()), keys = problem_.visible(rows.back());
    weights(bh, rows, work, lse);
    Eigen::Map<MatrixD> o(out, count, problem_.d_v);
    o.noalias() = work.weights * x_.v.view().head(bh).topRows(keys);
    if (dq == nullptr) return;
    MatrixD dout(count, problem_.d_v);
    for (Index r = 0; r < count; ++r)
      dout.row(r) = x_.dout.view().head(bh).row(rows[static_cast<std::size_t>(r)]);
    work.dweights.resize(count, keys);
    work.dweights.noalias() = dout * x_.v.view().head(bh).topRows(keys).transpose();
    for (Index r = 0; r < count; ++r) {
      const double d = dout.row(r).dot(o.row(r));
      if (delta != nullptr) delta[r] = d;
      work.dweights.row(r).array() =
          work.weights.row(r).array() * (work.dweights.row(r).array() - d);
    }
    Eigen::Map<MatrixD> g(dq, count, problem_.d_k);
    g.noalias() = problem_.logit_scale() * (work.dweights * x_.k.view().head(bh).topRows(keys));
  }

  // dk and dv of keys [first, first + count) of head bh, from lse and delta [n] of the first pass.
  void keys(Index bh, Index first, Index count, const double* lse, const double* delta,
            Workspace& work, double* dk, double* dv) const {
    // The first query that sees key `first`.
    const Index start =
        problem_.causal ? std::max<Index>(0, first - problem_.causal_offset()) : Index{0};
    const Index queries = problem_.n - start;
    Eigen::Map<MatrixD> gk(dk, count, problem_.d_k), gv(dv, count, problem_.d_v);
    const auto q = x_.q.view().head(bh).bottomRows(queries);
    const auto dout = x_.dout.view().head(bh).bottomRows(queries);
    auto& p = work.weights;
    auto& ds = work.dweights;
    p.resize(queries, count);
    p.noalias() = q * x_.k.view().head(bh).middleRows(first, count).transpose();
    for (Index i = 0; i < queries; ++i) {
      auto row = p.row(i).array();
      const Index seen = std::clamp<Index>(problem_.visible(start + i) - first, 0, count);
      if (std::isinf(lse[start + i])) {
        row.setZero();
        continue;
      }
      row = (problem_.logit_scale() * row - lse[start + i]).exp();
      row.tail(count - seen).setZero();
      if (!mask_.empty())
        for (Index j = 0; j < count; ++j)
          if (!real_key(bh, first + j)) row[j] = 0;
    }
    gv.noalias() = p.transpose() * dout;
    ds.resize(queries, count);
    ds.noalias() = dout * x_.v.view().head(bh).middleRows(first, count).transpose();
    for (Index i = 0; i < queries; ++i)
      ds.row(i).array() = p.row(i).array() * (ds.row(i).array() - delta[start + i]);
    gk.noalias() = problem_.logit_scale() * (ds.transpose() * q);
  }

 private:
  static constexpr double kNever = -std::numeric_limits<double>::infinity();

  bool real_key(Index bh, Index j) const {
    return mask_[static_cast<std::size_t>(bh / problem_.heads * problem_.n_kv + j)] != 0;
  }
  template <class Row>
  void hide(Index bh, Row row) const {
    if (mask_.empty()) return;
    for (Index j = 0; j < row.size(); ++j)
      if (!real_key(bh, j)) row[j] = kNever;
  }
  template <class Row>
  void show_zero(Index bh, Row row) const {  // a vectorised exp(-infinity) may be tiny, not zero
    if (mask_.empty()) return;
    for (Index j = 0; j < row.size(); ++j)
      if (!real_key(bh, j)) row[j] = 0;
  }

  Problem problem_;
  std::span<const std::uint8_t> mask_;
  Doubles x_;
};

// Blocks of rows of every head, in parallel. body(bh, first, count, workspace)
template <class Body>
void for_blocks(Index heads, Index rows, Body&& body) {
  const Index blocks = (rows + kRowBlock - 1) / kRowBlock;
  std::vector<Workspace> work(static_cast<std::size_t>(thread_count()));
  parallel_for(heads * blocks, [&](Index item, int thread) {
    const Index first = item % blocks * kRowBlock;
    body(item / blocks, first, std::min(kRowBlock, rows - first),
         work[static_cast<std::size_t>(thread)]);
  });
}

Rows all_of(Index n) {
  Rows rows(static_cast<std::size_t>(n));
  std::iota(rows.begin(), rows.end(), Index{0});
  return rows;
}

std::span<const Index> part(const Rows& rows, Index first, Index count) {
  return std::span(rows).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
}

}  // namespace

double reference_gflop(const Problem& p, bool gradients) {
  const double forward = 2e-9 * static_cast<double>(p.batch * p.heads) * p.visible_entries() *
                         static_cast<double>(p.d_k + p.d_v);
  return gradients ? 4 * forward : forward;
}

Tensor make_dout(const Problem& p, Seed seed, Index set) {
  Tensor dout(p.batch, p.heads, p.n, p.d_v);
  fill_normal(derive(seed, "dout", {static_cast<std::uint64_t>(set)}), dout.data(), dout.size());
  return dout;
}

std::uint64_t inputs_hash(const Inputs& in) {
  std::uint64_t hash = 0;
  for (const ConstTensorView& t : {in.q, in.k, in.v})
    hash = checksum64(t.data(), static_cast<std::size_t>(t.size()) * sizeof(float), hash);
  return checksum64(in.key_mask.data(), in.key_mask.size(), hash);
}

Reference exact_reference(const Inputs& in, const Tensor* dout, const Problem& p, Seed seed,
                          const ReferenceOptions& options) {
  SUBQUAD_CHECK(!options.gradients || dout != nullptr, "gradients need a dout");
  const Index heads = p.batch * p.heads;
  Reference ref;
  ref.problem = p;
  ref.inputs_hash = inputs_hash(in);
  const bool all =
      reference_gflop(p, options.gradients) <= options.max_gflop || options.rows >= p.n;
  const Index count = all ? p.n : std::max<Index>(options.rows, 1);
  if (!all)
    for (Index bh = 0; bh < heads; ++bh) {
      Random random(seed, "reference.rows", {static_cast<std::uint64_t>(bh)});
      ref.rows.push_back(random.sample_without_replacement(p.n, count));
      std::sort(ref.rows.back().begin(), ref.rows.back().end());
    }
  const Rows every = all ? all_of(p.n) : Rows{};
  ref.out = TensorD(p.batch, p.heads, count, p.d_v);
  VectorD lse, delta;  // [heads * n]
  const bool second_pass = options.gradients && all;
  if (options.gradients) ref.dq = TensorD(p.batch, p.heads, count, p.d_k);
  if (second_pass) {
    lse.resize(heads * p.n);
    delta.resize(heads * p.n);
    ref.dk = TensorD(p.batch, p.heads, p.n_kv, p.d_k);
    ref.dv = TensorD(p.batch, p.heads, p.n_kv, p.d_v);
  }
  const Attention attention(in, options.gradients ? dout : nullptr, p);
  for_blocks(heads, count, [&](Index bh, Index first, Index size, Workspace& work) {
    const Rows& rows = all ? every : ref.rows[static_cast<std::size_t>(bh)];
    const Index at = bh * count + first;
    attention.rows(bh, part(rows, first, size), work, ref.out.data() + at * p.d_v,
                   options.gradients ? ref.dq.data() + at * p.d_k : nullptr,
                   second_pass ? lse.data() + at : nullptr,
                   second_pass ? delta.data() + at : nullptr);
  });
  if (second_pass)
    for_blocks(heads, p.n_kv, [&](Index bh, Index first, Index size, Workspace& work) {
      attention.keys(bh, first, size, lse.data() + bh * p.n, delta.data() + bh * p.n, work,
                     ref.dk.data() + (bh * p.n_kv + first) * p.d_k,
                     ref.dv.data() + (bh * p.n_kv + first) * p.d_v);
    });
  return ref;
}

Reference task_reference(const Task& task, const Problem& problem, Seed seed,
                         const ReferenceOptions& options) {
  QKV inputs(problem);
  task.fill(problem, seed, 0, &inputs);
  const Tensor dout = options.gradients ? make_dout(problem, seed, 0) : Tensor();
  return exact_reference(inputs.inputs(), options.gradients ? &dout : nullptr, problem, seed,
                         options);
}

TensorD exact_rows(const Inputs& in, const Problem& p, std::span<const Index> rows) {
  const Rows wanted(rows.begin(), rows.end());
  const Index count = static_cast<Index>(rows.size());
  TensorD out(p.batch, p.heads, count, p.d_v);
  const Attention attention(in, nullptr, p);
  for_blocks(p.batch * p.heads, count, [&](Index bh, Index first, Index size, Workspace& work) {
    attention.rows(bh, part(wanted, first, size), work, out.data() + (bh * count + first) * p.d_v,
                   nullptr, nullptr, nullptr);
  });
  return out;
}

MatrixD exact_attention_rows(const Inputs& in, const Problem& p, Index b, Index h,
                             std::span<const Index> rows) {
  // Only this head is converted.
  Problem one = p;
  one.batch = one.heads = 1;
  const auto head = [&](const ConstTensorView& t) {
    return ConstTensorView(t.head_data(b, h), {1, 1, t.n(), t.d()});
  };
  Inputs single;
  single.q = head(in.q);
  single.k = head(in.k);
  single.v = head(in.v);
  if (!in.key_mask.empty())
    single.key_mask =
        in.key_mask.subspan(static_cast<std::size_t>(b * p.n_kv), static_cast<std::size_t>(p.n_kv));
  const Attention attention(single, nullptr, one);
  MatrixD matrix = MatrixD::Zero(static_cast<Index>(rows.size()), p.n_kv);
  Workspace work;
  // Row by row groups of kRowBlock; rows need not be sorted.
  for (Index r = 0; r < matrix.rows(); ++r) {
    attention.weights(0, rows.subspan(static_cast<std::size_t>(r), 1), work, nullptr);
    matrix.row(r).head(work.weights.cols()) = work.weights.row(0);
  }
  return matrix;
}

}  // namespace subquad
