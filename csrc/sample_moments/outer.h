// Statistics where every unit's gradient is the outer product of one row of d and one row of x, as
// in a linear layer of one position: a few rows and columns at a time, whose sums stay in registers
// while all units go by.
#pragma once

#include <algorithm>
#include <cstdint>

#include "sample_moments/tile.h"

namespace sigeo_ext::sample_moments {

// Values of d that are packed side by side, and those of them that are worked on together.
inline constexpr int kOuterPanel = 8;
inline constexpr int kOuterRows = 4;
inline constexpr int kOuterVectors = 1;  // of x

// Units added up before the sum goes to a second one: bounds the growth of rounding errors.
inline constexpr int64_t kUnitsRun = 128;

// Both packed as by `pack_panels`: x in panels of kOuterVectors vectors, d in those of kOuterPanel.
template <class T>
struct OuterJob {
  const T* x;
  const T* d;
  int64_t units, segments, inputs, outputs;
  std::array<T*, kStatistics> statistics;  // [segments, outputs, inputs], or null
  T factor;
};

// kOuterRows by kOuterVectors vectors of each unit's gradient.
template <class T, int kLanes>
struct OuterTile {
  using V = typename Vector<T, kLanes>::type;
  static constexpr int kWidth = kOuterVectors * kLanes;
  const T* x;  // of the first unit
  const T* d;
  int64_t units;

  // Adds up what `step(sums, g, r, v)` adds to `sums` of every unit's g.
  template <int kSums, class Step>
  SIGEO_INLINE void add_up(V (&total)[kSums][kOuterRows][kOuterVectors], const Step& step) const {
    for (int64_t from = 0; from < units; from += kUnitsRun) {
      const int64_t to = std::min(units, from + kUnitsRun);
      V sums[kSums][kOuterRows][kOuterVectors] = {};
      for (int64_t unit = from; unit < to; ++unit) {
#pragma GCC unroll 4
        for (int v = 0; v < kOuterVectors; ++v) {
          const V values = load<T, kLanes>(x + unit * kWidth + v * kLanes);
#pragma GCC unroll 4
          for (int r = 0; r < kOuterRows; ++r) step(sums, values * d[unit * kOuterPanel + r], r, v);
        }
      }
#pragma GCC unroll 4
      for (int s = 0; s < kSums; ++s)
#pragma GCC unroll 4
        for (int r = 0; r < kOuterRows; ++r)
#pragma GCC unroll 4
          for (int v = 0; v < kOuterVectors; ++v) total[s][r][v] += sums[s][r][v];
    }
  }

  // Sum, sum of magnitudes and sum of squares.
  SIGEO_INLINE void sums(V (&total)[3][kOuterRows][kOuterVectors]) const {
    add_up(total, [](auto& sums, const V& g, int r, int v) SIGEO_LAMBDA_INLINE {
      sums[0][r][v] += g;
      sums[1][r][v] += term<kAbsSum>(g);
      sums[2][r][v] += term<kSqSum>(g);
    });
  }

  SIGEO_INLINE void signs(V (&total)[1][kOuterRows][kOuterVectors]) const {
    add_up(total, [](auto& sums, const V& g, int r, int v)
                      SIGEO_LAMBDA_INLINE { sums[0][r][v] += term<kSignSum>(g); });
  }

  // The mean first, as a deviation from the first unit; then squares of deviations from it, less
  // what its own rounding adds (Chan, Golub and LeVeque 1983).
  SIGEO_INLINE void m2(V (&result)[kOuterRows][kOuterVectors]) const {
    V mean[kOuterRows][kOuterVectors], total[1][kOuterRows][kOuterVectors] = {};
    V squares[2][kOuterRows][kOuterVectors] = {};
    for (int r = 0; r < kOuterRows; ++r)
      for (int v = 0; v < kOuterVectors; ++v)
        mean[r][v] = rounded(load<T, kLanes>(x + v * kLanes) * d[r]);
    add_up(total, [&](auto& sums, const V& g, int r, int v)
                      SIGEO_LAMBDA_INLINE { sums[0][r][v] += rounded(g) - mean[r][v]; });
    const T share = T{1} / static_cast<T>(units);
    for (int r = 0; r < kOuterRows; ++r)
      for (int v = 0; v < kOuterVectors; ++v) mean[r][v] += total[0][r][v] * share;
    add_up(squares, [&](auto& sums, const V& g, int r, int v) SIGEO_LAMBDA_INLINE {
      const V deviation = rounded(g) - mean[r][v];
      sums[0][r][v] += deviation * deviation;
      sums[1][r][v] += deviation;
    });
    for (int r = 0; r < kOuterRows; ++r)
      for (int v = 0; v < kOuterVectors; ++v) {
        const V zero{}, found = squares[0][r][v] - squares[1][r][v] * squares[1][r][v] * share;
        result[r][v] = found < zero ? zero : found;  // a NaN stays one
      }
  }

