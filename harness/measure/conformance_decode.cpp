// Generated checks of decoding.
#include "harness/measure/conformance_checks.h"

namespace subquad::conformance {
namespace {

struct Decoding {  // every token of a problem, fed to a decoder one by one after a prefill
  Tensor out;
  double peak_bytes = 0;
};

Decoding decode(Decoder& decoder, const Problem& p, const QKV& in, Index prefill) {
  const Index heads = p.batch * p.heads;
  Decoding result{Tensor(p.batch, p.heads, p.n, p.d_v)};
  result.out.fill(kNaN);
  const auto part = [](const Tensor& x, Index length) {
    Tensor y(x.batch(), x.heads(), length, x.d());
    for (Index b = 0; b < x.batch(); ++b)
      for (Index h = 0; h < x.heads(); ++h) y.head(b, h) = x.head(b, h).topRows(length);
    return y;
  };
  const auto row = [](const Tensor& x, Index t) {  // token t of every head, contiguous
    std::vector<float> y;
    for (Index bh = 0; bh < x.batch() * x.heads(); ++bh)
      y.insert(y.end(), x.view().data() + (bh * x.n() + t) * x.d(),
               x.view().data() + (bh * x.n() + t + 1) * x.d());
    return y;
  };
  if (prefill > 0) {
    const Tensor q = part(in.q, prefill), k = part(in.k, prefill), v = part(in.v, prefill);
    const Tensor x = in.x.empty() ? Tensor() : part(in.x, prefill);
    decoder.prefill(q, k, v, x.empty() ? ConstTensorView() : x.view());
  }
  std::vector<float> out(static_cast<std::size_t>(heads * p.d_v));
  for (Index t = prefill; t < p.n; ++t) {
    const auto q = row(in.q, t), k = row(in.k, t), v = row(in.v, t);
    const auto x = in.x.empty() ? std::vector<float>() : row(in.x, t);
    std::fill(out.begin(), out.end(), kNaN);
    decoder.step({q.data(), k.data(), v.data(), x.empty() ? nullptr : x.data()}, out.data());
    for (Index bh = 0; bh < heads; ++bh)
      std::copy_n(out.data() + bh * p.d_v, p.d_v, result.out.data() + (bh * p.n + t) * p.d_v);
    const CacheBytes bytes = decoder.bytes();
    for (const double part_bytes : {bytes.kv, bytes.aux, bytes.cold, bytes.scratch})
      if (!(part_bytes >= 0 && std::isfinite(part_bytes)))
        fail("{}: a decoder reports {} bytes after token {}", p.str(), part_bytes, t);
    result.peak_bytes =
        std::max(result.peak_bytes, bytes.kv + bytes.aux + bytes.cold + bytes.scratch);
    for (const VisibleKey& key : decoder.visible(p.batch - 1, p.heads - 1))
      if (!(key.position >= 0 && key.position <= t && std::isfinite(key.weight)))
        fail("{}: after token {} the decoder shows position {} with weight {}", p.str(), t,
             key.position, key.weight);
  }
  return result;
}

}  // namespace

void check_decoder(const Runner& run) {
  const MethodInfo& info = run.entry.info;
  if (!info.supports(Pass::decode)) throw Skip{"no decode pass declared"};
  int decoded = 0;
  for (const Index n : {1, 17, 200}) {  // 200 exceeds the default windows
    const Problem p = make_problem(n, n, true);
    if (!run.supports(p, Pass::decode)) continue;
    ++decoded;
    const QKV in = make_inputs(info, p, run.seed);
    DecodeConfig config{.batch = p.batch,
                        .heads = p.heads,
                        .capacity = n,
                        .d_k = p.d_k,
                        .d_v = p.d_v,
                        .d_e = info.uses_hidden ? kHiddenWidth : 0,
                        .seed = run.seed};
    const auto decoder = run.create()->make_decoder(config);
    const Decoding first = decode(*decoder, p, in, 0);
    require_finite(first.out, p.str());
    require_close(first.out, run.forward(p, in), std::max(1e-5, info.tolerance),
                  p.str() + ": decoded token by token, and the causal forward");
    decoder->reset();
    require_same(decode(*decoder, p, in, 0).out, first.out, n, p.str() + ": after reset()");
    decoder->reset();
    Tensor filled = decode(*decoder, p, in, n / 2).out;
    for (Index e = 0; e < filled.size(); ++e)  // rows of the prefill have no output
      if (e / filled.d() % n < n / 2) filled.data()[e] = first.out.data()[e];
    require_close(filled, first.out, 1e-5, fmt::format("{}: {} tokens prefilled", p.str(), n / 2));
    const double cache = 4.0 * static_cast<double>(p.batch * p.heads * n * (p.d_k + p.d_v));
    const double plausible = 4 * cache + 2 * run.create()->budget(p).state_bytes + 1048576;
    if (!(first.peak_bytes <= plausible))
      fail("{}: the decoder reports {:.0f} bytes; a whole key-value cache has {:.0f}", p.str(),
           first.peak_bytes, cache);
  }
  if (decoded == 0) throw Skip{"no problem of the test sizes is supported"};
}

}  // namespace subquad::conformance
