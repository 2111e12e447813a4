// The Pathfinder generator: two long dashed contours among shorter ones, and two discs, which lie
// on the ends of one contour (label 1) or of both (label 0).
// Source: Linsley et al. 2018, arXiv 1805.08315; drewlinsley/pathfinder, snakes2.py, with the
// settings of Long Range Arena (arXiv 2011.04006) and the historical resize, which makes bytes
// before and after each Lanczos pass.
//
// Coordinates are (y, x), y downwards; an angle t points to (sin t, cos t). A contour grows by
// "paddles" of `length` pixels; an occupancy map keeps the paddles of different contours, with
// their margins, apart. Directions come from two finite sets, whole degrees (the first paddle) and
// the integer offsets on a circle (all others), so every picture of a paddle and every weight of a
// turn is made once, in the constructor.
//
// For task sources alone, with internal linkage: see common.h.
#pragma once

#include <array>

#include "tasks/pathfinder_paddles.h"

namespace subquad::pathfinder {
namespace {

// How one image came about, for tests and for the other label of the same image.
struct Trace {
  Index pair_attempts = 0;
  Point origin[2], tip[2];         // ends of the two targets
  std::vector<Point> segments[2];  // start of each paddle of the targets
  Point discs[2];                  // their centres
  double largest_overlap = 0;      // of the occupancy at an accepted paddle
  double maximum = 0;              // of the image before it became bytes
  Index distractors = 0;
};

class Generator {
 public:
  explicit Generator(const Settings& settings)
      : s_(settings), disc_(s_.window * kAntialias, s_.window) {
    for (const Index margin : s_.margins) tables_.emplace_back(s_, margin);
  }

  const Settings& settings() const { return s_; }

  // An image [window, window] with the discs of `label`: a function of the seed, in which the label
  // moves one disc and nothing else. `share` below one makes it easier: that share of the paddles
  // beyond two of a contour, and of the distractors.
  Bytes draw(Seed seed, std::int32_t label, Trace* trace = nullptr, double share = 1) const {
    Trace unused;
    Trace& t = trace ? *trace : unused;
    t = Trace{};
    Random random(seed, "image");
    const Table& table = tables_[random.below(tables_.size())];
    const Index w = s_.window;
    std::vector<float> image(static_cast<std::size_t>(w * w), 0.0f), occupied = border();
    Snake pair[2];
    std::vector<float> taken;
    const Index contour =
        std::min<Index>(2, s_.contour) + part_of(std::max<Index>(0, s_.contour - 2), share);
    do {
      if (++t.pair_attempts > kMostAttempts)
        throw Unsupported(fmt::format(
            "pathfinder: no room for two contours of {} paddles in {} x {}", contour, w, w));
      taken = occupied;
      t.largest_overlap = 0;
    } while (!grow_pair(table, random, contour, pair, &taken, &t));
    occupied = std::move(taken);
    put_mask(table, pair[1].last, &occupied);  // the first contour's last paddle is left out
    for (int i = 0; i < 2; ++i) {
      t.origin[i] = pair[i].origin;
      t.tip[i] = pair[i].tip;
      for (const Placed& placed : pair[i].paddles) {
        t.segments[i].push_back(placed.at);
        put_line(table, placed, s_.target_contrast, &image);
      }
    }
    for (Index i = 0; i < part_of(s_.distractors, share); ++i)
      for (int attempt = 0; attempt < 5; ++attempt) {
        Snake snake;
        taken = occupied;
        if (!grow_distractor(table, random, &snake, &taken, &t)) continue;
        occupied = std::move(taken);
        put_mask(table, snake.last, &occupied);
        for (const Placed& placed : snake.paddles) put_line(table, placed, s_.contrast, &image);
        ++t.distractors;
        break;
      }
    const auto which = static_cast<int>(random.below(2));
    t.discs[0] = t.origin[which];
    t.discs[1] = t.tip[label == 1 ? which : 1 - which];
    for (const Point& disc : t.discs) mark(disc, &image);
    // Smallest to 0, largest to 255.
    const auto [low, high] = std::minmax_element(image.begin(), image.end());
    t.maximum = static_cast<double>(*high);
    Bytes bytes;
    bytes.reserve(image.size());
    const double scale = 255 / (static_cast<double>(*high) - static_cast<double>(*low));
    for (const float value : image)
      bytes.push_back(to_byte((static_cast<double>(value) - static_cast<double>(*low)) * scale));
    return bytes;
  }

 private:
  // The hardest of the published settings need 2200 on average.
  static constexpr Index kMostAttempts = 1000000;

  // A paddle in the image.
  struct Placed {
    Index direction = 0;
    Point at;
  };
  struct Snake {
    Point pivot, origin, tip;
    Index direction = 0;
    Placed last;  // whose mask is not yet in the occupancy
    std::vector<Placed> paddles;
  };

