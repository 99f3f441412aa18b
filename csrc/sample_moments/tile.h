// The innermost loops: a tile of each unit's gradient in registers, and its statistics updated.
#pragma once

#include <bit>
#include <cstdint>

#include "common/array.h"
#include "sample_moments/sample_moments.h"

namespace sigeo_ext::sample_moments {

// Positions added up before the sum goes to a second one: bounds the growth of rounding errors.
inline constexpr int64_t kRun = 2048;

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
    return (g > 0 ? one : zero) - (g < 0 ? one : zero) + (g - g);
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

  // Adds positions [from, to) of one sample of each unit.
  template <Pairing kPairing>
  SIGEO_INLINE void accumulate(const T* const (&x)[kUnits], const T* const (&d)[kUnits],
                               const Tile<T>& a, int64_t from, int64_t to) {
    for (int64_t t = from; t < to; ++t) {
#pragma GCC unroll 64
      for (int u = 0; u < kUnits; ++u) {
        const T* xs = x[u] + a.x_at[t];
        const T* ds = d[u] + a.d_at[t];
        V dv[kVectors];
#pragma GCC unroll 64
        for (int v = 0; v < kVectors; ++v) dv[v] = load<T, kLanes>(ds + v * kLanes);
#pragma GCC unroll 64
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 64
          for (int v = 0; v < kVectors; ++v) {
            if constexpr (kPairing == Pairing::kAll) g[u][r][v] += dv[v] * xs[r];
            else g[u][r][v] += dv[v] * load<T, kLanes>(xs + a.row_at[r] + v * kLanes);
          }
      }
    }
  }

  // The units of `sums` into those from `first` on; kMore: added to what is there. They are in
  // memory from here on: else their many uses in `update` would keep accumulators out of registers
  // in the loop over positions.
  template <bool kMore, int kOthers>
  SIGEO_INLINE void take(const Block<T, kLanes, kOthers, kRows, kVectors>& sums, int first) {
#pragma GCC unroll 64
    for (int u = 0; u < kOthers; ++u)
#pragma GCC unroll 64
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 64
        for (int v = 0; v < kVectors; ++v) {
          V& to = g[first + u][r][v];
          to = kMore ? to + sums.g[u][r][v] : sums.g[u][r][v];
        }
    asm volatile("" : : "r"(this) : "memory");
  }

  // slab[r, :] += sum over units of what the statistic adds up.
  template <Statistic kStatistic>
  SIGEO_INLINE void add_to(T* slab, int64_t width) const {
#pragma GCC unroll 1
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 64
      for (int v = 0; v < kVectors; ++v) {
        V sum = term<kStatistic>(g[0][r][v]);
#pragma GCC unroll 64
        for (int u = 1; u < kUnits; ++u) sum += term<kStatistic>(g[u][r][v]);
        T* at = slab + r * width + v * kLanes;
        store<T, kLanes>(at, load<T, kLanes>(at) + sum);
      }
  }
};

