#include "harness/model/trainer.h"

#include <chrono>
#include <cmath>
#include <filesystem>

#include "harness/model/checkpoint.h"
#include "harness/model/distill.h"

namespace subquad {
namespace {

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class Run {
 public:
  Run(const TrainSetup& setup, const TrainFiles& files,
      const std::function<void(const TrainProgress&)>& progress)
      : setup_(setup), files_(files), progress_(progress), state_(setup) {}

  TrainReport run() {
    bool resumed = false;
    if (!files_.directory.empty()) {
      std::filesystem::create_directories(files_.directory);
      if (files_.resume) resumed = read_checkpoint(checkpoint_path(), setup_, &state_, &loop_);
    }
    if (!resumed) begin();
    const TrainOptions& o = setup_.options;
    TrainReport& report = loop_.report;
    started_ = now_s();
    first_step_ = loop_.step;
    while (loop_.step < o.steps && report.stopped == "steps") one_step();
    report.steps = loop_.step;
    report.best_step = loop_.best_step;
    report.parameters = state_.layout().count();
    if (!report.curve.empty()) report.validation = report.curve.back().validation;
    report.test = scores(Split::test);
    report.tokens_per_s =
        report.train_s > 0
            ? static_cast<double>(report.steps * setup_.problem.batch * setup_.problem.n) /
                  report.train_s
            : 0;
    if (!o.save.empty()) save_model(o.save, setup_, state_, loop_);
    return report;
  }

 private:
  std::string checkpoint_path() const { return files_.directory + "/checkpoint.safetensors"; }

  // The initial weights: of a checkpoint, and the methods' fitted to the teacher.
  void begin() {
    const TrainOptions& o = setup_.options;
    const std::string& from = o.init.empty() ? o.teacher : o.init;
    if (!from.empty()) loop_.report.methods_initial = !take_initial_weights(from, setup_, &state_);
    if (o.fit_steps == 0) return;
    if (state_.teacher() == nullptr) throw UserError("train: fit_steps needs a teacher, got none");
    const double start = now_s();
    loop_.report.fit = fit_to_teacher(*state_.teacher(), setup_, &state_);
    loop_.report.fit_s = now_s() - start;
    if (!files_.directory.empty()) write_checkpoint(checkpoint_path(), setup_, state_, loop_);
  }

  TokenBatch batch(Split split, Index number) const {
    const Problem& p = setup_.problem;
    return setup_.task->tokens(split, number * p.batch, p.batch, p.n, setup_.seed);
  }

  void one_step() {
    const TrainOptions& o = setup_.options;
    TrainReport& report = loop_.report;
    const Index step = loop_.step + 1;
    const Index batches = (o.examples + setup_.problem.batch - 1) / setup_.problem.batch;
    const double start = now_s();
    const TokenBatch data = batch(Split::train, o.examples > 0 ? (step - 1) % batches : step - 1);
    const double loss = state_.step(step, data);
    report.train_s += now_s() - start;
    loop_.step = step;
    loop_.loss_sum += loss;
    loop_.loss_count += 1;
    if (!std::isfinite(loss)) report.stopped = "diverged";
    const bool validate = step % o.eval_every == 0 || step == o.steps || report.stopped != "steps";
    std::optional<CurvePoint> point;
    if (validate) point = judge();
    if (!files_.directory.empty() &&
        (validate || (o.checkpoint_every > 0 && step % o.checkpoint_every == 0)))
      write_checkpoint(checkpoint_path(), setup_, state_, loop_);
    if (progress_) {
      const double each = (now_s() - started_) / static_cast<double>(step - first_step_);
      progress_({step, o.steps, loss, each * static_cast<double>(o.steps - step), point});
    }
  }

  Scores scores(Split split) {
    const Index batches =
        (setup_.options.eval_examples + setup_.problem.batch - 1) / setup_.problem.batch;
    Scores all;
    for (Index i = 0; i < batches; ++i) {
      const Scores s = state_.evaluate(batch(split, i));
      all.loss += s.loss * static_cast<double>(s.labels);
      all.accuracy += s.accuracy * static_cast<double>(s.labels);
      all.labels += s.labels;
    }
    const double count = std::max<double>(1, static_cast<double>(all.labels));
    all.loss /= count;
    all.accuracy /= count;
    return all;
  }

  CurvePoint judge() {
    const TrainOptions& o = setup_.options;
    TrainReport& report = loop_.report;
    CurvePoint point;
    point.step = loop_.step;
    point.train_loss = loop_.loss_sum / static_cast<double>(loop_.loss_count);
    point.validation = scores(Split::validation);
    point.learning_rate = learning_rate_at(o, loop_.step);
    point.seconds = report.train_s;
    loop_.loss_sum = 0;
    loop_.loss_count = 0;
    report.curve.push_back(point);
    if (!files_.directory.empty()) write_curve(files_.directory + "/curves.csv", report.curve);

    const double accuracy = point.validation.accuracy;
    report.best_accuracy = std::max(report.best_accuracy, accuracy);
    if (report.half_step == 0 && accuracy > 0.5) report.half_step = loop_.step;
    if (!loop_.has_best || point.validation.loss < loop_.best_loss) {
      loop_.best_loss = point.validation.loss;
      loop_.has_best = true;
      loop_.best_step = loop_.step;
      loop_.bad_validations = 0;
    } else {
      loop_.bad_validations += 1;
    }
    if (report.stopped == "steps" && accuracy >= o.stop_accuracy) report.stopped = "accuracy";
    if (report.stopped == "steps" && o.patience > 0 && loop_.bad_validations >= o.patience)
      report.stopped = "patience";
    return point;
  }

  const TrainSetup& setup_;
  const TrainFiles& files_;
  const std::function<void(const TrainProgress&)>& progress_;
  TrainState state_;
  TrainLoop loop_;
  double started_ = 0;
  Index first_step_ = 0;
};

}  // namespace

TrainReport train(const TrainSetup& setup, const TrainFiles& files,
                  const std::function<void(const TrainProgress&)>& progress) {
  return Run(setup, files, progress).run();
}

}  // namespace subquad
