// The compiled tiles: one function for each level of vector unit and each shape of a tile.
#pragma once

#include <array>
#include <bit>

#include "sample_moments/tile.h"

namespace sigeo_ext::sample_moments {

template <class T>
struct Tiles {
  using Run = void (*)(const Tile<T>&);

  int lanes;         // values of a vector
  int accumulators;  // vectors that a tile may hold: units * rows * vectors

  // The work of `scale` on samples [from, to).
  void (*scale)(const ScaleJob<T>& job, int64_t from, int64_t to);

  // For 1, 2, 4 units, 1 to 16 rows (powers of 2) and 1 or 2 vectors; null where that is too many.
  using Table = std::array<std::array<std::array<Run, 2>, 5>, 3>;
  Table all, each;

  Run find(Pairing pairing, int units, int rows, int vectors) const {
    const Table& table = pairing == Pairing::kEach ? each : all;
    return table[std::countr_zero(static_cast<unsigned>(units))]
                [std::countr_zero(static_cast<unsigned>(rows))][vectors - 1];
  }
};

inline constexpr int kMostVectors = 2;
inline constexpr int kMostUnits = 4;

// Those for the processor that this runs on.
template <class T>
const Tiles<T>& tiles();

}  // namespace sigeo_ext::sample_moments
