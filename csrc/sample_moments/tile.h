// The innermost loops: a tile of each unit's gradient in registers, and its statistics updated.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "common/ahead.h"
#include "common/array.h"
#include "sample_moments/sample_moments.h"

namespace sigeo_ext::sample_moments {

// Positions added up before the sum goes to a second one, at least: what one part of a tile's rows
// has read of them is in the first-level cache for the next.
inline constexpr int64_t kShortestRun = 128;

// The same of so many: as many as there are runs bounds the growth of rounding errors.
inline int64_t run_of(int64_t positions) {
  const auto root = static_cast<int64_t>(std::sqrt(static_cast<double>(positions)));
  return std::max(kShortestRun, root);
}

// Positions between the one that is added up and the one whose memory is asked for.
inline constexpr int64_t kPositionsAhead = 12;

// Input channels of a packed panel, and so the most rows of a tile there: a cache line of float32.
inline constexpr int64_t kPackedRows = 16;

// One tile: kRows consecutive input channels of one tap, or taps of a depthwise convolution, and
// some consecutive output channels.
template <class T>
struct Tile {
  const T* x;        // the first unit's first sample, at the tile's first input channel
  const T* d;        // the same at its first output channel
  int64_t x_sample;  // from one sample to the next
  int64_t d_sample;
  const int32_t* x_at;  // where in a sample the positions lie, [positions]
  const int32_t* d_at;
  const int32_t* row_at;  // of a depthwise convolution: where each row, which is a tap, lies
  int64_t positions;
  int64_t run;  // of positions that are added up before the sum goes to a second one
  int64_t units;
  int64_t unit;          // samples of one
  int64_t before;        // units of the segment that came before these
  T* slab[kStatistics];  // [rows, width] each, or null
  T* origin;             // the segment's first unit, [rows, width]; with kM2
  T* deviation;          // mean deviation from it, of the units so far; with kM2
  int64_t width;         // output channels of the slab
  T* sq_norm;            // [units, width], or null; this tile's share is added, column by column
  T* each;               // every unit's gradient, [units, rows, width], or null
  int64_t each_unit;     // from one unit to the next
};

template <class T, int kLanes>
struct Vector {
  typedef T type __attribute__((vector_size(kLanes * sizeof(T))));
  typedef T unaligned
      __attribute__((vector_size(kLanes * sizeof(T)), aligned(alignof(T)), may_alias));
};

template <class T, int kLanes>
SIGEO_INLINE typename Vector<T, kLanes>::type load(const T* from) {
  return *reinterpret_cast<const typename Vector<T, kLanes>::unaligned*>(from);
}

template <class T, int kLanes>
SIGEO_INLINE void store(T* to, typename Vector<T, kLanes>::type value) {
  *reinterpret_cast<typename Vector<T, kLanes>::unaligned*>(to) = value;
}

// What a statistic adds up of each unit's gradient. A NaN stays one.
template <Statistic kStatistic, class V>
SIGEO_INLINE V term(const V& g) {
  if constexpr (kStatistic == kAbsSum) {
    using Bits = decltype(g < g);  // integers of the same width
    return std::bit_cast<V>(std::bit_cast<Bits>(g) & ~std::bit_cast<Bits>(-V{}));
  }
  if constexpr (kStatistic == kSqSum) return g * g;
  if constexpr (kStatistic == kSignSum) {
    const V zero{}, one = zero + 1;
    return (g > 0 ? one : zero) - (g < 0 ? one : zero) + (g == g ? zero : g);
  }
  return g;
}

// How output channels meet input channels: every one with every one of the tile's rows, or, in a
// depthwise convolution, each with its own at every tap.
enum class Pairing { kAll, kEach };

// kUnits units at a time, kRows input channels or taps, kVectors vectors of output channels.
template <class T, int kLanes, int kUnits, int kRows, int kVectors>
struct Block {
  using V = typename Vector<T, kLanes>::type;
  V g[kUnits][kRows][kVectors];

  SIGEO_INLINE void clear() {
#pragma GCC unroll 64
    for (int u = 0; u < kUnits; ++u)
#pragma GCC unroll 64
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 64
        for (int v = 0; v < kVectors; ++v) g[u][r][v] = V{};
  }

