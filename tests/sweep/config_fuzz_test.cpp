// Damaged configs never crash, hang, or throw anything but a ConfigError.
#include <stdlib.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>

#include "harness/core/random.h"
#include "harness/sweep/config.h"

using namespace subquad;

namespace {

const std::string kGood = R"(# a config with a bit of everything
name: fuzz
description: "text with \"quotes\" and 'more'"
seed: 1
seeds: &some [1, 2]
rounds: 3
threads: [1, 2]
passes: [forward, backward]
problem:
  batch: 1
  heads: [1, 2]
  n: [256, 512]
  n_kv: same
  head_dim: 64
  causal: [true, false]
  scale: auto
methods:
  - fixture_plain
  - {name: fixture_window, window: [64, 256], label: "window {window}", max_n: 400}
  - name: fixture_window
    sinks: 4
    ratio: .5
    mode: slow
    note: 'it''s'
tasks:
  - {name: fixture_data, needles: *some, temperature: 0.5}
  - fixture_fixed
measure: {min_time_s: 1e-3, repetitions: 5, pin: false}
error:
  max_gflop: 20
  rows: 256
plots: true
)";

std::string damaged(Random* random) {
  std::string text = kGood;
  const std::string interesting("[]{}:,&*!|>'\"%@`-?#~ \t\n\r\0\x04\x7f\xff\xc3<0x.e", 35);
  const auto position = [&] { return static_cast<std::size_t>(random->below(text.size() + 1)); };
  for (std::uint64_t edits = 1 + random->below(2); edits > 0 && !text.empty(); --edits) {
    const std::size_t at = std::min(position(), text.size() - 1);
    switch (random->below(7)) {
      case 0:  // flip a bit
        text[at] = static_cast<char>(text[at] ^ (1 << random->below(8)));
        break;
      case 1:  // any byte
        text[at] = static_cast<char>(random->below(256));
        break;
      case 2:  // a byte that means something in YAML
        text.insert(at, 1, interesting[random->below(interesting.size())]);
        break;
      case 3:  // delete some bytes
        text.erase(at, 1 + random->below(10));
        break;
      case 4: {  // repeat a line, here or elsewhere
        const std::size_t start = text.rfind('\n', at);
        const std::size_t first = start == std::string::npos ? 0 : start + 1;
        const std::size_t end = std::min(text.find('\n', at), text.size());
        if (first < end)
          text.insert(std::min(position(), text.size()), text.substr(first, end - first) + "\n");
        break;
      }
      case 5:  // cut the end off
        text.resize(at);
        break;
      default: {  // copy a piece over another
        const std::string piece = text.substr(at, 1 + random->below(30));
        text.insert(std::min(position(), text.size()), piece);
        break;
      }
    }
  }
  return text;
}

}  // namespace

TEST_CASE("two thousand damaged configs load or are refused in clear lines", "[config][fuzz]") {
  std::string folder = (std::filesystem::temp_directory_path() / "subquad_fuzz_XXXXXX").string();
  REQUIRE(mkdtemp(folder.data()) != nullptr);
  const std::string path = folder + "/fuzz.yaml";
  int fine = 0, refused = 0;
  for (std::uint64_t i = 0; i < 2000; ++i) {
    Random random(20240501, "config fuzz", {i});
    const std::string text = damaged(&random);
    std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
    INFO("case " << i << ":\n" << text);
    try {
      const Config config = load_config(path);
      ++fine;
      REQUIRE_FALSE(config.cells.empty());
      for (const Cell& cell : config.cells) REQUIRE(invalid_reason(cell.problem).empty());
      // Whatever was accepted is written so that it reads back to the same.
      std::ofstream(path, std::ios::binary | std::ios::trunc) << config.resolved_yaml;
      const Config again = load_config(path);
      REQUIRE(again.cells.size() == config.cells.size());
      for (std::size_t k = 0; k < config.cells.size(); ++k)
        if (again.cells[k].id() != config.cells[k].id()) FAIL("cell " << k << " changed");
    } catch (const ConfigError& error) {
      ++refused;
      const std::string message = error.what();
      REQUIRE(message.starts_with(path + ":"));
      for (const char c : message) {
        const bool printable = c == '\n' || (static_cast<unsigned char>(c) >= 0x20 && c != 0x7f);
        REQUIRE(printable);
      }
    }
  }
  std::filesystem::remove_all(folder);
  // The damage is neither harmless nor total.
  CHECK(fine > 50);
  CHECK(refused > 500);
}
