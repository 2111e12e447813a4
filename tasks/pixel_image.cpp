// Pixel-level classification of real images: the Image task of Long Range Arena (gray CIFAR-10),
// and MNIST digits. Source: Krizhevsky 2009; LeCun et al. 1998; Tay et al. 2021, arXiv 2011.04006.
//
// A token is the brightness 0 .. 255 of a pixel, row by row. Files:
//   CIFAR-10, binary version: records of 3073 bytes, a label and 1024 bytes each of red, green and
//   blue. Gray = 0.2989 R + 0.5870 G + 0.1140 B, rounded. A folder with data_batch_1.bin ..
//   data_batch_5.bin (the last tenth of them is validation) and test_batch.bin, or one file of
//   records, split 80/10/10.
//   IDX pairs (.gz too): images in path, labels in `labels`, split 80/10/10.

#include "tasks/images.h"

namespace subquad {
namespace {

struct Params {
  std::string path, labels;
};

constexpr const char* kHint = "without data of your own use image_shapes";
constexpr Index kRecord = 3073, kPixels = 1024, kClasses = 10;

void append_cifar(const std::string& path, Images* to) {
  const std::string bytes = read_file("pixel_image", path, kHint);
  const auto size = static_cast<Index>(bytes.size());
  if (size == 0 || size % kRecord != 0)
    throw UserError(
        fmt::format("pixel_image: {}: got {} bytes, expected a multiple of {} (CIFAR-10 "
                    "records), or an IDX file with labels",
                    path, size, kRecord));
  const auto byte = [&](Index at) {
    return static_cast<unsigned char>(bytes[static_cast<std::size_t>(at)]);
  };
  for (Index record = 0; record < size; record += kRecord) {
    if (byte(record) >= kClasses)
      throw UserError(fmt::format("pixel_image: {}: label {} at offset {}, expected less than {}",
                                  path, byte(record), record, kClasses));
    to->labels.push_back(byte(record));
    for (Index i = 0; i < kPixels; ++i) {
      const double gray = 0.2989 * byte(record + 1 + i) + 0.5870 * byte(record + 1 + kPixels + i) +
                          0.1140 * byte(record + 1 + 2 * kPixels + i);
      to->pixels += static_cast<char>(static_cast<unsigned char>(std::floor(gray + 0.5)));
    }
    ++to->count;
  }
}

class PixelImage final : public SequenceTask {
 public:
  explicit PixelImage(const Params& params) : SequenceTask("pixel_image") {
    if (params.path.empty())
      throw UserError(
          fmt::format("pixel_image: path is missing; expected a folder or file of "
                      "CIFAR-10 records, or an IDX file with labels; {}",
                      kHint));
    namespace fs = std::filesystem;
    std::error_code error;
    if (!params.labels.empty()) {
      images_ = read_idx("pixel_image", params.path, params.labels, kClasses, kHint);
    } else {
      images_.height = images_.width = 32;
      if (fs::is_directory(params.path, error)) {
        for (int i = 1; i <= 5; ++i)
          append_cifar((fs::path(params.path) / fmt::format("data_batch_{}.bin", i)).string(),
                       &images_);
        const Index train = images_.count;
        append_cifar((fs::path(params.path) / "test_batch.bin").string(), &images_);
        splits_ = {{0, train - train / 10}, {train - train / 10, train}, {train, images_.count}};
        require_rows("pixel_image", params.path, train);
        return;
      }
      append_cifar(params.path, &images_);
      require_rows("pixel_image", params.path, images_.count);
    }
    for (const Split split : {Split::train, Split::validation, Split::test})
      splits_.push_back(split_rows(images_.count, split));
  }

  LabelSpec labels(Index) const override { return {LabelKind::per_sequence, 256, kClasses, 1}; }

  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    if (n != images_.size())
      refuse("images have {} x {} = {} pixels, got n={}", images_.height, images_.width,
             images_.size(), n);
    return make_batch(first, batch, n, 1, [&](Index e) {
      const Index row = row_of(splits_[static_cast<std::size_t>(split)], split, e, seed);
      return Example{{images_.image(row), images_.image(row) + n},
                     {images_.labels[static_cast<std::size_t>(row)]},
                     {}};
    });
  }

  std::vector<Floor> floors(Index, Seed) const override {
    const auto all = [&](Split split) {
      const Rows rows = splits_[static_cast<std::size_t>(split)];
      return Tokens(images_.labels.begin() + rows.begin, images_.labels.begin() + rows.end);
    };
    return {majority_floor(all(Split::train), all(Split::test), kClasses)};
  }

 private:
  Tokens sequence(Index length, Seed, Seed draw) const override {
    Random random(draw);
    const auto train = static_cast<std::uint64_t>(splits_[0].size());
    return laid_end_to_end(length, [&] {
      const auto row = static_cast<Index>(random.below(train));
      return Tokens(images_.image(row), images_.image(row) + images_.size());
    });
  }

  Images images_;
  std::vector<Rows> splits_;
};

const RegisterTask<PixelImage, Params> kRegistration{
    {.name = "pixel_image",
     .source = "CIFAR-10 (Krizhevsky 2009), MNIST (LeCun et al. 1998); Long Range Arena, arXiv "
               "2011.04006",
     .summary = "gray pixels of real images, from files of the user's: which of ten classes?",
     .labelled = true,
     .notes =
         {"n = 1024 for CIFAR-10, 784 for MNIST; a token is a brightness, no position is padding",
          "results are identified by the path, not by what the files hold"}},
    {param("path", &Params::path,
           "folder or file of CIFAR-10 records (binary version), or IDX file of images"),
     param("labels", &Params::labels, "IDX file of the labels")}};

}  // namespace
}  // namespace subquad
