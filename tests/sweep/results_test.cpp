#include <fcntl.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdio>

#include "harness/sweep/append_file.h"
#include "harness/sweep/attempts_log.h"
#include "harness/sweep/csv.h"
#include "harness/sweep/results_csv.h"
#include "harness/sweep/results_store.h"
#include "harness/sweep/row.h"
#include "tests/fixtures/sweep_fixture.h"

using namespace subquad;
using fixture::slurp;
using fixture::spill;
using fixture::TemporaryDirectory;

namespace {

struct OpenDirectory {
  explicit OpenDirectory(const std::string& path) : fd(open(path.c_str(), O_RDONLY)) {}
  ~OpenDirectory() { close(fd); }
  int fd;
};

RowFields make_row(int number, const std::string& reason = "") {
  return {{"cell_id", fmt::format("{:016x}", number)},
          {"round", "0"},
          {"attempt", "1"},
          {"status", reason.empty() ? "ok" : "error"},
          {"reason", reason},
          {"method", "dense"},
          {"label", "a, \"quoted\" label"},
          {"time_s", fmt::format("{}", 1e-3 / (number + 1))}};
}

std::string store_text(int rows) {
  std::string text = results_header();
  for (int i = 0; i < rows; ++i) text += results_line(make_row(i));
  return text;
}

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const StorageError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("text becomes one harmless line", "[results]") {
  CHECK(single_line("a\nb\tc\rd") == "a\\nb\\tc\\rd");
  CHECK(single_line(std::string_view("\0\x1b\x7f", 3)) == "\\x00\\x1b\\x7f");
  CHECK(single_line("=cmd()") == "'=cmd()");
  CHECK(single_line("+a") == "'+a");
  CHECK(single_line("@a") == "'@a");
  CHECK(single_line("-a") == "'-a");
  CHECK(single_line("-") == "'-");
  for (const char* number : {"-1", "-1.5e-07", "+3", "-.5", "-2.", "1e300"})
    CHECK(single_line(number) == number);
  CHECK(single_line("-1e") == "'-1e");
  CHECK(single_line("-1+cmd") == "'-1+cmd");
  CHECK(single_line("fen\xc3\xaatre") == "fen\xc3\xaatre");
  CHECK(single_line("\xc3(") == "\\xc3(");
  CHECK(single_line("\xed\xa0\x80") == "\\xed\\xa0\\x80");  // a surrogate
  CHECK(single_line(std::string(1000, 'x')) == std::string(1000, 'x'));
  CHECK(single_line(std::string(2000, 'x')) == std::string(997, 'x') + "...");
  CHECK(single_line("abcd\xc3\xaaxyz", 8) == "abcd...");  // no half character
  // A row that is read and written again keeps its bytes.
  Random random(5, "lines");
  for (int i = 0; i < 2000; ++i) {
    std::string text;
    const std::uint64_t length = random.below(40);
    for (std::uint64_t k = 0; k < length; ++k) text += "a.=\n\x7f\xc3\xaa\xf4\x8f"[random.below(9)];
    const std::string line = single_line(text, 20);
    CHECK(line.size() <= 20);
    CHECK(single_line(line, 20) == line);
  }
}

TEST_CASE("fields survive quoting and splitting", "[results]") {
  Random random(4, "csv");
  for (int i = 0; i < 2000; ++i) {
    std::vector<std::string> fields;
    std::string line;
    const std::uint64_t count = 1 + random.below(5);
    for (std::uint64_t j = 0; j < count; ++j) {
      std::string text;
      const std::uint64_t length = random.below(8);
      for (std::uint64_t k = 0; k < length; ++k) text += "a,\" ;'\xc3"[random.below(7)];
      fields.push_back(single_line(text));
      if (j > 0) line += ',';
      line += csv_field(fields.back());
    }
    const auto back = split_csv(line);
    REQUIRE(back.has_value());
    CHECK(*back == fields);
  }
  CHECK_FALSE(split_csv("a,\"b"));
  CHECK_FALSE(split_csv("a,b\"c"));
  CHECK_FALSE(split_csv("\"a\"b,c"));
  CHECK_FALSE(split_csv("a\tb"));
  CHECK_FALSE(split_csv("a\xff"));
  CHECK(split_csv("").value().size() == 1);
  CHECK(split_csv(",").value().size() == 2);
}

TEST_CASE("crc32 gives the published check value", "[results]") {
  CHECK(crc32("123456789") == 0xcbf43926u);
  CHECK(crc32("") == 0u);
}

TEST_CASE("a row reads back as it was written", "[results]") {
  const RowFields row = make_row(7, "first line\nsecond, with \"quotes\"");
  const auto rows = parse_results_csv(results_header() + results_line(row), "x.csv");
  REQUIRE(rows.size() == 1);
  CHECK(rows[0].at("reason") == "first line\\nsecond, with \"quotes\"");
  CHECK(rows[0].at("label") == "a, \"quoted\" label");
  CHECK(rows[0].at("time_s") == row.at("time_s"));
  CHECK(rows[0].at("gflops").empty());
  CHECK(rows[0].size() == std::size(kColumns));
  CHECK_THROWS_AS(results_line({{"no_such_column", "1"}}), InternalError);
}

TEST_CASE("python's csv and pandas read the same rows", "[results]") {
  const TemporaryDirectory directory;
  spill(directory / "results.csv",
        results_header() + results_line(make_row(1, "=a, \"b\"\nc")) + results_line(make_row(2)));
  const std::string script =
      "import csv,sys\n"
      "rows=list(csv.DictReader(open(sys.argv[1])))\n"
      "assert [r['reason'] for r in rows]==[\"'=a, \\\"b\\\"\\\\nc\",''], rows\n"
      "assert rows[0]['label']=='a, \"quoted\" label', rows\n"
      "assert float(rows[1]['time_s'])==1e-3/3\n"
      "try:\n import pandas\nexcept ImportError: sys.exit(0)\n"
      "table=pandas.read_csv(sys.argv[1])\n"
      "assert len(table)==2 and abs(table.time_s[1]-1e-3/3)<1e-12\n";
  spill(directory / "check.py", script);
  if (std::system("python3 -c '' 2>/dev/null") != 0) {
    WARN("no python3 here");
    return;
  }
  CHECK(std::system(fmt::format("python3 {} {}", directory / "check.py", directory / "results.csv")
                        .c_str()) == 0);
}

TEST_CASE("a header is checked, and a part of the columns is enough for reading", "[results]") {
  const std::string id(16, 'a');
  CHECK(parse_results_csv("cell_id,round,status\n" + id + ",0,ok\n", "x").size() == 1);
  CHECK(parse_results_csv("", "x").empty());
  CHECK(parse_results_csv("cell_id,rou", "x").empty());
  CHECK_THROWS_AS(parse_results_csv("cell_id,round,status,colour\n", "x"), StorageError);
  CHECK_THROWS_AS(parse_results_csv("cell_id,round,status,round\n", "x"), StorageError);
  CHECK_THROWS_AS(parse_results_csv("cell_id,round\n", "x"), StorageError);
  CHECK(message_of([&] {
          parse_results_csv("cell_id,round,status\n" + id + ",0,ok\n" + id + ",0\n", "x.csv");
        }) == "x.csv:3: byte 43: the row has 2 fields, the header has 3");
  CHECK_THROWS_AS(parse_results_csv("cell_id,round,status\n" + id + ",0,fine\n", "x"),
                  StorageError);
  CHECK_THROWS_AS(parse_results_csv("cell_id,round,status\n" + id + ",-1,ok\n", "x"), StorageError);
  CHECK_THROWS_AS(read_results_csv("/no/such/file"), StorageError);
}

TEST_CASE("the last of several rows of a cell and round is final", "[results]") {
  auto interrupted = make_row(1, "why"), later = make_row(1), other = make_row(1);
  interrupted["status"] = "interrupted";
  later["attempt"] = "2";
  other["round"] = "1";
  const auto rows = final_rows({interrupted, make_row(2), other, later});
  REQUIRE(rows.size() == 3);
  CHECK(rows[0].at("cell_id") == make_row(2).at("cell_id"));
  CHECK(rows[1].at("round") == "1");
  CHECK(rows[2].at("attempt") == "2");
}

TEST_CASE("a file cut at any byte of its last two lines keeps every whole row", "[results]") {
  const std::string text = store_text(5);
  const std::string last_two = results_line(make_row(3)) + results_line(make_row(4));
  for (std::size_t size = text.size() - last_two.size(); size <= text.size(); ++size) {
    const TemporaryDirectory path;
    const OpenDirectory directory(path.str());
    spill(path / "results.csv", text.substr(0, size));
    FileCalls calls;
    calls.fdatasync = [](int) { return 0; };  // hundreds of times would take long
    ResultsStore store(directory.fd, path.str(), calls);
    const std::size_t whole = static_cast<std::size_t>(
        std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(size), '\n'));
    INFO("cut at byte " << size);
    REQUIRE(store.rows().size() == whole - 1);
    const bool torn = text[size - 1] != '\n';
    REQUIRE(store.torn().size() == (torn ? 1u : 0u));
    REQUIRE(std::filesystem::exists(path / "torn.csv") == torn);
    // What follows is not glued to the tail.
    for (std::size_t i = whole - 1; i < 5; ++i) store.append(make_row(static_cast<int>(i)), {});
    store.close();
    REQUIRE(slurp(path / "results.csv") == text);
  }
}

