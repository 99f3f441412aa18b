// One coordinate's arithmetic, shared by the CPU and the CUDA kernels.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/array.h"
#include "moments/moments.h"

namespace sigeo_ext::moments {

// How much of a state means something: nothing at count 0; at count 1 the mean, since there
// A1 = |mean| and M2 = 0; all of it later.
enum class Stage { kFirst, kSecond, kLater };

inline Stage stage_of(int64_t count) {
  return count == 0 ? Stage::kFirst : count == 1 ? Stage::kSecond : Stage::kLater;
}

template <class T>
struct Moment {
  T abs_sum, mean, m2;
};

// Welford's update by the unit `g`, which makes them `units`.
template <Stage kStage, class T>
SIGEO_INLINE Moment<T> updated(const Moment<T>& old, T g, T units) {
  if constexpr (kStage == Stage::kFirst) {
    return {std::fabs(g), g, g - g};  // M2 is NaN where the gradient is not finite
  } else {
    const T delta = g - old.mean;
    const T mean = old.mean + delta / units;
    const T square = delta * (g - mean);
    if constexpr (kStage == Stage::kSecond)
      return {std::fabs(old.mean) + std::fabs(g), mean, square};
    else return {old.abs_sum + std::fabs(g), mean, old.m2 + square};
  }
}

// Of N units in float64. Deviations are taken from the first unit, which makes their differences
// all but exact: M2 keeps its digits where the units nearly agree.
template <int N>
SIGEO_INLINE Moment<double> moment_of(const double (&unit)[N]) {
  double abs_sum = std::fabs(unit[0]);
  double sum = unit[0] - unit[0];  // NaN where the first unit is not finite, also if it is alone
  for (int r = 1; r < N; ++r) {
    abs_sum += std::fabs(unit[r]);
    sum += unit[r] - unit[0];
  }
  const double centre = sum / N;
  double m2 = centre * centre;
  for (int r = 1; r < N; ++r) {
    const double deviation = (unit[r] - unit[0]) - centre;
    m2 += deviation * deviation;
  }
  return {abs_sum, unit[0] + centre, m2};
}

// A coordinate's share of a summary row. kRatio is summed as A1 / sqrt(M2) and kInner as
// mean * weight; `scale_row` turns the sums into what Column says. A NaN counts as kept, so that
// it reaches the result.
template <class Add>
SIGEO_INLINE void add_moment(const Moment<double>& moment, double weight, const Add& add) {
  const bool dropped = moment.m2 == 0;
  const double ratio = moment.abs_sum / std::sqrt(moment.m2);
  add(kRatio, dropped ? 0.0 : ratio);
  add(kKept, dropped ? 0.0 : 1.0);
  add(kInner, moment.mean * weight);
  add(kAbsSum, moment.abs_sum);
  add(kMeanSq, moment.mean * moment.mean);
  add(kM2Sum, moment.m2);
}

// Without weights kInner is 0 also where a mean is not finite.
SIGEO_INLINE void scale_row(double* row, double units, double ddof, bool weighted) {
  row[kRatio] *= std::sqrt(units - ddof) / units;
  row[kInner] = weighted ? row[kInner] * units : 0.0;
}

}  // namespace sigeo_ext::moments
