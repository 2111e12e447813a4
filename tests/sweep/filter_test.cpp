#include <catch2/catch.hpp>

#include "harness/sweep/config.h"

using namespace subquad;

namespace {

std::vector<Cell> sample() {
  std::vector<Cell> cells;
  for (const char* method : {"fixture_plain", "fixture_window"})
    for (const Index n : {256, 1024, 4096})
      for (const bool causal : {false, true})
        for (const Index window : {64, 256}) {
          if (std::string(method) == "fixture_plain" && window == 256) continue;
          Cell cell;
          cell.method = method;
          cell.task = "fixture_data";
          cell.task_settings = {{"temperature", 0.5}};
          if (cell.method == "fixture_window")
            cell.method_settings = {{"window", window}, {"mode", std::string("fast")}};
          cell.label =
              cell.method == "fixture_window" ? "window, " + std::to_string(window) : "plain";
          cell.problem = {.batch = 1, .heads = 2, .n = n, .n_kv = n, .causal = causal};
          cell.seed = static_cast<Seed>(n);
          cells.push_back(cell);
        }
  return cells;  // 6 plain, 12 window
}

std::size_t kept(const std::string& expression) {
  return filter_cells(sample(), expression).size();
}

std::string refused(const std::string& expression) {
  try {
    filter_cells(sample(), expression);
    return "";
  } catch (const UserError& error) {
    return error.what();
  }
}

}  // namespace

TEST_CASE("a filter keeps the cells that match every condition", "[filter]") {
  CHECK(kept("") == 18);
  CHECK(kept("method=fixture_plain") == 6);
  CHECK(kept("method!=fixture_plain") == 12);
  CHECK(kept("method=fixture_plain|fixture_window") == 18);
  CHECK(kept("method!=fixture_plain|fixture_window") == 0);
  CHECK(kept("n=1024") == 6);
  CHECK(kept("n=256|4096") == 12);
  CHECK(kept("n<1024") == 6);
  CHECK(kept("n<=1024") == 12);
  CHECK(kept("n>1024") == 6);
  CHECK(kept("n>=1024") == 12);
  CHECK(kept("n>=1024,n<=1024") == 6);
  CHECK(kept("n=256,n=1024") == 0);
  CHECK(kept("n_kv<1e3") == 6);
  CHECK(kept("causal=true") == 9);
  CHECK(kept("causal=0") == 9);
  CHECK(kept("causal!=true") == 9);
  CHECK(kept("scale=0.125,heads=2,batch=1,d_k=64,d_v=64,threads=1,pass=forward") == 18);
  CHECK(kept("seed=4096") == 6);
  CHECK(kept(" method = fixture_window , n <= 1024 ") == 8);
}

TEST_CASE("a condition on a parameter keeps only cells that have it", "[filter]") {
  CHECK(kept("window=64") == 6);
  CHECK(kept("window!=64") == 6);
  CHECK(kept("window>64") == 6);
  CHECK(kept("window>0") == 12);
  CHECK(kept("mode=fast") == 12);
  CHECK(kept("mode=nothing") == 0);
  CHECK(kept("temperature=0.5") == 18);
  CHECK(kept("temperature<0.5") == 0);
}

TEST_CASE("a cell is found by its id and by its label", "[filter]") {
  const std::vector<Cell> cells = sample();
  for (const Cell& cell : cells) {
    const auto found = filter_cells(cells, "cell=" + cell.id());
    REQUIRE(found.size() == 1);
    CHECK(found[0].str() == cell.str());
  }
  CHECK(kept("label=\"window, 64\"") == 6);
  CHECK(kept("label=plain|\"window, 256\"") == 12);
}

TEST_CASE("the order of cells stays", "[filter]") {
  const std::vector<Cell> cells = sample(), some = filter_cells(cells, "n>256");
  std::size_t at = 0;
  for (const Cell& cell : some) {
    while (at < cells.size() && cells[at].id() != cell.id()) ++at;
    REQUIRE(at < cells.size());
  }
  CHECK(some.size() == 12);
}

TEST_CASE("a bad filter says what is wrong with it", "[filter]") {
  CHECK(refused("windw=64") ==
        "--filter \"windw=64\": unknown key \"windw\"; did you mean \"window\"?");
  CHECK(refused("xyzzy=64").find("; known: cell, method, label, task, pass, batch") !=
        std::string::npos);
  CHECK(refused("method=fixture_plane") ==
        "--filter \"method=fixture_plane\": unknown method \"fixture_plane\"; did you mean "
        "\"fixture_plain\"?");
  CHECK(refused("pass=forwards").find("did you mean \"forward\"?") != std::string::npos);
  CHECK(refused("task=x").find("unknown task \"x\"") != std::string::npos);
  CHECK(refused("n") ==
        "--filter \"n\": \"n\" is no condition; expected KEY=VALUE, with = != < <= > or >=");
  CHECK(refused("n=abc") == "--filter \"n=abc\": n: got \"abc\", expected a number");
  CHECK(refused("n=256|x").find("got \"x\", expected a number") != std::string::npos);
  CHECK(refused("n=nan").find("expected a number") != std::string::npos);
  CHECK(refused("causal=yes").find("expected true or false") != std::string::npos);
  CHECK(refused("method<fixture").find("method is no number; expected = or !=") !=
        std::string::npos);
  CHECK(refused("causal>false").find("causal is no number") != std::string::npos);
  CHECK(refused("n<256|512").find("works with = and != only") != std::string::npos);
  for (const char* bad : {"n==256", "n=", "=256", "n!256", "n=<256", "n=256,", ",", "n=256||512",
                          "n=\"256", "n=256|", "n<", "!", "="})
    CHECK_THROWS_AS(filter_cells(sample(), bad), UserError);
}
