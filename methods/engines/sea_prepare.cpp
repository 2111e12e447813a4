// Sizes, memory and buffers of SEA.

#include <cmath>

#include "harness/core/parallel.h"
#include "methods/engines/sea_features.h"
#include "methods/engines/sea_work.h"

namespace subquad {

using namespace engine;
using Source = SeaOptions::Source;
using Position = SeaOptions::Position;

// ---- sizes ----

SeaShape SeaAttention::shape_of(const Problem& p, const SeaOptions& o) {
  SeaShape s;
  s.causal = p.causal;
  s.heads = p.heads;
  s.n = p.n;
  s.d_v = p.d_v;
  s.cells = o.cells;
  s.channels = o.channels;
  s.stretch = o.stretch;
  s.cnn = o.cnn;
  s.block_norm = o.block_norm;
  s.quirks = o.quirks;
  s.skip = o.skip;
  s.positions = o.position == Position::learned ? (o.max_n > 0 ? o.max_n : p.n) : 0;
  return s;
}

namespace {

Index block_of(const SeaShape& s, const SeaOptions& o) {
  return o.source == Source::learned ? SeaEstimator::block_rows(s) * s.skip : 64;
}
// Groups of rows with sums of their own in backward: enough to occupy a few threads.
Index groups_of(const Problem& p) {
  const Index heads = p.batch * p.heads;
  return heads >= 4 ? 1 : 4 / heads;
}
Problem kernel_problem(Problem p) {
  p.d_v *= 2;
  return p;
}
LinearScanOptions scan_options() {
  // The smallest feature keeps the sum positive, so nothing is added to it; the code adds 1e-6 to
  // every feature's sum in its causal form, which is 1e-3 of the smallest.
  return {.normalize = true, .eps = 0, .chunk = 0, .decay = {}};
}
bool uses_kernel(const SeaOptions& o) {
  return o.source == Source::learned || o.source == Source::identity;
}

}  // namespace

double SeaAttention::bytes(const Problem& p, const SeaOptions& o, bool gradients) {
  const SeaShape s = shape_of(p, o);
  const Index heads = p.batch * p.heads, block = block_of(s, o), blocks = (p.n + block - 1) / block,
              wide = round_up(o.cells, kLanes), rows = heads * p.n;
  double all = 0;
  const auto floats = [&](Index count) { all += 4.0 * static_cast<double>(count); };
  if (uses_kernel(o)) {
    const auto map = make_sea_features(o.relu, o.features);
    all += map->bytes(p.d_k, heads, p.n) +
           LinearScan::work_bytes(kernel_problem(p), *map, scan_options(), gradients);
    floats(rows * 2 * p.d_v * 2 + p.d_v);
  }
  if (o.source == Source::learned) all += SeaEstimator::bytes(s) + SeaWeights::bytes(s, gradients);
  if (p.causal) floats(2 * heads * blocks * p.d_v);
  floats(2 * rows);
  if (uses_pool(p, o)) floats(heads * (blocks * wide + wide + 3 * p.d_v));
  if (whole_matrix(o)) floats(p.n * p.heads * wide + p.heads + p.heads * p.n);
  floats(2 * p.batch * blocks);
  floats(thread_count() * (SeaWorkSizes::of(p, o, s, block, gradients).floats + p.n));
  if (!gradients) return all;
  const Index groups = groups_of(p);
  floats((groups - 1) * rows * (p.d_k + p.d_v) + 2 * heads * groups * p.d_v);
  if (o.source == Source::learned) {
    floats(rows * (2 * p.d_v * 2 + 2 * p.d_k));  // gradients of the kernel attention
    floats(heads * s.rows() * 2 + heads * o.cells + s.rows());
    if (o.skip > 1) floats(heads * s.rows() * 3 * p.d_v);
    all += static_cast<double>(o.cells);
    floats(rows * 2 * p.d_v);  // saved: kernel attention
    all += LinearScan::saved_bytes(kernel_problem(p), *make_sea_features(o.relu, o.features),
                                   scan_options());
  }
  floats(2 * rows + rows * ((o.cells + 31) / 32));
  if (uses_pool(p, o)) floats(heads * wide);
  return all;
}

double SeaAttention::flops(const Problem& p, const SeaOptions& o, Pass pass) {
  const SeaShape s = shape_of(p, o);
  const auto rows = static_cast<double>(p.batch * p.n), heads = static_cast<double>(p.heads),
             d = static_cast<double>(p.d_k + p.d_v);
  double kept = 0;  // keys of a query, all heads
  for (Index t = 0; t < p.n; ++t)
    kept += static_cast<double>(std::min(o.top_k, p.causal ? t + 1 : p.n));
  double sparse = 2 * d * kept * heads * static_cast<double>(p.batch), kernel = 0, estimate = 0;
  const Index features = sea_feature_count(o.features, p.d_k);
  if (uses_kernel(o))
    kernel = LinearScan::flops(kernel_problem(p), features, true, Pass::forward) +
             4 * rows * heads * static_cast<double>(features * p.d_k);
  if (o.source == Source::learned)
    estimate = rows / static_cast<double>(o.skip) * SeaEstimator::flops_per_row(s);
  const double forward = sparse + kernel + estimate;
  if (pass == Pass::forward || pass == Pass::decode) return forward;
  const double back = 2.5 * sparse + 2.5 * kernel + 2 * estimate;
  return pass == Pass::backward ? back : forward + back;
}

// ---- prepare ----

void SeaAttention::prepare(const Problem& p, const SeaOptions& o, SeaWeights* weights, Seed seed,
                           bool gradients) {
  problem_ = p;
  options_ = o;
  shape_ = shape_of(p, o);
  weights_ = weights;
  seed_ = seed;
  gradients_ = gradients;
  max_n_ = o.max_n > 0 ? o.max_n : p.n;
  block_ = block_of(shape_, o);
  wide_ = round_up(o.cells, kLanes);
  heads_ = p.batch * p.heads;
  if (has_kernel()) {
    map_ = make_sea_features(o.relu, o.features);
    map_->prepare(p.d_k, derive(seed, "sea.projection"), heads_, p.n);
    scan_.prepare(kernel_problem(p), map_, scan_options(), gradients);
    values_ = Tensor(p.batch, p.heads, p.n, 2 * p.d_v);
    kernel_ = Tensor(values_.shape());
    position_mean_ = AlignedArray<float>(p.d_v);
  }
  if (has_estimator()) estimator_.prepare(shape_);
  if (p.causal) prefix_ = AlignedArray<double>(heads_ * blocks() * p.d_v);
  gates_ = AlignedArray<float>(heads_ * p.n * 2);
  if (uses_pool(p, o)) {
    block_pool_ = AlignedArray<float>(heads_ * blocks() * wide_);
    pool_ = AlignedArray<float>(heads_ * wide_);
    pooled_ = AlignedArray<float>(heads_ * p.d_v);
    pool_sums_ = AlignedArray<double>(heads_ * p.d_v);
  }
  if (whole_matrix(o)) {
    all_ = AlignedArray<float>(p.n * p.heads * wide_);
    limits_ = AlignedArray<std::int32_t>(p.heads);
    ties_ = AlignedArray<std::int32_t>(p.heads * p.n);
  }
  block_kept_ = AlignedArray<Index>(p.batch * blocks());
  grow();
  if (!gradients) return;
  groups_ = groups_of(p);
  dk_groups_ = AlignedArray<float>((groups_ - 1) * heads_ * p.n * p.d_k);
  dv_groups_ = AlignedArray<float>((groups_ - 1) * heads_ * p.n * p.d_v);
  dpooled_ = AlignedArray<double>(heads_ * groups_ * p.d_v);
  if (!has_estimator()) return;
  dkernel_ = Tensor(values_.shape());
  dvalues_ = Tensor(values_.shape());
  dq_ = Tensor(p.batch, p.heads, p.n, p.d_k);
  dk_ = Tensor(dq_.shape());
  dgates_ = AlignedArray<float>(heads_ * shape_.rows() * 2);
  dpool_ = AlignedArray<float>(heads_ * o.cells);
  if (o.skip > 1) {
    picked_kernel_ = AlignedArray<float>(heads_ * shape_.rows() * 2 * p.d_v);
    picked_v_ = AlignedArray<float>(heads_ * shape_.rows() * p.d_v);
  }
  filled_ = AlignedArray<std::uint8_t>(o.cells);
  row_counts_ = AlignedArray<float>(shape_.rows());
}

void SeaAttention::grow() {
  const Index floats = SeaWorkSizes::of(problem_, options_, shape_, block_, gradients_).floats;
  if (floats_.size() >= thread_count() * floats) return;
  floats_ = AlignedArray<float>(thread_count() * floats);
  ints_ = AlignedArray<std::int32_t>(thread_count() * problem_.n);
}

SeaWork SeaAttention::work(int thread) {
  const SeaWorkSizes sizes = SeaWorkSizes::of(problem_, options_, shape_, block_, gradients_);
  return sizes.at(floats_.data() + thread * sizes.floats, ints_.data() + thread * problem_.n);
}

std::unique_ptr<SeaSaved> SeaAttention::make_saved() const {
  auto saved = std::make_unique<SeaSaved>();
  const Index rows = heads_ * problem_.n;
  if (has_estimator()) {
    saved->kernel = Tensor(values_.shape());
    saved->scan = scan_.make_saved();
  }
  saved->gates = AlignedArray<float>(rows * 2);
  saved->kept = AlignedArray<std::uint32_t>(rows * words());
  if (uses_pool(problem_, options_)) saved->pool = AlignedArray<float>(heads_ * wide_);
  return saved;
}

}  // namespace subquad
