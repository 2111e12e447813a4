// Logits that depend on the distance i - j alone, plus noise: what FFT and conv methods assume.
//
// With L = floor(d_k / 2) frequencies theta_l, query position t = i + n_kv - n and key position j:
//   q_t = s (cos theta_l t, sin theta_l t)_l,
//   k_j = A_l / (scale s) (cos(theta_l j + phi_l), sin(theta_l j + phi_l))_l,
//   logit(t, j) = sum_l A_l cos(theta_l (t - j) - phi_l).
// Profiles: `local` takes the rotary frequencies 10000^(-l/L) and phi = 0, so that logits peak at
// distance 0 and decay; `random` draws theta_l uniform in (0, pi) and phi_l uniform in (0, 2 pi).
// A_l is proportional to a number uniform in (1/2, 3/2), so that heads differ.
// Source: the construction T1 for Conv-Basis (arXiv 2405.05219); noise as in its k-conv + noise.

#include "tasks/waves.h"

namespace subquad {
namespace {

struct Params {
  std::string profile = "local";
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
    const double scale = p.logit_scale();
    const bool local = params_.profile == "local";
    // Positions are counted from the earlier of the first query and the first key.
    const Index first_q = std::max<Index>(p.causal_offset(), 0);
    const Index first_k = std::max<Index>(-p.causal_offset(), 0);
    const Index length = std::max(p.n, p.n_kv);

    struct Head {
      Waves waves;
      std::vector<double> gain_cos, gain_sin;  // of k: A_l / scale times cos phi_l and sin phi_l
      double entry;                            // s
      double key_level;                        // root mean square of k's entries
    };
    std::vector<Head> heads;
    for (Index bh = 0; bh < p.batch * p.heads; ++bh) {
      Random random = head_random(seed, "toeplitz.head", set, bh / p.heads, bh % p.heads);
      std::vector<double> frequencies = rotary_frequencies(count, 10000), amplitude, phase;
      double power = 0;
      for (Index l = 0; l < count; ++l) {
        amplitude.push_back(random.uniform(0.5, 1.5));
        power += amplitude.back() * amplitude.back();
        const double f = random.uniform(0, 0.5), phi = random.uniform(0, kTwoPi);
        if (!local) frequencies[static_cast<std::size_t>(l)] = f;
        phase.push_back(local ? 0 : phi);
      }
      // The variance of the logits over distances is sum A^2 / 2.
      const double gain = params_.temperature / (std::sqrt(power / 2) * scale);
      Head head{Waves(frequencies, length), {}, {}, 0, 0};
      double squares = 0;
      for (std::size_t l = 0; l < amplitude.size(); ++l) {
        const double a = gain * amplitude[l];
        squares += a * a;
        head.gain_cos.push_back(a * portable_cos(phase[l]));
        head.gain_sin.push_back(a * portable_sin(phase[l]));
      }
      // q and k get the same mean square.
      const double level = std::sqrt(squares / static_cast<double>(count));
      head.entry = level > 0 ? std::sqrt(level) : 1;
      head.key_level = level / head.entry * std::sqrt(0.5);
      heads.push_back(std::move(head));
    }

    for_rows(p.batch, p.heads, p.n, [&](Index b, Index h, Index begin, Index end) {
      const Head& head = heads[static_cast<std::size_t>(b * p.heads + h)];
      const double noise = params_.noise * head.entry * std::sqrt(0.5);
      for (Index i = begin; i < end; ++i) {
        float* q = out->q.view().head_data(b, h) + i * p.d_k;
        for (Index l = 0; l < count; ++l) {
          double cosine = 0, sine = 0;
          head.waves.at(i + first_q, l, &cosine, &sine);
          put(head.entry * cosine, noise, q + l);
          put(head.entry * sine, noise, q + count + l);
        }
        if (p.d_k % 2 == 1) put(0, noise, q + p.d_k - 1);
      }
    });
    for_rows(p.batch, p.heads, p.n_kv, [&](Index b, Index h, Index begin, Index end) {
      const Head& head = heads[static_cast<std::size_t>(b * p.heads + h)];
      const double noise = params_.noise * head.key_level;
      for (Index j = begin; j < end; ++j) {
        float* k = out->k.view().head_data(b, h) + j * p.d_k;
        for (Index l = 0; l < count; ++l) {
          double cosine = 0, sine = 0;
          head.waves.at(j + first_k, l, &cosine, &sine);
          const double gc = head.gain_cos[static_cast<std::size_t>(l)] / head.entry;
          const double gs = head.gain_sin[static_cast<std::size_t>(l)] / head.entry;
          put(gc * cosine - gs * sine, noise, k + l);
          put(gc * sine + gs * cosine, noise, k + count + l);
        }
        if (p.d_k % 2 == 1) put(0, noise, k + p.d_k - 1);
      }
    });
  }

 private:
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
    {choice("profile", &Params::profile, {"local", "random"},
            "local = peak at distance 0 and decay (rotary frequencies), random = any function"),
     param("temperature", &Params::temperature, {0, 1000},
           "standard deviation of the logits over distances, without noise"),
     param("noise", &Params::noise, {0, 100},
           "standard deviation of normal noise on q and k, relative to their entries")}};

}  // namespace
}  // namespace subquad
