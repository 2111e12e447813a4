#include <algorithm>

#include "harness/core/parallel.h"
#include "methods/engines/row_attention.h"
#include "methods/engines/zeta_layout.h"

namespace subquad {

using namespace engine;
using namespace zeta_detail;

namespace {

// One head: the keys of whole chunks in the order of their codes, those of the last one waiting,
// all points and values by position, and the sums of the averaged token.
struct Head {
  AlignedArray<std::uint64_t> code;           // [capacity]
  AlignedArray<std::int32_t> position;        // [capacity]
  AlignedArray<float> coordinate;             // [d_key, capacity + kLanes]
  AlignedArray<CodeAt> waiting;               // [2 chunk]
  AlignedArray<float> points, values;         // [capacity, width], [capacity, d_v]
  AlignedArray<double> base, block, running;  // [d_v + width]
  AlignedArray<float> mean_k;                 // [width]
  Index sorted = 0, waits = 0;
  Index attended = 0, tokens = 0;  // by the last step
  Work work;
};

template <class Make>
void layout(Head& h, const ZetaOptions& o, Index capacity, Index d_v, Make&& make) {
  const Index width = ZetaPoints::width(o.points.d_key), chunk = o.chunk_size(capacity);
  const bool searched = o.candidates == ZetaOptions::Candidates::z_order;
  make(h.code, searched ? capacity : 0);
  make(h.position, capacity);
  make(h.coordinate, o.points.d_key * (capacity + kLanes));
  make(h.waiting, 2 * chunk);
  make(h.points, capacity * width);
  make(h.values, capacity * d_v);
  for (auto* sum : {&h.base, &h.block, &h.running}) make(*sum, d_v + width);
  make(h.mean_k, width);
  make(h.work.distance, whole_vectors(o.window(capacity)));
  make(h.work.chosen, o.window(capacity) + 1);
  const Index attended = whole_vectors(o.list_size(capacity) + o.range_size(capacity, true) + 1);
  make(h.work.index, attended);
  make(h.work.x, attended);
  make(h.work.weight, attended);
}

class ZetaDecoder final : public Decoder {
 public:
  ZetaDecoder(const DecodeConfig& config, const ZetaOptions& options, std::vector<float> theta)
      : config_(config),
        options_(options),
        theta_(std::move(theta)),
        width_(ZetaPoints::width(options.points.d_key)),
        chunk_(options.chunk_size(config.capacity)),
        heads_(static_cast<std::size_t>(config.batch * config.heads)) {
    points_.prepare(options.points, config.d_k, config.seed);
    for (Head& head : heads_)
      layout(head, options_, config.capacity, config.d_v, [](auto& array, Index count) {
        array = std::remove_reference_t<decltype(array)>(count);
      });
    reset();
  }

  void reset() override {
    length_ = 0;
    for (Head& head : heads_) {
      head.sorted = head.waits = head.attended = head.tokens = 0;
      for (auto* sum : {&head.base, &head.block, &head.running})
        std::fill_n(sum->data(), sum->size(), 0.0);
    }
  }

  void prefill(ConstTensorView, ConstTensorView k, ConstTensorView v, ConstTensorView) override {
    check_room(k.n());
    parallel_for(count(), [&](Index bh, int) {
      for (Index t = 0; t < k.n(); ++t)
        append(heads_[static_cast<std::size_t>(bh)], length_ + t,
               k.data() + (bh * k.n() + t) * config_.d_k,
               v.data() + (bh * k.n() + t) * config_.d_v);
    });
    length_ += k.n();
  }

  // Time per token O(log n + window d_key + top_k d_v), and O(n + chunk log chunk) once per chunk.
  void step(const DecodeStep& in, float* out) override {
    check_room(1);
    const Index now = length_++;
    parallel_for(count(), [&](Index bh, int) {
      Head& head = heads_[static_cast<std::size_t>(bh)];
      append(head, now, in.k + bh * config_.d_k, in.v + bh * config_.d_v);
      attend(head, now, bh, in.q + bh * config_.d_k, out + bh * config_.d_v);
    });
  }

