#include "harness/measure/decode_model_cell.h"

#include <cmath>

#include "harness/core/method_weights.h"
#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "harness/measure/alloc_counter.h"
#include "harness/measure/cell_report.h"
#include "harness/measure/machine.h"
#include "harness/measure/memory.h"
#include "harness/measure/processors.h"
#include "harness/measure/statistics.h"
#include "harness/measure/timing.h"
#include "harness/model/model_decoder.h"

namespace subquad {
namespace {

// Cross-entropy in nats of a label under a row of logits, and whether it has the largest one.
struct Scored {
  double loss = 0;
  bool right = false;
};
Scored score(const float* logits, Index classes, std::int32_t label) {
  const float* const best = std::max_element(logits, logits + classes);
  double sum = 0;
  for (Index c = 0; c < classes; ++c) sum += std::exp(static_cast<double>(logits[c] - *best));
  return {std::log(sum) - static_cast<double>(logits[label] - *best), best - logits == label};
}

class ModelDecoding {
 public:
  ModelDecoding(const Cell& cell, JobResult* result)
      : cell_(cell), report_(result), options_(cell.measure) {}

  void run() {
    set_threads(cell_.threads);
    if (cell_.measure.pin) pin_threads(cell_.threads);
    open();
    make_decoder();
    judge();
    report_.put_count("timed_allocs", allocations_of_a_step());
    single_tokens();
    time();
    report_.finish();
  }

 private:
  void open() {
    model_ = std::make_unique<TrainedModel>(std::get<std::string>(cell_.task_settings.at("from")));
    const Problem& p = cell_.problem;
    if (p.heads != model_->problem().heads * model_->sizes().layers)
      throw Unsupported(
          fmt::format("a whole model is decoded with all heads: expected {} (leave out "
                      "head), got {}",
                      model_->problem().heads * model_->sizes().layers, p.heads));
    steps_ = std::min(cell_.measure.decode_tokens, p.n);
    prompt_ = p.n - steps_;
  }

  // Batch number i: examples, with what the parallel forward makes of them.
  struct Batch {
    std::vector<ModelTrace> traces;
    std::vector<std::int32_t> labels;  // [batch, n]
  };
  Batch batch(Index number) const {
    const Problem& p = cell_.problem;
    const TokenBatch examples =
        model_->task().tokens(Split::test, first_example(cell_.seed) + number * p.batch, p.batch,
                              p.n, model_->setup().seed);
    Batch out;
    for (Index b = 0; b < p.batch; ++b) {
      const auto from = examples.tokens.begin() + b * p.n;
      std::vector<std::int32_t> tokens(from, from + p.n);
      tokens.resize(static_cast<std::size_t>(model_->sizes().n));  // later ones change nothing
      out.traces.push_back(model_->trace(tokens));
    }
    out.labels = examples.labels;
    return out;
  }

  void make_decoder() {
    batches_ = (options_.examples + cell_.problem.batch - 1) / cell_.problem.batch;
    for (Index i = 0; i < std::min<Index>(cell_.measure.input_sets, batches_); ++i)
      sets_.push_back(batch(i));
    if (options_.feed == "own") require_next_tokens(sets_.front());
    std::int64_t before = 0;
    const double start = monotonic_seconds();
    decoder_ = std::make_unique<ModelDecoder>(
        *model_, DecodingSetup{.method = cell_.method,
                               .settings = cell_.method_settings,
                               .weights = fill_path(cell_.weights, cell_.method, cell_.label,
                                                    cell_.seed, cell_.problem.n),
                               .batch = cell_.problem.batch,
                               .cache = std::get<bool>(cell_.task_settings.at("cache")),
                               .seed = cell_.seed,
                               .prepared = [&] {
                                 before = live_bytes();
                                 reset_peak();
                               }});
    report_.put("setup_s", monotonic_seconds() - start);
    tokens_.resize(static_cast<std::size_t>(cell_.problem.batch));
    logits_ = Matrix(cell_.problem.batch, decoder_->classes());
    decode(sets_.front(), 0, [](Index) {});
    if (hooks_active()) report_.put_count("peak_bytes", peak_bytes() - before);
    report_.put_count("vm_hwm_bytes", vm_hwm_bytes());
    if (!decoder_->learned_from().empty()) report_.put("learned_from", decoder_->learned_from());
    report_.put_count("parameters", model_->layout().count());
    report_.put("build", build_description());
  }

