// Something of every pair of rows, on a GPU: one kernel for products, distances and bits.
//
// Rows are as long as they like and lie behind a `Source`; pairs are cut into square tiles of rows
// by rows, of which only those on and above the diagonal are computed, and the rows into stages,
// which are dealt to runs. A block of threads takes one tile over one run: it brings a stage of the
// tile's rows into shared memory, and each thread adds up 16 pairs over its share of the stage. The
// runs' sums are added in order, by how many rows there are and how long they are alone: the same
// bits every time, without atomics.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "common/cuda.cuh"
#include "gram/gram.h"

namespace sigeo_ext::gram {

// Rows of a tile. The narrow one has next to no idle pairs for the gradients of a few options, and
// reads each value once; the wide one does enough with each value to keep up with the caches.
constexpr int kNarrow = 8;
constexpr int kWide = 32;

// Rows on each side of the square of pairs that a thread has in registers.
constexpr int kSide = 4;

// Blocks of threads to aim at: some waves of them on any GPU.
constexpr int64_t kBlocks = 2048;

// How a block of threads shares a tile.
template <class Value, int kTile>
struct Share {
  static constexpr int kPairs = kTile * kTile;
  static constexpr int kAcross = kTile / kSide;                   // threads along a tile's side
  static constexpr int kSlices = kThreads / (kAcross * kAcross);  // sets that share a stage
  static constexpr int kStage = 16384 / (kTile * int{sizeof(Value)});  // values of a row: 16 KiB
  static constexpr int kOfSlice = kStage / kSlices;
  static constexpr int kVectors = kStage / kVector;          // of a row
  static constexpr int kEach = kTile * kVectors / kThreads;  // that a thread brings
  // A vector between rows: neighbouring rows begin in different banks.
  static constexpr int kPitch = kStage + kVector;
  static_assert(kOfSlice % kVector == 0 && kOfLane % kOfSlice == 0);
  static_assert(kTile * kVectors % kThreads == 0);
};

template <class T>
struct alignas(kVector * sizeof(T)) Vector {
  T value[kVector];
};

template <class T>
struct Product {
  using Value = T;
  using Lane = T;
  using Sum = double;

  static __device__ __forceinline__ void add(T a, T b, T& lane) { lane = std::fma(a, b, lane); }
};

template <class T>
struct SquaredDifference {
  using Value = T;
  using Lane = T;
  using Sum = double;

  static __device__ __forceinline__ void add(T a, T b, T& lane) {
    const T difference = a - b;
    lane = std::fma(difference, difference, lane);
  }
};

struct DifferentBits {
  using Value = uint32_t;
  using Lane = int32_t;
  using Sum = int64_t;

  static __device__ __forceinline__ void add(uint32_t a, uint32_t b, int32_t& lane) {
    lane += __popc(a ^ b);
  }
};

// The tiles on and above the diagonal of a matrix, numbered through.
template <int kTile>
struct Triangle {
  int64_t rows;

  __host__ __device__ int64_t tiles() const {
    const int64_t side = (rows + kTile - 1) / kTile;
    return side * (side + 1) / 2;
  }

  struct Place {
    int64_t row, column;  // the first of the tile's
  };