template <class T, int kLanes, int kUnits, int kRows, int kVectors>
SIGEO_INLINE void update(const Tile<T>& a, const Block<T, kLanes, kUnits, kRows, kVectors>& block,
                         int64_t unit) {
  using V = typename Vector<T, kLanes>::type;
  if (a.slab[kSum]) block.template add_to<kSum>(a.slab[kSum], a.width);
  if (a.slab[kAbsSum]) block.template add_to<kAbsSum>(a.slab[kAbsSum], a.width);
  if (a.slab[kSqSum]) block.template add_to<kSqSum>(a.slab[kSqSum], a.width);
  if (a.slab[kSignSum]) block.template add_to<kSignSum>(a.slab[kSignSum], a.width);
  if (a.slab[kM2]) {
    // The units so far and these each have a mean; what lies between the two is added as well (Chan
    // et al. 1979). All is done on deviations from the first unit: small where units are alike.
    const int64_t before = a.before + unit;
    const T share = static_cast<T>(kUnits) / static_cast<T>(before + kUnits);
    const T between = static_cast<T>(before) * share;
#pragma GCC unroll 1
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 64
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = r * a.width + v * kLanes;
        if (before == 0) store<T, kLanes>(a.origin + at, block.g[0][r][v]);
        const V origin = load<T, kLanes>(a.origin + at);
        V mean{}, squares{};
#pragma GCC unroll 64
        for (int u = 0; u < kUnits; ++u) mean += block.g[u][r][v] - origin;
        mean *= T{1} / kUnits;
#pragma GCC unroll 64
        for (int u = 0; u < kUnits && kUnits > 1; ++u) {
          const V deviation = block.g[u][r][v] - origin - mean;
          squares += deviation * deviation;
        }
        const V mean_before = load<T, kLanes>(a.deviation + at), step = mean - mean_before;
        store<T, kLanes>(a.deviation + at, mean_before + step * share);
        store<T, kLanes>(a.slab[kM2] + at,
                         load<T, kLanes>(a.slab[kM2] + at) + squares + step * step * between);
      }
  }
  if (a.each) {
#pragma GCC unroll 64
    for (int u = 0; u < kUnits; ++u)
#pragma GCC unroll 1
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 64
        for (int v = 0; v < kVectors; ++v)
          store<T, kLanes>(a.each + (unit + u) * a.each_unit + r * a.width + v * kLanes,
                           block.g[u][r][v]);
  }
  if (a.sq_norm) {
#pragma GCC unroll 64
    for (int u = 0; u < kUnits; ++u) {
#pragma GCC unroll 64
      for (int v = 0; v < kVectors; ++v) {
        T* at = a.sq_norm + (unit + u) * a.width + v * kLanes;
        V squares = load<T, kLanes>(at);
#pragma GCC unroll 64
        for (int r = 0; r < kRows; ++r) squares += block.g[u][r][v] * block.g[u][r][v];
        store<T, kLanes>(at, squares);
      }
    }
  }
}

// Adds up all positions of kAtOnce units, from `unit` on, into those of `block` from `first` on.
template <Pairing kPairing, int kAtOnce, class T, int kLanes, int kUnits, int kRows, int kVectors>
SIGEO_INLINE void sum_positions(const Tile<T>& a, int64_t unit,
                                Block<T, kLanes, kUnits, kRows, kVectors>& block, int first) {
  const T* x[kAtOnce];
  const T* d[kAtOnce];
  for (int u = 0; u < kAtOnce; ++u) {
    x[u] = a.x + (unit + u) * a.unit * a.x_sample;
    d[u] = a.d + (unit + u) * a.unit * a.d_sample;
  }
  for (int64_t sample = 0; sample < a.unit; ++sample) {
    int64_t from = 0;
    do {
      Block<T, kLanes, kAtOnce, kRows, kVectors> run;
      run.clear();
      const int64_t to = from + kRun < a.positions ? from + kRun : a.positions;
      run.template accumulate<kPairing>(x, d, a, from, to);
      if (sample == 0 && from == 0) block.template take<false>(run, first);
      else block.template take<true>(run, first);
      from = to;
    } while (from < a.positions);
    for (int u = 0; u < kAtOnce; ++u) x[u] += a.x_sample, d[u] += a.d_sample;
  }
}

// All units of a tile. The statistics are updated for kUnits units at a time, of which kAtOnce
// are summed up in registers together; `a.units` must be a multiple of kUnits.
template <Pairing kPairing, class T, int kLanes, int kUnits, int kAtOnce, int kRows, int kVectors>
SIGEO_INLINE void tile_body(const Tile<T>& a) {
  static_assert(kUnits % kAtOnce == 0);
  for (int64_t unit = 0; unit < a.units; unit += kUnits) {
    Block<T, kLanes, kUnits, kRows, kVectors> block;
    for (int first = 0; first < kUnits; first += kAtOnce) {
      sum_positions<kPairing, kAtOnce>(a, unit + first, block, first);
    }
    update(a, block, unit);
  }
}

}  // namespace sigeo_ext::sample_moments
