// Pathfinder: the generator's invariants, its statistics against the reference's output, and
// damaged files.
#include <catch2/catch.hpp>
#include <fstream>
#include <map>
#include <numeric>
#include <sstream>

#include "tasks/pathfinder_image.h"
#include "tests/tasks/damage.h"
#include "tests/tasks/labelled.h"
#include "tests/tasks/statistics.h"

using namespace subquad;
using pathfinder::Point;
using pathfinder::Trace;

namespace {

const std::string kFixtures = SUBQUAD_SOURCE_DIR "/tests/fixtures/pathfinder/";

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string((std::istreambuf_iterator<char>(file)), {});
}

// What an image shows, for comparison with the reference.
const std::vector<std::string> kMeasures = {"mean",    "zeros",    "b1_7",     "b8_31",   "b32_63",
                                            "b64_127", "b128_191", "b192_239", "b240_255"};
using Measures = std::map<std::string, std::vector<double>>;

void add(const std::uint8_t* image, Index size, std::int32_t label, Measures* to) {
  double sum = 0;
  const int edges[] = {0, 1, 8, 32, 64, 128, 192, 240, 256};
  std::vector<double> bins(8);
  for (Index i = 0; i < size; ++i) {
    sum += image[i];
    std::size_t bin = 0;
    while (image[i] >= edges[bin + 1]) ++bin;
    bins[bin] += 1;
  }
  (*to)["label"].push_back(label);
  (*to)["mean"].push_back(sum / static_cast<double>(size));
  for (std::size_t b = 0; b < 8; ++b)
    (*to)[kMeasures[b + 1]].push_back(bins[b] / static_cast<double>(size));
  (*to)["above_127"].push_back((bins[5] + bins[6] + bins[7]) / static_cast<double>(size));
}

// The statistics of a reference file, one line an image of 1024 pixels.
Measures reference(const std::string& name) {
  Measures out;
  std::ifstream file(kFixtures + name);
  std::string line;
  std::getline(file, line);
  while (std::getline(file, line)) {
    std::istringstream in(line);
    std::string field;
    std::getline(in, field, ',');
    out["label"].push_back(std::stod(field));
    for (const std::string& measure : kMeasures) {
      std::getline(in, field, ',');
      out[measure].push_back(std::stod(field) / 1024);
    }
    out["above_127"].push_back(out["b128_191"].back() + out["b192_239"].back() +
                               out["b240_255"].back());
  }
  return out;
}

}  // namespace

TEST_CASE("pathfinder images match the reference generator's output", "[pathfinder]") {
  struct Case {
    Index contour, references;
    const char* file;
  };
  for (const Case& c :
       {Case{14, 320, "len14_statistics.csv"}, Case{6, 60, "len6_statistics.csv"}}) {
    Measures theirs = reference(c.file), ours;
    REQUIRE(theirs["label"].size() == static_cast<std::size_t>(c.references));
    const TokenBatch batch =
        make_task("pathfinder", {{"contour", c.contour}})->tokens(Split::train, 0, 2000, 1024, 1);
    for (Index e = 0; e < batch.batch; ++e) {
      Bytes image;
      for (Index t = 0; t < 1024; ++t)
        image.push_back(static_cast<std::uint8_t>(example(batch, e).x[t]));
      add(image.data(), 1024, *example(batch, e).y, &ours);
    }
    std::vector<std::string> measures = kMeasures;
    measures.push_back("above_127");
    for (const std::string& measure : measures) {
      const double z = welch(ours[measure], theirs[measure]);
      const double ks = kolmogorov_smirnov(ours[measure], theirs[measure]);
      INFO("contour " << c.contour << " " << measure << " z " << z << " KS " << ks);
      if (std::getenv("SUBQUAD_SHOW_STATISTICS"))
        WARN("pathfinder contour "
             << c.contour << ", 2000 images against " << c.references << ": " << measure << " mean "
             << moments(ours[measure]).mean << " / " << moments(theirs[measure]).mean
             << ", deviation " << moments(ours[measure]).deviation << " / "
             << moments(theirs[measure]).deviation << ", Welch " << z << " (limit 3.3), KS " << ks
             << " (limit 1.95)");
      CHECK(std::fabs(z) < 3.3);
      CHECK(ks < 1.95);
    }
    const double positive = moments(ours["label"]).mean;
    CHECK(positive == Approx(0.5).margin(4 * 0.5 / std::sqrt(2000.0)));
  }
}

