// Image generation, pixel by pixel: the label of a pixel is the next one.
// Source: Katharopoulos et al. 2020 (Linear Transformers), arXiv 2006.16236, section 4.2.
//
// An image of P pixels, row by row, gives tokens x_0 .. x_{P-2} and labels x_1 .. x_{P-1}; n tokens
// are the first n (783 of an MNIST image are all). With `levels` below 256, a brightness b becomes
// floor(b levels / 256). Without a path figures are drawn (ours): one of ten, brightness uniform in
// [128, 255], on black, in the smallest square of more than n pixels.

#include "tasks/images.h"
#include "tasks/language.h"
#include "tasks/shapes.h"

namespace subquad {
namespace {

struct Params {
  Index levels = 256;
  std::string path;
};

class PixelLm final : public SequenceTask {
 public:
  explicit PixelLm(const Params& params) : SequenceTask("pixel_lm"), params_(params) {
    if (params.path.empty()) return;
    images_ = read_idx("pixel_lm", params.path, "", 0, "without path: figures are drawn");
    if (images_.size() < 2)
      throw UserError(fmt::format("pixel_lm: {}: images of one pixel, expected more", params.path));
  }

  LabelSpec labels(Index) const override {
    return {LabelKind::per_token, params_.levels, params_.levels, 1};
  }

  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    require(n);
    return make_batch(first, batch, n, 1, [&](Index e) {
      const Tokens image = pixels(split, e, n, seed);
      return Example{
          {image.begin(), image.begin() + n}, {image.begin() + 1, image.begin() + n + 1}, {}};
    });
  }

  // Bits per pixel, from 1000 images of training and 200 of test.
  std::vector<Floor> floors(Index n, Seed seed) const override {
    require(n);
    std::vector<Tokens> parts[2];
    for (const int which : {0, 1})
      for (Index e = 0; e < (which == 0 ? 1000 : 200); ++e) {
        Tokens image = pixels(which == 0 ? Split::train : Split::test, e, n, seed);
        image.resize(static_cast<std::size_t>(n + 1));
        parts[which].push_back(std::move(image));
      }
    return ngram_floors(parts[0], parts[1], params_.levels);
  }

 private:
  void require(Index n) const {
    if (images_.count > 0 && n > images_.size() - 1)
      refuse("images have {} pixels, n={} needs {}", images_.size(), n, n + 1);
  }

  std::int32_t level(double brightness) const {
    return static_cast<std::int32_t>(
        std::floor(std::floor(brightness + 0.5) * static_cast<double>(params_.levels) / 256));
  }

  // At least n + 1 pixels of an image.
  Tokens pixels(Split split, Index number, Index n, Seed seed) const {
    if (images_.count == 0) return drawn(example_seed(seed, owner_, split, number), n);
    return of_row(row_of(split_rows(images_.count, split), split, number, seed));
  }
  Tokens of_row(Index row) const {
    Tokens out;
    for (Index i = 0; i < images_.size(); ++i) out.push_back(level(images_.image(row)[i]));
    return out;
  }
  Tokens drawn(Seed seed, Index n) const {
    Index side = 4;
    while (side * side < n + 1) ++side;
    Random random(seed);
    const auto kind = static_cast<Index>(random.below(static_cast<std::uint64_t>(kFigures)));
    const double brightness = random.uniform(128, 255);
    Tokens out;
    for (const double covered :
         coverage(random_figure(random, kind, 0, 0, static_cast<double>(side)), side))
      out.push_back(level(covered * brightness));
    return out;
  }

  // Images laid end to end; drawn ones of at most 28 x 28.
  Tokens sequence(Index length, Seed, Seed draw) const override {
    std::uint64_t number = 0;
    return laid_end_to_end(length, [&] {
      const Seed at = derive(draw, "image", {number++});
      if (images_.count == 0) return drawn(at, std::min<Index>(length, 783));
      const Rows train = split_rows(images_.count, Split::train);
      return of_row(static_cast<Index>(Random(at).below(static_cast<std::uint64_t>(train.size()))));
    });
  }

  Params params_;
  Images images_;  // of the file
};

const RegisterTask<PixelLm, Params> kRegistration{
    {.name = "pixel_lm",
     .source = "Katharopoulos et al. 2020 (Linear Transformers), arXiv 2006.16236",
     .summary = "pixels of an image, each labelled with the next: image generation",
     .labelled = true,
     .notes = {"bits per token are bits per dimension (of the pixels after the first)",
               "any n for drawn figures, at most pixels - 1 for a file"}},
    {param("levels", &Params::levels, {2, 256}, "brightness levels: token ids"),
     param("path", &Params::path,
           "IDX file of images (.gz too), split 80/10/10; empty = drawn figures")}};

}  // namespace
}  // namespace subquad
