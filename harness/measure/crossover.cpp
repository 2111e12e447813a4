#include "harness/measure/crossover.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "harness/core/error.h"
#include "harness/measure/statistics.h"

namespace subquad {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The crossover as a point of [0, infinity], so that resamples of any outcome can be ranked.
double ranked(const Crossover& crossover) {
  if (crossover.outcome == CrossoverOutcome::always) return 0;
  if (crossover.outcome == CrossoverOutcome::not_reached) return kInfinity;
  return crossover.n;
}

// Order statistics instead of interpolation: the ends of the ranking are not finite.
CrossoverInterval percentile_interval(std::vector<double> places, double confidence) {
  std::sort(places.begin(), places.end());
  const double last = static_cast<double>(places.size() - 1);
  const double tail = (1 - confidence) / 2;
  return {.low = places[static_cast<std::size_t>(std::floor(tail * last))],
          .high = places[static_cast<std::size_t>(std::ceil((1 - tail) * last))]};
}

std::vector<double> redraw(const std::vector<double>& samples, Random& random) {
  std::vector<double> drawn(samples.size());
  for (double& value : drawn) value = samples[random.below(samples.size())];
  return drawn;
}

LengthPairs redraw(const LengthPairs& length, Random& random) {
  LengthPairs drawn{.n = length.n, .rounds = {}};
  drawn.rounds.reserve(length.rounds.size());
  for (std::size_t i = 0; i < length.rounds.size(); ++i) {
    const RoundPair& round = length.rounds[random.below(length.rounds.size())];
    drawn.rounds.push_back({redraw(round.method, random), redraw(round.baseline, random)});
  }
  return drawn;
}

bool can_resample(const std::vector<LengthPairs>& lengths) {
  return std::any_of(lengths.begin(), lengths.end(), [](const LengthPairs& length) {
    return length.rounds.size() > 1 || length.rounds[0].method.size() > 1 ||
           length.rounds[0].baseline.size() > 1;
  });
}

void check(const std::vector<double>& samples, double n) {
  SUBQUAD_CHECK(!samples.empty(), "no sample at n={}", n);
  for (const double value : samples)
    SUBQUAD_CHECK(value > 0 && std::isfinite(value), "sample {} at n={}", value, n);
}

}  // namespace

std::string_view name(CrossoverOutcome outcome) {
  switch (outcome) {
    case CrossoverOutcome::crossover:
      return "crossover";
    case CrossoverOutcome::always:
      return "always";
    case CrossoverOutcome::not_reached:
      return "not_reached";
  }
  throw InternalError("unknown crossover outcome");
}

double log_ratio(const LengthPairs& length) {
  SUBQUAD_CHECK(!length.rounds.empty(), "no round at n={}", length.n);
  std::vector<double> ratios;
  ratios.reserve(length.rounds.size());
  for (const RoundPair& round : length.rounds)
    ratios.push_back(std::log(median(round.method) / median(round.baseline)));
  return median(std::move(ratios));
}

Crossover crossover_of_curve(const std::vector<double>& n, const std::vector<double>& log_ratios) {
  SUBQUAD_CHECK(!n.empty() && n.size() == log_ratios.size(), "{} lengths, {} ratios", n.size(),
                log_ratios.size());
  Crossover result;
  result.min_n = n.front();
  result.max_n = n.back();
  result.ratio_at_min_n = std::exp(-log_ratios.front());
  result.ratio_at_max_n = std::exp(-log_ratios.back());
  std::size_t first_win = n.size();  // smallest length from which on the method wins everywhere
  while (first_win > 0 && log_ratios[first_win - 1] < 0) --first_win;
  if (first_win == n.size()) {
    result.outcome = CrossoverOutcome::not_reached;
  } else if (first_win == 0) {
    result.outcome = CrossoverOutcome::always;
  } else {
    const double before = log_ratios[first_win - 1];  // >= 0
    const double after = log_ratios[first_win];       // < 0
    const double x0 = std::log(n[first_win - 1]);
    const double x1 = std::log(n[first_win]);
    result.outcome = CrossoverOutcome::crossover;
    result.n = std::exp(x0 + (x1 - x0) * before / (before - after));
  }
  return result;
}

Crossover crossover_length(std::vector<LengthPairs> lengths, const BootstrapOptions& options) {
  SUBQUAD_CHECK(!lengths.empty(), "crossover of no lengths");
  SUBQUAD_CHECK(options.resamples >= 0 && options.confidence > 0 && options.confidence < 1,
                "resamples {}, confidence {}", options.resamples, options.confidence);
  std::sort(lengths.begin(), lengths.end(),
            [](const LengthPairs& a, const LengthPairs& b) { return a.n < b.n; });
  std::vector<double> n, ratios;
  for (const LengthPairs& length : lengths) {
    SUBQUAD_CHECK(length.n > 0 && (n.empty() || length.n > n.back()), "length {}", length.n);
    for (const RoundPair& round : length.rounds) {
      check(round.method, length.n);
      check(round.baseline, length.n);
    }
    n.push_back(length.n);
    ratios.push_back(log_ratio(length));
  }
  Crossover result = crossover_of_curve(n, ratios);
  if (options.resamples == 0 || !can_resample(lengths)) return result;

  std::vector<double> places;
  places.reserve(static_cast<std::size_t>(options.resamples));
  int same = 0;
  Random random(options.seed, "crossover");
  for (int i = 0; i < options.resamples; ++i) {
    for (std::size_t at = 0; at < lengths.size(); ++at)
      ratios[at] = log_ratio(redraw(lengths[at], random));
    const Crossover drawn = crossover_of_curve(n, ratios);
    same += drawn.outcome == result.outcome;
    places.push_back(ranked(drawn));
  }
  result.interval = percentile_interval(std::move(places), options.confidence);
  result.share = static_cast<double>(same) / options.resamples;
  return result;
}

std::string str(const Crossover& crossover) {
  std::string text;
  if (crossover.outcome == CrossoverOutcome::always)
    text = fmt::format("always (from {:.0f})", crossover.min_n);
  else if (crossover.outcome == CrossoverOutcome::not_reached)
    text = fmt::format("not reached (up to {:.0f})", crossover.max_n);
  else
    text = fmt::format("{:.0f}", crossover.n);
  if (!crossover.interval) return text;
  const auto [low, high] = *crossover.interval;
  // Where all resamples agree that it lies outside, the text above has said so.
  if (crossover.outcome != CrossoverOutcome::crossover && low == high) return text;
  auto bound = [&](double value) {
    if (value == 0) return fmt::format("<{:.0f}", crossover.min_n);
    if (value == kInfinity) return fmt::format(">{:.0f}", crossover.max_n);
    return fmt::format("{:.0f}", value);
  };
  return fmt::format("{} [{}, {}]", text, bound(low), bound(high));
}

}  // namespace subquad
