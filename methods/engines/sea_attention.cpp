#include "methods/engines/sea_attention.h"

#include <bit>
#include <cmath>

#include "harness/core/parallel.h"
#include "methods/engines/sea_teacher.h"
#include "methods/engines/sea_work.h"

namespace subquad {

using namespace engine;
using Source = SeaOptions::Source;
using Group = SeaOptions::Group;
using Position = SeaOptions::Position;

std::vector<std::string> sea_stage_names() {
  return {"kernel", "estimator", "top_k", "stretch", "sparse", "rest"};
}

// ---- 1. kernel attention ----

// The position value of token i: bins of where it stands, spread over d_v columns.
void SeaAttention::fill_values(const Inputs& in) {
  const Index n = problem_.n, d = problem_.d_v;
  constexpr Index kRows = 256;
  const Index items = (n + kRows - 1) / kRows;
  parallel_for(heads_ * items, [&](Index item, int) {
    const Index bh = item / items;
    for (Index i = item % items * kRows; i < std::min(n, (item % items + 1) * kRows); ++i) {
      float* const to = values_.view().head(bh).data() + i * 2 * d;
      if (options_.position == Position::learned) {
        std::copy_n(weights_->positions.value.data() + i * d, d, to);
      } else {
        std::fill_n(to, d, 0.0f);
        if (options_.position == Position::nearest) {
          to[i * d / n] = 1;
        } else if (options_.position == Position::identity) {
          // Resized by linear interpolation with aligned corners.
          const double at =
              n > 1 ? static_cast<double>(i * (d - 1)) / static_cast<double>(n - 1) : 0.0;
          const auto low = std::min(static_cast<Index>(at), d - 1);
          const double part = at - static_cast<double>(low);
          to[low] = static_cast<float>(1 - part);
          if (low + 1 < d) to[low + 1] = static_cast<float>(part);
        }
      }
      std::copy_n(in.v.head(bh).data() + i * d, d, to + d);
    }
  });
}

void SeaAttention::kernel(const Inputs& in, TensorView out, LinearScanSaved* saved) {
  fill_values(in);
  Inputs scanned = in;
  scanned.v = values_.view();
  scan_.forward(scanned, out, saved);
  if (options_.source != Source::identity) return;
  for (Index c = 0; c < problem_.d_v; ++c) {  // bins at the borders hold less
    double sum = 0;
    for (Index i = 0; i < problem_.n; ++i)
      sum += static_cast<double>(values_.data()[i * 2 * problem_.d_v + c]);
    position_mean_[c] = static_cast<float>(std::max(sum / static_cast<double>(problem_.n), 1e-30));
  }
}

// prefix_ = sums of the values before every block.
void SeaAttention::prefix_values(const Inputs& in) {
  const Index d = problem_.d_v, count = blocks();
  parallel_for(heads_ * count, [&](Index item, int) {
    const Index bh = item / count, first = item % count * block_;
    double* const sum = prefix_.data() + item * d;
    std::fill_n(sum, d, 0.0);
    if (item % count + 1 == count) return;  // nobody stands behind the last block
    for (Index j = first; j < std::min(first + block_, problem_.n); ++j)
      for (Index c = 0; c < d; ++c) sum[c] += static_cast<double>(in.v.head(bh).data()[j * d + c]);
  });
  parallel_for(heads_, [&](Index bh, int) {
    double* const sums = prefix_.data() + bh * count * d;
    for (Index b = count - 1; b > 0; --b) std::copy_n(sums + (b - 1) * d, d, sums + b * d);
    std::fill_n(sums, d, 0.0);
    for (Index b = 1; b < count; ++b)
      for (Index c = 0; c < d; ++c) sums[b * d + c] += sums[(b - 1) * d + c];
  });
}

// ---- 2. probabilities of cells ----

std::pair<Index, Index> SeaAttention::cell_keys(Index c, Index t) const {
  const SeaCells cells{options_.cells, map_length(t)};
  const Index seen = visible(t);
  return {std::min(cells.first(c), seen), std::min(cells.first(c + 1), seen)};
}

// w.p [heads, wide] for query t, every number >= 0.
void SeaAttention::probabilities(const Inputs& in, Index b, Index t, const float* scores,
                                 SeaWork& w) const {
  const Index cells = options_.cells, heads = problem_.heads, seen = visible(t);
  const auto keys = [&](Index c) { return cell_keys(c, t); };
  const SeaCellRow row{cells, wide_, options_.mask_empty, options_.absolute || seen < cells};
  for (Index h = 0; h < heads; ++h) {
    float* const p = w.p + h * wide_;
    const Index bh = b * heads + h;
    if (options_.source == Source::learned) {
      row.softmax(scores + h * wide_, p, keys);
      continue;
    }
    if (options_.source == Source::local) {
      row.local(p, SeaCells{cells, map_length(t)}.of_key(t), keys);
      continue;
    }
    std::fill_n(p, wide_, -1.0f);
    if (options_.source == Source::oracle) {
      const float* const q = in.q.head(bh).data() + t * problem_.d_k;
      const auto factor = static_cast<float>(problem_.logit_scale() * 1.4426950408889634073599);
      for (Index c = 0; c < problem_.d_k; ++c) w.q[c] = q[c] * factor;
      teacher_masses(RowQuery(w.q, problem_.d_k, w.tail), in.k.head(bh).data(), problem_.d_k, seen,
                     cells, keys, w.row, p);
    } else if (options_.source == Source::identity) {
      const float* const from = kernel_.view().head(bh).data() + t * 2 * problem_.d_v;
      for (Index c = 0; c < cells; ++c) p[c] = std::max(0.0f, from[c] / position_mean_[c]);
    } else {
      for (Index c = 0; c < cells; ++c) p[c] = sea_hashed(seed_, (bh * problem_.n + t) * cells + c);
    }
    row.clear_empty(p, 0, keys);
  }
}

// ---- 3. which cells ----

// Groups head and batch: limits over all rows of one batch item, and how many ties each row keeps.
void SeaAttention::global_limits() {
  const Index heads = problem_.heads, n = problem_.n, cells = options_.cells;
  const bool together = options_.group == Group::batch;
  const auto count = [&](Index h, std::int32_t limit) {
    if (together) return count_above(all_.data(), n * heads * wide_, limit);
    Index above = 0;
    for (Index t = 0; t < n; ++t)
      above += count_above(all_.data() + (t * heads + h) * wide_, wide_, limit);
    return above;
  };
  for (Index h = 0; h < (together ? 1 : heads); ++h) {
    const Index all = (together ? heads : 1) * n * cells;
    const Index keep = sea_budget(all, options_.top_k, cells, map_length(n - 1));
    const auto range = [&](std::int32_t low, std::int32_t high) {
      if (together) return range_between(all_.data(), n * heads * wide_, low, high);
      BitRange inside{high, low};
      for (Index t = 0; t < n; ++t) {
        const BitRange row = range_between(all_.data() + (t * heads + h) * wide_, wide_, low, high);
        inside = {std::min(inside.least, row.least), std::max(inside.most, row.most)};
      }
      return inside;
    };
    const SeaLimit limit = select_by_count([&](std::int32_t at) { return count(h, at); }, range,
                                           std::bit_cast<std::int32_t>(kInfinity), all, keep);
    for (Index g = h; g < (together ? heads : h + 1); ++g) limits_[g] = limit.limit;
    Index left = limit.ties;
    for (Index g = h; g < (together ? heads : h + 1); ++g)
      for (Index t = 0; t < n; ++t) {  // ties go to the lower place of [heads, n, cells]
        Index equal = 0;
        const float* const p = all_.data() + (t * heads + g) * wide_;
        for (Index c = 0; c < cells && left > 0; ++c)
          if (std::bit_cast<std::int32_t>(p[c]) == limit.limit) ++equal;
        ties_[g * n + t] = static_cast<std::int32_t>(std::min(equal, left));
        left -= std::min(equal, left);
      }
  }
}

// Keys of the kept cells of head and query, in ascending order.
Index SeaAttention::collect(Index t, const std::uint32_t* bits, std::int32_t* keys) const {
  Index count = 0;
  for (Index word = 0; word < words(); ++word)
    for (std::uint32_t left = bits[word]; left != 0; left &= left - 1) {
      const auto [first, last] = cell_keys(32 * word + std::countr_zero(left), t);
      sea_stretch(first, last, options_.top_k,
                  [&](Index j) { keys[count++] = static_cast<std::int32_t>(j); });
    }
  return count;
}

// ---- 4. and 5. ----

void SeaAttention::attend_block(const Inputs& in, Index b, Index block, int thread, TensorView out,
                                SeaSaved* saved, const Show* show) {
  SeaWork w = work(thread);
  start(thread);
  const Index heads = problem_.heads, n = problem_.n, d_k = problem_.d_k, d_v = problem_.d_v,
              cells = options_.cells, first = block * block_, last = std::min(first + block_, n),
              first_row = first / options_.skip,
              last_row = (last + options_.skip - 1) / options_.skip;
  const bool learned = has_estimator(), gated = learned && options_.gates,
             whole = whole_matrix(options_), pools = uses_pool(problem_, options_);
  if (learned && !(whole && attending_)) {
    const ConstTensorView kernel = saved != nullptr ? saved->kernel.view() : kernel_.view();
    estimator_.rows(kernel.head_data(b, 0), in.v.head_data(b, 0), first_row, last_row, w.estimator,
                    w.scores, w.gates);
  }
  lap(thread, SeaStage::estimator);
  float* const pool = pools ? block_pool_.data() + (b * blocks() + block) * heads * wide_ : nullptr;
  if (pools && attending_) std::fill_n(pool, heads * wide_, 0.0f);
  if (problem_.causal)
    for (Index h = 0; h < heads; ++h)
      std::copy_n(prefix_.data() + ((b * heads + h) * blocks() + block) * d_v, d_v,
                  w.sum + h * d_v);
  const auto factor = static_cast<float>(problem_.logit_scale() * 1.4426950408889634073599);
  Index kept = 0;
  for (Index t = first; t < last; ++t) {
    const Index row = t / options_.skip - first_row;
    if (whole && !attending_) {
      probabilities(in, b, t, w.scores + row * heads * wide_, w);
      std::copy_n(w.p, heads * wide_, all_.data() + t * heads * wide_);
      if (gated)
        std::copy_n(w.gates + row * heads * 2, heads * 2, gates_.data() + (b * n + t) * heads * 2);
      lap(thread, SeaStage::top_k);
      continue;
    }
    const float* p = w.p;
    if (whole) {
      p = all_.data() + t * heads * wide_;
    } else {
      probabilities(in, b, t, w.scores + row * heads * wide_, w);
    }
    if (pools)
      for (Index i = 0; i < heads * wide_; i += kLanes)
        store(pool + i, load(pool + i) + load(p + i));
    SeaLimit limit;
    if (options_.group == Group::row)
      limit = select_largest(p, heads * wide_, heads * cells,
                             sea_budget(heads * cells, options_.top_k, cells, map_length(t)));
    lap(thread, SeaStage::top_k);
    for (Index h = 0; h < heads; ++h) {
      const Index bh = b * heads + h, place = (b * n + t) * heads + h;
      if (options_.group == Group::query)
        limit = select_largest(p + h * wide_, wide_, cells,
                               sea_budget(cells, options_.top_k, cells, map_length(t)));
      if (whole) limit = {limits_[h], ties_[h * n + t]};
      std::uint32_t* const bits = saved != nullptr ? saved->kept.data() + place * words() : w.bits;
      keep_bits(p + h * wide_, cells, wide_, &limit, bits);
      lap(thread, SeaStage::top_k);
      const Index count = collect(t, bits, w.keys);
      kept += count;
      lap(thread, SeaStage::stretch);
      const float* const gate = whole ? gates_.data() + 2 * place : w.gates + (row * heads + h) * 2;
      const float s_prob = gated ? gate[0] : 1.0f, s_mix = gated ? gate[1] : 1.0f;
      gates_[2 * place] = s_prob;
      gates_[2 * place + 1] = s_mix;
      if (saved != nullptr) {
        saved->gates[2 * place] = s_prob;
        saved->gates[2 * place + 1] = s_mix;
      }
      const float* const q = in.q.head(bh).data() + t * d_k;
      for (Index c = 0; c < d_k; ++c) w.q[c] = q[c] * factor;
      const Part part = attend_rows(
          RowQuery(w.q, d_k, w.tail), GatheredRows<std::int32_t>{in.k.head(bh).data(), d_k, w.keys},
          GatheredRows<std::int32_t>{in.v.head(bh).data(), d_v, w.keys}, count, d_v, w.row, w.out);
      const float weight = count > 0 ? s_mix * s_prob / part.sum : 0.0f;
      float* const to = out.head(bh).data() + t * d_v;
      for (Index c = 0; c < d_v; ++c) to[c] = weight * w.out[c];
      lap(thread, SeaStage::sparse);
      if (problem_.causal) {
        double* const sum = w.sum + h * d_v;
        const float* const v = in.v.head(bh).data() + t * d_v;
        const double share = static_cast<double>(1 - s_mix) / static_cast<double>(t + 1);
        for (Index c = 0; c < d_v; ++c) {
          sum[c] += static_cast<double>(v[c]);
          if (gated) to[c] += static_cast<float>(share * sum[c]);
        }
      }
      if (show != nullptr && show->b == b && t >= show->first && t < show->last) {
        for (Index r = 0; r < count; ++r) w.row[r] /= part.sum;
        (*show->sink)(h, t, w.keys, count, w.row, s_prob, s_mix);
      }
      lap(thread, SeaStage::rest);
    }
  }
  block_kept_[b * blocks() + block] = kept;
}

// Bidirectional: pooled_ = values weighted by the mean probability of their cells, raw [batch *
// heads, wide cells]; pool_ = those weights, divided by their sum over keys where that is asked
// for.
void SeaAttention::pool_values(const Inputs& in, const float* raw) {
  const Index d = problem_.d_v;
  parallel_for(heads_, [&](Index bh, int) {
    const float* const weight = raw + bh * wide_;
    double* const sums = pool_sums_.data() + bh * d;
    std::fill_n(sums, d, 0.0);
    double total = 0;
    for (Index c = 0; c < options_.cells; ++c) {
      const auto [first, last] = cell_keys(c, 0);
      for (Index j = first; j < last; ++j) {
        const float* const v = in.v.head(bh).data() + j * d;
        for (Index x = 0; x < d; ++x)
          sums[x] += static_cast<double>(weight[c]) * static_cast<double>(v[x]);
        total += static_cast<double>(weight[c]);
      }
    }
    const double factor = options_.normalize_pool && total > 0 ? 1 / total : 1;
    for (Index x = 0; x < d; ++x) pooled_[bh * d + x] = static_cast<float>(factor * sums[x]);
    for (Index c = 0; c < options_.cells; ++c)
      pool_[bh * wide_ + c] = static_cast<float>(factor * static_cast<double>(weight[c]));
  });
}

void SeaAttention::finish_pool(const Inputs& in, TensorView out, SeaSaved* saved) {
  const Index heads = problem_.heads, n = problem_.n, d = problem_.d_v;
  float* const raw = saved != nullptr ? saved->pool.data() : pool_.data();
  for (Index bh = 0; bh < heads_; ++bh)
    for (Index c = 0; c < options_.cells; ++c) {
      double sum = 0;
      for (Index block = 0; block < blocks(); ++block)
        sum += static_cast<double>(
            block_pool_[((bh / heads * blocks() + block) * heads + bh % heads) * wide_ + c]);
      raw[bh * wide_ + c] = static_cast<float>(sum / static_cast<double>(n));
    }
  pool_values(in, raw);
  constexpr Index kRows = 256;
  const Index items = (n + kRows - 1) / kRows;
  parallel_for(heads_ * items, [&](Index item, int) {
    const Index bh = item / items, b = bh / heads, h = bh % heads;
    const float* const pooled = pooled_.data() + bh * d;
    for (Index t = item % items * kRows; t < std::min(n, (item % items + 1) * kRows); ++t) {
      const float share = 1 - gates_[2 * ((b * n + t) * heads + h) + 1];
      float* const to = out.head(bh).data() + t * d;
      for (Index x = 0; x < d; ++x) to[x] += share * pooled[x];
    }
  });
}

void SeaAttention::run(const Inputs& in, TensorView out, SeaSaved* saved, const Show* show) {
  grow();
  start(0);
  if (has_estimator() && saved != nullptr) {
    kernel(in, saved->kernel, saved->scan.get());
  } else if (has_kernel()) {
    kernel(in, kernel_, nullptr);
  }
  lap(0, SeaStage::kernel);
  if (has_estimator()) estimator_.pack(*weights_);
  lap(0, SeaStage::estimator);
  if (problem_.causal) prefix_values(in);
  lap(0, SeaStage::rest);
  attending_ = true;
  if (whole_matrix(options_)) {
    for (Index b = 0; b < problem_.batch; ++b) {
      attending_ = false;
      parallel_for(blocks(), [&](Index block, int thread) {
        attend_block(in, b, block, thread, out, saved, show);
      });
      global_limits();
      attending_ = true;
      parallel_for(blocks(), [&](Index block, int thread) {
        attend_block(in, b, block, thread, out, saved, show);
      });
    }
  } else {
    parallel_for(problem_.batch * blocks(), [&](Index item, int thread) {
      attend_block(in, item / blocks(), item % blocks(), thread, out, saved, show);
    });
  }
  start(0);
  if (uses_pool(problem_, options_)) finish_pool(in, out, saved);
  lap(0, SeaStage::rest);
  Index kept = 0;
  for (Index i = 0; i < block_kept_.size(); ++i) kept += block_kept_[i];
  kept_keys_ = static_cast<double>(kept) / static_cast<double>(heads_ * problem_.n);
}

void SeaAttention::forward(const Inputs& in, TensorView out, SeaSaved* saved) {
  run(in, out, saved, nullptr);
}

void SeaAttention::show(const Inputs& in, Index b, Index first, Index last, const RowSink& sink) {
  Tensor out(problem_.batch, problem_.heads, problem_.n, problem_.d_v);
  const Show what{b, first, last, &sink};
  run(in, out, nullptr, &what);
}

double SeaAttention::pool_weight(Index b, Index h, Index t, Index j) const {
  if (!has_estimator() || !options_.gates || j >= visible(t)) return 0;
  if (problem_.causal) return 1 / static_cast<double>(t + 1);
  const Index cell = SeaCells{options_.cells, map_length(0)}.of_key(j);
  return static_cast<double>(pool_[(b * problem_.heads + h) * wide_ + cell]);
}

void SeaAttention::estimated_row(const Inputs& in, Index b, Index h, Index t, float* row) {
  SUBQUAD_CHECK(has_estimator(), "only a learned mask has an estimated matrix");
  grow();
  kernel(in, kernel_, nullptr);
  estimator_.pack(*weights_);
  show_estimate(in, b, h, t, row);
}

void SeaAttention::estimated_matrix(const Inputs& in, Index b, Index h, Eigen::Ref<Matrix> to) {
  SUBQUAD_CHECK(has_estimator(), "only a learned mask has an estimated matrix");
  grow();
  kernel(in, kernel_, nullptr);
  estimator_.pack(*weights_);
  for (Index t = 0; t < problem_.n; ++t) show_estimate(in, b, h, t, to.row(t).data());
}

void SeaAttention::show_estimate(const Inputs& in, Index b, Index h, Index t, float* row) {
  const SeaWork w = work(0);
  const Index at = t / options_.skip;
  estimator_.rows(kernel_.view().head_data(b, 0), in.v.head_data(b, 0), at, at + 1, w.estimator,
                  w.scores, w.gates);
  const float* const scores = w.scores + h * wide_;
  double most = -1e300, sum = 0;
  for (Index c = 0; c < options_.cells; ++c) most = std::max(most, static_cast<double>(scores[c]));
  std::fill_n(row, problem_.n, 0.0f);
  for (Index c = 0; c < options_.cells; ++c) {
    const auto [first, last] = cell_keys(c, t);
    const double e = std::exp(static_cast<double>(scores[c]) - most);
    for (Index j = first; j < last; ++j) row[j] = static_cast<float>(e), sum += e;
  }
  for (Index j = 0; j < problem_.n; ++j)
    row[j] = static_cast<float>(static_cast<double>(row[j]) / sum);
}

}  // namespace subquad