  // Adds positions [from, to) of one sample of each unit. The first row is the tile's kRow.
  template <Pairing kPairing, int kRow>
  SIGEO_INLINE void accumulate(const T* const (&x)[kUnits], const T* const (&d)[kUnits],
                               const Tile<T>& a, int64_t from, int64_t to) {
    for (int64_t t = from; t < to; ++t) {
#pragma GCC unroll 64
      for (int u = 0; u < kUnits; ++u) {
        const T* xs = x[u] + a.x_at[t];
        const T* ds = d[u] + a.d_at[t];
        if constexpr (kRow == 0) {  // the next part finds them in the first-level cache
          constexpr int64_t kWidth = kVectors * kLanes;
          ask_for<kWidth>(ds + kPositionsAhead * kWidth);
          ask_for<1>(xs + kPositionsAhead * (kPairing == Pairing::kAll ? kPackedRows : kWidth));
        }
        V dv[kVectors];
#pragma GCC unroll 64
        for (int v = 0; v < kVectors; ++v) dv[v] = load<T, kLanes>(ds + v * kLanes);
#pragma GCC unroll 64
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 64
          for (int v = 0; v < kVectors; ++v) {
            if constexpr (kPairing == Pairing::kAll) g[u][r][v] += dv[v] * xs[kRow + r];
            else g[u][r][v] += dv[v] * load<T, kLanes>(xs + a.row_at[kRow + r] + v * kLanes);
          }
      }
    }
  }

  // `sums` into the units from `unit` on and the rows from `row` on; kMore: added to what is there.
  // They are in memory from here on: else their many uses in `update` would keep accumulators out
  // of registers in the loop over positions.
  template <bool kMore, int kOtherUnits, int kOtherRows>
  SIGEO_INLINE void take(const Block<T, kLanes, kOtherUnits, kOtherRows, kVectors>& sums, int unit,
                         int row) {
#pragma GCC unroll 64
    for (int u = 0; u < kOtherUnits; ++u)
#pragma GCC unroll 64
      for (int r = 0; r < kOtherRows; ++r)
#pragma GCC unroll 64
        for (int v = 0; v < kVectors; ++v) {
          V& to = g[unit + u][row + r][v];
          to = kMore ? to + sums.g[u][r][v] : sums.g[u][r][v];
        }
    asm volatile("" : : "r"(this) : "memory");
  }
};

// *at += sum over units of what the statistic adds up.
template <Statistic kStatistic, class T, int kLanes, int kUnits>
SIGEO_INLINE void add_terms(const typename Vector<T, kLanes>::type (&g)[kUnits], T* at) {
  auto sum = term<kStatistic>(g[0]);
#pragma GCC unroll 64
  for (int u = 1; u < kUnits; ++u) sum += term<kStatistic>(g[u]);
  store<T, kLanes>(at, load<T, kLanes>(at) + sum);
}

// The units so far and these each have a mean; what lies between the two is added as well (Chan et
// al. 1979). All is done on deviations from the first unit: small where units are alike. `share` is
// that of these units among all, `between` the product of it and of how many came before.
template <class T, int kLanes, int kUnits>
SIGEO_INLINE void add_deviations(const typename Vector<T, kLanes>::type (&g)[kUnits], T share,
                                 T between, T* origin_at, T* deviation_at, T* at) {
  using V = typename Vector<T, kLanes>::type;
  if (between == 0) store<T, kLanes>(origin_at, g[0]);
  const V origin = load<T, kLanes>(origin_at);
  V mean{}, squares{};
#pragma GCC unroll 64
  for (int u = 0; u < kUnits; ++u) mean += g[u] - origin;
  mean *= T{1} / kUnits;
#pragma GCC unroll 64
  for (int u = 0; u < kUnits && kUnits > 1; ++u) {
    const V deviation = g[u] - origin - mean;
    squares += deviation * deviation;
  }
  const V mean_before = load<T, kLanes>(deviation_at), step = mean - mean_before;
  store<T, kLanes>(deviation_at, mean_before + step * share);
  store<T, kLanes>(at, load<T, kLanes>(at) + squares + step * step * between);
}

// What is asked for of these units' gradients, which are read once for all of it.
template <class T, int kLanes, int kUnits, int kRows, int kVectors>
SIGEO_INLINE void update(const Tile<T>& a, const Block<T, kLanes, kUnits, kRows, kVectors>& block,
                         int64_t unit) {
  using V = typename Vector<T, kLanes>::type;
  T* const sum = a.slab[kSum];
  T* const abs_sum = a.slab[kAbsSum];
  T* const sq_sum = a.slab[kSqSum];
  T* const sign_sum = a.slab[kSignSum];
  T* const m2 = a.slab[kM2];
  T* const each = a.each;
  T* const sq_norm = a.sq_norm;
  const int64_t width = a.width, before = a.before + unit;
  const T share = static_cast<T>(kUnits) / static_cast<T>(before + kUnits);
  const T between = static_cast<T>(before) * share;
#pragma GCC unroll 1
  for (int v = 0; v < kVectors; ++v) {
    V squares[kUnits]{};
#pragma GCC unroll 1
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = r * width + v * kLanes;
      V g[kUnits];
#pragma GCC unroll 64
      for (int u = 0; u < kUnits; ++u) g[u] = block.g[u][r][v];
      if (sq_norm) {
#pragma GCC unroll 64
        for (int u = 0; u < kUnits; ++u) squares[u] += g[u] * g[u];
      }
      if (sum) add_terms<kSum, T, kLanes>(g, sum + at);
      if (abs_sum) add_terms<kAbsSum, T, kLanes>(g, abs_sum + at);
      if (sq_sum) add_terms<kSqSum, T, kLanes>(g, sq_sum + at);
      if (sign_sum) add_terms<kSignSum, T, kLanes>(g, sign_sum + at);
      if (m2) {
        add_deviations<T, kLanes>(g, share, between, a.origin + at, a.deviation + at, m2 + at);
      }
      if (each) {
#pragma GCC unroll 64
        for (int u = 0; u < kUnits; ++u) {
          store<T, kLanes>(each + (unit + u) * a.each_unit + at, g[u]);
        }
      }
    }
    if (sq_norm) {
#pragma GCC unroll 64
      for (int u = 0; u < kUnits; ++u) {
        T* at = sq_norm + (unit + u) * width + v * kLanes;
        store<T, kLanes>(at, load<T, kLanes>(at) + squares[u]);
      }
    }
  }
}

