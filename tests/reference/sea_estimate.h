// SEA's learned tensors and the attention map that they estimate: the first half of the
// transcription in sea.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <string>

#include "harness/core/params.h"
#include "harness/core/random.h"
#include "tests/reference/call.h"

namespace subquad::reference {

// An array of doubles of any rank, row-major.
struct SeaArray {
  std::vector<Index> shape;
  std::vector<double> x;

  SeaArray() = default;
  explicit SeaArray(std::vector<Index> sizes, double value = 0) : shape(std::move(sizes)) {
    Index count = 1;
    for (const Index size : shape) count *= size;
    x.assign(static_cast<std::size_t>(count), value);
  }
  template <class... I>
  double& operator()(I... at) {
    Index place = 0;
    std::size_t axis = 0;
    ((place = place * shape[axis++] + static_cast<Index>(at)), ...);
    return x[static_cast<std::size_t>(place)];
  }
  template <class... I>
  double operator()(I... at) const {
    return const_cast<SeaArray&>(*this)(at...);
  }
};

struct SeaRule {
  Index top_k, cells, features, channels, stretch, max_n, skip;
  std::string mask, group, position;
  bool relu, cnn, gates, block_norm, mask_empty, absolute, normalize, quirks, causal;

  static SeaRule from(const Settings& s, const Call& c) {
    const auto integer = [&](const char* key) { return std::get<Index>(s.at(key)); };
    const auto text = [&](const char* key) { return std::get<std::string>(s.at(key)); };
    const auto flag = [&](const char* key) { return std::get<bool>(s.at(key)); };
    SeaRule r{};
    r.causal = c.problem.causal;
    r.top_k = integer("top_k");
    r.cells = integer("cells");
    const auto d = static_cast<double>(c.problem.d_k);
    r.features = integer("features") > 0
                     ? integer("features")
                     : std::max<Index>(1, static_cast<Index>(d * std::log(d) / 8));
    r.channels = integer("channels") > 0 ? integer("channels") : r.causal ? 2 : 4;
    r.stretch = integer("stretch") > 0 ? integer("stretch") : r.causal ? 4 : 2;
    r.max_n = integer("n_max") > 0 ? integer("n_max") : c.problem.n;
    r.skip = integer("query_skip");
    r.mask = text("mask");
    r.group = text("group");
    r.position = text("position") == "auto" ? r.causal ? "learned" : "identity" : text("position");
    r.relu = text("kernel") == "relu" || (text("kernel") == "auto" && r.causal);
    r.cnn = flag("cnn");
    if (!r.cnn) r.stretch = 1;
    r.gates = text("gates") == "learned" && r.mask == "learned";
    r.block_norm = text("input_norm") == "block_ln";
    r.mask_empty = flag("mask_empty_cells");
    r.absolute = text("cell_map") == "absolute";
    r.normalize = flag("avg_normalize");
    r.quirks = flag("repo_quirks") && r.causal;
    return r;
  }

