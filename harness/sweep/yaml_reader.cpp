#include "harness/sweep/yaml_reader.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <sstream>

#include "harness/core/error.h"
#include "harness/core/params.h"

namespace subquad {

const YamlNode* YamlNode::find(std::string_view key) const {
  for (const auto& [name, value] : entries)
    if (name.text == key) return &value;
  return nullptr;
}

YamlNode* YamlNode::find(std::string_view key) {
  return const_cast<YamlNode*>(std::as_const(*this).find(key));
}

std::string quoted_for_message(std::string_view text) {
  constexpr std::size_t kLongest = 60;
  if (text.size() <= kLongest) return fmt::format("\"{}\"", printable(text));
  std::size_t end = kLongest;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0u) == 0x80u) --end;
  return fmt::format("\"{}...\"", printable(text.substr(0, end)));
}

namespace {

YamlPlace place_of(const YAML::Mark& mark, int source) {
  return {source, std::max(mark.line, 0) + 1, std::max(mark.column, 0) + 1};
}

// Checks what yaml-cpp would misread, and returns the text without a byte order mark and with line
// feeds alone.
std::string normalized(const std::string& raw, int source) {
  std::string_view in = raw;
  if (in.starts_with("\xff\xfe") || in.starts_with("\xfe\xff"))
    throw YamlError({source, 1, 1}, "the file is UTF-16; expected UTF-8 text");
  if (in.starts_with("\xef\xbb\xbf")) in.remove_prefix(3);
  const std::size_t invalid = find_invalid_utf8(in);
  std::string out;
  out.reserve(in.size());
  YamlPlace place{source, 1, 1};
  bool indentation = true;
  for (std::size_t i = 0; i < in.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(in[i]);
    if (i == invalid)
      throw YamlError(place, fmt::format("byte 0x{:02x} is not valid UTF-8 text", c));
    if (c == '\r' && i + 1 < in.size() && in[i + 1] == '\n') continue;
    if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f)
      throw YamlError(place, fmt::format("control character 0x{:02x}; expected plain text", c));
    if (c == '\t' && indentation) {
      const std::size_t content = in.find_first_not_of(" \t\r", i);
      if (content != std::string_view::npos && in[content] != '\n' && in[content] != '#')
        throw YamlError(place, "tab in the indentation; use spaces");
    }
    out += in[i];
    if (c != ' ' && c != '\t') indentation = false;
    if (c == '\n') {
      ++place.line;
      place.column = 1;
      indentation = true;
    } else {
      ++place.column;  // in bytes, as yaml-cpp counts
    }
  }
  return out;
}

class TreeBuilder final : public YAML::EventHandler {
 public:
  TreeBuilder(const std::string& text, int source, const YamlLimits& limits,
              std::vector<YamlProblem>* problems)
      : source_(source), limits_(limits), problems_(problems) {
    std::size_t start = 0;
    while (true) {
      const std::size_t end = text.find('\n', start);
      lines_.push_back(std::string_view(text).substr(start, end - start));
      if (end == std::string::npos) break;
      start = end + 1;
    }
  }

