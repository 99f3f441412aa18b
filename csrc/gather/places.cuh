// Lists of blocks on a GPU: as arguments of kernels, and the other way round, for each block the
// entries that name it.
#pragma once

#include <cstdint>
#include <span>

#include "common/cuda.cuh"
#include "gather/gather.h"

namespace sigeo_ext::gather {

// Lists that go into one launch; a node rarely has more than some dozens.
constexpr int kBatch = 48;

// Lists as kernel arguments, their entries numbered through. A `List` has `count` entries that name
// the blocks `blocks[0...count)`, which lie in device memory.
template <class List>
struct Batch {
  List list[kBatch];
  int64_t first[kBatch + 1];  // entries of the lists before this one
  int32_t lists;

  // One entry of a list, by its number there.
  struct Entry {
    const List& list;
    int64_t number;

    __device__ int64_t block() const { return list.blocks[number]; }
  };

  __host__ __device__ int64_t entries() const { return first[lists]; }

  // An entry by its number in the batch.
  __device__ Entry entry(int64_t number) const {
    int low = 0, high = lists;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (first[middle] <= number ? low : high) = middle;
    }
    return {list[low], number - first[low]};
  }
};

template <class List>
int64_t entries_of(std::span<const List> lists) {
  int64_t entries = 0;
  for (const List& list : lists) entries += list.count;
  return entries;
}

// Calls body(batch) for lists, in order; leaves out empty ones.
template <class List, class Body>
void for_each_batch(std::span<const List> lists, const Body& body) {
  Batch<List> batch{};
  static_assert(sizeof(batch) <= 32000, "kernel arguments must fit");
  for (const List& list : lists) {
    if (list.count == 0) continue;
    if (batch.lists == kBatch) {
      body(batch);
      batch.lists = 0;
    }
    batch.list[batch.lists] = list;
    batch.first[batch.lists + 1] = batch.first[batch.lists] + list.count;
    ++batch.lists;
  }
  if (batch.lists > 0) body(batch);
}

// For each block, what belongs to the entries that name it.
template <class Place>
struct Places {
  const int64_t* first;  // [batches, blocks + 1]: where a block's places begin
  const Place* place;
  int64_t blocks;
  int32_t batches;

  // Calls body(place) in the order of lists and entries.
  template <class Body>
  __device__ void for_each(int64_t block, const Body& body) const {
    for (int batch = 0; batch < batches; ++batch) {
      const int64_t* range = first + batch * (blocks + 1) + block;
      const int64_t end = range[1];
      for (int64_t i = range[0]; i < end; ++i) body(place[i]);
    }
  }
};

// One block of threads a block of the node, and one for the end: counts the entries that name
// earlier blocks, then writes the block's own in order from there. Entries that name no block are
// never counted, so that all is written within [before, before + entries).
template <class List>
__global__ void __launch_bounds__(kThreads)
    places_kernel(const __grid_constant__ Batch<List> batch, int64_t blocks, int64_t before,
                  int64_t* first, typename List::Place* place) {
  __shared__ int of_warp[kThreads / 32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t entries = batch.entries();
  for (int64_t block = blockIdx.x; block <= blocks; block += gridDim.x) {
    int64_t at = before;
    for (int64_t begin = 0; begin < entries; begin += kThreads) {
      const int64_t entry = begin + threadIdx.x;
      const int64_t named = entry < entries ? batch.entry(entry).block() : -1;
      at += __syncthreads_count(named >= 0 && named < block);
    }
    if (threadIdx.x == 0) first[block] = at;
    if (block == blocks) continue;  // the end: the same for all threads
    for (int64_t begin = 0; begin < entries; begin += kThreads) {
      const int64_t entry = begin + threadIdx.x;
      const bool here = entry < entries && batch.entry(entry).block() == block;
      const uint32_t same = __ballot_sync(0xffffffffu, here);
      __syncthreads();  // the counts before these may still be read
      if (lane == 0) of_warp[warp] = __popc(same);
      __syncthreads();
      int64_t own = at + __popc(same & ((1u << lane) - 1));
      for (int w = 0; w < kThreads / 32; ++w) {
        if (w < warp) own += of_warp[w];
        at += of_warp[w];
      }
      if (here) {
        const auto [list, number] = batch.entry(entry);
        place[own] = list.place(number);
      }
    }
  }
}

// A `List` here has a `Place` and place(entry), what the kernel needs to know of an entry.
template <class List>
Places<typename List::Place> places_of(std::span<const List> lists, int64_t blocks,
                                       const Queue& queue) {
  int32_t batches = 0;
  for_each_batch(lists, [&](const Batch<List>&) { ++batches; });
  auto* first = workspace<int64_t>(batches * (blocks + 1), queue);
  auto* place = workspace<typename List::Place>(entries_of(lists), queue);
  int64_t batch_number = 0, before = 0;
  for_each_batch(lists, [&](const Batch<List>& batch) {
    launch("gather places", places_kernel<List>, blocks + 1, queue, batch, blocks, before,
           first + batch_number * (blocks + 1), place);
    before += batch.entries();
    ++batch_number;
  });
  return {first, place, blocks, batches};
}

}  // namespace sigeo_ext::gather
