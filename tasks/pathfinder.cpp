// Pathfinder: do the two discs lie on the ends of one dashed contour?
// Source: Linsley et al. 2018, arXiv 1805.08315; Tay et al. 2021 (Long Range Arena), arXiv
// 2011.04006. The generator is in pathfinder_image.h.
//
// A sequence is an image of n = W x W gray pixels, W of 16, 32, 64, 128 and 256, row by row; a
// token is its brightness 0 .. 255. Contour length 14 is the "hard" task of Long Range Arena, 9 and
// 6 the easier ones. W = 128 is Path-X. With `patch`, a position is a square of pixels instead, by
// row inside as outside, n = (W / patch)^2, and the model puts the embeddings of its pixels side by
// side, as vision models do.
//
// With a curriculum (ours), the first training images are easier: a quarter of them have two
// paddles to a contour and no distractors, and from there to its end an image has up to so much of
// both. Without it small models stay at chance: what tells the classes apart, how two discs lie to
// each other, is nothing that a single pixel hints at, and distractors hide it. Images are counted
// by their number, so a training set smaller than the curriculum (`examples`) stays inside it.
//
// With a path: an IDX file of images (with the labels in another), or the archive's folder:
// <path>/imgs/<batch>/<name>.png and <path>/metadata/<batch>.npy, which is text, one line an image:
// folder, file name, number, label, ... Files of length 0 are left out, as in the archive.

#include <map>
#include <mutex>

#include "tasks/images.h"
#include "tasks/pathfinder_image.h"

namespace subquad {
namespace {

struct Params {
  Index contour = 0, patch = 1, curriculum = 0;
  std::string path, labels;
};

constexpr double kEasiest = 0.25;  // of a curriculum: the share of its start
constexpr const char* kHint = "without path: images are generated";

// The images that the metadata of a folder name, in the order of its sorted files.
Images read_folder(const std::string& path) {
  namespace fs = std::filesystem;
  const std::string metadata = (fs::path(path) / "metadata").string();
  const std::vector<std::string> files = files_in("pathfinder", metadata, ".npy", kHint);
  Images out;
  for (const std::string& file : files) {
    const std::string text = read_file("pathfinder", file);
    for_lines(text, [&](std::string_view line, Index number) {
      std::vector<std::string> fields;
      for (std::size_t at = 0; at < line.size();) {
        const std::size_t begin = line.find_first_not_of(' ', at);
        if (begin == std::string_view::npos) break;
        const std::size_t end = std::min(line.find(' ', begin), line.size());
        fields.emplace_back(line.substr(begin, end - begin));
        at = end;
      }
      if (fields.size() < 4 || (fields[3] != "0" && fields[3] != "1"))
        throw UserError(
            fmt::format("pathfinder: {}:{}: got \"{}\", expected folder, file name, "
                        "number and label 0 or 1",
                        file, number, excerpt(line)));
      const std::string image = (fs::path(path) / fields[0] / fields[1]).string();
      const std::string bytes = read_file("pathfinder", image);
      if (bytes.empty()) return;
      const Images one = read_png("pathfinder: " + image, bytes);
      if (out.count == 0) out.height = one.height, out.width = one.width;
      if (one.height != out.height || one.width != out.width)
        throw UserError(
            fmt::format("pathfinder: {}: got {} x {} pixels, expected {} x {} as the "
                        "first",
                        image, one.height, one.width, out.height, out.width));
      out.pixels += one.pixels;
      out.labels.push_back(fields[3] == "1");
      ++out.count;
    });
  }
  require_rows("pathfinder", metadata, out.count);
  return out;
}

class Pathfinder final : public SequenceTask {
 public:
  explicit Pathfinder(const Params& params) : SequenceTask("pathfinder"), params_(params) {
    if (params.path.empty()) {
      if (!params.labels.empty())
        throw UserError("pathfinder: got labels without path; expected both or none");
      return;
    }
    if (params.curriculum > 0)
      throw UserError("pathfinder: got curriculum with path; only generated images can be easier");
    std::error_code error;
    if (std::filesystem::is_directory(params.path, error)) {
      images_ = read_folder(params.path);
      return;
    }
    if (params.labels.empty())
      throw UserError(
          "pathfinder: got path without labels; expected both, or the archive's folder");
    images_ = read_idx("pathfinder", params.path, params.labels, 2, kHint);
  }

  LabelSpec labels(Index) const override {
    return {.kind = LabelKind::per_sequence,
            .vocabulary = 256,
            .classes = 2,
            .tokens_per_position = pixels_each()};
  }

  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    const auto images = [&](auto&& make) {
      TokenBatch out = make_batch(first, batch, n, 1, make);
      out.tokens_per_position = pixels_each();
      return out;
    };
    const Index size = n * pixels_each();
    if (images_.count > 0) {
      if (size != images_.size() || images_.width % params_.patch != 0 ||
          images_.height % params_.patch != 0)
        refuse("images of {} x {} pixels do not make n={} squares of {}", images_.height,
               images_.width, n, params_.patch);
      return images([&](Index e) {
        const Index row = row_of(split_rows(images_.count, split), split, e, seed);
        return Example{in_patches(pixels(row), images_.width),
                       {images_.labels[static_cast<std::size_t>(row)]},
                       {}};
      });
    }
    const pathfinder::Generator* generator = generator_for(size);
    if (!generator)
      refuse("n={} positions of {} make {} pixels, expected 256, 1024, 4096, 16384 or 65536", n,
             pixels_each(), size);
    return images([&](Index e) {
      const Seed at = example_seed(seed, owner_, split, e);
      const std::int32_t label = label_of(at);
      const Bytes image = generator->draw(at, label, nullptr, share_of(split, e, at));
      return Example{
          in_patches({image.begin(), image.end()}, generator->settings().window), {label}, {}};
    });
  }

