// How the threads of a block share positions and channels, and sums over what they found.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/cuda.cuh"
#include "gather/gather.h"

namespace sigeo_ext::gather {

// Positions that a thread has in registers at a time.
constexpr int kGroup = 8;

// A block of threads takes `rows` positions of `width` channels side by side: neighbours in memory
// go to neighbouring threads, whatever the number of channels. Each thread keeps to one channel,
// whose constants it reads once a group. Blocks [positions, channels] are cut into tiles of
// channels and pieces of positions by their shape alone, never by how many there are, so that the
// bits of a result do not depend on what else is in the call.
struct Tiling {
  // Positions of a piece, so that its partial sums (16 bytes a channel) are few beside its values:
  // 3 % of them in float32; and pieces, so that adding up their partial sums stays short.
  static constexpr int64_t kFewestPositions = 128;
  static constexpr int64_t kMostPieces = 128;

  Shape shape;
  int32_t width;   // channels of a tile
  int32_t rows;    // positions side by side
  int64_t tiles;   // none without channels
  int64_t length;  // positions of a piece
  int64_t pieces;  // at least one, which may be empty

  explicit Tiling(const Shape& of) : shape(of) {
    const int64_t channels = std::max<int64_t>(1, of.channels);
    // As few tiles as keep three of four threads busy; tiles of 64 channels always do.
    for (tiles = (channels + kThreads - 1) / kThreads;; ++tiles) {
      width = static_cast<int32_t>((channels + tiles - 1) / tiles);
      rows = kThreads / width;
      if (width * rows >= kThreads / 4 * 3) break;
    }
    tiles = (of.channels + width - 1) / width;
    const int64_t step = int64_t{rows} * kGroup;
    const int64_t steps = std::max((of.positions + step * kMostPieces - 1) / (step * kMostPieces),
                                   std::max<int64_t>(4, kFewestPositions / step));
    length = steps * step;
    pieces = std::max<int64_t>(1, (of.positions + length - 1) / length);
  }

  // Pieces of `blocks` blocks, in all tiles.
  __host__ __device__ int64_t items(int64_t blocks) const { return blocks * tiles * pieces; }

  // What a thread does of one item.
  struct Part {
    int64_t block;
    int64_t piece;
    int64_t channel;
    int64_t begin, end;  // its positions: every rows-th from begin
    int32_t row;
    bool inside;  // else it has nothing to do, and `channel` may not exist

    // The thread that holds the sum over the rows of a channel.
    __device__ bool holds_sum() const { return inside && row == 0; }
  };

  __device__ Part part(int64_t item) const {
    Part part;
    const int64_t rest = item / pieces;
    part.piece = item - rest * pieces;
    part.block = rest / tiles;
    part.row = static_cast<int32_t>(threadIdx.x) / width;
    part.channel = (rest - part.block * tiles) * width + threadIdx.x % width;
    part.inside = part.row < rows && part.channel < shape.channels;
    part.end = part.inside ? min((part.piece + 1) * length, shape.positions) : 0;
    part.begin = part.piece * length + part.row;
    return part;
  }

  __device__ int64_t positions_of(int64_t piece) const {
    return min(length, shape.positions - piece * length);
  }

  // From one value of a group to the next.
  __device__ int64_t stride() const { return rows * shape.channels; }

  // Calls body(offset, n) for the groups of a part: n <= kGroup values of a block, the first of
  // them at `offset`.
  template <class Body>
  __device__ void for_each_group(const Part& part, const Body& body) const {
    for (int64_t position = part.begin; position < part.end; position += rows * kGroup) {
      const int64_t last = part.end - 1 - position;
      const int n = last >= (kGroup - 1) * rows ? kGroup : static_cast<int32_t>(last) / rows + 1;
      body(position * shape.channels + part.channel, n);
    }
  }

  // Two partial sums a channel of each piece of each block: [blocks, pieces, 2, channels].
  int64_t partials(int64_t blocks) const { return blocks * pieces * 2 * shape.channels; }
  __device__ double* partial(double* all, int64_t block, int64_t piece) const {
    return all + (block * pieces + piece) * 2 * shape.channels;
  }
};

// Values of a group; zeros beyond the n that are there.
template <class T>
__device__ __forceinline__ void load_group(const T* from, int64_t stride, int n, T (&to)[kGroup]) {
#pragma unroll
  for (int k = 0; k < kGroup; ++k) to[k] = k < n ? from[k * stride] : T{0};
}

template <class T>
__device__ __forceinline__ void store_group(T* to, int64_t stride, int n, const T (&from)[kGroup]) {
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    if (k < n) to[k * stride] = from[k];
  }
}

// The sum, by State::add, of what the rows of each channel hold, in an order that does not change;
// valid where part.holds_sum(). All threads of the block must call it.
template <class State>
__device__ State over_rows(const State& state, const Tiling& tiling) {
  __shared__ State of_thread[kThreads];
  const int row = static_cast<int32_t>(threadIdx.x) / tiling.width;
  __syncthreads();  // the sum before this one may still be read
  of_thread[threadIdx.x] = state;
  for (int left = tiling.rows; left > 1;) {
    const int half = (left + 1) / 2;
    __syncthreads();
    if (row + half < left) {
      of_thread[threadIdx.x].add(of_thread[threadIdx.x + half * tiling.width]);
    }
    left = half;
  }
  return of_thread[threadIdx.x];
}

}  // namespace sigeo_ext::gather
