// The compiled tiles: one function for each level of vector unit and each shape of a tile.
#pragma once

#include <algorithm>
#include <array>

#include "sample_moments/outer.h"
#include "sample_moments/tile.h"

namespace sigeo_ext::sample_moments {

inline constexpr int kMostVectors = 2;

// Units after which a tile's statistics are updated, which reads and writes all of them.
inline constexpr int kTogether = 4;

template <class T>
struct Tiles {
  using Run = void (*)(const Tile<T>&);

  int lanes;  // values of a vector

  // The work of `scale` on samples [from, to).
  void (*scale)(const ScaleJob<T>& job, int64_t from, int64_t to);

  // The work of `outer` on panels [from, to) of x.
  void (*outer)(const OuterJob<T>& job, int64_t from, int64_t to);

  // For one unit at a time or kTogether, `kRows` and 1 or 2 vectors. Images have 3 channels, the
  // usual kernels 9 taps.
  static constexpr std::array<int, 10> kRows{1, 2, 3, 4, 6, 8, 9, 12, 16, 24};
  using Table = std::array<std::array<std::array<Run, kMostVectors>, kRows.size()>, 2>;
  Table all, each;

  Run find(Pairing pairing, bool together, int rows, int vectors) const {
    const Table& table = pairing == Pairing::kEach ? each : all;
    const auto* at = std::find(kRows.begin(), kRows.end(), rows);
    return table[together ? 1 : 0][at - kRows.begin()][vectors - 1];
  }

  // As many of `kRows` as fit.
  static int rows_within(int64_t most) {
    return *(std::upper_bound(kRows.begin(), kRows.end(), most) - 1);
  }
};

// Those for the processor that this runs on.
template <class T>
const Tiles<T>& tiles();

// `tiles` takes vectors of at most so many bytes; tests set 32 or 16.
inline int most_vector_bytes = 64;

}  // namespace sigeo_ext::sample_moments