  // `share` of a count, rounded.
  static Index part_of(Index count, double share) {
    return static_cast<Index>(std::floor(static_cast<double>(count) * share + 0.5));
  }
  bool inside(const Point& p) const {
    return p.y >= 0 && p.x >= 0 && p.y < s_.window && p.x < s_.window;
  }
  static Point move(const Point& p, double sine, double cosine, Index distance) {
    const auto d = static_cast<double>(distance);
    return {static_cast<Index>(std::ceil(static_cast<double>(p.y) + d * sine)),
            static_cast<Index>(std::ceil(static_cast<double>(p.x) + d * cosine))};
  }
  std::vector<float> border() const {
    const Index w = s_.window, edge = s_.padding;
    std::vector<float> map(static_cast<std::size_t>(w * w), 0.0f);
    for (Index y = 0; y < w; ++y)
      for (Index x = 0; x < w; ++x)
        if (y < edge || x < edge || y >= w - edge || x >= w - edge)
          map[static_cast<std::size_t>(y * w + x)] = 1.0f;
    return map;
  }

  // Calls body(patch index, image index) for the part of a paddle's patch inside the image.
  template <class Body>
  void over_patch(const Table& table, const Point& at, Body&& body) const {
    const Index q = table.q, side = 2 * q + 1, w = s_.window;
    for (Index y = std::max<Index>(0, at.y - q); y <= std::min(w - 1, at.y + q); ++y)
      for (Index x = std::max<Index>(0, at.x - q); x <= std::min(w - 1, at.x + q); ++x)
        body(static_cast<std::size_t>((y - at.y + q) * side + x - at.x + q),
             static_cast<std::size_t>(y * w + x));
  }
  void put_mask(const Table& table, const Placed& placed, std::vector<float>* map) const {
    const std::vector<float>& mask =
        table.directions[static_cast<std::size_t>(placed.direction)].paddle.mask;
    over_patch(table, placed.at, [&](std::size_t from, std::size_t to) {
      (*map)[to] = std::max((*map)[to], mask[from]);
    });
  }
  void put_line(const Table& table, const Placed& placed, double contrast,
                std::vector<float>* image) const {
    const std::vector<float>& line =
        table.directions[static_cast<std::size_t>(placed.direction)].paddle.line;
    const auto factor = static_cast<float>(contrast);
    over_patch(table, placed.at, [&](std::size_t from, std::size_t to) {
      (*image)[to] = std::max((*image)[to], factor * line[from]);
    });
  }

  // Starts a contour at `tail` in a direction; false where its head or pivot is outside.
  bool start(const Table& table, Index direction, const Point& tail, Snake* snake) const {
    const Direction& d = table.directions[static_cast<std::size_t>(direction)];
    const Point head = move(tail, d.sine, d.cosine, s_.length);
    snake->pivot = move(head, -d.sine, -d.cosine, s_.length + table.margin);
    if (!inside(head) || !inside(snake->pivot)) return false;
    snake->direction = direction;
    snake->origin = snake->tip = tail;
    snake->last = {direction, tail};
    snake->paddles = {snake->last};
    return true;
  }

  // Free places for a first paddle, at least `frame` pixels inside.
  bool seed(const Table& table, Random& random, Index frame, const std::vector<float>& map,
            Snake* snake) const {
    const Index w = s_.window;
    for (int attempt = 0; attempt < 3; ++attempt) {
      const auto direction = static_cast<Index>(random.below(360));
      const Direction& d = table.directions[static_cast<std::size_t>(direction)];
      const auto is_free = [&](const Point& at) {
        for (const Point& offset : d.room) {
          const Point p{at.y + offset.y, at.x + offset.x};
          if (!inside(p)) continue;
          if (p.y < frame || p.x < frame || p.y >= w - frame || p.x >= w - frame) return false;
          if (map[static_cast<std::size_t>(p.y * w + p.x)] > 0.3f) return false;
        }
        return true;
      };
      // Uniform over the free places: by rejection, and where that does not find one, from a list.
      std::vector<Point> free;
      for (int i = 0; i < 16 && free.empty(); ++i) {
        const auto place = static_cast<Index>(
            random.below(static_cast<std::uint64_t>((w - 2 * frame) * (w - 2 * frame))));
        const Point at{frame + place / (w - 2 * frame), frame + place % (w - 2 * frame)};
        if (is_free(at)) free.push_back(at);
      }
      const bool listed = free.empty();
      for (Index y = frame; listed && y < w - frame; ++y)
        for (Index x = frame; x < w - frame; ++x)
          if (is_free({y, x})) free.push_back({y, x});
      if (free.empty()) return false;
      if (start(table, direction, free[random.below(free.size())], snake)) return true;
    }
    return false;
  }

