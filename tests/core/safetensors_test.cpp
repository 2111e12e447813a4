// The file format: there and back, and every way in which a file can be wrong.

#include "harness/core/safetensors.h"

#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "harness/core/error.h"

namespace subquad {
namespace {

namespace fs = std::filesystem;

struct Place {
  std::string path =
      (fs::temp_directory_path() / fmt::format("subquad_{}.safetensors", getpid())).string();
  ~Place() { fs::remove(path); }
  void put(const std::string& header, std::size_t data_bytes) const {
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    const std::uint64_t size = header.size();
    for (int i = 0; i < 8; ++i) file.put(static_cast<char>(size >> (8 * i)));
    file << header << std::string(data_bytes, 'x');
  }
};

TEST_CASE("two processes that write one file leave a whole one", "[model]") {
  const Place place;
  const std::vector<float> values(4096, 1.0f);
  const auto write = [&](Index count) {
    write_safetensors(place.path, {{"a", {count}, "F32", values.data()}}, {});
  };
  write(1);
  pid_t children[2];
  for (int c = 0; c < 2; ++c) {
    children[c] = fork();
    REQUIRE(children[c] >= 0);
    if (children[c] != 0) continue;
    try {
      for (int i = 0; i < 60; ++i) write(c == 0 ? 3 : 4096);
      _exit(0);
    } catch (...) {
      _exit(1);
    }
  }
  for (int i = 0; i < 200; ++i) {
    const Index count = read_safetensors(place.path).tensors.at("a").count();
    CHECK((count == 1 || count == 3 || count == 4096));
  }
  for (const pid_t child : children) {
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
  }
}

TEST_CASE("tensors and metadata come back as they were written", "[model]") {
  const Place place;
  const std::vector<float> a{1, -2.5f, 3e-30f, 0, 5, 6};
  const std::vector<std::int32_t> b{7};
  write_safetensors(place.path,
                    {{"a", {2, 3}, "F32", a.data()},
                     {"b", {}, "I32", b.data()},
                     {"none", {0, 4}, "F64", nullptr}},
                    {{"key", "value \" \n"}});
  const TensorFile file = read_safetensors(place.path);
  CHECK(file.metadata.at("key") == "value \" \n");
  const auto& read = file.get(place.path, "a", "F32", {2, 3});
  CHECK(std::memcmp(read.bytes.data(), a.data(), 24) == 0);
  CHECK(file.tensors.at("b").count() == 1);
  CHECK(file.tensors.at("none").bytes.empty());
  CHECK_THROWS_WITH(file.get(place.path, "a", "F32", {3, 2}), Catch::Contains("[2, 3]"));
  CHECK_THROWS_WITH(file.get(place.path, "c", "F32", {1}), Catch::Contains("no tensor \"c\""));
  // The header starts after 8 bytes, and the data at a multiple of 8.
  std::ifstream stream(place.path, std::ios::binary);
  const std::string all((std::istreambuf_iterator<char>(stream)), {});
  CHECK(all[8] == '{');
  CHECK((all.size() - 28) % 8 == 0);
}

TEST_CASE("a malformed file is refused in one line that names it", "[model]") {
  const Place place;
  const auto refused = [&](const std::string& why) {
    INFO(why);
    try {
      read_safetensors(place.path);
      FAIL("accepted");
    } catch (const UserError& error) {
      CHECK_THAT(error.what(), Catch::StartsWith(place.path) && Catch::Contains(why));
      for (const char c : std::string(error.what()))
        CHECK((static_cast<unsigned char>(c) >= 0x20 && c != 0x7f));
    }
  };
  const auto tensor = [](const std::string& name, const std::string& shape, int from, int to) {
    return fmt::format(R"("{}":{{"dtype":"F32","shape":{},"data_offsets":[{},{}]}})", name, shape,
                       from, to);
  };
  refused("cannot be read");
  std::ofstream(place.path) << "abc";
  refused("3 bytes");
  place.put("{" + tensor("a", "[2]", 0, 8) + "}", 8);
  fs::resize_file(place.path, 20);
  refused("truncated");
  place.put("{" + tensor("a", "[2]", 0, 8) + "}", 7);
  refused("lies at");
  place.put("{" + tensor("a", "[3]", 0, 8) + "}", 8);
  refused("lies at");
  place.put("{" + tensor("a", "[-2]", 0, 8) + "}", 8);
  refused("lies at");
  place.put("{" + tensor("a", "[2]", 0, 8) + "," + tensor("a", "[2]", 0, 8) + "}", 8);
  refused("twice");
  place.put("{" + tensor("a", "[2]", 0, 8) + "," + tensor("b", "[2]", 4, 12) + "}", 12);
  refused("to two");
  place.put("{" + tensor("a", "[2]", 0, 8) + "}", 12);
  refused("after the last tensor");
  place.put(R"({"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}})", 4);
  refused("BF16");
  place.put(R"({"a":{"dtype":"F32","shape":[2]}})", 8);
  refused("data_offsets");
  for (const char* shape :
       {"[1.5]", "[3e60]", "[333333333333333333333333333333]", "[18446744073709551615]", "[\"2\"]",
        "[[2]]", "2", "{\"2\":2}", "null"}) {
    place.put("{" + tensor("a", shape, 0, 8) + "}", 8);
    refused("expected a list of integers");
  }
  place.put("{nonsense", 0);
  refused("no JSON");
  place.put("[]", 0);
  refused("no JSON object");
  // What cannot be printed is escaped in the message, raw in the file or not.
  place.put("{\"a\"\x7f\"b\"}", 0);
  refused("\\x7f");
  place.put(R"({"a\u000a\u0007":{"dtype":"F32"}})", 0);
  refused("a\\n\\x07");
}

TEST_CASE("a file that cannot be written is a storage error", "[model]") {
  const float x = 1;
  CHECK_THROWS_AS(write_safetensors("/nonexistent/folder/a", {{"a", {1}, "F32", &x}}, {}),
                  StorageError);
}

}  // namespace
}  // namespace subquad
