// Softmax and norms over the last axis. One pass over memory forward, one backward.

#include <cmath>

#include "harness/autodiff/op_tools.h"

namespace subquad::autodiff {
namespace {

template <class T>
T row_max(const T* x, Index width) {
  T most = x[0];
  for (Index i = 1; i < width; ++i) most = x[i] > most ? x[i] : most;
  return most;
}

// to[i] = exp(x[i] - shift); returns the sum. A row of -infinity gives zeros.
template <class T>
T exponentials(const T* x, Index width, T shift, T* to) {
  const T finite = shift == -std::numeric_limits<T>::infinity() ? T(0) : shift;
  Vec<T> sums{};
  const Vec<T> s = broadcast(finite);
  for_vectors<T>(width, [&](Index i, Index count) {
    const Vec<T> e = exp_of<T>(load_some(x + i, count) - s);
    store_some(to + i, e, count);
    if (count == kLanes<T>) {
      sums += e;
    } else {
      for (Index lane = 0; lane < count; ++lane) sums[lane] += e[lane];
    }
  });
  return sum_lanes<T>(sums);
}

// Column sums of products over groups of rows, added in the order of the groups.
template <class T>
struct ColumnSums {
  static constexpr Index kGroups = 8;
  Index rows, width, per_group;
  typename Tape<T>::Scratch memory;