  void require_next_tokens(const Batch& examples) const {
    const Index n = cell_.problem.n;
    for (std::size_t b = 0; b < examples.traces.size(); ++b)
      for (Index t = 0; t + 1 < n; ++t) {
        const std::int32_t label =
            examples.labels[b * static_cast<std::size_t>(n) + static_cast<std::size_t>(t)];
        if (label != kIgnore && label != examples.traces[b].tokens[static_cast<std::size_t>(t) + 1])
          throw Unsupported(
              fmt::format("feed: own needs a task whose labels are the next tokens, {} has others",
                          cell_.task));
      }
  }

  // The prompt of a batch, then its other tokens; after(t) follows each step, t the token fed.
  template <class After>
  void decode(const Batch& examples, Index number, const After& after) {
    ready(examples);
    for (Index t = prompt_; t < cell_.problem.n; ++t) {
      step(examples, number, t);
      after(t);
    }
  }
  void ready(const Batch& examples) {
    decoder_->reset();
    decoder_->prefill(examples.traces, prompt_);
  }
  void step(const Batch& examples, Index number, Index t) {
    for (std::size_t b = 0; b < tokens_.size(); ++b) {
      const ModelTrace& trace = examples.traces[b];
      if (options_.feed == "teacher" || t == 0) {
        tokens_[b] = trace.tokens[static_cast<std::size_t>(t)];
      } else {
        const auto row = static_cast<Index>(b);
        // The first one after a prompt is what the parallel forward expects.
        tokens_[b] = drawn(t == prompt_ ? trace.logits.row(t - 1).data() : logits_.row(row).data(),
                           number * cell_.problem.batch + row, t);
      }
    }
    decoder_->step(tokens_, logits_.data());
  }

  std::int32_t drawn(const float* logits, Index example, Index t) const {
    const Index classes = decoder_->classes();
    const float* const best = std::max_element(logits, logits + classes);
    if (options_.temperature == 0) return static_cast<std::int32_t>(best - logits);
    const auto weight = [&](Index c) {
      return std::exp(static_cast<double>(logits[c] - *best) / options_.temperature);
    };
    double sum = 0;
    for (Index c = 0; c < classes; ++c) sum += weight(c);
    double left = sum * Random(cell_.seed, "decode.model",
                               {static_cast<std::uint64_t>(example), static_cast<std::uint64_t>(t)})
                            .uniform();
    for (Index c = 0; c < classes; ++c)
      if ((left -= weight(c)) <= 0) return static_cast<std::int32_t>(c);
    return static_cast<std::int32_t>(best - logits);
  }

  // ---- quality ----

  struct Sums {
    double loss = 0, right = 0, labels = 0;
    double difference = 0, norm = 0;  // squares of the logits, to the parallel forward's
    void add(const Scored& s) {
      loss += s.loss;
      right += s.right;
      labels += 1;
    }
  };

