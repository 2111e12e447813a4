// Hrrformer attention: holographic reduced representations in place of token-token products.
// Source: Alam et al. 2023, "Recasting Self-Attention with Holographic Reduced Representations"
// (arXiv 2305.19534) and its code. Per head, with F the Fourier transform over the d features:
//   beta = sum_i F(k_i) F(v_i)               all pairs in one vector (circular convolution)
//   vhat_t = F^-1(beta conj(F(q_t)))         what query t unbinds from it
//   a_t = <v_t, vhat_t> / (|v_t| |vhat_t|),  w = softmax of a over tokens,  out_t = w_t v_t
// Another function than attention: out_t holds no value but its own.
// Products and norms are taken over frequencies (Parseval), so that forward inverts nothing.
// Time O(n d^2) by matrix or O(n d log d) by FFT (engines/row_transform.h), memory O(n + n d /
// 256).
//
// Our choices: causal = sums over the tokens so far, of the pairs and in the softmax (the paper is
// bidirectional); padded tokens stay out of beta (the code lets them in: mask_in_sum false); 1e-12
// is added to the norms; inverse exact divides by F(q) instead, |F(q)|^2 + 1e-6 under the bar.

#include <algorithm>
#include <cmath>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "methods/engines/band.h"
#include "methods/engines/holographic.h"
#include "methods/engines/row_transform.h"

namespace subquad {
namespace {

constexpr Index kRows = 256;  // tokens of a block

struct Params {
  std::string inverse = "conj";
  bool mask_in_sum = true;
  bool rescale = false;
  double temperature = 1;
  std::string transform = "auto";

  HolographicOptions options() const { return {inverse, transform, temperature, rescale}; }
};

struct HrrSaved final : Saved {
  explicit HrrSaved(Index rows) : weights(rows) {}
  AlignedArray<double> weights;  // [batch * heads * n] w
};

class Hrrformer final : public Method {
 public:
  explicit Hrrformer(const Params& params) : params_(params) {}

  std::string unsupported(const Problem& p, Pass pass) const override {
    if (p.d_k != p.d_v)
      return fmt::format("hrrformer binds keys to values: needs d_k = d_v, got {} and {}", p.d_k,
                         p.d_v);
    if (p.d_k < 2) return "hrrformer needs d_k >= 2: the cosine of two numbers is a sign";
    if (pass != Pass::forward && pass != Pass::decode && params_.inverse == "exact")
      return "inverse exact has no backward pass";
    return "";
  }

  void prepare(const Problem& problem, const Env& env) override {
    problem_ = problem;
    transform_ = RowTransform(problem.d_k, params_.options().kind());
    const Index heads = problem.batch * problem.heads;
    beta_ = AlignedArray<double>(heads * (blocks(problem) + 1) * transform_.width());
    if (env.gradients) dbeta_ = AlignedArray<double>(beta_.size());
    weights_ = AlignedArray<double>(heads * problem.n);
    if (env.gradients) da_ = AlignedArray<double>(heads * problem.n);
    scratch_ = AlignedArray<float>(thread_count() * scratch_floats(problem, env.gradients));
    sums_ = AlignedArray<double>(thread_count() * 2 * transform_.width());
    gradients_ = env.gradients;
  }
  std::unique_ptr<Saved> make_saved() const override {
    return std::make_unique<HrrSaved>(problem_.batch * problem_.heads * problem_.n);
  }

  void forward(const Inputs& in, TensorView out, Saved* saved) override {
    sum_pairs(in);
    // a_t into weights_
    for_blocks([&](Index bh, Index block, int thread) { similarities(in, bh, block, thread); });
    parallel_for(problem_.batch * problem_.heads, [&](Index bh, int) { softmax(in, bh); });
    for_blocks([&](Index bh, Index block, int) {
      for (Index t = block * kRows; t < end(block); ++t) {
        const double w = weights_[bh * problem_.n + t];
        if (w == 0) {
          out.head(bh).row(t).setZero();
        } else {
          out.head(bh).row(t) = static_cast<float>(w * scale(in, bh)) * in.v.head(bh).row(t);
        }
      }
    });
    if (auto* own = static_cast<HrrSaved*>(saved))
      std::copy_n(weights_.data(), weights_.size(), own->weights.data());
  }