TEST_CASE("pathfinder contours have their paddles, apart from each other", "[pathfinder]") {
  for (const auto& [window, contour, images] :
       {std::tuple(Index{16}, Index{0}, 300), std::tuple(Index{32}, Index{14}, 100),
        std::tuple(Index{32}, Index{6}, 300), std::tuple(Index{64}, Index{6}, 10),
        std::tuple(Index{128}, Index{6}, 4)}) {
    pathfinder::Settings s;
    REQUIRE(pathfinder::settings_for(window, contour, &s));
    const pathfinder::Generator generator(s);
    for (int i = 0; i < images; ++i) {
      Trace t;
      const Bytes image = generator.draw(derive(1, "test", {static_cast<std::uint64_t>(i)}), 1, &t);
      if (*std::min_element(image.begin(), image.end()) != 0 ||
          *std::max_element(image.begin(), image.end()) != 255)
        FAIL_CHECK("range");
      const auto apart = [](const Point& a, const Point& b) {
        return std::hypot(static_cast<double>(a.y - b.y), static_cast<double>(a.x - b.x));
      };
      if (!(apart(t.origin[0], t.origin[1]) <= static_cast<double>(s.seed_distance) + 1))
        FAIL_CHECK("origins");
      if (!(t.largest_overlap < 1.8)) FAIL_CHECK("overlap");
      for (int which = 0; which < 2; ++which) {
        const std::vector<Point>& at = t.segments[which];
        if (at.size() != static_cast<std::size_t>(s.contour)) FAIL_CHECK("paddles");
        if (!(at.front() == t.origin[which] && at.back() == t.tip[which])) FAIL_CHECK("ends");
        // A paddle starts where the next one's end, less the margins, is reached.
        for (std::size_t j = 2; j < at.size(); ++j)
          if (!(apart(at[j], at[j - 1]) <= 2 * static_cast<double>(s.length + 2 * 3) + 3))
            FAIL_CHECK("a gap of " << apart(at[j], at[j - 1]));
      }
      if (t.distractors > s.distractors) FAIL_CHECK("distractors");
    }
  }
}

TEST_CASE("pathfinder's label moves one disc and nothing else", "[pathfinder]") {
  pathfinder::Settings s;
  REQUIRE(pathfinder::settings_for(32, 14, &s));
  const pathfinder::Generator generator(s);
  std::vector<double> same, other;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    Trace t1, t0;
    const Bytes one = generator.draw(derive(2, "test", {i}), 1, &t1);
    const Bytes zero = generator.draw(derive(2, "test", {i}), 0, &t0);
    const int which = t1.discs[0] == t1.origin[0] ? 0 : 1;
    if (!(t1.discs[1] == t1.tip[which] && t0.discs[0] == t1.discs[0] &&
          t0.discs[1] == t1.tip[1 - which]))
      FAIL_CHECK("discs");
    Index changed = 0;
    for (Index y = 0; y < 32; ++y)
      for (Index x = 0; x < 32; ++x) {
        if (one[static_cast<std::size_t>(32 * y + x)] == zero[static_cast<std::size_t>(32 * y + x)])
          continue;
        ++changed;
        const auto near = [&](const Point& p) {
          return std::abs(p.y - y) <= 5 && std::abs(p.x - x) <= 5;
        };
        if (!near(t1.tip[0]) && !near(t1.tip[1])) FAIL_CHECK("a change far from the tips");
      }
    // The last paddles of the two are not kept apart (as in the source), so tips can coincide.
    if (changed == 0 && !(t1.tip[0] == t1.tip[1])) FAIL_CHECK("no change");
    const auto distance = [](const Trace& t) {
      return std::hypot(static_cast<double>(t.discs[0].y - t.discs[1].y),
                        static_cast<double>(t.discs[0].x - t.discs[1].x));
    };
    same.push_back(distance(t1));
    other.push_back(distance(t0));
  }
  // The distance of the discs says little: the best threshold stays below 56 %.
  double best = 0;
  for (double limit = 0; limit < 45; limit += 0.5) {
    double right = 0;
    for (const double d : same) right += d < limit;
    for (const double d : other) right += d >= limit;
    best = std::max({best, right / 2000, 1 - right / 2000});
  }
  INFO("best threshold " << best);
  CHECK(best < 0.56);
}