  ColumnSums(Tape<T>& tape, Index r, Index w, Index kinds)
      : rows(r),
        width(w),
        per_group((r + kGroups - 1) / kGroups),
        memory(tape, kGroups * w * kinds) {
    std::fill_n(memory.data(), kGroups * w * kinds, T(0));
  }
  T* of(Index group, Index kind) const { return memory.data() + (kind * kGroups + group) * width; }
  void add_to(Target<T> target, Index kind) const {
    if (!target) return;
    for (Index j = 0; j < width; ++j) {
      T total = target.add ? target.data[j] : T(0);
      for (Index g = 0; g < kGroups; ++g) total += of(g, kind)[j];
      target.data[j] = total;
    }
  }
};

template <class T>
Var<T> norm_op(Var<T> x, Var<T> weight, Var<T> bias, double eps, bool centred) {
  Tape<T>& tape = x.tape();
  const Index width = x.dims().back(), rows = x.dims().rows();
  for (const Var<T>& v : {weight, bias})
    SUBQUAD_CHECK(v.empty() || v.size() == width, "{} elements for a width of {}", v.size(), width);
  const bool needs = x.needs_grad() || (!weight.empty() && weight.needs_grad()) ||
                     (!bias.empty() && bias.needs_grad());
  const Var<T> y = tape.make(x.dims(), needs);
  T* const stats = tape.save(y, 0, 2 * rows);  // mean and 1 / deviation of every row
  const T *const w = weight.empty() ? nullptr : weight.data(), *const b = bias.empty()
                                                                              ? nullptr
                                                                              : bias.data();
  for_rows(rows, width, [&](Index r0, Index r1) {
    for (Index r = r0; r < r1; ++r) {
      const T* const from = x.data() + r * width;
      T* const to = y.data() + r * width;
      T mean = 0;
      if (centred) {
        Vec<T> sums{};
        for_vectors<T>(width, [&](Index i, Index n) { sums += load_some(from + i, n); });
        mean = sum_lanes<T>(sums) / static_cast<T>(width);
      }
      Vec<T> squares{};
      for_vectors<T>(width, [&](Index i, Index n) {
        Vec<T> off = load_some(from + i, n) - mean;
        for (Index lane = n; lane < kLanes<T>; ++lane) off[lane] = 0;
        squares += off * off;
      });
      const T variance = sum_lanes<T>(squares) / static_cast<T>(width);
      const T inverse = T(1) / std::sqrt(variance + static_cast<T>(eps));
      stats[2 * r] = mean;
      stats[2 * r + 1] = inverse;
      for_vectors<T>(width, [&](Index i, Index n) {
        Vec<T> out = (load_some(from + i, n) - mean) * inverse;
        if (w != nullptr) out *= load_some(w + i, n);
        if (b != nullptr) out += load_some(b + i, n);
        store_some(to + i, out, n);
      });
    }
  });
  if (!y.needs_grad()) return y;
  tape.note(y, [=] {
    Tape<T>& t = y.tape();
    const T *const dy = t.out_grad(y), *const st = t.saved(y, 0);
    const Target<T> dw = weight.empty() ? Target<T>{} : t.target(weight);
    const Target<T> db = bias.empty() ? Target<T>{} : t.target(bias);
    const Target<T> dx = t.target(x);
    const ColumnSums<T> sums(t, rows, width, 2);
    parallel_for(ColumnSums<T>::kGroups, [&](Index group, int) {
      T *const sum_w = sums.of(group, 0), *const sum_b = sums.of(group, 1);
      const Index r0 = std::min(rows, group * sums.per_group),
                  r1 = std::min(rows, r0 + sums.per_group);
      for (Index r = r0; r < r1; ++r) {
        const T *const from = x.data() + r * width, *const g = dy + r * width;
        const T mean = st[2 * r], inverse = st[2 * r + 1];
        // With h the normalised row and e = dy * weight:
        // dx = (e - mean(e) [if centred] - h mean(e h)) / deviation.
        Vec<T> total_e{}, total_eh{};
        for_vectors<T>(width, [&](Index i, Index n) {
          const Vec<T> h = (load_some(from + i, n) - mean) * inverse;
          const Vec<T> d = load_some(g + i, n);  // zero beyond the end, and so is all below
          store_some(sum_w + i, load_some(sum_w + i, n) + d * h, n);
          store_some(sum_b + i, load_some(sum_b + i, n) + d, n);
          const Vec<T> e = w == nullptr ? d : d * load_some(w + i, n);
          total_e += e;
          total_eh += e * h;
        });
        if (!dx) continue;
        const T mean_e = centred ? sum_lanes<T>(total_e) / static_cast<T>(width) : T(0);
        const T mean_eh = sum_lanes<T>(total_eh) / static_cast<T>(width);
        for_vectors<T>(width, [&](Index i, Index n) {
          const Vec<T> h = (load_some(from + i, n) - mean) * inverse;
          Vec<T> e = load_some(g + i, n);
          if (w != nullptr) e *= load_some(w + i, n);
          put(dx, r * width + i, (e - mean_e - h * mean_eh) * inverse, n);
        });
      }
    });
    sums.add_to(dw, 0);
    sums.add_to(db, 1);
  });
  return y;
}

}  // namespace

template <class T>
Var<T> softmax(Var<T> x) {
  const Index width = x.dims().back(), rows = x.dims().rows();
  const Var<T> y = x.tape().make(x.dims(), x.needs_grad());
  for_rows(rows, width, [&](Index r0, Index r1) {
    for (Index r = r0; r < r1; ++r) {
      T* const to = y.data() + r * width;
      const T* const from = x.data() + r * width;
      const T total = exponentials(from, width, row_max(from, width), to);
      const T inverse = total > T(0) ? T(1) / total : total;  // a NaN stays one
      for (Index i = 0; i < width; ++i) to[i] *= inverse;
    }
  });
  if (!y.needs_grad()) return y;
  y.tape().note(y, [=] {
    const T* const dy = y.tape().out_grad(y);
    const Target<T> dx = x.tape().target(x);
    for_rows(rows, width, [&](Index r0, Index r1) {
      for (Index r = r0; r < r1; ++r) {
        const T *const p = y.data() + r * width, *const g = dy + r * width;
        Vec<T> sums{};
        for_vectors<T>(
            width, [&](Index i, Index n) { sums += load_some(p + i, n) * load_some(g + i, n); });
        const T dot = sum_lanes<T>(sums);
        for_vectors<T>(width, [&](Index i, Index n) {
          put(dx, r * width + i, load_some(p + i, n) * (load_some(g + i, n) - dot), n);
        });
      }
    });
  });
  return y;
}

template <class T>
Var<T> log_softmax(Var<T> x) {
  const Index width = x.dims().back(), rows = x.dims().rows();
  const Var<T> y = x.tape().make(x.dims(), x.needs_grad());
  for_rows(rows, width, [&](Index r0, Index r1) {
    for (Index r = r0; r < r1; ++r) {
      T* const to = y.data() + r * width;
      const T* const from = x.data() + r * width;
      const T most = row_max(from, width);
      const T log_sum = most + std::log(exponentials(from, width, most, to));
      for (Index i = 0; i < width; ++i) to[i] = from[i] - log_sum;
    }
  });
  if (!y.needs_grad()) return y;
  y.tape().note(y, [=] {
    const T* const dy = y.tape().out_grad(y);
    const Target<T> dx = x.tape().target(x);
    for_rows(rows, width, [&](Index r0, Index r1) {
      for (Index r = r0; r < r1; ++r) {
        const T* const g = dy + r * width;
        Vec<T> sums{};
        for_vectors<T>(width, [&](Index i, Index n) { sums += load_some(g + i, n); });
        const T total = sum_lanes<T>(sums);
        for_vectors<T>(width, [&](Index i, Index n) {
          const Vec<T> p = exp_of<T>(load_some(y.data() + r * width + i, n));
          put(dx, r * width + i, load_some(g + i, n) - p * total, n);
        });
      }
    });
  });
  return y;
}

template <class T>
Var<T> layer_norm(Var<T> x, Var<T> weight, Var<T> bias, double eps) {
  return norm_op(x, weight, bias, eps, true);
}
template <class T>
Var<T> rms_norm(Var<T> x, Var<T> weight, double eps) {
  return norm_op(x, weight, Var<T>{}, eps, false);
}

#define INSTANTIATE(T)                                        \
  template Var<T> softmax(Var<T>);                            \
  template Var<T> log_softmax(Var<T>);                        \
  template Var<T> layer_norm(Var<T>, Var<T>, Var<T>, double); \
  template Var<T> rms_norm(Var<T>, Var<T>, double);
SUBQUAD_AUTODIFF_BOTH(INSTANTIATE)

}  // namespace subquad::autodiff