  // A product as it is stored: were it fused with what is subtracted, equal units would differ.
  static SIGEO_INLINE V rounded(V g) {
#if defined(__x86_64__)
    asm("" : "+x"(g));
#elif defined(__aarch64__)
    asm("" : "+w"(g));
#endif
    return g;
  }
};

// Rows [o, o + kOuterRows) and columns [i, i + width) of a result, as far as they are there.
template <class T, int kLanes>
SIGEO_INLINE void put(const OuterJob<T>& job, T* result, int64_t o, int64_t i, T power,
                      const typename Vector<T, kLanes>::type (&values)[kOuterRows][kOuterVectors]) {
  const int64_t rows = std::min<int64_t>(kOuterRows, job.outputs - o);
  for (int64_t r = 0; r < rows; ++r) {
    T* to = result + (o + r) * job.inputs + i;
    for (int v = 0; v < kOuterVectors; ++v, to += kLanes) {
      const auto scaled = values[r][v] * power;
      const int64_t there = job.inputs - i - v * kLanes;
      if (there >= kLanes) store<T, kLanes>(to, scaled);
      else
        for (int64_t k = 0; k < there; ++k) to[k] = scaled[k];
    }
  }
}

// Panels [from, to) of x with all of d.
template <class T, int kLanes>
SIGEO_INLINE void outer_body(const OuterJob<T>& job, int64_t from, int64_t to) {
  using V = typename Vector<T, kLanes>::type;
  using Values = V[kOuterRows][kOuterVectors];
  constexpr int64_t kWidth = OuterTile<T, kLanes>::kWidth;
  const auto& wanted = job.statistics;
  const int64_t all_units = job.units * job.segments, size = job.outputs * job.inputs;
  for (int64_t panel = from; panel < to; ++panel) {
    for (int64_t segment = 0; segment < job.segments; ++segment) {
      for (int64_t o = 0; o < job.outputs; o += kOuterRows) {
        const int64_t first = segment * job.units;
        const int64_t row = o / kOuterPanel * all_units + first;
        const OuterTile<T, kLanes> tile{job.x + (panel * all_units + first) * kWidth,
                                        job.d + row * kOuterPanel + o % kOuterPanel, job.units};
        const auto write = [&](int statistic, const Values& values) SIGEO_LAMBDA_INLINE {
          if (wanted[statistic] == nullptr) return;
          put<T, kLanes>(job, wanted[statistic] + segment * size, o, panel * kWidth,
                         power_of(job.factor, statistic), values);
        };
        if (wanted[kSum] || wanted[kAbsSum] || wanted[kSqSum]) {
          V total[3][kOuterRows][kOuterVectors] = {};
          tile.sums(total);
          write(kSum, total[0]);
          write(kAbsSum, total[1]);
          write(kSqSum, total[2]);
        }
        if (wanted[kSignSum]) {
          V total[1][kOuterRows][kOuterVectors] = {};
          tile.signs(total);
          write(kSignSum, total[0]);
        }
        if (wanted[kM2]) {
          Values result;
          tile.m2(result);
          write(kM2, result);
        }
      }
    }
  }
}

// What `convolution` does where `is_outer`.
template <class T>
void outer(const Convolution& shape, const Job<T>& job, const Parallel& parallel);

}  // namespace sigeo_ext::sample_moments