  CacheBytes bytes() const override {
    const auto heads = static_cast<double>(count()), n = static_cast<double>(length_);
    const auto width = static_cast<double>(width_), d_v = static_cast<double>(config_.d_v);
    double scratch = 0;
    const auto add = [&scratch](const auto& array) {
      scratch += static_cast<double>(array.size()) * static_cast<double>(sizeof(*array.data()));
    };
    const Head& head = heads_.front();
    add(head.work.distance), add(head.work.chosen), add(head.work.index), add(head.work.x);
    add(head.work.weight), add(head.waiting);
    const double sums = options_.history ? 24.0 * (d_v + width) + 4 * width : 0;
    return {.kv = heads * n * 4.0 * (width + d_v),
            .aux = heads * (n * (12.0 + 4.0 * static_cast<double>(options_.points.d_key)) + sums),
            .scratch = heads * scratch};
  }

  std::vector<VisibleKey> visible(Index b, Index h) const override {
    const Head& head = heads_[static_cast<std::size_t>(b * config_.heads + h)];
    std::vector<VisibleKey> keys;
    for (Index e = 0; e < head.attended; ++e)
      keys.push_back({head.work.index[e], head.work.weight[e]});
    return keys;
  }

 private:
  Index count() const { return config_.batch * config_.heads; }
  void check_room(Index tokens) const {
    SUBQUAD_CHECK(length_ + tokens <= config_.capacity, "{} tokens do not fit into {}",
                  length_ + tokens, config_.capacity);
  }
  bool searched() const { return options_.candidates == ZetaOptions::Candidates::z_order; }

  void append(Head& head, Index t, const float* k, const float* v) {
    const Index d_v = config_.d_v, columns = d_v + width_;
    if (t % chunk_ == 0) merge(head);
    std::uint64_t code = 0;
    float* const point = head.points.data() + t * width_;
    points_.map(k, 1, point, &code);
    std::copy_n(v, d_v, head.values.data() + t * d_v);
    if (searched()) {
      head.waiting[head.waits++] = {code, static_cast<std::int32_t>(t)};
    } else {
      place(head, t, t);
    }
    if (!options_.history) return;
    if (t % kTokenBlock == 0) {  // sums as the parallel form adds them up
      for (Index c = 0; c < columns; ++c) head.running[c] = head.base[c] += head.block[c];
      std::fill_n(head.block.data(), columns, 0.0);
    }
    add_token(v, d_v, point, width_, head.block.data());
    add_token(v, d_v, point, width_, head.running.data());
  }

  void place(Head& head, Index slot, Index token) {
    const Index stride = config_.capacity + kLanes;
    head.position[slot] = static_cast<std::int32_t>(token);
    for (Index c = 0; c < options_.points.d_key; ++c)
      head.coordinate[c * stride + slot] = head.points[token * width_ + c];
  }

  // The chunk that is complete joins the sorted keys.
  void merge(Head& head) {
    if (!searched()) return;
    CodeAt* const waiting = head.waiting.data();
    sort_by_code(waiting, waiting + chunk_, head.waits,
                 options_.points.bits * static_cast<int>(options_.points.d_key));
    const Index stride = config_.capacity + kLanes;
    merge_backward([&](Index e) { return head.code[e]; }, head.sorted,
                   [&](Index e) { return waiting[e].code; }, head.waits,
                   [&](Index target, bool from_new, Index source) {
                     if (from_new) {
                       head.code[target] = waiting[source].code;
                       place(head, target, waiting[source].position);
                       return;
                     }
                     head.code[target] = head.code[source];
                     head.position[target] = head.position[source];
                     for (Index c = 0; c < options_.points.d_key; ++c)
                       head.coordinate[c * stride + target] = head.coordinate[c * stride + source];
                   });
    head.sorted += head.waits;
    head.waits = 0;
  }