  // dw_t = <G_t, v_t>, da_t = w_t (dw_t - sum_s w_s dw_s) (causal: over the rows that saw t),
  // dvhat_t = da_t (v_t / (n m) - a_t vhat_t / m^2) with n = |v_t|, m = |vhat_t|,
  // dv_t = w_t G_t + da_t (vhat_t / (n m) - a_t v_t / n^2) + F^-1(conj(F k_t) F dbeta),
  // F dq_t = beta conj(F dvhat_t), F dbeta = sum_t F q_t F dvhat_t, F dk_t = conj(F v_t) F dbeta.
  void backward(const Inputs& in, ConstTensorView, ConstTensorView dout, const Saved& saved,
                const Gradients& grads) override {
    const auto& own = static_cast<const HrrSaved&>(saved);
    std::copy_n(own.weights.data(), own.weights.size(), weights_.data());
    sum_pairs(in);
    parallel_for(problem_.batch * problem_.heads,
                 [&](Index bh, int) { softmax_gradient(in, dout, bh); });
    for_blocks([&](Index bh, Index block, int thread) {
      unbinding_gradient(in, dout, grads, bh, block, thread);
    });
    parallel_for(problem_.batch * problem_.heads, [&](Index bh, int) { accumulate(bh, true); });
    for_blocks(
        [&](Index bh, Index block, int thread) { binding_gradient(in, grads, bh, block, thread); });
  }

  std::unique_ptr<Decoder> make_decoder(const DecodeConfig& config) const override {
    return make_holographic_decoder(config, params_.options());
  }

  Budget budget(const Problem& p) const override {
    // The state of decoding: one spectrum and the sum of the softmax per head.
    return {.state_bytes =
                8.0 * static_cast<double>(p.batch * p.heads * (2 * (p.d_k / 2 + 1) + 1))};
  }
  double extra_bytes(const Problem& p, Pass pass) const override {
    const auto heads = static_cast<double>(p.batch * p.heads), n = static_cast<double>(p.n);
    const auto width = static_cast<double>(2 * (p.d_k / 2 + 1));
    const double transform = RowTransform::bytes(p.d_k, params_.options().kind());
    if (pass == Pass::decode)
      return budget(p).state_bytes + transform +
             4.0 * heads * (4 * width + 2.0 * static_cast<double>(p.d_k) + 64);
    const bool gradients = pass != Pass::forward;
    const double sums = 8.0 * heads * static_cast<double>(blocks(p) + 1) * width;
    const double threads = static_cast<double>(thread_count());
    return transform + sums * (gradients ? 2 : 1) + 8.0 * heads * n * (gradients ? 3 : 1) +
           threads * (4.0 * static_cast<double>(scratch_floats(p, gradients)) + 16.0 * width);
  }
  double flops(const Problem& p, Pass pass) const override {
    const auto d = static_cast<double>(p.d_k);
    const double transform = 2.5 * d * std::log2(std::max(2.0, d));
    const double forward = 4 * transform + 16 * d, backward = 8 * transform + 48 * d;
    return static_cast<double>(p.batch * p.heads * p.n) * (pass == Pass::backward ? backward
                                                           : pass == Pass::forward_backward
                                                               ? forward + backward
                                                               : forward);
  }

