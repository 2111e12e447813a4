// Statistics that tests of generated data use, with fixed seeds and limits at p = 0.001.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "harness/core/task.h"

namespace subquad {

inline double chi_square(const std::vector<double>& counts, const std::vector<double>& expected) {
  double sum = 0;
  for (std::size_t i = 0; i < counts.size(); ++i)
    sum += (counts[i] - expected[i]) * (counts[i] - expected[i]) / expected[i];
  return sum;
}
inline double chi_square_uniform(const std::vector<double>& counts) {
  double total = 0;
  for (const double c : counts) total += c;
  return chi_square(counts,
                    std::vector<double>(counts.size(), total / static_cast<double>(counts.size())));
}
// Pearson's statistic of a table [rows, columns] for independence of rows and columns.
inline double chi_square_table(const std::vector<std::vector<double>>& table) {
  std::vector<double> rows(table.size()), columns(table[0].size());
  double total = 0, sum = 0;
  for (std::size_t i = 0; i < table.size(); ++i)
    for (std::size_t j = 0; j < columns.size(); ++j)
      rows[i] += table[i][j], columns[j] += table[i][j], total += table[i][j];
  for (std::size_t i = 0; i < table.size(); ++i)
    for (std::size_t j = 0; j < columns.size(); ++j) {
      const double expected = rows[i] * columns[j] / total;
      if (expected > 0) sum += (table[i][j] - expected) * (table[i][j] - expected) / expected;
    }
  return sum;
}
// 99.9 % quantile of chi-square with `freedom` degrees (Wilson and Hilferty).
inline double chi_square_limit(std::size_t freedom) {
  const double k = static_cast<double>(freedom), z = 3.0902;
  const double root = 1 - 2 / (9 * k) + z * std::sqrt(2 / (9 * k));
  return k * root * root * root;
}

struct Moments {
  double count = 0, mean = 0, deviation = 0;
  double error() const { return deviation / std::sqrt(count); }  // standard error of the mean
};
inline Moments moments(const std::vector<double>& x) {
  Moments m;
  m.count = static_cast<double>(x.size());
  for (const double value : x) m.mean += value / m.count;
  for (const double value : x) m.deviation += (value - m.mean) * (value - m.mean);
  m.deviation = std::sqrt(m.deviation / std::max(1.0, m.count - 1));
  return m;
}
// Difference of two means in standard errors (Welch).
inline double welch(const std::vector<double>& x, const std::vector<double>& y) {
  const Moments a = moments(x), b = moments(y);
  return (a.mean - b.mean) / std::sqrt(a.error() * a.error() + b.error() * b.error());
}
// Kolmogorov and Smirnov's two-sample statistic D sqrt(nm / (n + m)); 1.95 is its limit at p =
// 0.001.
inline double kolmogorov_smirnov(std::vector<double> x, std::vector<double> y) {
  std::sort(x.begin(), x.end());
  std::sort(y.begin(), y.end());
  const double n = static_cast<double>(x.size()), m = static_cast<double>(y.size());
  double largest = 0;
  for (std::size_t i = 0, j = 0; i < x.size() && j < y.size();) {
    const double at = std::min(x[i], y[j]);
    while (i < x.size() && x[i] <= at) ++i;
    while (j < y.size() && y[j] <= at) ++j;
    largest = std::max(largest, std::fabs(static_cast<double>(i) / n - static_cast<double>(j) / m));
  }
  return largest * std::sqrt(n * m / (n + m));
}

}  // namespace subquad
