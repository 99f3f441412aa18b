// Copies of blocks and their gradients. Bound by memory: a copy moves 8 bytes a float32 value (one
// read, one written); the backward pass reads each gradient once, x once where a copy of the block
// went through a ReLU, and writes once. One launch forward and two backward, for up to kBatch
// lists.
#include "gather/gather.h"

#include <cmath>
#include <type_traits>
#include <vector>

#include "common/cuda.cuh"
#include "gather/places.cuh"

namespace sigeo_ext::gather {
namespace {

// Values of a block that one block of threads works on: kSpan.
int64_t spans(const Shape& shape) { return (shape.size() + kSpan - 1) / kSpan; }

template <class T>
__device__ __forceinline__ void load_values(const T* from, int64_t i, int64_t size,
                                            T (&to)[kVector]) {
  load_as(from, i, size, to, [](T value) { return value; });
}

template <class T>
__device__ __forceinline__ void store_values(T* to, int64_t i, int64_t size,
                                             const T (&from)[kVector]) {
  constexpr DType kType = std::is_same_v<T, float> ? DType::kFloat32 : DType::kFloat64;
  store(Array{to, kType, size}, i, from);
}

// What a place of a block is: the gradient of a copy of it.
template <class T>
struct Gradient {
  const T* values;
  bool rectified;
};

template <class T>
struct CopyList {
  using Place = Gradient<std::remove_const_t<T>>;

  const int64_t* blocks;
  int64_t count;
  Strided<T> values;
  bool rectified;

  __device__ Place place(int64_t entry) const { return {values.at(entry), rectified}; }
};

template <class T>
std::vector<CopyList<T>> lists_of(std::span<const Copies<T>> copies, const Shape& shape) {
  std::vector<CopyList<T>> lists;
  for (const Copies<T>& copy : copies) {
    lists.push_back({copy.blocks.data(),
                     static_cast<int64_t>(copy.blocks.size()),
                     {copy.values, shape.size()},
                     copy.rectified});
  }
  return lists;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    dispatch_kernel(const __grid_constant__ Batch<CopyList<T>> batch, Strided<const T> x,
                    int64_t count, int64_t size, int64_t spans) {
  const int64_t items = batch.entries() * spans;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t number = item / spans, begin = (item - number * spans) * kSpan;
    const auto entry = batch.entry(number);
    const int64_t block = entry.block();
    const bool exists = block >= 0 && block < count, rectified = entry.list.rectified;
    const T* source = x.at(exists ? block : 0);  // read only if it exists
    T* out = entry.list.values.at(entry.number);
    for_each_vector(begin, size, [&](int64_t i) {
      T value[kVector];
      if (exists) load_values(source, i, size, value);
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        if (!exists) value[k] = static_cast<T>(NAN);
        // A NaN stays one, as in torch's ReLU.
        else if (rectified && value[k] <= 0) value[k] = T{0};
      }
      store_values(out, i, size, value);
    });
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    dispatch_backward_kernel(const Places<Gradient<T>> places, Strided<const T> x, int64_t count,
                             int64_t size, int64_t spans, T* into) {
  const int64_t items = count * spans;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t block = item / spans, begin = (item - block * spans) * kSpan;
    for_each_vector(begin, size, [&](int64_t i) {
      T through[kVector] = {}, sum[kVector] = {};  // a ReLU; none
      bool masked = false;
      places.for_each(block, [&](const Gradient<T>& place) {
        T value[kVector];
        load_values(place.values, i, size, value);
        if (place.rectified) {
          masked = true;
#pragma unroll
          for (int k = 0; k < kVector; ++k) through[k] += value[k];
        } else {
#pragma unroll
          for (int k = 0; k < kVector; ++k) sum[k] += value[k];
        }
      });
      if (masked) {
        T value[kVector];
        load_values(x.at(block), i, size, value);
        // A NaN lets through, as in torch's ReLU.
#pragma unroll
        for (int k = 0; k < kVector; ++k) sum[k] = (value[k] <= 0 ? T{0} : through[k]) + sum[k];
      }
      store_values(into + block * size, i, size, sum);
    });
  }
}

}  // namespace

template <class T>
void dispatch(Strided<const T> x, int64_t count, const Shape& shape,
              std::span<const Copies<T>> copies, const Queue& queue) {
  const auto lists = lists_of(copies, shape);
  for_each_batch(std::span<const CopyList<T>>(lists), [&](const Batch<CopyList<T>>& batch) {
    launch("gather dispatch", dispatch_kernel<T>, batch.entries() * spans(shape), queue, batch, x,
           count, shape.size(), spans(shape));
  });
}

template <class T>
void dispatch_backward(Strided<const T> x, int64_t count, const Shape& shape,
                       std::span<const Copies<const T>> gradients, T* into, const Queue& queue) {
  const auto lists = lists_of(gradients, shape);
  const auto places = places_of(std::span<const CopyList<const T>>(lists), count, queue);
  launch("gather dispatch backward", dispatch_backward_kernel<T>, count * spans(shape), queue,
         places, x, count, shape.size(), spans(shape), into);
}

#define SIGEO_INSTANTIATE(T)                                                                  \
  template void dispatch(Strided<const T>, int64_t, const Shape&, std::span<const Copies<T>>, \
                         const Queue&);                                                       \
  template void dispatch_backward(Strided<const T>, int64_t, const Shape&,                    \
                                  std::span<const Copies<const T>>, T*, const Queue&);
SIGEO_INSTANTIATE(float)
SIGEO_INSTANTIATE(double)
#undef SIGEO_INSTANTIATE

}  // namespace sigeo_ext::gather
