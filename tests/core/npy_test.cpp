#include "harness/core/npy.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <filesystem>
#include <fstream>

#include "harness/core/random.h"

using namespace subquad;
namespace fs = std::filesystem;

namespace {

std::string fixture(const std::string& name) {
  return SUBQUAD_SOURCE_DIR "/tests/fixtures/npy/" + name;
}

// A directory that is removed at the end of the test.
struct Scratch {
  fs::path path;
  Scratch() {
    std::string name = (fs::temp_directory_path() / "subquad_npy_XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Scratch() { fs::remove_all(path); }
  std::string operator/(const std::string& name) const { return (path / name).string(); }
};

std::string slurp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
void spill(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

// What reading the file says, or "" when it is read.
std::string refusal(const std::string& path) {
  try {
    read_npy(path);
    return "";
  } catch (const UserError& error) {
    CHECK(std::string(error.what()).find('\n') == std::string::npos);
    CHECK(std::string(error.what()).starts_with(path + ": "));
    return std::string(error.what()).substr(path.size() + 2);
  }
}

// A file with this header text and `values` zero bytes behind it.
std::string with_header(std::string header, std::size_t values = 0, char major = 1) {
  std::string file = "\x93NUMPY";
  file += major;
  file += '\0';
  const std::size_t size = header.size();
  for (int i = 0; i < (major == 1 ? 2 : 4); ++i) file += static_cast<char>(size >> (8 * i) & 0xff);
  return file + header + std::string(values, '\0');
}

}  // namespace

TEST_CASE("every float type, byte order and memory order of NumPy is read", "[npy]") {
  for (const char* type : {"f2", "f4", "f8"})
    for (const char* order : {"little", "big"})
      for (const char* memory : {"c", "f"}) {
        const std::string path = fixture(fmt::format("{}_{}_{}.npy", type, order, memory));
        INFO(path);
        const Tensor tensor = read_npy_tensor(path);
        REQUIRE(tensor.shape() == Shape{2, 3, 4, 5});
        CHECK(read_npy_shape(path) == std::vector<Index>{2, 3, 4, 5});
        bool equal = true;
        for (Index b = 0; b < 2; ++b)
          for (Index h = 0; h < 3; ++h)
            for (Index i = 0; i < 4; ++i)
              for (Index c = 0; c < 5; ++c)
                equal = equal &&
                        tensor.head(b, h)(i, c) ==
                            static_cast<float>(100 * b + 10 * h + i) + static_cast<float>(c) / 8;
        CHECK(equal);
      }
}

TEST_CASE("header versions 2 and 3 are read", "[npy]") {
  const NpyArray one = read_npy(fixture("f4_little_c.npy"));
  for (const char* name : {"version2.npy", "version3.npy"}) {
    CHECK(read_npy(fixture(name)).values == one.values);
    CHECK(read_npy(fixture(name)).shape == one.shape);
  }
}

TEST_CASE("axes that are missing are put in front", "[npy]") {
  CHECK(read_npy_tensor(fixture("axes3.npy")).shape() == Shape{1, 3, 4, 5});
  CHECK(read_npy_tensor(fixture("axes2.npy")).shape() == Shape{1, 1, 4, 5});
  CHECK_THROWS_AS(read_npy_tensor(fixture("axes1.npy")), UserError);
  CHECK_THROWS_AS(read_npy_tensor(fixture("axes0.npy")), UserError);
  CHECK_THROWS_AS(read_npy_tensor(fixture("empty.npy")), UserError);
  CHECK(read_npy(fixture("axes1.npy")).values == std::vector<float>{0, 1, 2, 3, 4});
  CHECK(read_npy(fixture("axes0.npy")).values == std::vector<float>{2.5});
  CHECK(read_npy(fixture("empty.npy")).shape == std::vector<Index>{3, 0, 2});
}

TEST_CASE("float16 covers subnormal, normal and largest values", "[npy]") {
  const std::vector<float> values = read_npy(fixture("half.npy")).values;
  REQUIRE(values.size() == 6);
  CHECK(values[0] == 0);
  CHECK(values[1] == 0x1p-24f);
  CHECK(values[2] == Approx(6.1e-5).epsilon(1e-3));
  CHECK(values[3] == 1);
  CHECK(values[4] == -2);
  CHECK(values[5] == 65504);
}

TEST_CASE("files with other contents are refused in one line that says what they hold", "[npy]") {
  CHECK(refusal(fixture("int64.npy")) ==
        "holds another type ('<i8'); expected float16, float32 or float64, for example through "
        ".astype('float32')");
  CHECK(refusal(fixture("objects.npy")) ==
        "holds Python objects ('|O'); expected float16, float32 or float64");
  CHECK(refusal(fixture("records.npy")) ==
        "holds a structured type; expected float16, float32 or float64");
  CHECK(refusal(fixture("nan_c.npy")) == "value nan at [1, 0, 2, 3]; expected finite numbers");
  CHECK(refusal(fixture("nan_f.npy")) == "value nan at [1, 0, 2, 3]; expected finite numbers");
  CHECK(refusal(fixture("too_large.npy")) ==
        "value 1e+300 at [1, 2] does not fit into float32; expected finite numbers");
  CHECK(refusal(fixture("none.npy")) == "No such file or directory");
  CHECK(refusal(fixture("layers")) == "not a regular file, expected a .npy file");
  CHECK(refusal(fixture("make.py")) == "does not begin as a .npy file does (\\x93NUMPY)");
}

TEST_CASE("a file cut off at any byte, or with a byte too many, is refused", "[npy]") {
  const Scratch scratch;
  const std::string path = scratch / "cut.npy";
  for (const char* name : {"axes2.npy", "version2.npy"}) {
    const std::string whole = slurp(fixture(name));
    for (std::size_t length = 0; length < whole.size(); ++length) {
      spill(path, whole.substr(0, length));
      INFO(name << " cut to " << length);
      CHECK(!refusal(path).empty());
    }
    spill(path, whole + "x");
    CHECK(refusal(path).find("needs") != std::string::npos);
    spill(path, whole);
    CHECK(refusal(path).empty());
  }
}

TEST_CASE("no single damaged byte of a header is fatal", "[npy]") {
  const Scratch scratch;
  const std::string path = scratch / "damaged.npy";
  const std::string whole = slurp(fixture("axes2.npy"));
  Random random(1, "damage");
  Index refused = 0;
  for (std::size_t at = 0; at < 128; ++at)
    for (int round = 0; round < 6; ++round) {
      std::string damaged = whole;
      damaged[at] = static_cast<char>(random.below(256));
      spill(path, damaged);
      try {
        const NpyArray array = read_npy(path);
        CHECK(array.values.size() == 20);  // another order of axes at most
      } catch (const UserError&) {
        ++refused;
      }
    }
  CHECK(refused > 400);
}

TEST_CASE("malformed headers are refused", "[npy]") {
  const Scratch scratch;
  const std::string path = scratch / "bad.npy";
  const std::string type = "'descr': '<f4', 'fortran_order': False, ";
  const std::vector<std::pair<std::string, std::string>> table = {
      {"", "expected '{'"},
      {"{", "expected a string"},
      {"{}", "no key \"descr\""},
      {"{'descr': '<f4'}", "no key \"fortran_order\""},
      {"{" + type + "}", "no key \"shape\""},
      {"{" + type + "'shape': (1, 1)", "expected '}'"},
      {"{" + type + "'shape': (1, 1)} x", "expected the end"},
      {"{" + type + "'shape': (1, 1), 'shape': (1, 1)}", "twice"},
      {"{" + type + "'shape': (1, 1), 'more': 1}", "unknown key \"more\""},
      {"{" + type + "'shape': [1, 1]}", "expected '('"},
      {"{" + type + "'shape': (1 1)}", "expected ','"},
      {"{" + type + "'shape': (1)}", "expected ','"},
      {"{" + type + "'shape': (-1, 1)}", "expected a length"},
      {"{" + type + "'shape': (1.0, 1)}", "expected ','"},
      {"{" + type + "'shape': (None,)}", "expected a length"},
      {"{" + type + "'shape': (,)}", "expected a length"},
      {"{" + type + "'shape': (1, 1", "expected ')'"},
      {"{" + type + "'shape': (9223372036854775808, 1)}", "below 2^63"},
      {"{" + type + "'shape': (99999999999999999999999999, 1)}", "below 2^63"},
      {"{" + type + "'shape': (4294967296, 4294967296)}", "too many elements"},
      {"{" + type + "'shape': (0, 4294967296, 4294967296)}", "too many elements"},
      {"{" + type + "'shape': (1048576, 1048576)}", "needs 4398046511104 bytes"},
      {"{" + type + "'shape': (" + std::string(99, '1') + "", "below 2^63"},
      {"{'descr': '<f4', 'fortran_order': false, 'shape': (1, 1)}", "expected True or False"},
      {"{'descr': '<f4', 'fortran_order': 0, 'shape': (1, 1)}", "expected True or False"},
      {"{'descr': '<f3', 'fortran_order': False, 'shape': (1, 1)}", "another type ('<f3')"},
      {"{'descr': '<f16', 'fortran_order': False, 'shape': (1, 1)}", "another type ('<f16')"},
      {"{'descr': '<c8', 'fortran_order': False, 'shape': (1, 1)}", "another type ('<c8')"},
      {"{'descr': '|f4', 'fortran_order': False, 'shape': (1, 1)}", "another type ('|f4')"},
      {"{'descr': '', 'fortran_order': False, 'shape': (1, 1)}", "another type ('')"},
      {"{'descr': 'f4', 'fortran_order': False, 'shape': (1, 1)}", "another type ('f4')"},
      {"{'descr': ('<f4', 2), 'fortran_order': False, 'shape': (1, 1)}", "expected a string"},
      {"{'descr': '<f4, 'fortran_order': False, 'shape': (1, 1)}", "another type"},
      {"{'descr' '<f4'}", "expected ':'"},
      {"{'descr", "expected a string that ends"},
      {std::string("{\0}", 3), "expected a string"},
  };
  for (const auto& [header, expected] : table) {
    spill(path, with_header(header, 4));
    INFO(header << " -> " << refusal(path));
    CHECK(refusal(path).find(expected) != std::string::npos);
    spill(path, with_header(header, 4, 2));
    CHECK(refusal(path).find(expected) != std::string::npos);
  }
  std::string many = "{" + type + "'shape': (";
  for (int i = 0; i < 40; ++i) many += "1, ";
  spill(path, with_header(many + ")}", 4));
  CHECK(refusal(path).find("at most 32 axes") != std::string::npos);
  spill(path, with_header("{" + type + "'shape': (1, 1)}", 4, 4));
  CHECK(refusal(path) == "format version 4.0; expected 1.0, 2.0 or 3.0");
  // A header length far beyond the file is refused before memory is taken.
  spill(path, std::string("\x93NUMPY\x02\0\xff\xff\xff\xff", 12));
  CHECK(refusal(path).find("header of 4294967295 bytes") != std::string::npos);
  // What NumPy itself accepts: other order of keys, double quotes, spaces, Python 2's long.
  spill(path,
        with_header("{ \"shape\" : ( 1L , 1 , ) , 'fortran_order':True,'descr':'=f4' } \n", 4));
  CHECK(refusal(path) == "");
}

TEST_CASE("a written file reads back bit for bit and begins its values at a multiple of 64",
          "[npy]") {
  const Scratch scratch;
  for (const Shape shape : {Shape{1, 1, 1, 1}, Shape{2, 3, 5, 7}, Shape{1, 12, 1000, 3}}) {
    Tensor tensor(shape);
    fill_normal(4, tensor.data(), tensor.size());
    const std::string path = scratch / "out.npy";
    write_npy(path, tensor);
    const Tensor back = read_npy_tensor(path);
    CHECK(back.shape() == shape);
    CHECK(std::memcmp(back.data(), tensor.data(), static_cast<std::size_t>(4 * tensor.size())) ==
          0);
    CHECK((fs::file_size(path) - static_cast<std::size_t>(4 * tensor.size())) % 64 == 0);
  }
  std::size_t files = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(scratch.path)) ++files;
  CHECK(files == 1);  // no temporary file is left
}

TEST_CASE("NumPy reads what is written", "[npy]") {
  if (access("/usr/bin/python3", X_OK) != 0 ||
      std::system("/usr/bin/python3 -c 'import numpy' 2> /dev/null") != 0) {
    WARN("skipped: no Python with NumPy here");
    return;
  }
  const Scratch scratch;
  Tensor tensor(2, 3, 4, 5);
  for (Index i = 0; i < tensor.size(); ++i) tensor.data()[i] = static_cast<float>(i) / 8;
  write_npy(scratch / "t.npy", tensor);
  const std::string script = fmt::format(
      "import numpy as np; a = np.load('{}', allow_pickle=False); "
      "assert a.dtype == np.float32 and a.shape == (2, 3, 4, 5) and a.flags.c_contiguous; "
      "assert (a.ravel() == np.arange(120) / 8).all()",
      scratch / "t.npy");
  CHECK(std::system(fmt::format("/usr/bin/python3 -c \"{}\"", script).c_str()) == 0);
}

TEST_CASE("a file that cannot be written whole is a storage error, and the old one stays",
          "[npy]") {
  const Scratch scratch;
  Tensor tensor(1, 1, 64, 64);
  CHECK_THROWS_AS(write_npy("/dev/full", tensor), StorageError);
  struct stat status {};
  REQUIRE(stat("/dev/full", &status) == 0);
  CHECK(S_ISCHR(status.st_mode));  // the device is still one
  CHECK_THROWS_AS(write_npy(scratch / "none/t.npy", tensor), StorageError);
  CHECK_THROWS_AS(write_npy(scratch.path.string(), tensor), StorageError);

  const std::string path = scratch / "t.npy";
  write_npy(path, Tensor(1, 1, 2, 2));
  const std::string old = slurp(path);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit small = before;
  small.rlim_cur = 1000;  // the disk is full after 1000 bytes
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &small);
  CHECK_THROWS_AS(write_npy(path, tensor), StorageError);
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  CHECK(slurp(path) == old);
  CHECK(std::distance(fs::directory_iterator(scratch.path), fs::directory_iterator()) == 1);
}

TEST_CASE("writing through a link replaces the file behind it", "[npy]") {
  const Scratch scratch;
  write_npy(scratch / "real.npy", Tensor(1, 1, 1, 1));
  fs::create_symlink("real.npy", scratch / "link.npy");
  write_npy(scratch / "link.npy", Tensor(1, 1, 3, 2));
  CHECK(fs::is_symlink(scratch / "link.npy"));
  CHECK(read_npy_shape(scratch / "real.npy") == std::vector<Index>{1, 1, 3, 2});
}