TEST_CASE("a torn tail is kept aside as it was", "[results]") {
  const TemporaryDirectory path;
  const OpenDirectory directory(path.str());
  const std::string tail = results_line(make_row(2)).substr(0, 60);
  spill(path / "results.csv", store_text(2) + tail);
  ResultsStore(directory.fd, path.str()).close();
  const auto fields =
      split_csv(slurp(path / "torn.csv").substr(0, slurp(path / "torn.csv").size() - 1));
  REQUIRE(fields.has_value());
  REQUIRE(fields->size() == 4);
  CHECK(fields->at(3) == tail);
  CHECK(fields->at(2) == std::to_string(store_text(2).size()));
}

TEST_CASE("a damaged byte in the middle stops with file, line and offset", "[results]") {
  const std::string text = store_text(4);
  const std::string line = results_line(make_row(1));
  const std::size_t start = text.find(line);
  for (const int mask : {0x01, 0x20, 0x80, 0xff}) {
    for (std::size_t i = 0; i < line.size(); ++i) {
      std::string damaged = text;
      damaged[start + i] = static_cast<char>(damaged[start + i] ^ mask);
      INFO("byte " << i << " of the line, mask " << mask);
      const std::string message =
          message_of([&] { parse_results_csv(damaged, "dir/results.csv"); });
      // A damaged byte may look like a newline, and then the next line is the broken one; its
      // damaged newline glues two lines together.
      REQUIRE(message.find("dir/results.csv:3: byte ") == 0);
      REQUIRE(message.find(fmt::format("byte {}: ", start)) != std::string::npos);
    }
  }
}