 private:
  static Index blocks(const Problem& p) { return (p.n + kRows - 1) / kRows; }
  static Index scratch_floats(const Problem& p, bool gradients) {
    const Index width = 2 * (p.d_k / 2 + 1);
    return kRows * width * 3 + (gradients ? kRows * p.d_k : 0) + width + 2 * p.d_k + 64;
  }
  Index end(Index block) const { return std::min(problem_.n, (block + 1) * kRows); }
  template <class Body>
  void for_blocks(Body&& body) const {
    const Index count = blocks(problem_);
    parallel_for(problem_.batch * problem_.heads * count,
                 [&](Index item, int thread) { body(item / count, item % count, thread); });
  }
  struct Work {  // of one thread
    float *a, *b, *c, *rows, *row, *spare;
  };
  Work work(int thread) {
    float* base = scratch_.data() + thread * scratch_floats(problem_, gradients_);
    const Index size = kRows * transform_.width();
    float* row = base + 3 * size;
    float* rows = row + transform_.width();
    return {base, base + size, base + 2 * size,
            rows, row,         rows + (gradients_ ? kRows * problem_.d_k : 0)};
  }
  double* beta(Index bh, Index block) {
    return beta_.data() + (bh * (blocks(problem_) + 1) + block) * transform_.width();
  }
  double* dbeta(Index bh, Index block) {
    return dbeta_.data() + (bh * (blocks(problem_) + 1) + block) * transform_.width();
  }
  bool real(const Inputs& in, Index bh, Index t) const {
    const auto mask = keys_of_batch(in, bh / problem_.heads);
    return mask.empty() || mask[static_cast<std::size_t>(t)] != 0;
  }
  bool in_sum(const Inputs& in, Index bh, Index t) const {
    return !params_.mask_in_sum || real(in, bh, t);
  }
  double scale(const Inputs& in, Index bh) const {
    if (!params_.rescale) return 1;
    Index count = 0;
    for (Index t = 0; t < problem_.n; ++t) count += real(in, bh, t) ? 1 : 0;
    return static_cast<double>(count);
  }
  void spectra(ConstTensorView x, Index bh, Index block, float* to, float* spare) const {
    transform_.forward(x.head(bh).data() + block * kRows * problem_.d_k, end(block) - block * kRows,
                       to, spare);
  }

  // beta(bh, block) = sum of the pairs before the block when causal; else every block has the
  // total.
  void sum_pairs(const Inputs& in) {
    const Index width = transform_.width();
    for_blocks([&](Index bh, Index block, int thread) {
      const Work w = work(thread);
      spectra(in.k, bh, block, w.a, w.spare);
      spectra(in.v, bh, block, w.b, w.spare);
      double* sum = beta(bh, block);
      std::fill_n(sum, width, 0.0);
      for (Index r = 0; r < end(block) - block * kRows; ++r)
        if (in_sum(in, bh, block * kRows + r))
          add_spectra<false>(w.a + r * width, w.b + r * width, transform_.bins(), sum);
    });
    parallel_for(problem_.batch * problem_.heads, [&](Index bh, int) { accumulate(bh, false); });
  }
  // Sums of blocks -> sums of those before (gradient: after) each, or of all of them.
  void accumulate(Index bh, bool gradient) {
    const Index count = blocks(problem_), width = transform_.width();
    const auto at = [&](Index block) { return gradient ? dbeta(bh, block) : beta(bh, block); };
    double* total = at(count);
    std::fill_n(total, width, 0.0);
    for (Index step = 0; step < count; ++step) {
      double* sum = at(gradient ? count - 1 - step : step);
      for (Index e = 0; e < width; ++e) {
        const double before = total[e];
        total[e] += sum[e];
        if (problem_.causal) sum[e] = before;
      }
    }
    for (Index block = 0; !problem_.causal && block < count; ++block)
      std::copy_n(total, width, at(block));
  }

  // Calls body(t, F q_t, F k_t or null, F v_t, beta_t) for the tokens of a block.
  template <class Body>
  void for_tokens(const Inputs& in, Index bh, Index block, int thread, Body&& body) {
    const Work w = work(thread);
    const Index width = transform_.width(), rows = end(block) - block * kRows;
    double* sum = sums_.data() + thread * 2 * width;
    std::copy_n(beta(bh, block), width, sum);
    spectra(in.q, bh, block, w.a, w.spare);
    spectra(in.v, bh, block, w.b, w.spare);
    if (problem_.causal) spectra(in.k, bh, block, w.c, w.spare);
    for (Index r = 0; r < rows; ++r) {
      const Index t = block * kRows + r;
      if (problem_.causal && in_sum(in, bh, t))
        add_spectra<false>(w.c + r * width, w.b + r * width, transform_.bins(), sum);
      if (real(in, bh, t)) body(t, w.a + r * width, w.b + r * width, sum, w.row);
    }
  }

  void similarities(const Inputs& in, Index bh, Index block, int thread) {
    for_tokens(in, bh, block, thread,
               [&](Index t, const float* q, const float* v, const double* sum, float* vhat) {
                 unbind(sum, q, transform_.bins(), params_.inverse == "exact", vhat);
                 weights_[bh * problem_.n + t] = Match(transform_, v, vhat).cosine();
               });
  }

