// Logits that depend on the distance i - j alone, plus noise: what FFT and conv methods assume.
//
// With L = floor(d_k / 2) frequencies theta_l, query position t = i + n_kv - n and key position j:
//   q_t = s (cos theta_l t, sin theta_l t)_l,
//   k_j = A_l / (scale s) (cos(theta_l j + phi_l), sin(theta_l j + phi_l))_l,
//   logit(t, j) = sum_l A_l cos(theta_l (t - j) - phi_l).
// Profiles: `local` takes the rotary frequencies 10000^(-l/L) and phi = 0, so that logits peak at
// distance 0 and decay; `random` draws theta_l uniform in (0, pi) and phi_l uniform in (0, 2 pi).
// A_l is proportional to a number uniform in (1/2, 3/2), so that heads differ.
//
// With `segments` the keys come in runs with amplitudes (and, if random, phases) of their own: the
// causal logits then have a k-conv basis with one element per run. Profile `rotary` is another such
// case: all queries are one vector, the keys of a run are one vector, both with normal entries and
// rotary position embedding; noise is added to them.
// Source: k-conv bases, arXiv 2405.05219 (Conv-Basis), and its rotary case.

#include "tasks/toeplitz_segments.h"
#include "tasks/waves.h"

namespace subquad {
namespace {

struct Params {
  std::string profile = "local";
  Index segments = 1;
  std::string layout = "random";
  double temperature = 1;
  double noise = 0;
};

class Toeplitz final : public Task {
 public:
  explicit Toeplitz(const Params& params) : params_(params) {}

  std::string unsupported(const Problem& p) const override {
    return p.d_k < 2 ? fmt::format("toeplitz needs d_k >= 2, got d_k={}", p.d_k) : "";
  }

  void fill(const Problem& p, Seed seed, Index set, QKV* out) const override {
    if (params_.noise > 0) {
      fill_tensor(seed, "toeplitz.q", set, &out->q);
      fill_tensor(seed, "toeplitz.k", set, &out->k);
    }
    fill_tensor(seed, "toeplitz.v", set, &out->v);
    const Index count = p.d_k / 2;  // frequencies
    // Positions are counted from the earlier of the first query and the first key.
    const Index first_q = std::max<Index>(p.causal_offset(), 0);
    const Index first_k = std::max<Index>(-p.causal_offset(), 0);
    const Index length = std::max(p.n, p.n_kv);

    std::vector<Head> heads;
    for (Index bh = 0; bh < p.batch * p.heads; ++bh)
      heads.push_back(params_.profile == "rotary"
                          ? rotary_head(p, seed, set, bh / p.heads, bh % p.heads, length)
                          : wave_head(p, seed, set, bh / p.heads, bh % p.heads, length));

    for_rows(p.batch, p.heads, p.n, [&](Index b, Index h, Index begin, Index end) {
      const Head& head = heads[static_cast<std::size_t>(b * p.heads + h)];
      const double noise = head.query_noise;
      for (Index i = begin; i < end; ++i) {
        float* q = out->q.view().head_data(b, h) + i * p.d_k;
        for (Index l = 0; l < count; ++l) {
          double cosine = 0, sine = 0;
          head.waves.at(i + first_q, l, &cosine, &sine);
          const double x = head.query_cos[static_cast<std::size_t>(l)];
          const double y = head.query_sin[static_cast<std::size_t>(l)];
          put(x * cosine - y * sine, noise, q + l);
          put(x * sine + y * cosine, noise, q + count + l);
        }
        if (p.d_k % 2 == 1) put(0, noise, q + p.d_k - 1);
      }
    });
    for_rows(p.batch, p.heads, p.n_kv, [&](Index b, Index h, Index begin, Index end) {
      const Head& head = heads[static_cast<std::size_t>(b * p.heads + h)];
      const double noise = head.key_noise;
      auto run = head.runs.begin();
      for (Index j = begin; j < end; ++j) {
        while (run + 1 != head.runs.end() && (run + 1)->start <= j) ++run;
        float* k = out->k.view().head_data(b, h) + j * p.d_k;
        for (Index l = 0; l < count; ++l) {
          double cosine = 0, sine = 0;
          head.waves.at(j + first_k, l, &cosine, &sine);
          const double gc = run->gain_cos[static_cast<std::size_t>(l)];
          const double gs = run->gain_sin[static_cast<std::size_t>(l)];
          put(gc * cosine - gs * sine, noise, k + l);
          put(gc * sine + gs * cosine, noise, k + count + l);
        }
        if (p.d_k % 2 == 1) put(0, noise, k + p.d_k - 1);
      }
    });
  }

 private:
  // Rows q_t = R(t) (query_cos, query_sin), k_j = R(j) (gain_cos, gain_sin) of the run that holds
  // j, with R(t) the rotation of pair l by theta_l t.
  struct Run {
    Index start;
    std::vector<double> gain_cos, gain_sin;
  };
  struct Head {
    Waves waves;
    std::vector<double> query_cos, query_sin;
    std::vector<Run> runs;
    double query_noise, key_noise;  // deviation of what is added to an entry
  };

