// Text of a file, by bytes or characters: labelled for language modelling (the label of a token is
// the next one), split by position into 90 % train, 5 % validation and 5 % test.
//
// Q, K, V until a model supplies them (our choice): an induction head with a preference for near
// tokens. The first part of q and k holds codes, the last 2 L entries (L = floor(d_k / 4)) rotary
// waves of the position t:
//   q_t = (r C[x_t],     w cos theta_l t, w sin theta_l t),   scale r^2 = sharpness,
//   k_t = (r C[x_{t-1}], w cos theta_l t, w sin theta_l t),   scale w^2 L = locality,
//   v_t = U[x_t],        theta_l = 10000^(-l/L), C unit and U normal vectors per head and token.

#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>

#include "harness/core/data_path.h"
#include "tasks/utf8.h"
#include "tasks/waves.h"

namespace subquad {
namespace {

struct Params {
  std::string path;
  std::string unit = "byte";
  double sharpness = 6;
  double locality = 8;
};

class Text final : public Task {
 public:
  explicit Text(const Params& params) : params_(params) {
    const std::string path = params.path.empty() ? data_path("shakespeare.txt") : params.path;
    std::ifstream file(path, std::ios::binary);
    if (!file) throw UserError(fmt::format("text: {}: {}", path, std::strerror(errno)));
    std::vector<char> piece(1 << 16);
    while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())) || file.gcount() > 0)
      bytes_.append(piece.data(), static_cast<std::size_t>(file.gcount()));
    // Reading a directory fails here, not at opening.
    if (file.bad() || bytes_.empty())
      throw UserError(fmt::format("text: {}: {}, expected a file with text", path,
                                  file.bad() ? "cannot be read" : "is empty"));
    if (params.unit == "byte") {
      vocabulary_ = 256;
      return;
    }
    ids_ = decode_utf8("text: " + path, bytes_, ", or unit: byte for any file");
    bytes_ = std::string();
    std::map<std::int32_t, std::int32_t> id_of;  // by code point, so that ids are in that order
    for (const std::int32_t point : ids_) id_of.emplace(point, 0);
    for (auto& [point, id] : id_of) id = static_cast<std::int32_t>(vocabulary_++);
    for (std::int32_t& point : ids_) point = id_of.at(point);
  }

  std::string unsupported(const Problem& p) const override {
    const Index wanted = std::max(p.n, p.n_kv);
    if (wanted <= length()) return "";
    return fmt::format("the text has {} {}s, got n={} and n_kv={}", length(), params_.unit, p.n,
                       p.n_kv);
  }

  void fill(const Problem& p, Seed seed, Index set, QKV* out) const override {
    const Index window = std::max(p.n, p.n_kv);
    const Index first_q = window - p.n, first_k = window - p.n_kv;  // positions in the window
    const Index count = p.d_k / 4, width = p.d_k - 2 * count;       // waves, entries of a code
    const double scale = p.logit_scale();
    const double r = std::sqrt(params_.sharpness / std::fabs(scale));
    const double w =
        count > 0 ? std::sqrt(params_.locality / (std::fabs(scale) * static_cast<double>(count)))
                  : 0;
    const float sign = scale < 0 ? -1.0f : 1.0f;
    const Waves waves(rotary_frequencies(count, 10000), window);

    for_heads(p.batch, p.heads, [&](Index b, Index h) {
      Random start(seed, "text.window",
                   {static_cast<std::uint64_t>(set), static_cast<std::uint64_t>(b)});
      const auto origin =
          static_cast<Index>(start.below(static_cast<std::uint64_t>(length() - window + 1)));
      // One more code than tokens: for the place before the first.
      std::vector<float> codes(static_cast<std::size_t>((vocabulary_ + 1) * width));
      std::vector<float> values(static_cast<std::size_t>(vocabulary_ * p.d_v));
      fill_normal(derive(seed, "text.code", {static_cast<std::uint64_t>(h)}), codes.data(),
                  static_cast<Index>(codes.size()));
      fill_normal(derive(seed, "text.value", {static_cast<std::uint64_t>(h)}), values.data(),
                  static_cast<Index>(values.size()));
      for (Index id = 0; id <= vocabulary_; ++id) {
        float* code = codes.data() + id * width;
        const double factor = r / std::sqrt(dot(code, code, width));
        for (Index c = 0; c < width; ++c)
          code[c] = static_cast<float>(factor * static_cast<double>(code[c]));
      }
      const auto wave = [&](Index t, float* to) {
        for (Index l = 0; l < count; ++l) {
          double cosine = 0, sine = 0;
          waves.at(t, l, &cosine, &sine);
          to[l] = static_cast<float>(w * cosine);
          to[count + l] = static_cast<float>(w * sine);
        }
      };
      float* q = out->q.view().head_data(b, h);
      for (Index i = 0; i < p.n; ++i, q += p.d_k) {
        std::copy_n(codes.data() + token(origin + i + first_q) * width, width, q);
        wave(i + first_q, q + width);
        for (Index c = 0; c < p.d_k; ++c) q[c] *= sign;
      }
      float* k = out->k.view().head_data(b, h);
      float* v = out->v.view().head_data(b, h);
      for (Index j = 0; j < p.n_kv; ++j, k += p.d_k, v += p.d_v) {
        const Index t = j + first_k;
        const Index before = t > 0 ? token(origin + t - 1) : vocabulary_;
        std::copy_n(codes.data() + before * width, width, k);
        wave(t, k + width);
        std::copy_n(values.data() + token(origin + t) * p.d_v, p.d_v, v);
      }
    });
  }

  LabelSpec labels(Index) const override {
    return {LabelKind::per_token, vocabulary_, vocabulary_, 1};
  }

  // train: windows at random places; validation and test: consecutive windows without overlap, in
  // order, from the beginning again when the split is used up.
  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    const auto [begin, end] = range(split);
    if (end - begin < n + 1)
      throw Unsupported(fmt::format("text: the {} split has {} {}s, n={} needs {}", name(split),
                                    end - begin, params_.unit, n, n + 1));
    TokenBatch out;
    out.batch = batch;
    out.n = n;
    for (Index e = first; e < first + batch; ++e) {
      Index start = 0;
      if (split == Split::train) {
        Random random(seed, "text.train", {static_cast<std::uint64_t>(e)});
        start = static_cast<Index>(random.below(static_cast<std::uint64_t>(end - begin - n)));
      } else {
        start = e % ((end - begin - 1) / n) * n;
      }
      for (Index t = begin + start; t < begin + start + n; ++t) {
        out.tokens.push_back(static_cast<std::int32_t>(token(t)));
        out.labels.push_back(static_cast<std::int32_t>(token(t + 1)));
      }
    }
    return out;
  }

  // Bits per token of two predictors that know no context, on the test split.
  std::vector<Floor> floors(Index, Seed) const override {
    const double log2 = portable_log(2.0);
    std::vector<double> counts(static_cast<std::size_t>(vocabulary_), 1);  // add-one smoothing
    const auto [train, train_end] = range(Split::train);
    for (Index t = train; t < train_end; ++t) counts[static_cast<std::size_t>(token(t))] += 1;
    const double total = static_cast<double>(train_end - train + vocabulary_);
    const auto [test, test_end] = range(Split::test);
    double bits = 0;
    for (Index t = test; t < test_end; ++t)
      bits -= portable_log(counts[static_cast<std::size_t>(token(t))] / total);
    return {{"uniform", "bits_per_token", portable_log(static_cast<double>(vocabulary_)) / log2},
            {"frequencies of the training text", "bits_per_token",
             test_end > test ? bits / log2 / static_cast<double>(test_end - test) : 0}};
  }

 private:
  Index length() const { return static_cast<Index>(std::max(bytes_.size(), ids_.size())); }
  Index token(Index t) const {
    const auto at = static_cast<std::size_t>(t);
    return ids_.empty() ? static_cast<unsigned char>(bytes_[at]) : ids_[at];
  }

  // First and one past the last position of a split.
  std::pair<Index, Index> range(Split split) const {
    const Index train = length() * 90 / 100, validation = length() * 95 / 100;
    if (split == Split::train) return {0, train};
    if (split == Split::validation) return {train, validation};
    return {validation, length()};
  }

  Params params_;
  Index vocabulary_ = 0;
  std::string bytes_;              // the text, for unit: byte
  std::vector<std::int32_t> ids_;  // its token ids, for unit: char
};

const RegisterTask<Text, Params> kRegistration{
    {.name = "text",
     .source = "a file of the user's; default: 150 kB of Shakespeare (public domain)",
     .summary = "bytes or characters of a text, labelled with the next one",
     .labelled = true,
     .notes = {"splits by position: the first 90 % train, the next 5 % validation, the last 5 % "
               "test",
               "Q, K, V come from a fixed random embedding (ours): q holds its token, k the token "
               "before, both also the position; they are windows at random places of the whole "
               "text, n_kv tokens at most the text's length",
               "results are identified by the path, not by what the file holds: a changed file "
               "needs a new name"}},
    {param("path", &Params::path,
           "file to read, relative to the current directory; empty = the "
           "text that ships with subquad"),
     choice("unit", &Params::unit, {"byte", "char"},
            "a token is a byte, or a character (Unicode code point) of UTF-8 text"),
     param("sharpness", &Params::sharpness, {0, 1000},
           "logit at keys that follow the query's token, above the others (Q, K, V only)"),
     param("locality", &Params::locality, {0, 1000},
           "logit at distance 0 from the position part, falling with distance (Q, K, V only)")}};

}  // namespace
}  // namespace subquad