  YamlNode root;
  int documents = 0;

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++documents == 2)
      throw YamlError(place_of(mark, source_),
                      "a second document starts here (or the indentation is wrong); a config is "
                      "one document");
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    YamlNode node;
    node.place = place_of(mark, source_);
    if (!open_.empty() && open_.back().node.kind == YamlNode::Kind::sequence)
      node.place = dash_before(node.place);
    finish(std::move(node), anchor);
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const YamlPlace place = place_of(mark, source_);
    const auto found = anchors_.find(anchor);
    if (found == anchors_.end()) throw YamlError(place, "the alias refers to itself");
    const Anchored& target = found->second;
    count(place, target.nodes);
    check_depth(place, static_cast<int>(open_.size()) + target.depth);
    for (Frame& frame : open_)
      frame.depth = std::max(frame.depth, target.depth + depth_below(frame));
    attach(YamlNode(target.node));
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    YamlNode node;
    node.kind = YamlNode::Kind::scalar;
    node.place = place_of(mark, source_);
    node.text = value;
    node.quoted = tag == "!";
    if (node.quoted) check_quote(mark);
    check_tag(tag, node.place);
    finish(std::move(node), anchor);
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(YamlNode::Kind::sequence, mark, tag, anchor);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(YamlNode::Kind::map, mark, tag, anchor);
  }
  void OnMapEnd() override { close(); }

 private:
  struct Frame {
    YamlNode node;
    YAML::anchor_t anchor = 0;
    int first_node = 0;  // nodes_ when it was opened
    int depth = 1;       // levels of the subtree so far
    int level = 0;       // its position in open_
    bool has_key = false;
    YamlNode key;
    std::map<std::string, YamlPlace> keys;  // of a map, so far
  };
  struct Anchored {
    YamlNode node;
    int nodes = 1;
    int depth = 0;
  };

  int depth_below(const Frame& frame) const { return static_cast<int>(open_.size()) - frame.level; }

  void count(YamlPlace place, int nodes) {
    nodes_ += nodes;
    if (nodes_ > limits_.nodes)
      throw YamlError(place, fmt::format("more than {} values (aliases count with all that they "
                                         "stand for)",
                                         limits_.nodes));
  }

  void check_depth(YamlPlace place, int depth) {
    if (depth > limits_.depth)
      throw YamlError(place, fmt::format("nested more than {} levels deep", limits_.depth));
  }

  void check_tag(const std::string& tag, YamlPlace place) {
    constexpr std::string_view kCore = "tag:yaml.org,2002:";
    if (tag != "?" && tag != "!" && !tag.empty())
      problems_->push_back(
          {place, fmt::format("tag {} is not supported; write the value without it",
                              tag.starts_with(kCore) ? fmt::format("!!{}", tag.substr(kCore.size()))
                                                     : tag)});
  }

  // yaml-cpp closes an open quote at the end of the file without a word.
  void check_quote(const YAML::Mark& mark) {
    const YamlPlace place = place_of(mark, source_);
    const auto row = static_cast<std::size_t>(place.line - 1);
    if (row >= lines_.size()) return;
    const std::string_view line = lines_[row];
    std::size_t at = line.find_first_of("\"'|>", static_cast<std::size_t>(place.column - 1));
    if (at == std::string_view::npos || line[at] == '|' || line[at] == '>') return;
    const char quote = line[at];
    for (++at; at < line.size(); ++at) {
      if (quote == '"' && line[at] == '\\') {
        ++at;
      } else if (line[at] == quote) {
        if (quote == '"' || at + 1 >= line.size() || line[at + 1] != '\'') return;
        ++at;
      }
    }
    throw YamlError(place, fmt::format("the quote {} is not closed on its line", quote));
  }

  // The mark of "- " with nothing behind it is that of the next token, lines below.
  YamlPlace dash_before(YamlPlace place) const {
    auto row = static_cast<std::size_t>(place.line - 1);
    if (row >= lines_.size()) return place;
    const std::string_view here = lines_[row].substr(
        std::min(lines_[row].size(), static_cast<std::size_t>(place.column - 1)));
    for (const char* written : {"~", "null", "Null", "NULL"})
      if (here.starts_with(written)) return place;
    if (lines_[row].find_first_not_of(' ') < static_cast<std::size_t>(place.column - 1))
      return place;
    while (row > 0) {
      const std::size_t content = lines_[--row].find_first_not_of(' ');
      if (content == std::string_view::npos || lines_[row][content] == '#') continue;
      if (lines_[row][content] == '-')
        return {place.source, static_cast<int>(row) + 1, static_cast<int>(content) + 1};
      break;
    }
    return place;
  }

  void open(YamlNode::Kind kind, const YAML::Mark& mark, const std::string& tag,
            YAML::anchor_t anchor) {
    Frame frame;
    frame.node.kind = kind;
    frame.node.place = place_of(mark, source_);
    frame.anchor = anchor;
    frame.first_node = nodes_;
    frame.level = static_cast<int>(open_.size());
    check_tag(tag, frame.node.place);
    check_depth(frame.node.place, frame.level + 1);
    count(frame.node.place, 1);
    open_.push_back(std::move(frame));
    for (Frame& outer : open_) outer.depth = std::max(outer.depth, depth_below(outer));
  }

  void close() {
    Frame frame = std::move(open_.back());
    open_.pop_back();
    if (frame.anchor != 0)
      anchors_[frame.anchor] = {frame.node, nodes_ - frame.first_node, frame.depth};
    attach(std::move(frame.node));
  }

  void finish(YamlNode node, YAML::anchor_t anchor) {  // a null or a scalar
    count(node.place, 1);
    if (anchor != 0) anchors_[anchor] = {node, 1, 0};
    attach(std::move(node));
  }

  void attach(YamlNode node) {
    if (open_.empty()) {
      root = std::move(node);
      return;
    }
    Frame& parent = open_.back();
    if (parent.node.kind == YamlNode::Kind::sequence) {
      parent.node.items.push_back(std::move(node));
    } else if (!parent.has_key) {
      parent.key = std::move(node);
      parent.has_key = true;
    } else {
      parent.has_key = false;
      // "key:" with nothing behind it: the mark is that of the next token, lines below.
      if (node.kind == YamlNode::Kind::null) node.place = parent.key.place;
      add_entry(parent, std::move(node));
    }
  }

  void add_entry(Frame& parent, YamlNode value) {
    YamlNode& key = parent.key;
    if (key.kind != YamlNode::Kind::scalar) {
      problems_->push_back({key.place, "a key must be a plain name"});
      return;
    }
    if (key.text == "<<" && !key.quoted) {
      problems_->push_back(
          {key.place, "unknown key \"<<\": merge keys are not supported; repeat the keys here"});
      return;
    }
    if (const auto [first, added] = parent.keys.emplace(key.text, key.place); !added) {
      problems_->push_back(
          {key.place,
           fmt::format("key {} stands twice in this map; the first is at {}:{}",
                       quoted_for_message(key.text), first->second.line, first->second.column)});
      return;
    }
    parent.node.entries.emplace_back(std::move(key), std::move(value));
  }

  int source_;
  YamlLimits limits_;
  std::vector<YamlProblem>* problems_;
  std::vector<std::string_view> lines_;
  std::vector<Frame> open_;
  std::map<YAML::anchor_t, Anchored> anchors_;
  int nodes_ = 0;
};

