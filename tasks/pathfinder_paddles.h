// Settings of the Pathfinder generator, and pictures of its paddles in every direction: see
// pathfinder_image.h.
//
// For task sources alone, with internal linkage: see common.h.
#pragma once

#include "tasks/lanczos.h"

namespace subquad::pathfinder {
namespace {

constexpr double kPi = 3.14159265358979323846;

struct Settings {
  Index window = 32;
  Index padding = 1;       // occupied border
  Index length = 2;        // of a paddle
  double thickness = 0.5;  // of a paddle
  std::vector<Index> margins = {1};
  Index seed_distance = 7;
  double marker_radius = 1.5;
  double continuity = 1.0;
  double contrast = 2.0;         // of a distractor's paddle
  double target_contrast = 1.5;  // of a target's: paddle contrast times snake contrast
  Index contour = 14;            // paddles of a target
  Index distractor = 4;          // paddles of a distractor
  Index distractors = 5;
};
constexpr Index kAntialias = 2;  // pixels of the fine canvas per pixel, in all settings of LRA

// Settings for a window and contour length (0 = the window's own), or false for another window.
// Our choice: 16, a small version for quick runs.
[[maybe_unused]] bool settings_for(Index window, Index contour, Settings* out) {
  Settings s;
  s.window = window;
  s.contour = contour > 0 ? contour : window == 16 ? 4 : 14;
  s.distractor = std::max<Index>(1, s.contour / 3);
  Index paddles = 0;  // of all distractors together
  switch (window) {
    case 16:
      s.seed_distance = 3, s.marker_radius = 1.0;
      s.distractor = std::max<Index>(1, s.contour / 2);
      paddles = 3 * s.distractor;
      break;
    case 32:
      paddles = 20;
      break;
    case 64:
      s.length = 5, s.thickness = 1, s.seed_distance = 12, s.marker_radius = 2.5,
      s.continuity = 1.8;
      s.contrast = s.target_contrast = 0.8;
      paddles = 22;
      break;
    case 128:
      s.length = 5, s.thickness = 1.5, s.margins = {2, 3}, s.seed_distance = 20;
      s.marker_radius = 3, s.continuity = 1.8, s.contrast = s.target_contrast = 0.9;
      paddles = 35;
      break;
    case 256:
      s.padding = 22, s.length = 5, s.thickness = 2, s.margins = {3}, s.seed_distance = 27;
      s.marker_radius = 5, s.continuity = 1.8, s.contrast = s.target_contrast = 1.0;
      paddles = 30;
      break;
    default:
      return false;
  }
  s.distractors = paddles / s.distractor;
  *out = s;
  return true;
}

struct Point {
  Index y = 0, x = 0;
  bool operator==(const Point&) const = default;
};

struct Paddle {
  std::vector<float> line, mask;  // [2 q + 1, 2 q + 1], start in the middle
};

// A direction: unit vector and, for the initial ones, where a first paddle needs room.
struct Direction {
  double sine = 0, cosine = 0;
  Point step;                    // for turns: the integer offset
  Paddle paddle;                 // first: along the direction; turn: back from its end
  std::vector<Point> room = {};  // first: offsets that have to be free
};

// Everything that depends on the margin.
struct Table {
  Table(const Settings& s, Index m) : margin(m), radius(s.length + m) {
    q = s.length + static_cast<Index>(std::ceil(s.thickness)) + m;
    const Lanczos reduce(2 * q * kAntialias + 1, 2 * q + 1);
    for (int degree = 0; degree < 360; ++degree) {
      Direction d;
      d.sine = portable_sin(degree * kPi / 180);
      d.cosine = portable_cos(degree * kPi / 180);
      d.paddle = picture(s, reduce, d.sine, d.cosine);
      // Kernel of side 2 (length + m) + 1: the mask where it is 1, drawn from one beyond the
      // middle (as the source does) and read from the middle.
      for (Index y = 0; y < 2 * radius + 1; ++y)
        for (Index x = 0; x < 2 * radius + 1; ++x) {
          const Index py = y - (radius + 1) + q, px = x - (radius + 1) + q;
          if (py < 0 || px < 0 || py > 2 * q || px > 2 * q) continue;
          if (d.paddle.mask[static_cast<std::size_t>(py * (2 * q + 1) + px)] == 1.0f)
            d.room.push_back({y - radius, x - radius});
        }
      directions.push_back(std::move(d));
    }
    // The circle of candidates, as integer offsets (floor: coordinates are not negative).
    std::vector<Point> offsets;
    const double degrees = 360 / (2 * kPi * static_cast<double>(radius));
    for (Index i = 0; static_cast<double>(i) * degrees < 360; ++i) {
      const double angle = static_cast<double>(i) * degrees * kPi / 180;
      offsets.push_back({floor_of(static_cast<double>(radius) * portable_sin(angle)),
                         floor_of(static_cast<double>(radius) * portable_cos(angle))});
    }
    std::sort(offsets.begin(), offsets.end(),
              [](const Point& a, const Point& b) { return a.y != b.y ? a.y < b.y : a.x < b.x; });
    offsets.erase(std::unique(offsets.begin(), offsets.end()), offsets.end());
    turns_from = static_cast<Index>(directions.size());
    for (const Point& offset : offsets) {
      Direction d;
      const auto y = static_cast<double>(offset.y), x = static_cast<double>(offset.x);
      d.step = offset;
      d.sine = y / std::sqrt(y * y + x * x);
      d.cosine = x / std::sqrt(y * y + x * x);
      d.paddle = picture(s, reduce, -d.sine, -d.cosine);
      directions.push_back(std::move(d));
    }
    for (const Direction& from : directions)
      for (std::size_t i = static_cast<std::size_t>(turns_from); i < directions.size(); ++i)
        weights.push_back(turn_weight(from, directions[i], s.continuity));
    for (Index y = -m; y <= m; ++y)
      for (Index x = -m; x <= m; ++x)
        if (y * y + x * x <= m * m) disc.push_back({y, x});
  }

