// What the CUDA kernels share: lists of arrays as kernel arguments, loads of four values, block
// sums.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

#include <cuda_runtime.h>

#include "common/array.h"

namespace sigeo_ext {

inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(error));
  }
}

constexpr int kThreads = 256;
constexpr int kVector = 4;       // consecutive values of one thread: 16 bytes of float32
constexpr int64_t kSpan = 4096;  // values of one block: four vectors a thread

// Layers of a list that go into one launch. The arguments of a kernel may fill 32 kB; most lists
// are short, and small arguments launch faster.
constexpr int kFewLayers = 48;
constexpr int kManyLayers = 512;

// Lists of arrays, passed by value: no copy to the device, no memory that must outlive the call.
// Blocks are numbered through the layers.
template <int kLists, int kCapacity>
struct Table {
  void* data[kLists][kCapacity];
  int64_t numel[kCapacity];
  int32_t first_block[kCapacity + 1];
  DType dtype[kLists][kCapacity];
  int32_t layers;

  __device__ int layer_of(int block) const {
    int low = 0, high = layers;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (first_block[middle] <= block ? low : high) = middle;
    }
    return low;
  }

  __device__ Array array(int list, int layer) const {
    return {data[list][layer], dtype[list][layer], numel[layer]};
  }
};
static_assert(sizeof(Table<5, kManyLayers>) <= 32000, "kernel arguments must fit");

// Fills a table with `lists[l][begin + i]` and calls launch(table, blocks) for each group of
// layers.
template <int kLists, int kCapacity, class Launch>
void for_each_group(const std::span<const Array> (&lists)[kLists], const Launch& launch) {
  const int64_t layers = static_cast<int64_t>(lists[0].size());
  for (int64_t begin = 0; begin < layers; begin += kCapacity) {
    Table<kLists, kCapacity> table;
    table.layers = static_cast<int32_t>(std::min<int64_t>(kCapacity, layers - begin));
    table.first_block[0] = 0;
    for (int i = 0; i < table.layers; ++i) {
      const int64_t numel = lists[0][begin + i].numel;
      table.numel[i] = numel;
      table.first_block[i + 1] =
          table.first_block[i] + static_cast<int32_t>((numel + kSpan - 1) / kSpan);
      for (int l = 0; l < kLists; ++l) {
        const Array array =
            lists[l].empty() ? Array{nullptr, DType::kFloat32, numel} : lists[l][begin + i];
        table.data[l][i] = array.data;
        table.dtype[l][i] = array.dtype;
      }
    }
    launch(table, begin);
  }
}

// Calls run(table, first_layer) with tables just large enough for the lists.
template <int kLists, class Launch>
void for_each_table(const std::span<const Array> (&lists)[kLists], const Launch& launch) {
  if (lists[0].size() <= kFewLayers) for_each_group<kLists, kFewLayers>(lists, launch);
  else for_each_group<kLists, kManyLayers>(lists, launch);
}

template <class T>
__device__ bool aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % (kVector * sizeof(T)) == 0;
}

// Values [i, i + 4) of `from` in one load if they are all there; beyond the end, zeros.
template <class T, class From, class Convert>
__device__ __forceinline__ void load_as(const From* from, int64_t i, int64_t numel,
                                        T (&to)[kVector], const Convert& convert) {
  struct alignas(kVector * sizeof(From)) Vector {
    From value[kVector];
  };
  if (i + kVector <= numel && aligned<From>(from)) {
    const Vector vector = *reinterpret_cast<const Vector*>(from + i);
#pragma unroll
    for (int k = 0; k < kVector; ++k) to[k] = static_cast<T>(convert(vector.value[k]));
  } else {
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      to[k] = i + k < numel ? static_cast<T>(convert(from[i + k])) : T{0};
    }
  }
}

template <class T>
__device__ __forceinline__ void load(const Array& array, int64_t i, T (&to)[kVector]) {
  if (array.data == nullptr) {
#pragma unroll
    for (int k = 0; k < kVector; ++k) to[k] = T{0};
    return;
  }
  const auto same = [](auto value) { return value; };
  switch (array.dtype) {
    case DType::kFloat32:
      return load_as(static_cast<const float*>(array.data), i, array.numel, to, same);
    case DType::kFloat64:
      return load_as(static_cast<const double*>(array.data), i, array.numel, to, same);
    case DType::kBFloat16:
      return load_as(static_cast<const uint16_t*>(array.data), i, array.numel, to,
                     [](uint16_t bits) { return bfloat16_to_float(bits); });
    case DType::kFloat16:
      return load_as(static_cast<const uint16_t*>(array.data), i, array.numel, to,
                     [](uint16_t bits) { return float16_to_float(bits); });
  }
}

template <class T>
__device__ __forceinline__ void store(const Array& array, int64_t i, const T (&from)[kVector]) {
  struct alignas(kVector * sizeof(T)) Vector {
    T value[kVector];
  };
  T* to = static_cast<T*>(array.data);
  if (i + kVector <= array.numel && aligned<T>(to)) {
    Vector vector;
#pragma unroll
    for (int k = 0; k < kVector; ++k) vector.value[k] = from[k];
    *reinterpret_cast<Vector*>(to + i) = vector;
  } else {
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      if (i + k < array.numel) to[i + k] = from[k];
    }
  }
}

// The sum over a block of kThreads threads, in an order that does not change; valid in thread 0.
__device__ __forceinline__ double block_sum(double value) {
  __shared__ double of_warp[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_down_sync(0xffffffffu, value, offset);
  }
  __syncthreads();  // the sum before this one may still be read
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0) {
    for (int warp = 0; warp < kThreads / 32; ++warp) sum += of_warp[warp];
  }
  return sum;
}

}  // namespace sigeo_ext