  void judge() {
    Sums sums;
    CacheBytes peak;
    for (Index i = 0; i < batches_; ++i) {
      Batch made;
      if (i >= static_cast<Index>(sets_.size())) made = batch(i);
      const Batch& examples = made.traces.empty() ? sets_[static_cast<std::size_t>(i)] : made;
      std::vector<std::vector<std::int32_t>> fed(examples.traces.size());
      for (std::size_t b = 0; b < fed.size(); ++b) fed[b] = examples.traces[b].tokens;
      decode(examples, i, [&](Index t) {
        if (!logits_.allFinite()) throw WrongResult("its logits are not all finite");
        const CacheBytes now = decoder_->bytes();
        peak = {std::max(peak.kv, now.kv), std::max(peak.aux, now.aux),
                std::max(peak.cold, now.cold), 0};
        for (std::size_t b = 0; b < fed.size(); ++b)
          fed[b][static_cast<std::size_t>(t)] = tokens_[b];
        if (options_.feed == "teacher") judge_step(examples, t, &sums);
      });
      if (options_.feed == "own")
        for (const auto& tokens : fed) judge_text(model_->trace(tokens), &sums);
    }
    put_quality(sums, peak);
  }

  // The logits after token t against its label, and against those of the parallel forward.
  void judge_step(const Batch& examples, Index t, Sums* sums) {
    for (Index b = 0; b < cell_.problem.batch; ++b) {
      const auto& trace = examples.traces[static_cast<std::size_t>(b)];
      sums->difference += (logits_.row(b) - trace.logits.row(t)).cast<double>().squaredNorm();
      sums->norm += trace.logits.row(t).cast<double>().squaredNorm();
      const std::int32_t label = examples.labels[static_cast<std::size_t>(b * cell_.problem.n + t)];
      if (label != kIgnore) sums->add(score(logits_.row(b).data(), decoder_->classes(), label));
    }
  }

  // Tokens that the model drew, as the model's own parallel forward sees them.
  void judge_text(const ModelTrace& text, Sums* sums) const {
    for (Index t = std::max<Index>(1, prompt_); t < cell_.problem.n; ++t)
      sums->add(score(text.logits.row(t - 1).data(), decoder_->classes(),
                      text.tokens[static_cast<std::size_t>(t)]));
  }

  void put_quality(const Sums& sums, const CacheBytes& peak) {
    if (decoder_->keys_per_query(cell_.problem.n) > 0)
      report_.put("keys_per_query", decoder_->keys_per_query(cell_.problem.n));
    report_.put("state_bytes", peak.kv);
    report_.put("kv_bytes", peak.kv);
    report_.put("aux_bytes", peak.aux);
    report_.put("cold_bytes", peak.cold);
    const bool own = options_.feed == "own";
    if (sums.norm > 0) {
      const double error = std::sqrt(sums.difference / sums.norm);
      report_.put("error_of", "logits");
      report_.put("rel_error", error);
      if (Registry::instance().method(cell_.method).info.exact && trained_by_exact() &&
          !(error <= kExactTolerance))
        throw WrongResult(fmt::format(
            "its logits are {:.3g} away from those of the parallel forward, allowed are {}", error,
            kExactTolerance));
    }
    if (sums.labels == 0) return;
    const double loss = sums.loss / sums.labels;
    report_.put("accuracy", sums.right / sums.labels);
    report_.put("loss", loss);
    report_.put("bits", loss / std::log(2.0));
    report_.put("perplexity", std::exp(loss));
    report_.put("evaluation",
                fmt::format("{} {} after prompts of {} tokens, {} examples of the test split{}",
                            sums.labels, own ? "drawn tokens" : "labels", prompt_,
                            batches_ * cell_.problem.batch,
                            own ? ", judged by the model's parallel forward" : ""));
  }
  // Whether the parallel forward is softmax attention, from which an exact method may not differ.
  bool trained_by_exact() const {
    for (const LayerMethod& own : model_->setup().methods)
      if (!Registry::instance().method(own.name).info.exact) return false;
    return true;
  }

  // ---- time ----

  std::int64_t allocations_of_a_step() {
    ready(sets_.front());
    const std::uint64_t before = alloc_calls();
    for (Index t = prompt_; t < cell_.problem.n; ++t) step(sets_.front(), 0, t);
    const auto counted = static_cast<std::int64_t>(alloc_calls() - before);
    return (counted + steps_ - 1) / steps_;
  }