  // a -> w. |a| <= 1, so that exp(temperature (a - 1)) needs no maximum. Padded tokens get 0.
  void softmax(const Inputs& in, Index bh) {
    double* w = weights_.data() + bh * problem_.n;
    double sum = 0;
    for (Index t = 0; t < problem_.n; ++t) {
      w[t] = real(in, bh, t) ? std::exp(params_.temperature * (w[t] - 1)) : 0;
      sum += w[t];
      if (problem_.causal && w[t] != 0) w[t] /= sum;
    }
    for (Index t = 0; !problem_.causal && t < problem_.n; ++t)
      if (w[t] != 0) w[t] /= sum;
  }

  // da [n]. Causal, with e = exp and S_t the running sum: w_t = e_t / S_t, so
  // da_s = w_s dw_s - e_s sum_{t >= s} dw_t w_t / S_t, and e_s / S_t = w_s S_s / S_t.
  void softmax_gradient(const Inputs& in, ConstTensorView dout, Index bh) {
    const Index n = problem_.n;
    const double* w = weights_.data() + bh * n;
    double* da = da_.data() + bh * n;
    const double factor = scale(in, bh);
    double mean = 0;
    for (Index t = 0; t < n; ++t) {
      da[t] = 0;
      if (w[t] == 0) continue;
      da[t] = factor * w[t] *
              static_cast<double>(dout.head(bh).row(t).dot(in.v.head(bh).row(t)));  // w_t dw_t
      mean += da[t];
    }
    // From the last token on: after = S_s sum_{t >= s} w_t dw_t / S_t. S_{s-1} / S_s = 1 - w_s.
    double after = 0;
    for (Index t = n - 1; t >= 0; --t) {
      after += da[t];
      da[t] = params_.temperature * (da[t] - w[t] * (problem_.causal ? after : mean));
      after *= 1 - w[t];
    }
  }

  void unbinding_gradient(const Inputs& in, ConstTensorView dout, const Gradients& grads, Index bh,
                          Index block, int thread) {
    const Work work_space = work(thread);
    const Index width = transform_.width(), bins = transform_.bins(), first = block * kRows;
    double* total = dbeta(bh, block);
    std::fill_n(total, width, 0.0);
    const double factor = scale(in, bh);
    grads.dq.head(bh).middleRows(first, end(block) - first).setZero();
    grads.dv.head(bh).middleRows(first, end(block) - first).setZero();
    for_tokens(
        in, bh, block, thread,
        [&](Index t, const float* q, const float* v, const double* sum, float* vhat) {
          unbind(sum, q, transform_.bins(), params_.inverse == "exact", vhat);
          const Match p(transform_, v, vhat);
          const double da = da_[bh * problem_.n + t], both = 1 / (p.norm_v() * p.norm_vhat());
          const double a = p.cosine();
          const auto across = static_cast<float>(da * both);
          const auto along_v = static_cast<float>(da * a / (p.norm_v() * p.norm_v()));
          const auto along_vhat = static_cast<float>(da * a / (p.norm_vhat() * p.norm_vhat()));
          float* change = work_space.rows;  // F dv, F dvhat, F dq
          for (Index f = 0; f < width; ++f) {
            change[f] = across * vhat[f] - along_v * v[f];
            change[width + f] = across * v[f] - along_vhat * vhat[f];
            change[2 * width + f] = 0;
          }
          add_spectra<true>(sum, change + width, bins, change + 2 * width);
          add_spectra<false>(q, change + width, bins, total);
          transform_.inverse(change, 1, grads.dv.head(bh).data() + t * problem_.d_k,
                             work_space.spare);
          transform_.inverse(change + 2 * width, 1, grads.dq.head(bh).data() + t * problem_.d_k,
                             work_space.spare);
          grads.dv.head(bh).row(t) +=
              static_cast<float>(factor * weights_[bh * problem_.n + t]) * dout.head(bh).row(t);
        });
  }