  Index visible(Index t, Index n) const { return causal ? t + 1 : n; }
  Index length(Index t, Index n) const { return absolute ? max_n : visible(t, n); }
  // Cell of key j: floor((j + 1/2) cells / length), in integers.
  Index cell(Index j, Index t, Index n) const {
    // The largest c with round_half_up(c length / cells) <= j.
    Index c = 0;
    for (Index next = 1; next < cells; ++next)
      if ((2 * next * length(t, n) + cells) / (2 * cells) <= j) c = next;
    return c;
  }
};

// Learned tensors by name.
using SeaTensors = std::map<std::string, SeaArray>;

inline SeaTensors sea_tensors(const SeaRule& r, const Problem& p, Seed seed) {
  SeaTensors all;
  const Index hidden = 2 * p.d_v, per_head = r.cnn ? r.channels : 1, c = p.heads * per_head,
              w = r.cells / r.stretch;
  const auto put = [&](const std::string& name, std::vector<Index> shape, char start,
                       Index fan_in = 0) {
    SeaArray a(shape);
    std::vector<float> drawn(a.x.size());
    const Seed stream = derive(seed, "sea." + name);
    if (start == 'n' || start == 'p')
      fill_normal(stream, drawn.data(), static_cast<Index>(drawn.size()));
    if (start == 'u') fill_uniform(stream, drawn.data(), static_cast<Index>(drawn.size()));
    const auto bound =
        static_cast<float>(1 / std::sqrt(static_cast<double>(std::max<Index>(1, fan_in))));
    for (std::size_t i = 0; i < drawn.size(); ++i) {
      if (start == 'n') drawn[i] *= 0.02f;
      if (start == 'u') drawn[i] = bound * (2 * drawn[i] - 1);
      if (start == '1') drawn[i] = 1;
      a.x[i] = static_cast<double>(drawn[i]);
    }
    all[name] = a;
  };
  put("encoder.weight", {3 * p.d_v, hidden}, 'n');
  put("encoder.bias", {hidden}, '0');
  put("encoder_norm.weight", {hidden}, '1');
  put("encoder_norm.bias", {hidden}, '0');
  put("decoder.weight", {hidden, per_head * w}, 'n');
  put("decoder.bias", {per_head * w}, '0');
  put("gates.weight", {hidden, 2}, 'n');
  put("gates.bias", {2}, '0');
  if (r.cnn) {
    if (r.causal) {
      put("image_norm.weight", {w}, '1');
      put("image_norm.bias", {w}, '0');
      put("score_norm.weight", {r.cells}, '1');
      put("score_norm.bias", {r.cells}, '0');
    }
    for (const std::string name : {"conv1", "conv2", "conv3"}) {
      const Index kernel = name == "conv3" && r.causal ? 1 : 3, out = name == "conv3" ? p.heads : c;
      put(name + ".weight", {out, c, kernel, kernel}, 'u', c * kernel * kernel);
      put(name + ".bias", {out}, 'u', c * kernel * kernel);
    }
  }
  if (r.position == "learned") put("positions", {r.max_n, p.d_v}, 'p');
  return all;
}

// (x - mean) / sqrt(variance + 1e-5), times weight plus bias.
inline void sea_layer_norm(double* x, Index count, const SeaArray* weight, const SeaArray* bias) {
  double mean = 0, variance = 0;
  for (Index i = 0; i < count; ++i) mean += x[i] / static_cast<double>(count);
  for (Index i = 0; i < count; ++i)
    variance += (x[i] - mean) * (x[i] - mean) / static_cast<double>(count);
  for (Index i = 0; i < count; ++i) {
    x[i] = (x[i] - mean) / std::sqrt(variance + 1e-5);
    if (weight != nullptr)
      x[i] = x[i] * weight->x[static_cast<std::size_t>(i)] + bias->x[static_cast<std::size_t>(i)];
  }
}

// x [channels, rows, columns]. Tap y of the kernel sees row step * r + rows[y], tap x column
// c + dilation (x - 1); zero outside.
inline SeaArray sea_conv(const SeaArray& x, const SeaArray& w, const SeaArray& b, Index step,
                         std::vector<Index> rows, Index dilation, bool relu) {
  const Index in = x.shape[0], height = x.shape[1], width = x.shape[2], out = w.shape[0],
              kernel = w.shape[2];
  SeaArray y({out, (height + step - 1) / step, width});
  for (Index o = 0; o < out; ++o)
    for (Index r = 0; r < y.shape[1]; ++r)
      for (Index c = 0; c < width; ++c) {
        double sum = b(o);
        for (Index i = 0; i < in; ++i)
          for (Index ky = 0; ky < kernel; ++ky)
            for (Index kx = 0; kx < kernel; ++kx) {
              const Index row = step * r + rows[static_cast<std::size_t>(ky)],
                          column = c + dilation * (kx - kernel / 2);
              if (row >= 0 && row < height && column >= 0 && column < width)
                sum += w(o, i, ky, kx) * x(i, row, column);
            }
        y(o, r, c) = relu ? std::max(0.0, sum) : sum;
      }
  return y;
}

// Linear interpolation of one axis of [a, b, c] to another size, half-pixel centres, clamped.
inline SeaArray sea_resize(const SeaArray& x, std::size_t axis, Index size) {
  std::vector<Index> shape = x.shape;
  const Index in = shape[axis];
  if (in == size) return x;
  shape[axis] = size;
  SeaArray y(shape);
  for (Index a = 0; a < shape[0]; ++a)
    for (Index b = 0; b < shape[1]; ++b)
      for (Index c = 0; c < shape[2]; ++c) {
        const Index i = axis == 1 ? b : c;
        const double at = std::clamp(
            (static_cast<double>(i) + 0.5) * static_cast<double>(in) / static_cast<double>(size) -
                0.5,
            0.0, static_cast<double>(in - 1));
        const auto low = static_cast<Index>(at);
        const Index high = std::min(low + 1, in - 1);
        const double part = at - static_cast<double>(low);
        y(a, b, c) = axis == 1 ? (1 - part) * x(a, low, c) + part * x(a, high, c)
                               : (1 - part) * x(a, b, low) + part * x(a, b, high);
      }
  return y;
}

struct SeaEstimate {
  SeaArray scores;  // [heads, n, cells]
  SeaArray gates;   // [heads, n, 2], after the sigmoid
};

// Kernel attention of [position value | v] -> [heads, n, 2 d_v].
inline SeaArray sea_kernel(const SeaRule& r, const Call& call, const SeaTensors& tensors, Index b,
                           Seed seed, std::vector<double>* position_mean) {
  const Problem& p = call.problem;
  const Index n = p.n, d = p.d_v, m = r.features;
  Random random(derive(seed, "sea.projection"), "favor");
  MatrixD w(m, p.d_k);
  for (Index first = 0; first < m; first += p.d_k) {
    MatrixD g(p.d_k, p.d_k), lengths(p.d_k, p.d_k);
    for (Index i = 0; i < p.d_k; ++i)
      for (Index c = 0; c < p.d_k; ++c) g(i, c) = random.normal();
    for (Index i = 0; i < p.d_k; ++i)
      for (Index c = 0; c < p.d_k; ++c) lengths(i, c) = random.normal();
    for (Index c = 0; c < p.d_k; ++c) {  // Gram-Schmidt on columns, twice
      for (int again = 0; again < 2; ++again)
        for (Index before = 0; before < c; ++before)
          g.col(c) -= g.col(before).dot(g.col(c)) * g.col(before);
      g.col(c) /= g.col(c).norm();
    }
    for (Index i = 0; i < p.d_k && first + i < m; ++i)
      w.row(first + i) = g.row(i) * lengths.row(i).norm();
  }
  const double root = std::pow(static_cast<double>(p.d_k), -0.25);
  position_mean->assign(static_cast<std::size_t>(d), 0);
  SeaArray out({p.heads, n, 2 * d});
  for (Index h = 0; h < p.heads; ++h) {
    MatrixD project_q(n, m), project_k(n, m), phi_q(n, m), phi_k(n, m), value(n, 2 * d);
    value.setZero();
    for (Index i = 0; i < n; ++i) {
      for (Index f = 0; f < m; ++f) {
        double q = 0, k = 0;
        for (Index c = 0; c < p.d_k; ++c) {
          q += w(f, c) * root * at(call.q, b, h, i, c);
          k += w(f, c) * root * at(call.k, b, h, i, c);
        }
        project_q(i, f) = q;
        project_k(i, f) = k;
      }
      for (Index c = 0; c < d; ++c) value(i, d + c) = at(call.v, b, h, i, c);
      if (r.position == "learned") {
        for (Index c = 0; c < d; ++c) value(i, c) = tensors.at("positions")(i, c);
      } else if (r.position == "none") {
        continue;
      } else if (r.position == "nearest") {
        value(i, i * d / n) = 1;
      } else {
        const double y =
            n > 1 ? static_cast<double>(i) * static_cast<double>(d - 1) / static_cast<double>(n - 1)
                  : 0;
        for (Index c = 0; c < d; ++c)
          value(i, c) = std::max(0.0, 1 - std::fabs(y - static_cast<double>(c)));
      }
    }
    for (Index c = 0; c < d && h == 0; ++c)
      (*position_mean)[static_cast<std::size_t>(c)] = value.col(c).mean();
    for (Index i = 0; i < n; ++i) {
      double half_q = 0, half_k = 0;
      for (Index c = 0; c < p.d_k; ++c) {
        half_q += 0.5 * std::pow(root * at(call.q, b, h, i, c), 2);
        half_k += 0.5 * std::pow(root * at(call.k, b, h, i, c), 2);
      }
      const double largest_key = r.causal ? 0 : project_k.maxCoeff();
      for (Index f = 0; f < m; ++f) {
        const double ratio = 1 / std::sqrt(static_cast<double>(m));
        phi_q(i, f) =
            r.relu
                ? std::max(0.0, project_q(i, f)) + 1e-3
                : ratio * (std::exp(project_q(i, f) - half_q - project_q.row(i).maxCoeff()) + 1e-4);
        phi_k(i, f) = r.relu ? std::max(0.0, project_k(i, f)) + 1e-3
                             : ratio * (std::exp(project_k(i, f) - half_k - largest_key) + 1e-4);
      }
    }
    for (Index i = 0; i < n; ++i) {
      double norm = 0;
      for (Index j = 0; j < r.visible(i, n); ++j) {
        const double weight = phi_q.row(i).dot(phi_k.row(j));
        norm += weight;
        for (Index c = 0; c < 2 * d; ++c) out(h, i, c) += weight * value(j, c);
      }
      for (Index c = 0; c < 2 * d; ++c) out(h, i, c) /= norm;
    }
  }
  return out;
}

inline SeaEstimate sea_estimate(const SeaRule& r, const Call& call, const SeaTensors& t,
                                const SeaArray& kernel, Index b) {
  const Problem& p = call.problem;
  const Index n = p.n, d = p.d_v, rows = (n + r.skip - 1) / r.skip, hidden = 2 * d,
              per_head = r.cnn ? r.channels : 1, width = r.cells / r.stretch;
  SeaArray image({p.heads * per_head, rows, width}), gates({p.heads, rows, 2});
  for (Index h = 0; h < p.heads; ++h)
    for (Index row = 0; row < rows; ++row) {
      const Index token = row * r.skip;
      std::vector<double> x(static_cast<std::size_t>(3 * d)), z(static_cast<std::size_t>(hidden));
      for (Index c = 0; c < 2 * d; ++c) x[static_cast<std::size_t>(c)] = kernel(h, token, c);
      for (Index c = 0; c < d; ++c)
        x[static_cast<std::size_t>(2 * d + c)] = at(call.v, b, h, token, c);
      for (Index block = 0; block < 3 && r.block_norm; ++block)
        sea_layer_norm(x.data() + block * d, d, nullptr, nullptr);
      for (Index o = 0; o < hidden; ++o) {
        double sum = t.at("encoder.bias")(o);
        for (Index i = 0; i < 3 * d; ++i)
          sum += x[static_cast<std::size_t>(i)] * t.at("encoder.weight")(i, o);
        z[static_cast<std::size_t>(o)] = sum;
      }
      sea_layer_norm(z.data(), hidden, &t.at("encoder_norm.weight"), &t.at("encoder_norm.bias"));
      for (double& e : z) e = 0.5 * e * std::erfc(-e / std::sqrt(2.0));
      for (Index g = 0; g < 2; ++g) {
        double sum = t.at("gates.bias")(g);
        for (Index i = 0; i < hidden; ++i)
          sum += z[static_cast<std::size_t>(i)] * t.at("gates.weight")(i, g);
        gates(h, row, g) = 1 / (1 + std::exp(-sum));
      }
      for (Index o = 0; o < per_head * width; ++o) {
        double sum = t.at("decoder.bias")(o);
        for (Index i = 0; i < hidden; ++i)
          sum += z[static_cast<std::size_t>(i)] * t.at("decoder.weight")(i, o);
        image(h * per_head + o / width, row, o % width) = sum;
      }
    }
  SeaArray scores = image;
  if (r.cnn && r.causal) {
    for (Index c = 0; c < image.shape[0]; ++c)
      for (Index row = 0; row < rows; ++row)
        sea_layer_norm(&image(c, row, 0), width, &t.at("image_norm.weight"),
                       &t.at("image_norm.bias"));
    const std::vector<Index> back{-4, -2, 0};
    SeaArray y = sea_conv(image, t.at("conv1.weight"), t.at("conv1.bias"), 1, back, 2, true);
    y = sea_conv(y, t.at("conv2.weight"), t.at("conv2.bias"), 1, back, 2, true);
    SeaArray wide({y.shape[0], rows, r.cells});
    for (Index c = 0; c < y.shape[0]; ++c)
      for (Index row = 0; row < rows; ++row)
        for (Index i = 0; i < r.cells; ++i) wide(c, row, i) = y(c, row, i / r.stretch);
    if (r.quirks) {  // one column of padding on both sides, then area pooling
      SeaArray padded({y.shape[0], rows, r.cells + 2});
      for (Index c = 0; c < y.shape[0]; ++c)
        for (Index row = 0; row < rows; ++row)
          for (Index i = 0; i < r.cells; ++i) padded(c, row, i + 1) = wide(c, row, i);
      const SeaArray full =
          sea_conv(padded, t.at("conv3.weight"), t.at("conv3.bias"), 1, {0}, 1, false);
      scores = SeaArray({p.heads, rows, r.cells});
      for (Index h = 0; h < p.heads; ++h)
        for (Index row = 0; row < rows; ++row)
          for (Index i = 0; i < r.cells; ++i) {
            const Index first = i * (r.cells + 2) / r.cells,
                        last = ((i + 1) * (r.cells + 2) + r.cells - 1) / r.cells;
            for (Index j = first; j < last; ++j)
              scores(h, row, i) += full(h, row, j) / static_cast<double>(last - first);
          }
    } else {
      scores = sea_conv(wide, t.at("conv3.weight"), t.at("conv3.bias"), 1, {0}, 1, false);
    }
    for (Index h = 0; h < p.heads; ++h)
      for (Index row = 0; row < rows; ++row)
        sea_layer_norm(&scores(h, row, 0), r.cells, &t.at("score_norm.weight"),
                       &t.at("score_norm.bias"));
  } else if (r.cnn) {
    const std::vector<Index> around{-1, 0, 1};
    SeaArray y = sea_conv(image, t.at("conv1.weight"), t.at("conv1.bias"), 2, around, 1, true);
    y = sea_conv(y, t.at("conv2.weight"), t.at("conv2.bias"), 1, around, 1, true);
    SeaArray tall({y.shape[0], 2 * y.shape[1], width});
    for (Index c = 0; c < y.shape[0]; ++c)
      for (Index row = 0; row < tall.shape[1]; ++row)
        for (Index i = 0; i < width; ++i) tall(c, row, i) = y(c, row / 2, i);
    scores = sea_conv(tall, t.at("conv3.weight"), t.at("conv3.bias"), 1, around, 1, false);
    scores = sea_resize(sea_resize(scores, 1, rows), 2, r.cells);
  }
  SeaEstimate result{SeaArray({p.heads, n, r.cells}), SeaArray({p.heads, n, 2})};
  for (Index h = 0; h < p.heads; ++h)
    for (Index i = 0; i < n; ++i) {
      for (Index c = 0; c < r.cells; ++c) result.scores(h, i, c) = scores(h, i / r.skip, c);
      for (Index g = 0; g < 2; ++g) result.gates(h, i, g) = gates(h, i / r.skip, g);
    }
  return result;
}

}  // namespace subquad::reference