TEST_CASE("a store with other columns, or behind a link, is not touched", "[results]") {
  const TemporaryDirectory path;
  const OpenDirectory directory(path.str());
  spill(path / "results.csv", "cell_id,round,status\n");
  CHECK_THROWS_AS(ResultsStore(directory.fd, path.str()), StorageError);
  CHECK(slurp(path / "results.csv") == "cell_id,round,status\n");
  std::filesystem::remove(path / "results.csv");
  std::filesystem::create_symlink("/tmp/elsewhere", path / "results.csv");
  CHECK(message_of([&] { ResultsStore(directory.fd, path.str()); }).find("symbolic link") !=
        std::string::npos);
}

TEST_CASE("samples are stored beside the row and checked", "[results]") {
  const TemporaryDirectory path;
  const OpenDirectory directory(path.str());
  {
    ResultsStore store(directory.fd, path.str());
    store.append(make_row(1), {0.5, 1.0 / 3});
    store.close();
  }
  CHECK(slurp(path / "samples.csv") ==
        "cell_id,round,attempt,index,seconds\n"
        "0000000000000001,0,1,0,0.5\n"
        "0000000000000001,0,1,1,0.3333333333333333\n");
  spill(path / "samples.csv", slurp(path / "samples.csv") + "0000000000000001,0,1,2,0.1");
  ResultsStore(directory.fd, path.str()).close();  // a torn tail is cut here as well
  CHECK(slurp(path / "samples.csv").ends_with("0.3333333333333333\n"));
  spill(path / "samples.csv",
        "cell_id,round,attempt,index,seconds\nrubbish\n0000000000000001,0,1,1,0.3\n");
  CHECK(message_of([&] {
          ResultsStore(directory.fd, path.str());
        }).find("samples.csv:2: byte 36") != std::string::npos);
}