  __device__ Place place(int64_t tile) const {
    auto column = static_cast<int64_t>((sqrt(8.0 * static_cast<double>(tile) + 1) - 1) / 2);
    while (column * (column + 1) / 2 > tile) --column;  // where the root was rounded
    while ((column + 1) * (column + 2) / 2 <= tile) ++column;
    return {(tile - column * (column + 1) / 2) * kTile, column * kTile};
  }
};

// Brings a stage of kTile rows from `row` into shared memory.
template <int kTile, class Source, class Value>
__device__ __forceinline__ void bring(const Source& source, const typename Source::Place& place,
                                      int64_t row, int64_t rows,
                                      Value (*to)[Share<Value, kTile>::kPitch]) {
  using Of = Share<Value, kTile>;
  const auto at = [](int n) { return static_cast<int>(threadIdx.x) + n * kThreads; };
  // Rows beyond the last are the last once more: their pairs are dropped.
  const auto number = [&](int n) { return min(row + at(n) / Of::kVectors, rows - 1); };
  const auto offset = [&](int n) { return at(n) % Of::kVectors * kVector; };
  const auto into = [&](int n) {
    return reinterpret_cast<Vector<Value>*>(&to[at(n) / Of::kVectors][offset(n)]);
  };
  const Value* vectors[Of::kEach];
  bool all = true;
#pragma unroll
  for (int n = 0; n < Of::kEach; ++n) {
    vectors[n] = source.vector(place, number(n), offset(n));
    all = all && vectors[n] != nullptr;
  }
  if (all) {  // all loads are under way before the first is waited for
    Vector<Value> values[Of::kEach];
#pragma unroll
    for (int n = 0; n < Of::kEach; ++n) {
      values[n] = *reinterpret_cast<const Vector<Value>*>(vectors[n]);
    }
#pragma unroll
    for (int n = 0; n < Of::kEach; ++n) *into(n) = values[n];
  } else {
#pragma unroll 1
    for (int n = 0; n < Of::kEach; ++n) {
      Vector<Value> values;
      source.load(place, number(n), offset(n), values.value);
      *into(n) = values;
    }
  }
}

// partial[run, tile, kTile, kTile] = sums over the run's stages.
template <class Term, int kTile, class Source>
__global__ void __launch_bounds__(kThreads, 2)
    pairs_kernel(const Source source, const Triangle<kTile> triangle, int64_t runs,
                 typename Term::Sum* partial) {
  using Value = typename Term::Value;
  using Lane = typename Term::Lane;
  using Sum = typename Term::Sum;
  using Of = Share<Value, kTile>;
  __shared__ Vector<Value> memory[2 * kTile * Of::kPitch / kVector];
  static_assert(sizeof(memory) >= kThreads * kSide * kSide * sizeof(Sum));
  static_assert(sizeof(memory) <= 48 << 10);
  const auto left = reinterpret_cast<Value(*)[Of::kPitch]>(memory);

  const int64_t tiles = triangle.tiles(), run = blockIdx.x / tiles;
  const auto tile = triangle.place(blockIdx.x % tiles);
  const bool diagonal = tile.row == tile.column;
  const auto right = diagonal ? left : left + kTile;
  const int thread = static_cast<int>(threadIdx.x);
  const int slice = thread / (Of::kAcross * Of::kAcross);
  // Every kAcross-th row: neighbouring threads read from different banks.
  const int i = thread / Of::kAcross % Of::kAcross, j = thread % Of::kAcross;

  Lane lanes[kSide][kSide] = {};
  Sum sums[kSide][kSide] = {};
  int values = 0;  // that a lane stands for
  const auto flush = [&] {
#pragma unroll
    for (int a = 0; a < kSide; ++a) {
#pragma unroll
      for (int b = 0; b < kSide; ++b) {
        sums[a][b] += static_cast<Sum>(lanes[a][b]);
        lanes[a][b] = Lane{0};
      }
    }
    values = 0;
  };
  const int64_t end = source.stages * (run + 1) / runs;
  for (int64_t stage = source.stages * run / runs; stage < end; ++stage) {
    const auto place = source.place(stage, Of::kStage);
    __syncthreads();  // the stage before this one may still be read
#pragma unroll 1
    for (int side = 0; side < (diagonal ? 1 : 2); ++side) {
      bring<kTile>(source, place, side == 0 ? tile.row : tile.column, triangle.rows,
                   left + side * kTile);
    }
    __syncthreads();
#pragma unroll 1
    for (int at = slice * kVector; at < Of::kStage; at += Of::kSlices * kVector) {
      Vector<Value> columns[kSide];
#pragma unroll
      for (int b = 0; b < kSide; ++b) {
        columns[b] = *reinterpret_cast<const Vector<Value>*>(&right[j + b * Of::kAcross][at]);
      }
#pragma unroll
      for (int a = 0; a < kSide; ++a) {
        const auto row = *reinterpret_cast<const Vector<Value>*>(&left[i + a * Of::kAcross][at]);
#pragma unroll
        for (int b = 0; b < kSide; ++b) {
#pragma unroll
          for (int k = 0; k < kVector; ++k) {
            if constexpr (std::is_same_v<Lane, Sum>) {
              Term::add(row.value[k], columns[b].value[k], sums[a][b]);
            } else {
              Term::add(row.value[k], columns[b].value[k], lanes[a][b]);
            }
          }
        }
      }
    }
    values += Of::kOfSlice;
    if (values == kOfLane) flush();
  }
  flush();

  const auto of_slice = reinterpret_cast<Sum(*)[Of::kPairs]>(memory);
  __syncthreads();
#pragma unroll
  for (int a = 0; a < kSide; ++a) {
#pragma unroll
    for (int b = 0; b < kSide; ++b) {
      of_slice[slice][(i + a * Of::kAcross) * kTile + j + b * Of::kAcross] = sums[a][b];
    }
  }
  __syncthreads();
  for (int pair = thread; pair < Of::kPairs; pair += kThreads) {
    Sum sum = 0;
    for (int s = 0; s < Of::kSlices; ++s) sum += of_slice[s][pair];
    partial[int64_t{blockIdx.x} * Of::kPairs + pair] = sum;
  }
}

// out[i, j] = out[j, i] = the sum over runs. A block takes 32 neighbouring pairs of a tile, each of
// its warps every eighth run.
template <int kTile, class Sum>
__global__ void __launch_bounds__(kThreads)
    add_runs_kernel(const Sum* partial, const Triangle<kTile> triangle, int64_t runs, Sum* out) {
  constexpr int kWarps = kThreads / 32;
  constexpr int64_t kPairs = kTile * kTile;
  __shared__ Sum of_warp[kWarps][32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t pairs = triangle.tiles() * kPairs, pair = int64_t{blockIdx.x} * 32 + lane;
  Sum sum = 0;
  for (int64_t run = warp; run < runs; run += kWarps) sum += partial[run * pairs + pair];
  of_warp[warp][lane] = sum;
  __syncthreads();
  if (warp > 0) return;
  sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += of_warp[w][lane];
  const auto tile = triangle.place(pair / kPairs);
  const int64_t i = tile.row + pair % kPairs / kTile, j = tile.column + pair % kTile;
  if (i <= j && j < triangle.rows) out[i * triangle.rows + j] = out[j * triangle.rows + i] = sum;
}

// out [rows, rows] = what Term adds up over all pairs of the source's rows, in about so many
// blocks.
template <class Term, int kTile, class Source>
void launch_pairs(const char* name, const Source& source, int64_t rows, typename Term::Sum* out,
                  const Queue& queue, int64_t blocks = kBlocks) {
  using Sum = typename Term::Sum;
  const Triangle<kTile> triangle{rows};
  const int64_t tiles = triangle.tiles(), pairs = tiles * kTile * kTile;
  const int64_t runs = std::min(source.stages, std::max<int64_t>(1, blocks / tiles));
  Sum* partial = workspace<Sum>(runs * pairs, queue);
  launch(name, pairs_kernel<Term, kTile, Source>, runs * tiles, queue, source, triangle, runs,
         partial);
  launch(name, add_runs_kernel<kTile, Sum>, pairs / 32, queue, partial, triangle, runs, out);
}

}  // namespace sigeo_ext::gram