TEST_CASE("pathfinder takes squares of known sides and contours that fit", "[pathfinder]") {
  CHECK(refused("pathfinder", {}, 64) ==
        "pathfinder: n=64 positions of 1 make 64 pixels, expected 256, 1024, 4096, 16384 or 65536");
  CHECK(refused("pathfinder", {{"patch", Index{2}}}, 64).empty());
  CHECK(
      refused("pathfinder", {{"patch", Index{3}}}, 64) ==
      "pathfinder: n=64 positions of 9 make 576 pixels, expected 256, 1024, 4096, 16384 or 65536");
  CHECK(refused("pathfinder", {{"contour", Index{64}}}, 256) ==
        "pathfinder: no room for two contours of 64 paddles in 16 x 16");
  CHECK(refused("pathfinder", {{"contour", Index{6}}}, 4096).empty());
}

TEST_CASE("pathfinder reads IDX pairs and the archive's folder", "[pathfinder]") {
  const auto idx = make_task("pathfinder", {{"path", kFixtures + "len14-images-idx3-ubyte"},
                                            {"labels", kFixtures + "len14-labels-idx1-ubyte"}});
  const std::string pixels = bytes_of(kFixtures + "len14-images-idx3-ubyte").substr(16);
  const std::string labels = bytes_of(kFixtures + "len14-labels-idx1-ubyte").substr(8);
  const auto folder = make_task("pathfinder", {{"path", kFixtures + "folder"}});
  const auto check = [&](const Task& task, Split split, Index first_row, Index rows) {
    const TokenBatch batch = task.tokens(split, 0, rows, 1024, 1);
    for (Index e = 0; e < rows; ++e) {
      const Index row = first_row + e;
      CHECK(*example(batch, e).y == labels[static_cast<std::size_t>(row)]);
      for (Index t = 0; t < 1024; ++t)
        if (example(batch, e).x[t] !=
            static_cast<unsigned char>(pixels[static_cast<std::size_t>(1024 * row + t)]))
          FAIL("row " << row << " pixel " << t);
    }
  };
  check(*idx, Split::validation, 16, 2);
  check(*idx, Split::test, 18, 2);
  // 12 images, the empty one is left out: 9 train, 1 validation, 2 test. All kinds of packing.
  check(*folder, Split::validation, 9, 1);
  check(*folder, Split::test, 10, 2);
  const TokenBatch train = folder->tokens(Split::train, 0, 9, 1024, 1);
  std::set<std::string> ours, theirs;
  for (Index e = 0; e < 9; ++e) {
    const std::int32_t* x = example(train, e).x;
    ours.insert(std::string(x, x + 1024));
    theirs.insert(pixels.substr(static_cast<std::size_t>(1024 * e), 1024));
  }
  CHECK(ours == theirs);
  const auto packed = make_task("pathfinder", {{"path", kFixtures + "len6-images-idx3-ubyte.gz"},
                                               {"labels", kFixtures + "len6-labels-idx1-ubyte"}});
  const auto plain = make_task("pathfinder", {{"path", kFixtures + "len6-images-idx3-ubyte"},
                                              {"labels", kFixtures + "len6-labels-idx1-ubyte"}});
  CHECK(packed->tokens(Split::train, 0, 16, 1024, 1).tokens ==
        plain->tokens(Split::train, 0, 16, 1024, 1).tokens);
  CHECK_THROWS_WITH(plain->tokens(Split::train, 0, 1, 256, 1),
                    "pathfinder: images of 32 x 32 pixels do not make n=256 squares of 1");
  const auto squares = make_task("pathfinder", {{"path", kFixtures + "len6-images-idx3-ubyte"},
                                                {"labels", kFixtures + "len6-labels-idx1-ubyte"},
                                                {"patch", Index{8}}});
  const TokenBatch square = squares->tokens(Split::train, 0, 1, 16, 1);
  const TokenBatch whole = plain->tokens(Split::train, 0, 1, 1024, 1);
  Index same = 0;
  for (Index y = 0; y < 32; ++y)
    for (Index x = 0; x < 32; ++x)
      same += example(whole, 0).x[32 * y + x] ==
              example(square, 0).x[64 * (y / 8 * 4 + x / 8) + y % 8 * 8 + x % 8];
  CHECK(same == 1024);
}

