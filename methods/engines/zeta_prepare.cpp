// What a call of ZETA begins with: points and codes, keys and queries in the order of their codes,
// the averaged tokens.
#include <algorithm>

#include "harness/core/parallel.h"
#include "methods/engines/band.h"
#include "methods/engines/zeta_attention.h"
#include "methods/engines/zeta_layout.h"

namespace subquad {

using namespace engine;
using namespace zeta_detail;

// Points of all queries and keys; codes of keys are left where sort_keys finds them.
void ZetaAttention::map_points(const Inputs& in, bool codes) {
  const Index width = ZetaPoints::width(options_.points.d_key);
  const Index heads = problem_.batch * problem_.heads;
  const Index q_items = (problem_.n + kTokenBlock - 1) / kTokenBlock;
  const Index k_items = (problem_.n_kv + kTokenBlock - 1) / kTokenBlock;
  parallel_for(heads * (q_items + k_items), [&](Index item, int) {
    const Index bh = item / (q_items + k_items), part = item % (q_items + k_items);
    const bool is_q = part < q_items;
    const Index n = is_q ? problem_.n : problem_.n_kv;
    const Index first = (is_q ? part : part - q_items) * kTokenBlock;
    const Index count = std::min(kTokenBlock, n - first);
    const float* x = (is_q ? in.q : in.k).head(bh).data() + first * problem_.d_k;
    std::uint64_t* code = is_q ? heads_.q_code.data() : heads_.code.data();
    points_.map(x, count, (is_q ? heads_.q : heads_.k).data() + (bh * n + first) * width,
                codes ? code + bh * n + first : nullptr);
  });
}

// Real keys in the order of their codes, or of their positions where nothing is searched.
void ZetaAttention::sort_keys(const Inputs& in, Index bh, Work& work) {
  const Index n_kv = problem_.n_kv, d_key = options_.points.d_key;
  const Index width = ZetaPoints::width(d_key);
  const auto real = keys_of_batch(in, bh / problem_.heads);
  std::uint64_t* const code = heads_.code.data() + bh * n_kv;
  std::int32_t* const position = heads_.position.data() + bh * n_kv;
  const bool sorted = options_.candidates == ZetaOptions::Candidates::z_order;
  Index count = 0;
  for (Index j = 0; j < n_kv; ++j) {
    if (!real.empty() && real[static_cast<std::size_t>(j)] == 0) continue;
    if (sorted) {
      work.sort[count++] = {code[j], static_cast<std::int32_t>(j)};
    } else {
      position[count++] = static_cast<std::int32_t>(j);
    }
  }
  heads_.real[bh] = count;
  if (sorted) {
    sort_by_code(work.sort.data(), work.sort.data() + work.sort.size() / 2, count,
                 options_.points.bits * static_cast<int>(d_key));
    for (Index e = 0; e < count; ++e) {
      code[e] = work.sort[e].code;
      position[e] = work.sort[e].position;
    }
  }
  const Index stride = n_kv + kLanes;
  const float* const points = heads_.k.data() + bh * n_kv * width;
  float* const coordinate = heads_.coordinate.data() + bh * d_key * stride;
  for (Index e = 0; e < count; ++e)
    for (Index c = 0; c < d_key; ++c)
      coordinate[c * stride + e] = points[static_cast<Index>(position[e]) * width + c];
}

// Rows of queries of a chunk by the order of their codes.
void ZetaAttention::sort_queries(Index bh, Index chunk, Work& work) {
  const Index offset = problem_.causal ? problem_.causal_offset() : 0;
  const Index size = problem_.causal ? options_.chunk_size(problem_.n_kv) : problem_.n;
  const Index first = std::max<Index>(0, chunk * size - offset);
  const Index last = std::min(problem_.n, (chunk + 1) * size - offset);
  std::uint64_t* const code = heads_.q_code.data() + bh * problem_.n;
  std::int32_t* const order = heads_.q_order.data() + bh * problem_.n;
  for (Index i = first; i < last; ++i)
    work.sort[i - first] = {code[i], static_cast<std::int32_t>(i)};
  if (last <= first) return;
  sort_by_code(work.sort.data(), work.sort.data() + work.sort.size() / 2, last - first,
               options_.points.bits * static_cast<int>(options_.points.d_key));
  for (Index i = first; i < last; ++i) {
    code[i] = work.sort[i - first].code;
    order[i] = work.sort[i - first].position;
  }
}

void ZetaAttention::sort_heads(const Inputs& in) {
  const bool searched = options_.candidates == ZetaOptions::Candidates::z_order;
  if (options_.candidates == ZetaOptions::Candidates::none) return;
  const Index size = options_.chunk_size(problem_.n_kv);
  const Index chunks = !searched ? 0 : problem_.causal ? (problem_.n_kv + size - 1) / size : 1;
  // The long sort first.
  parallel_for(problem_.batch * problem_.heads * (chunks + 1), [&](Index item, int thread) {
    const Index heads = problem_.batch * problem_.heads;
    Work& work = work_[static_cast<std::size_t>(thread)];
    if (item < heads) return sort_keys(in, item, work);
    sort_queries((item - heads) / chunks, (item - heads) % chunks, work);
  });
}

Index ZetaAttention::blocks() const { return (problem_.n_kv + kTokenBlock - 1) / kTokenBlock; }

// Sums of points and values of all real tokens before every block, in double.
void ZetaAttention::sum_history(const Inputs& in) {
  const Index width = ZetaPoints::width(options_.points.d_key), d_v = problem_.d_v;
  const Index columns = d_v + width, count = blocks(), heads = problem_.batch * problem_.heads;
  parallel_for(heads * count, [&](Index item, int) {
    const Index bh = item / count, block = item % count;
    const auto real = keys_of_batch(in, bh / problem_.heads);
    double* const sum = heads_.sums.data() + (bh * (count + 1) + block + 1) * columns;
    Index& tokens = heads_.counts[bh * (count + 1) + block + 1];
    std::fill_n(sum, columns, 0.0);
    tokens = 0;
    const Index last = std::min(problem_.n_kv, (block + 1) * kTokenBlock);
    for (Index j = block * kTokenBlock; j < last; ++j) {
      if (!real.empty() && real[static_cast<std::size_t>(j)] == 0) continue;
      add_token(in.v.head(bh).data() + j * d_v, d_v,
                heads_.k.data() + (bh * problem_.n_kv + j) * width, width, sum);
      ++tokens;
    }
  });
  for (Index bh = 0; bh < heads; ++bh) {
    double* const sums = heads_.sums.data() + bh * (count + 1) * columns;
    Index* const tokens = heads_.counts.data() + bh * (count + 1);
    std::fill_n(sums, columns, 0.0);
    tokens[0] = 0;
    for (Index block = 1; block <= count; ++block) {
      for (Index c = 0; c < columns; ++c)
        sums[block * columns + c] += sums[(block - 1) * columns + c];
      tokens[block] += tokens[block - 1];
    }
  }
}

void ZetaAttention::average(const Inputs& in, Index bh, Index block, float* mean_v,
                            const float* dout, Work& work) {
  const Index width = ZetaPoints::width(options_.points.d_key), d_v = problem_.d_v;
  const Index columns = d_v + width, n = problem_.n;
  const auto real = keys_of_batch(in, bh / problem_.heads);
  double* const run = work.running.data();
  const Index at = bh * (blocks() + 1) + (problem_.causal ? block : blocks());
  std::copy_n(heads_.sums.data() + at * columns, columns, run);
  Index tokens = heads_.counts[at];
  const auto write = [&](Index i) {
    const double factor = tokens > 0 ? 1 / static_cast<double>(tokens) : 0;
    heads_.mean_count[bh * n + i] = static_cast<float>(tokens);
    float* const key = heads_.mean_k.data() + (bh * n + i) * width;
    for (Index c = 0; c < width; ++c) key[c] = static_cast<float>(factor * run[d_v + c]);
    if (mean_v != nullptr)
      for (Index c = 0; c < d_v; ++c) mean_v[i * d_v + c] = static_cast<float>(factor * run[c]);
    if (dout == nullptr) return;
    double dot = 0;
    for (Index c = 0; c < d_v; ++c) dot += static_cast<double>(dout[i * d_v + c]) * run[c];
    heads_.mean_dot[bh * n + i] = static_cast<float>(factor * dot);
  };
  if (!problem_.causal) {
    for (Index i = block * kTokenBlock; i < std::min(n, (block + 1) * kTokenBlock); ++i) write(i);
    return;
  }
  const Index offset = problem_.causal_offset();
  for (Index j = block * kTokenBlock; j < std::min(problem_.n_kv, (block + 1) * kTokenBlock); ++j) {
    if (real.empty() || real[static_cast<std::size_t>(j)] != 0) {
      add_token(in.v.head(bh).data() + j * d_v, d_v,
                heads_.k.data() + (bh * problem_.n_kv + j) * width, width, run);
      ++tokens;
    }
    if (j >= offset) write(j - offset);
  }
}

// What forward and backward begin with.
void ZetaAttention::prepare_call(const Inputs& in, TensorView mean_v, ConstTensorView dout) {
  grow_work();
  map_points(in, dout.empty() && options_.candidates == ZetaOptions::Candidates::z_order);
  if (dout.empty()) sort_heads(in);
  if (!options_.history) return;
  sum_history(in);
  const Index tokens = problem_.causal ? problem_.n_kv : problem_.n;
  const Index items = (tokens + kTokenBlock - 1) / kTokenBlock;
  parallel_for(problem_.batch * problem_.heads * items, [&](Index item, int thread) {
    const Index bh = item / items;
    average(in, bh, item % items, mean_v.empty() ? nullptr : mean_v.head(bh).data(),
            dout.empty() ? nullptr : dout.head(bh).data(), work_[static_cast<std::size_t>(thread)]);
  });
}

}  // namespace subquad
