// What the CUDA kernels share: lists of arrays as kernel arguments, loads of four values, block
// sums.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include <cuda_runtime.h>

#include "common/array.h"
#include "common/queue.h"

namespace sigeo_ext {

constexpr int kThreads = 256;
constexpr int kVector = 4;       // consecutive values of one thread: 16 bytes of float32
constexpr int64_t kSpan = 4096;  // values of one block: four vectors a thread

// Launches `kernel` for items of work, one a block of threads. A grid has at most 2^31 - 1 of them:
// kernels that may get more items take item blockIdx.x, then every gridDim.x-th one after it; those
// over tables get no more, whose numbers of blocks are ints.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), int64_t items, const Queue& queue,
            const Arguments&... arguments) {
  if (items == 0) return;
  cudaLaunchConfig_t config{};
  config.gridDim.x =
      static_cast<uint32_t>(std::min<int64_t>(items, std::numeric_limits<int32_t>::max()));
  config.blockDim.x = kThreads;
  config.stream = static_cast<cudaStream_t>(queue.stream);
  cudaLaunchKernelEx(&config, kernel, arguments...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error));
  }
}

template <class T>
T* workspace(int64_t count, const Queue& queue) {
  static_assert(alignof(T) <= alignof(double));
  const int64_t bytes = std::max<int64_t>(1, count) * static_cast<int64_t>(sizeof(T));
  const auto doubles = (bytes + int64_t{sizeof(double)} - 1) / int64_t{sizeof(double)};
  return reinterpret_cast<T*>(queue.workspace(doubles));
}

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

  int blocks() const { return first_block[layers]; }

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

// Fills a table with `lists[l][begin + i]` and calls run(table, begin) for each group of layers.
template <int kLists, int kCapacity, class Run>
void for_each_group(const Arrays (&lists)[kLists], const Run& run) {
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
    run(table, begin);
  }
}

// Calls run(table, first_layer) with tables just large enough for the lists.
template <int kLists, class Run>
void for_each_table(const Arrays (&lists)[kLists], const Run& run) {
  if (lists[0].size() <= kFewLayers) for_each_group<kLists, kFewLayers>(lists, run);
  else for_each_group<kLists, kManyLayers>(lists, run);
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

// Calls body(i) for the first value of each vector of this block's span.
template <class Body>
__device__ __forceinline__ void for_each_vector(int64_t begin, int64_t numel, const Body& body) {
#pragma unroll 1  // a vector of each list is in flight already; unrolling only grows the code
  for (int64_t step = 0; step < kSpan; step += kThreads * kVector) {
    const int64_t i = begin + step + threadIdx.x * kVector;
    if (i < numel) body(i);
  }
}

// Writes this block's kCount sums to partial[blockIdx.x].
template <int kCount>
__device__ void write_partial(const double (&sums)[kCount], double* partial) {
  for (int c = 0; c < kCount; ++c) {
    const double sum = block_sum(sums[c]);
    if (threadIdx.x == 0) partial[blockIdx.x * kCount + c] = sum;
  }
}

// One block a layer adds up the layer's partial sums; `finish(sums, row)` turns them into the
// layer's row of `out`, `finish.width()` values long.
template <int kCount, int kLists, int kCapacity, class Finish>
__global__ void __launch_bounds__(kThreads, 2)
    reduce_kernel(const __grid_constant__ Table<kLists, kCapacity> table, const double* partial,
                  Finish finish, double* out) {
  const int from = table.first_block[blockIdx.x], to = table.first_block[blockIdx.x + 1];
  double sums[kCount];
  for (int c = 0; c < kCount; ++c) {
    double sum = 0;
    for (int block = from + threadIdx.x; block < to; block += kThreads) {
      sum += partial[block * kCount + c];
    }
    sums[c] = block_sum(sum);
  }
  if (threadIdx.x == 0) finish(sums, out + blockIdx.x * finish.width());
}

// Calls launch_sums(table, partial), which launches a kernel that writes kCount sums a block, and
// launches the reduction of these into out [layers, finish.width()].
template <int kCount, int kLists, class Finish, class LaunchSums>
void reduce_lists(const Arrays (&lists)[kLists], const Finish& finish, double* out,
                  const Queue& queue, const char* name, const LaunchSums& launch_sums) {
  for_each_table(lists,
                 [&]<int kCapacity>(const Table<kLists, kCapacity>& table, int64_t first_layer) {
                   auto* partial = workspace<double>(int64_t{table.blocks()} * kCount, queue);
                   launch_sums(table, partial);
                   launch(name, reduce_kernel<kCount, kLists, kCapacity, Finish>, table.layers,
                          queue, table, partial, finish, out + first_layer * finish.width());
                 });
}

}  // namespace sigeo_ext
