#include "gather/grouped_moments.h"

#include <cmath>

#include "common/array.h"
#include "common/parallel.h"

namespace sigeo_ext::gather {
namespace {

// A row of a gradient and of each statistic.
template <class T>
struct Row {
  const T* g;
  std::array<T*, kStatistics> statistics;
  T* mean;
  T* count;
  int64_t n;
};

// Partial sums, each of its own values, so that any vector unit gives the same bits.
constexpr int64_t kLanes = 16;

template <class T>
SIGEO_INLINE double add_to(const Row<T>& row) {
  const int64_t n = row.n;
  const T* __restrict__ g = row.g;
  if (T* __restrict__ sum = row.statistics[kSum]) {
    for (int64_t i = 0; i < n; ++i) sum[i] += g[i];
  }
  if (T* __restrict__ sum = row.statistics[kAbsSum]) {
    for (int64_t i = 0; i < n; ++i) sum[i] += std::fabs(g[i]);
  }
  if (T* __restrict__ sum = row.statistics[kSqSum]) {
    for (int64_t i = 0; i < n; ++i) sum[i] += g[i] * g[i];
  }
  if (T* __restrict__ m2 = row.statistics[kM2]) {
    T* __restrict__ mean = row.mean;
    T* __restrict__ count = row.count;
    for (int64_t i = 0; i < n; ++i) {
      count[i] += T{1};
      const T delta = g[i] - mean[i];
      mean[i] += delta / count[i];
      m2[i] += delta * (g[i] - mean[i]);
    }
  }
  if (T* __restrict__ sum = row.statistics[kSignSum]) {
    for (int64_t i = 0; i < n; ++i) {
      const T sign = g[i] > T{0} ? T{1} : g[i] < T{0} ? T{-1} : g[i];
      sum[i] += sign;  // NaN stays NaN, a zero adds nothing
    }
  }
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const double value = g[i + lane];
      lanes[lane] += value * value;
    }
  }
  for (int64_t lane = 0; i + lane < n; ++lane) {
    const double value = g[i + lane];
    lanes[lane] += value * value;
  }
  double total = 0;
  for (const double lane : lanes) total += lane;
  return total;
}
SIGEO_MULTIVERSION double add_row(const Row<float>& row) { return add_to(row); }
SIGEO_MULTIVERSION double add_row(const Row<double>& row) { return add_to(row); }

template <class T>
SIGEO_INLINE void finish_to(const Row<T>& row, T subnets) {
  T* __restrict__ m2 = row.statistics[kM2];
  const T* __restrict__ mean = row.mean;
  const T* __restrict__ count = row.count;
  for (int64_t i = 0; i < row.n; ++i) {
    m2[i] += mean[i] * mean[i] * (count[i] * (subnets - count[i]) / subnets);
  }
}
SIGEO_MULTIVERSION void finish_row(const Row<float>& row, float subnets) {
  finish_to(row, subnets);
}
SIGEO_MULTIVERSION void finish_row(const Row<double>& row, double subnets) {
  finish_to(row, subnets);
}

template <class T>
Row<T> row_of(const T* g, int64_t row, int64_t column, int64_t n, const Moments<T>& moments) {
  Row<T> found{g, {}, nullptr, nullptr, n};
  for (int s = 0; s < kStatistics; ++s) {
    T* values = moments.statistics[s];
    found.statistics[s] = values == nullptr ? nullptr : values + row * moments.stride + column;
  }
  if (moments.mean != nullptr) {
    found.mean = moments.mean + row * moments.own_stride + column;
    found.count = moments.count + row * moments.own_stride + column;
  }
  return found;
}

}  // namespace

template <class T>
double add(const T* g, int64_t g_stride, int64_t rows, int64_t columns, int64_t row, int64_t column,
           const Moments<T>& moments) {
  double total = 0;
  for (int64_t r = 0; r < rows; ++r) {
    total += add_row(row_of(g + r * g_stride, row + r, column, columns, moments));
  }
  return total;
}
template double add(const float*, int64_t, int64_t, int64_t, int64_t, int64_t,
                    const Moments<float>&);
template double add(const double*, int64_t, int64_t, int64_t, int64_t, int64_t,
                    const Moments<double>&);

template <class T>
void finish(int64_t rows, int64_t columns, int64_t subnets, const Moments<T>& moments) {
  if (moments.statistics[kM2] == nullptr) return;
  for (int64_t r = 0; r < rows; ++r) {
    finish_row(row_of<T>(nullptr, r, 0, columns, moments), static_cast<T>(subnets));
  }
}
template void finish(int64_t, int64_t, int64_t, const Moments<float>&);
template void finish(int64_t, int64_t, int64_t, const Moments<double>&);

}  // namespace sigeo_ext::gather