  std::vector<Floor> floors(Index, Seed seed) const override {
    constexpr Index kRows = 2000;
    Tokens train, test;
    for (const auto& [split, labels] : {std::pair(Split::train, &train), {Split::test, &test}})
      for (Index e = 0; e < kRows; ++e)
        labels->push_back(images_.count > 0
                              ? images_.labels[static_cast<std::size_t>(
                                    row_of(split_rows(images_.count, split), split, e, seed))]
                              : label_of(example_seed(seed, owner_, split, e)));
    return {majority_floor(train, test, 2)};
  }

 private:
  static std::int32_t label_of(Seed example) {
    return static_cast<std::int32_t>(Random(example, "label").below(2));
  }
  // How much of the paddles and distractors example e has at most: see Generator::draw.
  double share_of(Split split, Index e, Seed at) const {
    if (split != Split::train || e >= params_.curriculum) return 1;
    const double done = static_cast<double>(e) / static_cast<double>(params_.curriculum);
    return Random(at, "share").uniform() * std::max(0.0, (done - kEasiest) / (1 - kEasiest));
  }

  Index pixels_each() const { return params_.patch * params_.patch; }
  // Pixels by row -> squares by row.
  Tokens in_patches(Tokens by_row, Index width) const {
    const Index p = params_.patch;
    if (p == 1) return by_row;
    Tokens out;
    out.reserve(by_row.size());
    for (Index y = 0; y < static_cast<Index>(by_row.size()) / width; y += p)
      for (Index x = 0; x < width; x += p)
        for (Index row = y; row < y + p; ++row)
          out.insert(out.end(), by_row.begin() + row * width + x,
                     by_row.begin() + row * width + x + p);
    return out;
  }
  Tokens pixels(Index row) const {
    return {images_.image(row), images_.image(row) + images_.size()};
  }

  // Null where n is no square of a known window. Its tables are made once.
  const pathfinder::Generator* generator_for(Index n) const {
    for (const Index window : {16, 32, 64, 128, 256}) {
      pathfinder::Settings settings;
      if (window * window != n || !pathfinder::settings_for(window, params_.contour, &settings))
        continue;
      const std::lock_guard lock(mutex_);
      auto& generator = generators_[window];
      if (!generator) generator = std::make_unique<pathfinder::Generator>(settings);
      return generator.get();
    }
    return nullptr;
  }

  // Images of the largest window that fits, laid end to end.
  Tokens sequence(Index length, Seed, Seed draw) const override {
    const Index n = length >= 16384 ? 16384 : length >= 4096 ? 4096 : length >= 1024 ? 1024 : 256;
    Index number = 0;
    return laid_end_to_end(length, [&]() -> Tokens {
      const Seed at = derive(draw, "image", {static_cast<std::uint64_t>(number++)});
      if (images_.count > 0)
        return pixels(
            static_cast<Index>(Random(at).below(static_cast<std::uint64_t>(images_.count))));
      const Bytes image = generator_for(n)->draw(at, label_of(at));
      return {image.begin(), image.end()};
    });
  }

  Params params_;
  Images images_;  // of the files
  mutable std::mutex mutex_;
  mutable std::map<Index, std::unique_ptr<pathfinder::Generator>> generators_;  // by window
};

const RegisterTask<Pathfinder, Params> kRegistration{
    {.name = "pathfinder",
     .source = "Linsley et al. 2018, arXiv 1805.08315; Long Range Arena, arXiv 2011.04006",
     .summary = "do two discs lie on the ends of one dashed contour? A pixel is a token",
     .labelled = true,
     .notes = {"256 (a small version of ours), 1024, 4096, 16384 (Path-X) or 65536 pixels: n of "
               "them, or with patch n squares",
               "patch and curriculum concern labelled examples, not Q, K, V",
               "more than half of the pixels are 0; no position is padding",
               "Q, K, V: images of the largest size up to 128 x 128 that fits, laid end to end"}},
    {param("contour", &Params::contour, {0, 64},
           "paddles of a contour: 14 is hard, 9 and 6 are easier; 0 = 14 (4 at n = 256)"),
     param(
         "patch", &Params::patch, {1, 16},
         "side of the square of pixels that makes a position of a labelled example: 1, 2, 4, ..."),
     param("curriculum", &Params::curriculum, {0, 1 << 30},
           "training images up to which contours and distractors grow from two paddles and none"),
     param("path", &Params::path,
           "IDX file of images (.gz too), or the folder of the archive; empty = generate"),
     param("labels", &Params::labels, "IDX file of the labels")}};

}  // namespace
}  // namespace subquad