  Index turns() const { return static_cast<Index>(directions.size()) - turns_from; }

  Index margin, radius, q = 0, turns_from = 0;
  std::vector<Direction> directions;  // 360 first ones, then the turns
  std::vector<double> weights;        // [directions, turns]
  std::vector<Point> disc;            // offsets of the margin's disc

 private:
  static Index floor_of(double x) { return static_cast<Index>(std::floor(x)); }

  // cos^2 of the angle between, stretched by the continuity and cut at a right angle.
  static double turn_weight(const Direction& a, const Direction& b, double continuity) {
    const double cosine = a.sine * b.sine + a.cosine * b.cosine;
    if (continuity == 1) return cosine > 0 ? cosine * cosine : 0;
    const double sine = std::fabs(a.sine * b.cosine - a.cosine * b.sine);
    double low = 0, high = kPi;  // the angle, by halving: 60 steps reach the last bit
    for (int i = 0; i < 60; ++i) {
      const double middle = (low + high) / 2;
      // Is the angle beyond `middle`? The sign of sin(angle - middle).
      (sine * portable_cos(middle) - cosine * portable_sin(middle) > 0 ? low : high) = middle;
    }
    const double stretched = std::min(continuity * low, kPi / 2);
    return stretched >= kPi / 2 ? 0 : portable_cos(stretched) * portable_cos(stretched);
  }

  // A paddle from the middle of its patch along (sine, cosine), and the paddle with its margin.
  Paddle picture(const Settings& s, const Lanczos& reduce, double sine, double cosine) const {
    const Index side = 2 * q * kAntialias + 1, c = q * kAntialias;
    const double far = static_cast<double>(s.length * kAntialias);
    Bytes canvas(static_cast<std::size_t>(side * side), 0), wide = canvas;
    const Point end{static_cast<Index>(std::ceil(static_cast<double>(c) + far * sine)),
                    static_cast<Index>(std::ceil(static_cast<double>(c) + far * cosine))};
    draw_line({c, c}, end, static_cast<Index>(s.thickness * kAntialias + 0.5), side, &canvas);
    const Index reach = margin * kAntialias;
    for (Index y = 0; y < side; ++y)
      for (Index x = 0; x < side; ++x) {
        if (canvas[static_cast<std::size_t>(y * side + x)] == 0) continue;
        for (Index dy = -reach; dy <= reach; ++dy)
          for (Index dx = -reach; dx <= reach; ++dx)
            if (dy * dy + dx * dx <= reach * reach && y + dy >= 0 && y + dy < side && x + dx >= 0 &&
                x + dx < side)
              wide[static_cast<std::size_t>((y + dy) * side + x + dx)] = 255;
      }
    Paddle paddle;
    for (const std::uint8_t byte : reduce.reduce(canvas))
      paddle.line.push_back(static_cast<float>(byte) / 255.0f);
    for (const std::uint8_t byte : reduce.reduce(wide))
      paddle.mask.push_back(static_cast<float>(byte) / 255.0f);
    return paddle;
  }

  // A line of 255: Bresenham's for width 1, else every pixel within half the width of the
  // segment (our choice).
  static void draw_line(Point a, Point b, Index width, Index side, Bytes* canvas) {
    const auto set = [&](Index y, Index x) {
      if (y >= 0 && x >= 0 && y < side && x < side)
        (*canvas)[static_cast<std::size_t>(y * side + x)] = 255;
    };
    const Index dy = b.y - a.y, dx = b.x - a.x;
    if (width <= 1) {
      const Index ay = std::abs(dy), ax = std::abs(dx), sy = dy < 0 ? -1 : 1, sx = dx < 0 ? -1 : 1;
      Index y = a.y, x = a.x, error = ax > ay ? 2 * ay - ax : 2 * ax - ay;
      for (Index i = 0; i <= std::max(ay, ax); ++i) {
        set(y, x);
        if (error >= 0) (ax > ay ? y : x) += ax > ay ? sy : sx, error -= 2 * std::max(ay, ax);
        error += 2 * std::min(ay, ax);
        (ax > ay ? x : y) += ax > ay ? sx : sy;
      }
      return;
    }
    const double length2 = static_cast<double>(dy * dy + dx * dx);
    for (Index y = 0; y < side; ++y)
      for (Index x = 0; x < side; ++x) {
        const double py = static_cast<double>(y - a.y), px = static_cast<double>(x - a.x);
        const double along = std::clamp(
            (py * static_cast<double>(dy) + px * static_cast<double>(dx)) / length2, 0.0, 1.0);
        const double ey = py - along * static_cast<double>(dy),
                     ex = px - along * static_cast<double>(dx);
        if (4 * (ey * ey + ex * ex) <= static_cast<double>(width * width)) set(y, x);
      }
  }
};

}  // namespace
}  // namespace subquad::pathfinder