TEST_CASE("a patch of pathfinder is a square of the image", "[pathfinder]") {
  const auto pixels = make_task("pathfinder", {{"contour", Index{6}}});
  const auto squares = make_task("pathfinder", {{"contour", Index{6}}, {"patch", Index{4}}});
  CHECK(squares->labels(64).tokens_per_position == 16);
  const TokenBatch a = pixels->tokens(Split::test, 3, 2, 1024, 5);
  const TokenBatch b = squares->tokens(Split::test, 3, 2, 64, 5);
  REQUIRE(b.tokens_per_position == 16);
  CHECK(a.labels == b.labels);
  Index same = 0;
  for (Index e = 0; e < 2; ++e)
    for (Index y = 0; y < 32; ++y)
      for (Index x = 0; x < 32; ++x)
        same += example(a, e).x[32 * y + x] ==
                example(b, e).x[16 * (y / 4 * 8 + x / 4) + y % 4 * 4 + x % 4];
  CHECK(same == 2 * 1024);
}

TEST_CASE("a curriculum of pathfinder eases the first training images alone", "[pathfinder]") {
  pathfinder::Settings s;
  REQUIRE(pathfinder::settings_for(32, 6, &s));
  const pathfinder::Generator generator(s);
  for (const auto& [share, paddles, distractors] :
       {std::tuple(0.0, 2, 0), std::tuple(0.5, 4, 5), std::tuple(1.0, 6, 10)}) {
    Index most = 0;
    for (std::uint64_t i = 0; i < 50; ++i) {
      Trace t;
      generator.draw(derive(4, "test", {i}), 1, &t, share);
      for (const auto& segments : t.segments)
        if (static_cast<int>(segments.size()) != paddles) FAIL_CHECK("paddles at " << share);
      most = std::max(most, t.distractors);
    }
    CHECK(most == distractors);
  }
  const auto plain = make_task("pathfinder", {{"contour", Index{6}}});
  const auto eased = make_task("pathfinder", {{"contour", Index{6}}, {"curriculum", Index{1000}}});
  const auto brightness = [](const Task& task, Split split, Index first) {
    const TokenBatch batch = task.tokens(split, first, 20, 1024, 1);
    return std::accumulate(batch.tokens.begin(), batch.tokens.end(), 0.0);
  };
  // An image without distractors has about half of the bright pixels; they come back one by one.
  const double all = brightness(*plain, Split::train, 0);
  const double start = brightness(*eased, Split::train, 0);
  CHECK(start < 0.6 * all);
  CHECK(brightness(*eased, Split::train, 230) < 0.6 * all);
  CHECK(brightness(*eased, Split::train, 900) > 1.2 * start);
  for (const auto& [split, first] : {std::pair(Split::train, Index{1000}),
                                     {Split::validation, Index{0}},
                                     {Split::test, Index{0}}}) {
    const TokenBatch a = plain->tokens(split, first, 20, 1024, 1);
    const TokenBatch b = eased->tokens(split, first, 20, 1024, 1);
    CHECK(a.tokens == b.tokens);
  }
  // The classes are those of the plain task throughout: the labels do not tell the stage.
  CHECK(plain->tokens(Split::train, 0, 200, 1024, 1).labels ==
        eased->tokens(Split::train, 0, 200, 1024, 1).labels);
}

