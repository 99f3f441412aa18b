// One coordinate's arithmetic, shared by the CPU and the CUDA kernels.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/array.h"
#include "saliency/saliency.h"

namespace sigeo_ext::saliency {

// What is summed for the columns. The log takes three sums, one for products of each magnitude, so
// that none overflows or vanishes.
enum Part : int {
  kSum,
  kAbsSum,
  kMiddle,  // |w g| from 2^-900 to 2^900
  kLarge,   // |w g| 2^-1200 from there on
  kSmall,   // |w g| 2^1200 below
  kLog1pSum,
  kWeightSqSum,
  kGradientSqSum,
  kParts,
};

// log(1 + x) in float64 for x from above -1 to 2^600, within 3 units in the last place. Free of
// branches and calls, so that loops over it vectorise.
//
// 1 + x = 2^k m with m between sqrt(1/2) and sqrt(2), and log m = 2 atanh(s), s = (m-1) / (m+1).
// m - 1 = 2^-k x + (2^-k - 1) loses nothing where x is small, since then k = 0.
SIGEO_INLINE double log1p_inside(double x) {
  constexpr uint64_t kOne = 0x3ff0000000000000u, kRootHalf = 0x3fe6a09e667f3bcdu;
  const uint64_t biased = (bit_cast<uint64_t>(1.0 + x) + (kOne - kRootHalf)) >> 52;  // k + 1023
  const double scale = bit_cast<double>((2046 - biased) << 52);                      // 2^-k
  const double k = bit_cast<double>(biased | 0x4330000000000000u) - (0x1p52 + 1023);
  const double f = x * scale + (scale - 1);
  const double s = f / (2 + f);
  const double z = s * s;  // at most 0.0295
  // atanh(s) / s = 1 + z series, to 2^-59: the polynomial of least error, by Remez' exchange. Every
  // other term goes to a sum of its own, so that two grow side by side.
  const double q = z * z;
  double first = 0x1.2f05655d4d1c3p-4, second = 0x1.39a1ba8b1fa12p-4;
  first = first * q + 0x1.74663eea08cdbp-4;
  second = second * q + 0x1.c71c520955d5bp-4;
  first = first * q + 0x1.24924941f12d2p-3;
  second = second * q + 0x1.999999997fdb7p-3;
  first = first * q + 0x1.5555555555592p-2;
  const double series = first + second * z;
  return k * 0x1.62e42fefa39efp-1 + (2 * s + 2 * s * (z * series));
}

// The same for every x.
SIGEO_INLINE double log1p_of(double x) {
  const bool huge = x > 0x1p600;  // 2^-k would be subnormal, and 1 + x = x
  const double log = log1p_inside(huge ? x * 0x1p-512 : x) + (huge ? 0x1.62e42fefa39efp+8 : 0);
  const double edge = x == -1 ? -HUGE_VAL : x < -1 ? NAN : x;  // x itself: infinity or NaN
  return x > -1 && x < HUGE_VAL ? log : edge;
}

// Calls add(part, value) for each part of `kColumn`. Not kWide: products are of middle magnitude,
// as those of float32 values are, and log(1 + g) is of values that log1p_inside takes.
template <Column kColumn, bool kWide, class Add>
SIGEO_INLINE void add_column(double w, double g, const Add& add) {
  if constexpr (kColumn == kProduct) add(kSum, w * g);
  if constexpr (kColumn == kAbsProduct) add(kAbsSum, std::fabs(w * g));
  if constexpr (kColumn == kLog1pProduct) {
    add(kLog1pSum, std::fabs(w * (kWide ? log1p_of(g) : log1p_inside(g))));
  }
  if constexpr (kColumn == kWeightSq) add(kWeightSqSum, w * w);
  if constexpr (kColumn == kGradientSq) add(kGradientSqSum, g * g);
  if constexpr (kColumn == kLogAbsProduct && !kWide) add(kMiddle, std::fabs(w * g));
  if constexpr (kColumn == kLogAbsProduct && kWide) {
    const double a = std::fabs(w), b = std::fabs(g), product = a * b;
    const bool large = product >= 0x1p900;
    // Both factors are below 2^200 unless the other is zero. A NaN is of middle magnitude.
    const bool small = product < 0x1p-900 && a < 0x1p200 && b < 0x1p200;
    add(kMiddle, large || small ? 0.0 : product);
    add(kLarge, large ? (a * 0x1p-600) * (b * 0x1p-600) : 0.0);
    add(kSmall, small ? (a * 0x1p600) * (b * 0x1p600) : 0.0);
  }
}

SIGEO_INLINE double log_of(double large, double middle, double small) {
  constexpr double kLog = 831.776616671934371;  // 1200 log 2
  if (large > 0) return kLog + std::log(large + std::ldexp(middle, -1200));
  if (middle != 0) return std::log(middle + std::ldexp(small, -1200));  // a NaN as well
  return std::log(small) - kLog;
}

// Writes the wanted columns of a layer from its parts.
SIGEO_INLINE void write_columns(const double* parts, Columns want, double* row) {
  if (holds(want, kProduct)) *row++ = parts[kSum];
  if (holds(want, kAbsProduct)) *row++ = parts[kAbsSum];
  if (holds(want, kLogAbsProduct)) {
    *row++ = log_of(parts[kLarge], parts[kMiddle], parts[kSmall]);
  }
  if (holds(want, kLog1pProduct)) *row++ = parts[kLog1pSum];
  if (holds(want, kWeightSq)) *row++ = parts[kWeightSqSum];
  if (holds(want, kGradientSq)) *row++ = parts[kGradientSqSum];
}

}  // namespace sigeo_ext::saliency