// What usually lies behind a message of the library.
std::string hint(const std::string& message) {
  if (message.find("flow not found") != std::string::npos)
    return "; a bracket is not closed, or a text with { } [ ] , needs quotes";
  if (message.find("illegal map value") != std::string::npos)
    return "; check the indentation, and quote a text that contains \": \"";
  if (message.find("unknown token") != std::string::npos)
    return "; a text that starts with @, ` or % needs quotes";
  return "";
}

}  // namespace

YamlNode parse_yaml(const std::string& text, int source, std::vector<YamlProblem>* problems,
                    const YamlLimits& limits) {
  if (text.size() > limits.bytes)
    throw YamlError({source, 1, 1}, fmt::format("{} bytes of YAML, at most {} are allowed",
                                                text.size(), limits.bytes));
  const std::string clean = normalized(text, source);
  TreeBuilder builder(clean, source, limits, problems);
  try {
    std::istringstream stream(clean);
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& error) {
    throw YamlError(place_of(error.mark, source),
                    fmt::format("not valid YAML: {}{}", error.msg, hint(error.msg)));
  }
  return std::move(builder.root);
}

std::string read_text_file(const std::string& path, std::size_t max_bytes) {
  namespace fs = std::filesystem;
  const int descriptor = path.find('\0') == std::string::npos
                             ? ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)
                             : (errno = ENOENT, -1);
  if (descriptor < 0) {
    const int reason = errno;
    std::string near;
    if (reason == ENOENT) {
      std::error_code error;
      const fs::path folder = fs::path(path).has_parent_path() ? fs::path(path).parent_path() : ".";
      std::vector<std::string> names;
      for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
        names.push_back(it->path().filename().string());
      std::sort(names.begin(), names.end());
      near = nearest_name(fs::path(path).filename().string(), names);
      if (!near.empty())
        near =
            fmt::format("; did you mean \"{}\"?", (fs::path(path).parent_path() / near).string());
    }
    throw UserError(
        fmt::format("{}: cannot be read: {}{}", printable(path), std::strerror(reason), near));
  }
  struct Closer {
    int descriptor;
    ~Closer() { ::close(descriptor); }
  } const closer{descriptor};
  struct stat status {};
  if (::fstat(descriptor, &status) != 0)
    throw UserError(fmt::format("{}: cannot be read: {}", path, std::strerror(errno)));
  if (!S_ISREG(status.st_mode))
    throw UserError(fmt::format("{}: is {}; expected a file", path,
                                S_ISDIR(status.st_mode) ? "a directory" : "not a regular file"));
  std::string text;
  char buffer[65536];
  while (text.size() <= max_bytes) {
    const ssize_t got = ::read(descriptor, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw UserError(fmt::format("{}: cannot be read: {}", path, std::strerror(errno)));
    if (got == 0) return text;
    text.append(buffer, static_cast<std::size_t>(got));
  }
  throw UserError(fmt::format("{}: larger than {} bytes; a config is small text", path, max_bytes));
}

}  // namespace subquad