// Adds up positions [from, to) of a sample of kAtOnce units, for the rows from kRow on of which
// kRowsAtOnce fit into registers, into those of `block` from `unit` on.
template <Pairing kPairing, int kAtOnce, int kRowsAtOnce, int kRow = 0, class T, int kLanes,
          int kUnits, int kRows, int kVectors>
SIGEO_INLINE void sum_rows(const Tile<T>& a, const T* const (&x)[kAtOnce],
                           const T* const (&d)[kAtOnce], int64_t from, int64_t to, bool more,
                           Block<T, kLanes, kUnits, kRows, kVectors>& block, int unit) {
  if constexpr (kRow < kRows) {
    constexpr int kSome = kRows - kRow < kRowsAtOnce ? kRows - kRow : kRowsAtOnce;
    Block<T, kLanes, kAtOnce, kSome, kVectors> run;
    run.clear();
    run.template accumulate<kPairing, kRow>(x, d, a, from, to);
    if (more) block.template take<true>(run, unit, kRow);
    else block.template take<false>(run, unit, kRow);
    sum_rows<kPairing, kAtOnce, kRowsAtOnce, kRow + kSome>(a, x, d, from, to, more, block, unit);
  }
}

// All units of a tile. The statistics are updated for kUnits units at a time, of which kAtOnce,
// and kRowsAtOnce of their rows, are summed up in registers together; `a.units` must be a multiple
// of kUnits.
template <Pairing kPairing, class T, int kLanes, int kUnits, int kAtOnce, int kRows,
          int kRowsAtOnce, int kVectors>
SIGEO_INLINE void tile_body(const Tile<T>& a) {
  static_assert(kUnits % kAtOnce == 0);
  for (int64_t unit = 0; unit < a.units; unit += kUnits) {
    Block<T, kLanes, kUnits, kRows, kVectors> block;
    for (int first = 0; first < kUnits; first += kAtOnce) {
      const T* x[kAtOnce];
      const T* d[kAtOnce];
      for (int u = 0; u < kAtOnce; ++u) {
        x[u] = a.x + (unit + first + u) * a.unit * a.x_sample;
        d[u] = a.d + (unit + first + u) * a.unit * a.d_sample;
      }
      for (int64_t sample = 0; sample < a.unit; ++sample) {
        int64_t from = 0;
        do {
          const int64_t to = from + a.run < a.positions ? from + a.run : a.positions;
          sum_rows<kPairing, kAtOnce, kRowsAtOnce>(a, x, d, from, to, sample > 0 || from > 0, block,
                                                   first);
          from = to;
        } while (from < a.positions);
        for (int u = 0; u < kAtOnce; ++u) x[u] += a.x_sample, d[u] += a.d_sample;
      }
    }
    update(a, block, unit);
  }
}

}  // namespace sigeo_ext::sample_moments