  void single_tokens() {
    std::vector<double> seconds;
    for (std::size_t i = 0; i < sets_.size(); ++i) {
      ready(sets_[i]);
      for (Index t = prompt_; t < cell_.problem.n; ++t) {
        const double start = monotonic_seconds();
        step(sets_[i], static_cast<Index>(i), t);
        seconds.push_back(monotonic_seconds() - start);
      }
    }
    report_.put("token_p50_s", quantile(seconds, 0.5));
    report_.put("token_p95_s", quantile(seconds, 0.95));
    call_s_ = quantile(seconds, 0.5) * static_cast<double>(steps_);
  }

  void time() {
    const auto sets = static_cast<Index>(sets_.size());
    const auto set_of = [&](Index number) { return static_cast<std::size_t>(number % sets); };
    TimedCall timed;
    timed.before_call = [&](Index number) { ready(sets_[set_of(number)]); };
    timed.call = [&](Index number) {
      for (Index t = prompt_; t < cell_.problem.n; ++t)
        step(sets_[set_of(number)], number % sets, t);
    };
    TimingOptions options{.min_time_s = cell_.measure.min_time_s,
                          .repetitions = cell_.measure.repetitions,
                          .max_spread = cell_.measure.max_spread};
    options.iterations = static_cast<Index>(
        std::clamp(std::ceil(options.min_time_s / std::max(call_s_, 1e-9)), 1.0, 1e6));
    const double calibration = calibrate();
    const NoiseSnapshot before = noise_snapshot();
    Timing timing = time_calls(timed, options);
    Noise noise = noise_between(before, noise_snapshot());
    noise.calibration_before = calibration;
    noise.calibration_after = calibrate();
    std::vector<double>& s = timing.samples;
    for (double& sample : s) sample /= static_cast<double>(steps_);
    const double typical = median(s), low = quantile(s, 0.25), high = quantile(s, 0.75);
    report_.put("time_s", typical);
    report_.put("time_min_s", *std::min_element(s.begin(), s.end()));
    report_.put("time_max_s", *std::max_element(s.begin(), s.end()));
    report_.put("time_q25_s", low);
    report_.put("time_q75_s", high);
    report_.put("spread", (high - low) / typical);
    report_.put_count("repetitions", static_cast<std::int64_t>(s.size()));
    report_.put_count("iterations", timing.iterations);
    report_.put("tokens_per_s", static_cast<double>(cell_.problem.batch) / typical);
    report_.put_count("context_switches", noise.context_switches);
    report_.put("steal_s", noise.steal_s);
    report_.put("waited_s", noise.waited_s);
    report_.put("calibration_before", noise.calibration_before);
    report_.put("calibration_after", noise.calibration_after);
    for (Doubt& d :
         doubts(s, timing.iterations * steps_, cell_.measure.max_spread, noise, cell_.threads))
      report_.doubt(std::move(d));
    report_.samples(s);
  }

  // Logits of an exact cache and of the parallel forward: float32, other orders of the sums.
  static constexpr double kExactTolerance = 1e-4;

  const Cell& cell_;
  CellReport report_;
  const MeasureOptions& options_;
  std::unique_ptr<TrainedModel> model_;
  std::unique_ptr<ModelDecoder> decoder_;
  std::vector<Batch> sets_;  // that timed calls rotate over: the first batches
  Index steps_ = 0, prompt_ = 0, batches_ = 0;
  std::vector<std::int32_t> tokens_;  // [batch] fed last
  Matrix logits_;                     // [batch, classes] of the last step
  double call_s_ = 0;
};

}  // namespace

void decode_model_cell(const Cell& cell, JobResult* result) {
  try {
    ModelDecoding(cell, result).run();
  } catch (const WrongResult& wrong) {
    result->status = Status::wrong;
    result->reason = wrong.what();
  }
}

}  // namespace subquad
