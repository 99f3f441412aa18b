// The tiles of each level of vector unit, which take long to compile: one file for each type.
#pragma once

#include <utility>

#include "sample_moments/scale.h"
#include "sample_moments/tiles.h"

namespace sigeo_ext::sample_moments {

// A level has kBytes of a vector, kAccumulators of them for sums beside their operands, and the
// functions, compiled for it.
#define SIGEO_LEVEL(Name, Target, Bytes, Accumulators)                                          \
  struct Name {                                                                                 \
    static constexpr int kBytes = Bytes, kAccumulators = Accumulators;                          \
    template <Pairing kPairing, class T, int kUnits, int kAtOnce, int kRows, int kRowsAtOnce,   \
              int kVectors>                                                                     \
    Target static void run(const Tile<T>& tile) {                                               \
      tile_body<kPairing, T, Bytes / sizeof(T), kUnits, kAtOnce, kRows, kRowsAtOnce, kVectors>( \
          tile);                                                                                \
    }                                                                                           \
    template <class T>                                                                          \
    Target static void scale(const ScaleJob<T>& job, int64_t from, int64_t to) {                \
      scale_body<T, Bytes / sizeof(T)>(job, from, to);                                          \
    }                                                                                           \
    template <class T>                                                                          \
    Target static void outer(const OuterJob<T>& job, int64_t from, int64_t to) {                \
      outer_body<T, Bytes / sizeof(T)>(job, from, to);                                          \
    }                                                                                           \
  }
#define SIGEO_NO_TARGET
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
SIGEO_LEVEL(V4, __attribute__((target("arch=x86-64-v4"))), 64, 16);
SIGEO_LEVEL(V3, __attribute__((target("arch=x86-64-v3"))), 32, 12);
#endif
SIGEO_LEVEL(Base, SIGEO_NO_TARGET, 16, 8);

// Of so many units, those whose sums fit into the accumulators together.
constexpr int units_within(int units, int accumulators_of_one, int accumulators) {
  while (units * accumulators_of_one > accumulators) units /= 2;
  return units;
}

// `rows` one part after another, as few as fit into the accumulators and as even as may be.
constexpr int rows_at_once(int rows, int vectors, int accumulators) {
  const int most = accumulators / vectors, parts = (rows + most - 1) / most;
  return (rows + parts - 1) / parts;
}

template <class Level, Pairing kPairing, class T, int kUnits, int kRows, int kVectors>
constexpr typename Tiles<T>::Run run_of() {
  constexpr int kRowsAtOnce = rows_at_once(kRows, kVectors, Level::kAccumulators);
  constexpr int kAtOnce = units_within(kUnits, kRowsAtOnce * kVectors, Level::kAccumulators);
  return &Level::template run<kPairing, T, kUnits, kAtOnce, kRows, kRowsAtOnce, kVectors>;
}

template <class Level, Pairing kPairing, class T, int kUnits, int kRows>
constexpr std::array<typename Tiles<T>::Run, 2> by_vectors() {
  return {run_of<Level, kPairing, T, kUnits, kRows, 1>(),
          run_of<Level, kPairing, T, kUnits, kRows, 2>()};
}

template <class Level, Pairing kPairing, class T, int kUnits>
constexpr typename Tiles<T>::Table::value_type by_rows() {
  return []<size_t... k>(std::index_sequence<k...>) {
    return typename Tiles<T>::Table::value_type{
        by_vectors<Level, kPairing, T, kUnits, Tiles<T>::kRows[k]>()...};
  }(std::make_index_sequence<Tiles<T>::kRows.size()>());
}

template <class Level, Pairing kPairing, class T>
constexpr typename Tiles<T>::Table by_units() {
  return {by_rows<Level, kPairing, T, 1>(), by_rows<Level, kPairing, T, kTogether>()};
}

template <class Level, class T>
inline constexpr Tiles<T> kTiles{Level::kBytes / static_cast<int>(sizeof(T)),
                                 &Level::template scale<T>, &Level::template outer<T>,
                                 by_units<Level, Pairing::kAll, T>(),
                                 by_units<Level, Pairing::kEach, T>()};

template <class T>
const Tiles<T>& tiles() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  static const bool has_v4 = __builtin_cpu_supports("x86-64-v4");
  static const bool has_v3 = __builtin_cpu_supports("x86-64-v3");
  if (has_v4 && most_vector_bytes >= V4::kBytes) return kTiles<V4, T>;
  if (has_v3 && most_vector_bytes >= V3::kBytes) return kTiles<V3, T>;
#endif
  return kTiles<Base, T>;
}

}  // namespace sigeo_ext::sample_moments
