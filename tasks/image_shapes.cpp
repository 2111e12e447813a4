// Pixel-level image classification without a download (ours): which figure does the image show? A
// stand-in for the Image task of Long Range Arena (gray CIFAR-10, arXiv 2011.04006).
//
// n = W x W gray pixels, row by row, a token is an intensity 0 .. 255. One of ten figures, size
// uniform in [0.35 W, 0.7 W], anywhere inside; foreground and background uniform in [40, 215], at
// least 50 apart, either brighter; Gaussian noise of standard deviation 12, clamped and rounded.
// With `pair`, two of five figures stand in opposite quadrants and the label says whether they are
// of the same kind: one figure alone says nothing.

#include "tasks/files.h"
#include "tasks/shapes.h"

namespace subquad {
namespace {

struct Params {
  bool pair = false;
  double noise = 12;
};

constexpr Index kPairFigures = 5;

class ImageShapes final : public SequenceTask {
 public:
  explicit ImageShapes(const Params& params) : SequenceTask("image_shapes"), params_(params) {}

  LabelSpec labels(Index) const override {
    return {LabelKind::per_sequence, 256, params_.pair ? 2 : kFigures, 1};
  }

  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    const Index size = side(n);
    if (size * size != n || size < 8) refuse("n={}, expected the square of a side of 8 or more", n);
    return make_batch(first, batch, n, 1,
                      [&](Index e) { return draw(example_seed(seed, owner_, split, e), size); });
  }

  std::vector<Floor> floors(Index, Seed seed) const override {
    constexpr Index kRows = 2000;
    Tokens train, test;
    for (Index e = 0; e < kRows; ++e) {
      train.push_back(label_of(example_seed(seed, owner_, Split::train, e)));
      test.push_back(label_of(example_seed(seed, owner_, Split::test, e)));
    }
    return {majority_floor(train, test, params_.pair ? 2 : kFigures)};
  }

 private:
  static Index side(Index n) {
    auto size = static_cast<Index>(std::sqrt(static_cast<double>(n)));
    while (size * size > n) --size;
    while ((size + 1) * (size + 1) <= n) ++size;
    return size;
  }
  std::int32_t label_of(Seed seed) const {
    return static_cast<std::int32_t>(
        Random(seed, "label").below(params_.pair ? 2 : static_cast<std::uint64_t>(kFigures)));
  }

  Example draw(Seed seed, Index size) const {
    const std::int32_t label = label_of(seed);
    Random random(seed, "image");
    std::vector<Figure> figures;
    if (!params_.pair) {
      figures.push_back(random_figure(random, label, 0, 0, static_cast<double>(size)));
    } else {
      const auto kind = static_cast<Index>(random.below(kPairFigures));
      const auto other = static_cast<Index>(random.below(kPairFigures - 1));
      const double half = static_cast<double>(size) / 2;
      const bool right = random.below(2) == 1;  // the upper one, the lower is opposite
      figures.push_back(random_figure(random, kind, 0, right ? half : 0, half));
      figures.push_back(random_figure(random, label == 1 ? kind : other + (other >= kind), half,
                                      right ? 0 : half, half));
    }
    std::vector<double> gray(static_cast<std::size_t>(size * size));
    double background = 0, foreground = 0;
    do {
      background = random.uniform(40, 215);
      foreground = random.uniform(40, 215);
    } while (std::fabs(background - foreground) < 50);
    std::fill(gray.begin(), gray.end(), background);
    for (const Figure& figure : figures) {
      const std::vector<double> covered = coverage(figure, size);
      for (std::size_t i = 0; i < gray.size(); ++i)
        gray[i] += covered[i] * (foreground - background);
    }
    Example out;
    for (const double value : gray)
      out.tokens.push_back(static_cast<std::int32_t>(
          std::floor(std::clamp(value + params_.noise * random.normal(), 0.0, 255.0) + 0.5)));
    out.labels = {label};
    return out;
  }

  // Images of the largest side that fits, laid end to end.
  Tokens sequence(Index length, Seed, Seed seed) const override {
    std::uint64_t number = 0;
    return laid_end_to_end(length, [&] {
      return draw(derive(seed, "image", {number++}), std::max<Index>(8, side(length))).tokens;
    });
  }

  Params params_;
};

const RegisterTask<ImageShapes, Params> kRegistration{
    {.name = "image_shapes",
     .source = "ours, a stand-in for the Image task of Long Range Arena, arXiv 2011.04006",
     .summary = "pixels of an image: which of ten figures does it show?",
     .labelled = true,
     .notes = {"n is the square of the side, 8 or more; a token is an intensity 0 to 255",
               "for real images use pixel_image"}},
    {param("pair", &Params::pair,
           "two figures in opposite quadrants; the label says whether they are of the same kind"),
     param("noise", &Params::noise, {0, 100}, "standard deviation of the noise, of 255")}};

}  // namespace
}  // namespace subquad