TEST_CASE("every failing system call is survived or reported, wherever it happens", "[results]") {
  // As SQLite does it: fail the n-th call, for every n, once and for ever.
  for (const bool for_ever : {false, true}) {
    for (const int error : {ENOSPC, EIO}) {
      for (const bool short_write : {false, true}) {
        for (int fail_at = 1; fail_at <= 14; ++fail_at) {
          const TemporaryDirectory path;
          const OpenDirectory directory(path.str());
          int calls = 0;
          const auto fails = [&] {
            ++calls;
            return for_ever ? calls >= fail_at : calls == fail_at;
          };
          FileCalls file_calls;
          file_calls.pause = [](useconds_t) { return 0; };
          file_calls.write = [&](int fd, const void* data, std::size_t size) -> ssize_t {
            if (!fails()) return write(fd, data, size);
            if (short_write) return write(fd, data, size / 2);
            errno = error;
            return -1;
          };
          file_calls.fdatasync = [&](int fd) {
            if (!fails()) return fdatasync(fd);
            errno = error;
            return -1;
          };
          INFO("call " << fail_at << " fails, for ever: " << for_ever << ", errno " << error
                       << ", short: " << short_write);
          std::size_t stored = 0;
          std::string unsaved;
          try {
            ResultsStore store(directory.fd, path.str(), file_calls);
            for (int i = 0; i < 3; ++i, ++stored) store.append(make_row(i), {0.1});
            store.close();
          } catch (const UnsavedRow& failure) {
            unsaved = failure.row;
          } catch (const StorageError&) {
          }
          if (!for_ever) REQUIRE(stored == 3);
          if (stored < 3 && !unsaved.empty())
            REQUIRE(unsaved == results_line(make_row(static_cast<int>(stored))));
          // Whatever happened: what was stored is there, nothing more, nothing torn.
          const std::string text = slurp(path / "results.csv");
          REQUIRE((text.empty() || text == store_text(static_cast<int>(stored))));
          ResultsStore again(directory.fd, path.str());
          REQUIRE(again.rows().size() == stored);
          REQUIRE(again.torn().empty());
        }
      }
    }
  }
}

TEST_CASE("a full device is reported by append", "[results]") {
  const OpenDirectory directory("/dev");
  AppendFile file(directory.fd, "/dev", "full", Durability::process_death);
  CHECK(message_of([&] { file.append("a line\n"); }) ==
        "/dev/full: write failed: No space left on device");
}

TEST_CASE("a late failure of close is reported", "[results]") {
  const TemporaryDirectory path;
  const OpenDirectory directory(path.str());
  FileCalls calls;
  calls.close = [](int fd) {
    close(fd);
    errno = EDQUOT;
    return -1;
  };
  ResultsStore store(directory.fd, path.str(), calls);
  CHECK(message_of([&] { store.close(); }).find("close failed") != std::string::npos);
}

TEST_CASE("attempts are numbered over process ends", "[results]") {
  const TemporaryDirectory path;
  const OpenDirectory directory(path.str());
  const std::string a(16, 'a'), b(16, 'b');
  {
    AttemptsLog log(directory.fd, path.str());
    CHECK(log.start(a, 0) == 1);
    CHECK(log.start(a, 0) == 2);
    CHECK(log.start(a, 1) == 1);
  }
  spill(path / "attempts.log", slurp(path / "attempts.log") + b + " 0 1 20");  // torn
  AttemptsLog log(directory.fd, path.str());
  CHECK(log.last(a, 0) == 2);
  CHECK(log.last(b, 0) == 0);
  log.known(b, 0, 4);  // the log lost a line, the row is there
  CHECK(log.start(b, 0) == 5);
  CHECK(log.start(a, 0) == 3);
}

TEST_CASE("every column is documented in results/README.md", "[results]") {
  const std::string page = slurp(SUBQUAD_SOURCE_DIR "/results/README.md");
  for (const Column& column : kColumns) {
    INFO(column.name);
    CHECK(page.find(fmt::format("| `{}` |", column.name)) != std::string::npos);
  }
  for (const Status status : kAllStatuses) {
    INFO(name(status));
    CHECK(page.find(fmt::format("| `{}` |", name(status))) != std::string::npos);
  }
  // Rows of earlier versions begin with the same columns.
  // Columns are only ever added at the end: readers of old files find these where they were.
  CHECK(kColumns[0].name == "cell_id");
  CHECK(kColumns[69].name == "line_crc");
}
