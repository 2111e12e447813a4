#include "methods/engines/band_attention.h"

#include <cmath>
#include <limits>

#include "harness/core/parallel.h"
#include "methods/engines/masked_product.h"

namespace subquad {
namespace {

// A score tile of 64 x 64 floats fills a third of a 48 KiB L1 cache.
constexpr Index kMaxRows = 64;
constexpr Index kKeys = 64;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
// exp of anything below is left at 1.6e-38: subnormal weights are slow and change nothing.
constexpr float kMinExponent = -87.f;

// A narrow band would waste most of a tall tile: a tile meets (rows + band) keys per row.
Index tile_rows(const Band& band) {
  const Index width = std::min(band.n_kv, band.before + band.after + 1);
  return std::clamp<Index>((width + 15) / 16 * 16, 16, kMaxRows);
}

using TileMap = Eigen::Map<Matrix, Eigen::Aligned64, Eigen::OuterStride<>>;

Index padded(Index floats) { return (floats + 15) / 16 * 16; }  // to whole cache lines

}  // namespace

// Views into the work space of one thread.
struct BandAttention::Work {
  float *scores, *dscores, *query, *spare, *max, *sum;

  static Index floats(const Problem& p, Index rows, bool gradients) {
    return (gradients ? 2 : 1) * rows * kKeys + padded(rows * p.d_k) +
           padded(kKeys * std::max(p.d_k, p.d_v)) + 2 * padded(rows);
  }
  Work(float* base, const Problem& p, Index rows, bool gradients) {
    scores = base;
    dscores = scores + (gradients ? rows * kKeys : 0);
    query = dscores + rows * kKeys;
    spare = query + padded(rows * p.d_k);
    max = spare + padded(kKeys * std::max(p.d_k, p.d_v));
    sum = max + padded(rows);
  }
  static TileMap tile(float* data, Index rows, Index keys) {
    return TileMap(data, rows, keys, Eigen::OuterStride<>(kKeys));
  }
};

void BandAttention::prepare(const Problem& problem, const Band& band, bool gradients) {
  problem_ = problem;
  band_ = band;
  gradients_ = gradients;
  rows_ = tile_rows(band);
  work_.clear();
  grow_work();
  key_cuts_.clear();
  if (!gradients) return;
  delta_ = AlignedArray<float>(problem.batch * problem.heads * problem.n);
  const Index sinks = std::min(band.sinks, band.n_kv);  // sinks are seen from afar: own tiles
  for (Index c = 0; c < sinks; c += kKeys) key_cuts_.push_back(c);
  for (Index c = sinks; c < band.n_kv; c += kKeys) key_cuts_.push_back(c);
  key_cuts_.push_back(band.n_kv);
}

void BandAttention::grow_work() {
  while (static_cast<int>(work_.size()) < thread_count())
    work_.emplace_back(Work::floats(problem_, rows_, gradients_));
}

double BandAttention::work_bytes(const Problem& p, const Band& band, bool gradients) {
  const Index floats = thread_count() * padded(Work::floats(p, tile_rows(band), gradients)) +
                       (gradients ? p.batch * p.heads * p.n : 0);
  return 4.0 * static_cast<double>(floats);
}

double BandAttention::flops(const Problem& p, const Band& band, Pass pass) {
  const double pairs = static_cast<double>(p.batch * p.heads) * band.entries();
  const double d_k = static_cast<double>(p.d_k), d_v = static_cast<double>(p.d_v);
  const double forward = 2 * pairs * (d_k + d_v), backward = 2 * pairs * (3 * d_k + 2 * d_v);
  if (pass == Pass::forward || pass == Pass::decode) return forward;
  if (pass == Pass::backward) return backward;
  return pass == Pass::forward_backward ? forward + backward : 0;
}

void BandAttention::forward(const Inputs& in, TensorView out, float* lse) {
  grow_work();
  const Index tiles = (problem_.n + rows_ - 1) / rows_;
  parallel_for(problem_.batch * problem_.heads * tiles, [&](Index item, int thread) {
    const Index bh = item / tiles;
    // Longest first: the last query tiles of a causal problem see the most keys.
    const Index r0 = (tiles - 1 - item % tiles) * rows_;
    forward_tile(in, out, lse, bh, r0, thread);
  });
}

void BandAttention::forward_tile(const Inputs& in, TensorView out, float* lse, Index bh, Index r0,
                                 Index thread) {
  const Index r1 = std::min(r0 + rows_, problem_.n), rows = r1 - r0;
  Work work(work_[static_cast<std::size_t>(thread)].data(), problem_, rows_, gradients_);
  const auto real = keys_of_batch(in, bh / problem_.heads);
  const auto k = in.k.head(bh), v = in.v.head(bh);
  auto o = out.head(bh).middleRows(r0, rows);
  MatrixMap q(work.query, rows, problem_.d_k);
  q = static_cast<float>(problem_.logit_scale()) * in.q.head(bh).middleRows(r0, rows);
  o.setZero();
  std::fill_n(work.max, rows, kMinusInfinity);
  std::fill_n(work.sum, rows, 0.f);

  const auto meet = [&](Index c0, Index c1) {
    auto s = Work::tile(work.scores, rows, c1 - c0);
    s.noalias() = q * k.middleRows(c0, c1 - c0).transpose();
    const bool hidden = !sees_all(band_, real, r0, r1, c0, c1);
    if (hidden) fill_hidden(s, band_, real, r0, c0, kMinusInfinity);
    for (Index r = 0; r < rows; ++r) {
      auto row = s.row(r).array();
      const float max = std::max(work.max[r], row.maxCoeff());
      if (max == kMinusInfinity) continue;  // nothing seen yet
      row = (row - max).max(kMinExponent).exp();
      if (max != work.max[r]) {
        const float shrink = std::exp(work.max[r] - max);  // 0 the first time
        work.sum[r] *= shrink;
        o.row(r) *= shrink;
        work.max[r] = max;
      }
    }
    if (hidden) {
      fill_hidden(s, band_, real, r0, c0, 0.f);
      for (Index r = 0; r < rows; ++r) work.sum[r] += s.row(r).sum();
      add_masked_product(s, v.middleRows(c0, c1 - c0), o, work.spare);
    } else {
      for (Index r = 0; r < rows; ++r) work.sum[r] += s.row(r).sum();
      o.noalias() += s * v.middleRows(c0, c1 - c0);
    }
  };
  const Index sinks = band_.sink_end(r1 - 1);
  for (Index c = 0; c < sinks; c += kKeys) meet(c, std::min(c + kKeys, sinks));
  const Index last = band_.end(r1 - 1);
  for (Index c = std::max(sinks, band_.begin(r0)); c < last; c += kKeys)
    meet(c, std::min(c + kKeys, last));

  for (Index r = 0; r < rows; ++r) {
    const bool seen = work.max[r] != kMinusInfinity;
    if (seen) o.row(r) /= work.sum[r];
    if (lse != nullptr)
      lse[bh * problem_.n + r0 + r] = seen ? work.max[r] + std::log(work.sum[r]) : kMinusInfinity;
  }
}

// Weights P = exp(S - lse) into work.scores and dS = P * (dout v^T - delta) into work.dscores for
// queries [r0, r1) and keys [c0, c1); both zero where a key is not seen. work.query holds scale*q.
void BandAttention::recompute(const Inputs& in, ConstTensorView dout, const float* lse, Index bh,
                              Index r0, Index r1, Index c0, Index c1, Work& work) {
  const Index rows = r1 - r0, keys = c1 - c0;
  const auto real = keys_of_batch(in, bh / problem_.heads);
  const ConstMatrixMap q(work.query, rows, problem_.d_k);
  auto s = Work::tile(work.scores, rows, keys), ds = Work::tile(work.dscores, rows, keys);
  s.noalias() = q * in.k.head(bh).middleRows(c0, keys).transpose();
  ds.noalias() =
      dout.head(bh).middleRows(r0, rows) * in.v.head(bh).middleRows(c0, keys).transpose();
  for (Index r = 0; r < rows; ++r) {
    const Index i = bh * problem_.n + r0 + r;
    auto row = s.row(r).array();
    row = (row - lse[i]).max(kMinExponent).exp();
    ds.row(r).array() = row * (ds.row(r).array() - delta_[i]);
  }
  if (sees_all(band_, real, r0, r1, c0, c1)) return;
  fill_hidden(s, band_, real, r0, c0, 0.f);
  fill_hidden(ds, band_, real, r0, c0, 0.f);
}

void BandAttention::backward(const Inputs& in, ConstTensorView out, ConstTensorView dout,
                             const float* lse, const Gradients& grads) {
  SUBQUAD_CHECK(gradients_, "backward needs Env::gradients in prepare()");
  grow_work();
  const Index heads = problem_.batch * problem_.heads;
  const Index tiles = (problem_.n + rows_ - 1) / rows_;
  parallel_for(heads * tiles, [&](Index item, int thread) {
    query_gradients(in, out, dout, lse, grads, item / tiles, (tiles - 1 - item % tiles) * rows_,
                    thread);
  });
  const Index key_tiles = static_cast<Index>(key_cuts_.size()) - 1;
  parallel_for(heads * key_tiles, [&](Index item, int thread) {
    const auto tile = static_cast<std::size_t>(item % key_tiles);
    key_gradients(in, dout, lse, grads, item / key_tiles, key_cuts_[tile], key_cuts_[tile + 1],
                  thread);
  });
}

void BandAttention::query_gradients(const Inputs& in, ConstTensorView out, ConstTensorView dout,
                                    const float* lse, const Gradients& grads, Index bh, Index r0,
                                    Index thread) {
  const Index r1 = std::min(r0 + rows_, problem_.n), rows = r1 - r0;
  Work work(work_[static_cast<std::size_t>(thread)].data(), problem_, rows_, gradients_);
  const auto scale = static_cast<float>(problem_.logit_scale());
  const auto k = in.k.head(bh);
  auto dq = grads.dq.head(bh).middleRows(r0, rows);
  MatrixMap(work.query, rows, problem_.d_k) = scale * in.q.head(bh).middleRows(r0, rows);
  dq.setZero();
  for (Index i = r0; i < r1; ++i)
    delta_[bh * problem_.n + i] = out.head(bh).row(i).dot(dout.head(bh).row(i));

  const auto meet = [&](Index c0, Index c1) {
    recompute(in, dout, lse, bh, r0, r1, c0, c1, work);
    add_masked_product(Work::tile(work.dscores, rows, c1 - c0), k.middleRows(c0, c1 - c0), dq,
                       work.spare);
  };
  const Index sinks = band_.sink_end(r1 - 1);
  for (Index c = 0; c < sinks; c += kKeys) meet(c, std::min(c + kKeys, sinks));
  const Index last = band_.end(r1 - 1);
  for (Index c = std::max(sinks, band_.begin(r0)); c < last; c += kKeys)
    meet(c, std::min(c + kKeys, last));
  dq *= scale;
}

void BandAttention::key_gradients(const Inputs& in, ConstTensorView dout, const float* lse,
                                  const Gradients& grads, Index bh, Index c0, Index c1,
                                  Index thread) {
  const Index keys = c1 - c0;
  Work work(work_[static_cast<std::size_t>(thread)].data(), problem_, rows_, gradients_);
  const auto scale = static_cast<float>(problem_.logit_scale());
  auto dk = grads.dk.head(bh).middleRows(c0, keys), dv = grads.dv.head(bh).middleRows(c0, keys);
  dk.setZero();
  dv.setZero();
  const Band::Range range = band_.queries_of(c0, c1);
  for (Index r0 = range.first; r0 < range.last; r0 += rows_) {
    const Index r1 = std::min(r0 + rows_, range.last), rows = r1 - r0;
    MatrixMap q(work.query, rows, problem_.d_k);
    q = scale * in.q.head(bh).middleRows(r0, rows);
    recompute(in, dout, lse, bh, r0, r1, c0, c1, work);
    dv.noalias() +=
        Work::tile(work.scores, rows, keys).transpose() * dout.head(bh).middleRows(r0, rows);
    dk.noalias() += Work::tile(work.dscores, rows, keys).transpose() * q;
  }
}

}  // namespace subquad