  void attend(Head& head, Index t, Index bh, const float* q, float* out) {
    using Kind = ZetaOptions::Candidates;
    const Index d_v = config_.d_v, start = t / chunk_ * chunk_;
    const ZetaKernel kernel{
        options_.similarity,
        zeta_width(
            theta_[options_.gamma_per_head ? static_cast<std::size_t>(bh % config_.heads) : 0])};
    Work& work = head.work;
    alignas(64) float point[kMaxPointWidth];
    std::uint64_t code = 0;
    points_.map(q, 1, point, &code);
    Candidates candidates{{head.coordinate.data(), config_.capacity + kLanes},
                          head.code.data(),
                          head.position.data(),
                          0,
                          head.sorted};
    Index from = 0;
    if (options_.candidates == Kind::z_order)
      candidates = window_at(options_, candidates, code, &from);
    if (options_.candidates == Kind::pool) candidates.count = start;
    if (options_.candidates == Kind::past) candidates.count = t + 1;
    if (options_.candidates == Kind::none) candidates.count = 0;
    const Index chosen = candidates.count == 0 ? 0
                                               : choose(options_, point, candidates, work,
                                                        work.index.data(), work.x.data());
    for (Index e = 0; e < chosen; ++e)  // all at once: they lie anywhere in the cache
      for (Index c = 0; c < d_v; c += kAlignment / sizeof(float))
        __builtin_prefetch(head.values.data() + static_cast<Index>(work.index[e]) * d_v + c);
    Index all = chosen;
    if (options_.range_size(config_.capacity, true) > 0)
      for (Index j = options_.candidates == Kind::none ? 0 : start; j <= t; ++j)
        work.index[all++] = static_cast<std::int32_t>(j);
    head.attended = all;
    const Index known = kernel.of_product() ? 0 : chosen;
    kernel_arguments(kernel, point, width_, head.points.data(), work.index.data() + known,
                     all - known, work.x.data() + known);
    const bool mean = options_.history;
    const double factor = 1 / static_cast<double>(t + 1);
    if (mean) {
      const std::int32_t own = 0;
      for (Index c = 0; c < width_; ++c)
        head.mean_k[c] = static_cast<float>(factor * head.running[d_v + c]);
      kernel_arguments(kernel, point, width_, head.mean_k.data(), &own, 1, work.x.data() + all);
    }
    if (all + (mean ? 1 : 0) > 0)
      kernel.weights(work.x.data(), all + (mean ? 1 : 0), work.weight.data());
    for (Index c = 0; c < d_v; ++c)
      out[c] = mean ? work.weight[all] * static_cast<float>(factor * head.running[c]) : 0.0f;
    add_weighted_rows(work.weight.data(),
                      GatheredRows<std::int32_t>{head.values.data(), d_v, work.index.data()}, all,
                      d_v, out);
  }

  DecodeConfig config_;
  ZetaOptions options_;
  std::vector<float> theta_;
  Index width_, chunk_, length_ = 0;
  ZetaPoints points_;
  std::vector<Head> heads_;
};

}  // namespace

std::unique_ptr<Decoder> make_zeta_decoder(const DecodeConfig& config, const ZetaOptions& options,
                                           std::vector<float> theta) {
  return std::make_unique<ZetaDecoder>(config, options, std::move(theta));
}

double zeta_decoder_bytes(const Problem& p, const ZetaOptions& o) {
  Head head;
  double bytes = 0;
  layout(head, o, p.n_kv, p.d_v, [&bytes](const auto& array, Index count) {
    bytes += static_cast<double>(count) * static_cast<double>(sizeof(*array.data()));
  });
  return static_cast<double>(p.batch * p.heads) * bytes + ZetaPoints::bytes(o.points, p.d_k);
}

}  // namespace subquad