  // One more paddle; the mask of the one before goes into the map.
  bool extend(const Table& table, Random& random, Snake* snake, std::vector<float>* map,
              Trace* trace) const {
    const Direction& before = table.directions[static_cast<std::size_t>(snake->direction)];
    const Point p = move(snake->pivot, before.sine, before.cosine, s_.length + 2 * table.margin);
    const Index w = s_.window, turns = table.turns();
    std::array<double, 128> weights{};
    double sum = 0;
    for (Index i = 0; i < turns; ++i) {
      const Direction& turn = table.directions[static_cast<std::size_t>(table.turns_from + i)];
      const Point at{p.y + turn.step.y, p.x + turn.step.x};
      double weight = table.weights[static_cast<std::size_t>(snake->direction * turns + i)];
      if (weight > 0 && inside(at)) {
        float near = 0;
        for (const Point& offset : table.disc) {
          const Point o{at.y + offset.y, at.x + offset.x};
          if (inside(o)) near = std::max(near, (*map)[static_cast<std::size_t>(o.y * w + o.x)]);
        }
        weight *= 1 - static_cast<double>(near);
      } else {
        weight = 0;
      }
      sum += weights[static_cast<std::size_t>(i)] = weight;
    }
    if (!(sum >= 1e-4)) return false;
    for (int attempt = 0; attempt < 3; ++attempt) {
      double left = random.uniform() * sum;
      Index chosen = -1;
      for (Index i = 0; i < turns && left >= 0; ++i)
        if (weights[static_cast<std::size_t>(i)] > 0) {
          chosen = i;
          left -= weights[static_cast<std::size_t>(i)];
        }
      const Index direction = table.turns_from + chosen;
      const Direction& turn = table.directions[static_cast<std::size_t>(direction)];
      const Placed placed{direction, {p.y + turn.step.y, p.x + turn.step.x}};
      float overlap = 0;
      over_patch(table, placed.at, [&](std::size_t from, std::size_t to) {
        overlap = std::max(overlap, (*map)[to] + turn.paddle.mask[from]);
      });
      if (!(overlap < 1.8f)) continue;
      trace->largest_overlap = std::max(trace->largest_overlap, static_cast<double>(overlap));
      put_mask(table, snake->last, map);
      snake->last = placed;
      snake->paddles.push_back(placed);
      snake->pivot = p;
      snake->direction = direction;
      snake->tip = placed.at;
      return true;
    }
    return false;
  }

  bool grow_pair(const Table& table, Random& random, Index contour, Snake* pair,
                 std::vector<float>* map, Trace* trace) const {
    if (!seed(table, random, 2 * s_.seed_distance, *map, &pair[0])) return false;
    const Direction& to = table.directions[random.below(360)];
    const auto distance = static_cast<double>(s_.seed_distance);
    const Point& tail = pair[0].origin;
    const Point second{
        static_cast<Index>(std::floor(static_cast<double>(tail.y) + distance * to.sine + 0.5)),
        static_cast<Index>(std::floor(static_cast<double>(tail.x) + distance * to.cosine + 0.5))};
    if (!inside(second)) return false;
    bool started = false;
    for (int attempt = 0; attempt < 3 && !started; ++attempt)
      started = start(table, static_cast<Index>(random.below(360)), second, &pair[1]);
    if (!started) return false;
    for (Index i = 1; i < contour; ++i)
      for (int which = 0; which < 2; ++which)
        if (!extend(table, random, &pair[which], map, trace)) return false;
    return true;
  }

  bool grow_distractor(const Table& table, Random& random, Snake* snake, std::vector<float>* map,
                       Trace* trace) const {
    const auto free = std::count_if(map->begin(), map->end(), [](float x) { return x <= 0.3f; });
    if (100 * free < static_cast<std::ptrdiff_t>(map->size())) return false;
    if (!seed(table, random, 1, *map, snake)) return false;
    for (Index i = 1; i < s_.distractor; ++i)
      if (!extend(table, random, snake, map, trace)) return false;
    return true;
  }

  // A disc of brightness 1 at p: drawn finely, reduced. Only the rows and columns that it reaches.
  void mark(const Point& p, std::vector<float>* image) const {
    const Index w = s_.window, fine = w * kAntialias;
    const double radius = s_.marker_radius * kAntialias;
    const auto reach = static_cast<Index>(std::ceil(s_.marker_radius)) + 4;  // 3 for the filter
    const Index top = std::max<Index>(0, p.y - reach), bottom = std::min(w, p.y + reach + 1);
    const Index left = std::max<Index>(0, p.x - reach), right = std::min(w, p.x + reach + 1);
    Bytes canvas(static_cast<std::size_t>(fine), 0);
    Bytes rows(static_cast<std::size_t>(fine * w), 0);  // [fine, window]
    for (Index y = kAntialias * top; y < kAntialias * bottom; ++y) {
      const auto dy = static_cast<double>(y - p.y * kAntialias);
      for (Index x = kAntialias * left; x < kAntialias * right; ++x) {
        const auto dx = static_cast<double>(x - p.x * kAntialias);
        canvas[static_cast<std::size_t>(x)] = dy * dy + dx * dx <= radius * radius ? 255 : 0;
      }
      for (Index x = left; x < right; ++x)
        rows[static_cast<std::size_t>(y * w + x)] = disc_.at(canvas.data(), 1, x);
    }
    for (Index y = top; y < bottom; ++y)
      for (Index x = left; x < right; ++x) {
        float& pixel = (*image)[static_cast<std::size_t>(y * w + x)];
        pixel = std::max(pixel, static_cast<float>(disc_.at(rows.data() + x, w, y)) / 255.0f);
      }
  }

  Settings s_;
  Lanczos disc_;
  std::vector<Table> tables_;  // one per margin
};

}  // namespace
}  // namespace subquad::pathfinder