  Head wave_head(const Problem& p, Seed seed, Index set, Index b, Index h, Index length) const {
    const Index count = p.d_k / 2;
    const bool local = params_.profile == "local";
    Random random = head_random(seed, "toeplitz.head", set, b, h);
    Random more = head_random(seed, "toeplitz.segment", set, b, h);  // of the later runs
    std::vector<double> frequencies = rotary_frequencies(count, 10000);
    Head head{Waves({}, 0), {}, {}, {}, 0, 0};
    double entry = 0;
    for (const Index start :
         toeplitz_starts(params_.layout, params_.segments, p.n_kv, seed, set, b, h)) {
      std::vector<double> amplitude, phase;
      double power = 0;
      for (Index l = 0; l < count; ++l) {
        Random& source = start == 0 ? random : more;
        amplitude.push_back(source.uniform(0.5, 1.5));
        power += amplitude.back() * amplitude.back();
        const double f = source.uniform(0, 0.5), phi = source.uniform(0, kTwoPi);
        if (!local && start == 0) frequencies[static_cast<std::size_t>(l)] = f;
        phase.push_back(local ? 0 : phi);
      }
      // The variance of the logits over distances is sum A^2 / 2.
      const double gain = params_.temperature / (std::sqrt(power / 2) * p.logit_scale());
      Run run{start, {}, {}};
      double squares = 0;
      for (std::size_t l = 0; l < amplitude.size(); ++l) {
        const double a = gain * amplitude[l];
        squares += a * a;
        run.gain_cos.push_back(a * portable_cos(phase[l]));
        run.gain_sin.push_back(a * portable_sin(phase[l]));
      }
      if (start == 0) {  // q and k of the first run get the same mean square
        const double level = std::sqrt(squares / static_cast<double>(count));
        entry = level > 0 ? std::sqrt(level) : 1;
        head.query_noise = params_.noise * entry * std::sqrt(0.5);
        head.key_noise = params_.noise * (level / entry * std::sqrt(0.5));
      }
      for (double& g : run.gain_cos) g = g / entry;
      for (double& g : run.gain_sin) g = g / entry;
      head.runs.push_back(std::move(run));
    }
    head.waves = Waves(frequencies, length);
    head.query_cos.assign(static_cast<std::size_t>(count), entry);
    head.query_sin.assign(static_cast<std::size_t>(count), 0.0);
    return head;
  }

  // One query and one key per run, entries normal; temperature 1: logits of deviation about 1 at
  // the scale 1 / sqrt(d_k).
  Head rotary_head(const Problem& p, Seed seed, Index set, Index b, Index h, Index length) const {
    const Index count = p.d_k / 2;
    Random random = head_random(seed, "toeplitz.rotary", set, b, h);
    const double level = std::sqrt(params_.temperature);
    const auto draw = [&](std::vector<double>* x, std::vector<double>* y) {
      for (Index l = 0; l < count; ++l) x->push_back(level * random.normal());
      for (Index l = 0; l < count; ++l) y->push_back(level * random.normal());
    };
    Head head{Waves(rotary_frequencies(count, 10000), length),
              {},
              {},
              {},
              params_.noise * level,
              params_.noise * level};
    draw(&head.query_cos, &head.query_sin);
    for (const Index start :
         toeplitz_starts(params_.layout, params_.segments, p.n_kv, seed, set, b, h)) {
      Run run{start, {}, {}};
      draw(&run.gain_cos, &run.gain_sin);
      head.runs.push_back(std::move(run));
    }
    return head;
  }

  // *x = value + noise * the normal number that *x holds (when there is noise).
  static void put(double value, double noise, float* x) {
    *x = static_cast<float>(noise > 0 ? value + noise * static_cast<double>(*x) : value);
  }

  Params params_;
};

const RegisterTask<Toeplitz, Params> kRegistration{
    {.name = "toeplitz",
     .source = "single-Toeplitz construction for arXiv 2405.05219 (Conv-Basis)",
     .summary = "logits that depend on the distance i - j, plus noise",
     .notes = {"query i stands at position i + n_kv - n, as in causal attention with a history",
               "for odd d_k the last entry of q and k is noise alone"}},
    {choice("profile", &Params::profile, {"local", "random", "rotary"},
            "local = peak at distance 0 and decay, random = any function, rotary = normal vectors "
            "with rotary positions"),
     param("segments", &Params::segments, {1, 1 << 24}, "runs of keys with a profile of their own"),
     choice("layout", &Params::layout, {"random", "even", "edges"},
            "where runs start; edges = even, but the second and the last have one key"),
     param("temperature", &Params::temperature, {0, 1000},
           "standard deviation of the logits over distances, without noise"),
     param("noise", &Params::noise, {0, 100},
           "standard deviation of normal noise on q and k, relative to their entries")}};

}  // namespace
}  // namespace subquad