TEST_CASE("pathfinder says what is wrong with a file", "[pathfinder]") {
  CHECK_THROWS_WITH(
      make_task("pathfinder", {{"path", kFixtures + "folder"}, {"curriculum", Index{10}}}),
      "pathfinder: got curriculum with path; only generated images can be easier");
  const TemporaryFolder files;
  const std::string images = bytes_of(kFixtures + "len14-images-idx3-ubyte");
  const std::string labels = bytes_of(kFixtures + "len14-labels-idx1-ubyte");
  const auto refusal = [&](const std::string& image_bytes, const std::string& label_bytes) {
    files.write("i", image_bytes);
    files.write("l", label_bytes);
    return not_made("pathfinder", {{"path", files.path("i")}, {"labels", files.path("l")}});
  };
  const std::string i = "pathfinder: " + files.path("i"), l = "pathfinder: " + files.path("l");
  CHECK(refusal(images, labels).empty());
  CHECK(refusal("abc", labels) == i + ": got 3 bytes, expected an IDX header of 16");
  CHECK(refusal(labels, labels) ==
        i + ": got 0x00000801 at offset 0, expected 0x00000803 (IDX, unsigned bytes, 3 axes)");
  CHECK(refusal(images.substr(0, 1000), labels) ==
        i + ": got 984 bytes after the header, expected 20480 for 20 images of 32 x 32");
  CHECK(refusal(images, labels.substr(0, 20)) ==
        l + ": got 12 bytes after the header, expected 20 for 20 labels");
  std::string bad = labels;
  bad[10] = 2;
  CHECK(refusal(images, bad) == l + ": label 2 at offset 10, expected less than 2");
  CHECK(not_made("pathfinder", {{"path", files.path("none")}, {"labels", files.path("l")}}) ==
        "pathfinder: " + files.path("none") +
            ": No such file or directory; without path: images are generated");
  CHECK(not_made("pathfinder", {{"path", files.path("i")}}) ==
        "pathfinder: got path without labels; expected both, or the archive's folder");
  CHECK(not_made("pathfinder", {{"path", files.path("")}}) ==
        "pathfinder: " + files.path("metadata") +
            ": not a directory; without path: images are generated");

  files.write("l", labels);
  CHECK(survives_damage(images, files, "i", 100, [&](const std::string& path) {
          make_task("pathfinder", {{"path", path}, {"labels", files.path("l")}});
        }) > 50);
  files.write("labels6", bytes_of(kFixtures + "len6-labels-idx1-ubyte"));
  CHECK(survives_damage(
            bytes_of(kFixtures + "len6-images-idx3-ubyte.gz"), files, "i.gz", 500,
            [&](const std::string& path) {
              make_task("pathfinder", {{"path", path}, {"labels", files.path("labels6")}});
            }) > 450);
  // A folder with one damaged image, and with damaged metadata.
  for (int image = 0; image < 12; ++image)
    files.write(fmt::format("set/imgs/0/sample_{}.png", image),
                bytes_of(fmt::format("{}folder/imgs/0/sample_{}.png", kFixtures, image)));
  files.write("set/imgs/0/sample_12.png", "");
  const std::string metadata = bytes_of(kFixtures + "folder/metadata/0.npy");
  files.write("set/metadata/0.npy", metadata);
  const auto read_set = [&](const std::string&) {
    make_task("pathfinder", {{"path", files.path("set")}});
  };
  CHECK(not_made("pathfinder", {{"path", files.path("set")}}).empty());
  for (const int image : {4, 10, 11}) {
    const std::string name = fmt::format("set/imgs/0/sample_{}.png", image);
    const std::string good =
        bytes_of(fmt::format("{}folder/imgs/0/sample_{}.png", kFixtures, image));
    CHECK(survives_damage(good, files, name, 200, read_set) > 150);
    files.write(name, good);
  }
  CHECK(survives_damage(metadata, files, "set/metadata/0.npy", 200, read_set) > 50);
  files.write("set/metadata/0.npy", "imgs/0 sample_0.png 0 2 1.0\n");
  CHECK(not_made("pathfinder", {{"path", files.path("set")}}) ==
        "pathfinder: " + files.path("set/metadata/0.npy") +
            ":1: got \"imgs/0 sample_0.png 0 2 1.0\", expected folder, file name, number and label "
            "0 or 1");
}

TEST_CASE("pathfinder reads the whole reference files where they are", "[.][reference_data]") {
  const char* folder = std::getenv("SUBQUAD_REFERENCE_DATA");
  REQUIRE(folder != nullptr);
  for (const char* name : {"len14", "len6"}) {
    const std::string stem = fmt::format("{}/pathfinder32_{}_reference-", folder, name);
    CHECK_NOTHROW(make_task("pathfinder", {{"path", stem + "images-idx3-ubyte"},
                                           {"labels", stem + "labels-idx1-ubyte"}}));
  }
}