  // Causal: the pair of token t is part of beta_s for every s >= t.
  void binding_gradient(const Inputs& in, const Gradients& grads, Index bh, Index block,
                        int thread) {
    const Work w = work(thread);
    const Index width = transform_.width(), bins = transform_.bins(), first = block * kRows;
    double* after = sums_.data() + (thread * 2 + 1) * width;
    std::copy_n(dbeta(bh, block), width, after);
    if (problem_.causal) {
      // F q_t F dvhat_t of the block's own tokens, last first: recomputed, stored in w.c.
      for_tokens(in, bh, block, thread,
                 [&](Index t, const float* q, const float* v, const double* sum, float* vhat) {
                   unbind(sum, q, transform_.bins(), params_.inverse == "exact", vhat);
                   const Match p(transform_, v, vhat);
                   const double da = da_[bh * problem_.n + t];
                   const auto across = static_cast<float>(da / (p.norm_v() * p.norm_vhat()));
                   const auto along =
                       static_cast<float>(da * p.cosine() / (p.norm_vhat() * p.norm_vhat()));
                   for (Index f = 0; f < width; ++f) vhat[f] = across * v[f] - along * vhat[f];
                   float* own = w.c + (t - first) * width;  // F k_t has been used
                   std::fill_n(own, width, 0.f);
                   add_spectra<false>(q, vhat, bins, own);
                 });
    }
    spectra(in.k, bh, block, w.a, w.spare);
    spectra(in.v, bh, block, w.b, w.spare);
    for (Index t = end(block) - 1; t >= first; --t) {
      const float* own = w.c + (t - first) * width;
      if (problem_.causal && real(in, bh, t))
        for (Index e = 0; e < width; ++e) after[e] += static_cast<double>(own[e]);
      float* dk = grads.dk.head(bh).data() + t * problem_.d_k;
      std::fill_n(dk, problem_.d_k, 0.f);
      if (!in_sum(in, bh, t)) continue;
      float* change = w.rows;  // F dk, F dv
      std::fill_n(change, 2 * width, 0.f);
      add_spectra<true>(after, w.b + (t - first) * width, bins, change);
      add_spectra<true>(after, w.a + (t - first) * width, bins, change + width);
      transform_.inverse(change, 1, dk, w.spare);
      transform_.inverse(change + width, 1, w.row, w.spare);
      for (Index c = 0; c < problem_.d_k; ++c)
        grads.dv.head(bh).data()[t * problem_.d_k + c] += w.row[c];
    }
  }

  Params params_;
  Problem problem_;
  bool gradients_ = false;
  RowTransform transform_;
  AlignedArray<double> beta_, dbeta_;  // [batch * heads, blocks + 1, width]
  AlignedArray<double> weights_, da_;  // [batch * heads, n]
  AlignedArray<float> scratch_;        // per thread
  AlignedArray<double> sums_;          // [threads, 2, width]
};

const RegisterMethod<Hrrformer, Params> kRegistration{
    {.name = "hrrformer",
     .family = "fft",
     .source = "Alam et al. 2023, arXiv 2305.19534",
     .summary =
         "all key-value pairs bound into one vector; its match with a token scales the token",
     .approximates = Approximates::own_kernel,
     .causality = Causality::strict,
     .key_padding = true,
     .passes = {Pass::forward, Pass::backward, Pass::decode},
     .linear_in_v = false,
     .structure_from_v = true,
     .time_exponent = 1,
     .memory_exponent = 1,
     .notes =
         {"does not approximate attention: an output holds its own token's value alone, so its "
          "error against dense means nothing",
          "outputs are of size 1 / n, as in the paper; rescale multiplies by the number of tokens",
          "the causal form and decoding are ours; with rescale they differ, since a sequence's "
          "length is not known while decoding",
          "a padded token's own output is zero", "the logit scale has no effect"}},
    {choice("inverse", &Params::inverse, {"conj", "exact"},
            "how a query unbinds: conj F(q) or 1/F(q)"),
     param("mask_in_sum", &Params::mask_in_sum, "padded tokens stay out of the sum of pairs"),
     param("rescale", &Params::rescale, "multiply outputs by the number of tokens (ours)"),
     param("temperature", &Params::temperature, {0, 256}, "factor on the similarities"),
     choice("transform", &Params::transform, {"auto", "matrix", "fft"},
            "matrix products or FFTW for the rows (odd widths: matrix)")}};

}  // namespace
}  // namespace subquad
