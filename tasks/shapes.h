// Drawn figures of ten kinds, for the stand-ins of image classification and generation.
//
// For task sources alone, with internal linkage: see common.h.
#pragma once

#include "tasks/sequences.h"

namespace subquad {
namespace {

constexpr Index kFigures = 10;
constexpr const char* kFigureNames[kFigures] = {
    "disc", "ring",  "square",          "frame",         "triangle",
    "plus", "cross", "horizontal bars", "vertical bars", "checkerboard"};

// Is the point (y, x), in units of half the figure's size from its centre, inside the figure?
[[maybe_unused]] bool in_figure(Index figure, double y, double x) {
  const double ay = std::fabs(y), ax = std::fabs(x), r2 = y * y + x * x;
  if (ay > 1 || ax > 1) return false;
  const auto third = [](double t) { return t < -1.0 / 3 ? 0 : t < 1.0 / 3 ? 1 : 2; };
  const auto bar = [](double t) {  // three bars and two gaps of equal width
    const int fifth = static_cast<int>((t + 1) * 2.5);
    return fifth % 2 == 0;
  };
  switch (figure) {
    case 0:
      return r2 <= 1;
    case 1:
      return r2 <= 1 && r2 >= 0.3025;  // a ring of 0.45
    case 2:
      return true;
    case 3:
      return std::max(ay, ax) >= 0.6;
    case 4:
      return 2 * ax <= y + 1;  // point up
    case 5:
      return std::min(ay, ax) <= 0.25;
    case 6:
      return std::fabs(ay - ax) <= 0.35;
    case 7:
      return bar(y);
    case 8:
      return bar(x);
    default:
      return (third(y) + third(x)) % 2 == 0;
  }
}

struct Figure {
  Index kind = 0;
  double centre_y = 0, centre_x = 0, half = 1;  // in pixels; pixel i covers [i, i + 1)
};

// Share of each pixel of [size, size] that the figure covers, by 4 x 4 samples.
[[maybe_unused]] std::vector<double> coverage(const Figure& figure, Index size) {
  std::vector<double> out(static_cast<std::size_t>(size * size), 0.0);
  for (Index y = 0; y < size; ++y)
    for (Index x = 0; x < size; ++x) {
      int inside = 0;
      for (int sy = 0; sy < 4; ++sy)
        for (int sx = 0; sx < 4; ++sx)
          inside +=
              in_figure(figure.kind,
                        (static_cast<double>(y) + (sy + 0.5) / 4 - figure.centre_y) / figure.half,
                        (static_cast<double>(x) + (sx + 0.5) / 4 - figure.centre_x) / figure.half);
      out[static_cast<std::size_t>(y * size + x)] = inside / 16.0;
    }
  return out;
}

// A figure of this kind inside the square of side `side` at (top, left): size uniform in
// [0.35, 0.7] sides, centre uniform where it stays inside.
[[maybe_unused]] Figure random_figure(Random& random, Index kind, double top, double left,
                                      double side) {
  Figure f;
  f.kind = kind;
  f.half = random.uniform(0.35, 0.7) * side / 2;
  f.centre_y = top + random.uniform(f.half, side - f.half);
  f.centre_x = left + random.uniform(f.half, side - f.half);
  return f;
}

}  // namespace
}  // namespace subquad
