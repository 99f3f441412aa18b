// Lists and codes on a GPU: one launch for the whole list, and one that adds up its runs. With up
// to 8 rows bound by memory, each value is read once; with many by arithmetic, in float32 without
// tensor cores, whose products would not keep float32's digits. Bits are bound by their count, 16 a
// clock and multiprocessor.
#include <span>
#include <vector>

#include "common/load.h"
#include "gram/gram.h"
#include "gram/tiles.cuh"

namespace sigeo_ext::gram {
namespace {

// Values of host memory that go into one launch as its arguments.
template <class T, int kCapacity>
struct Piece {
  T value[kCapacity];
};

template <class T, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    write_kernel(const __grid_constant__ Piece<T, kCapacity> piece, int64_t count, T* to) {
  for (int64_t i = threadIdx.x; i < count; i += kThreads) to[i] = piece.value[i];
}

template <int kCapacity, class T>
void write(std::span<const T> values, T* to, const Queue& queue) {
  static_assert(sizeof(Piece<T, kCapacity>) <= 32000, "kernel arguments must fit");
  for (size_t begin = 0; begin < values.size(); begin += kCapacity) {
    const auto part = values.subspan(begin, std::min<size_t>(kCapacity, values.size() - begin));
    Piece<T, kCapacity> piece;
    std::copy(part.begin(), part.end(), piece.value);
    launch("gram table", write_kernel<T, kCapacity>, 1, queue, piece,
           static_cast<int64_t>(part.size()), to + begin);
  }
}

// The values in device memory. They travel as arguments of launches: the host's memory may go once
// the call returns, and a captured graph has them for good.
template <class T>
const T* on_device(std::span<const T> values, const Queue& queue) {
  T* const to = workspace<T>(static_cast<int64_t>(values.size()), queue);
  if (values.size() <= 128) write<128>(values, to, queue);
  else write<1024>(values, to, queue);
  return to;
}

// Vectors in parts: vectors[row * layers + layer].
template <class T>
struct Parts {
  const Array* vectors;
  const int64_t* first;  // stages of the layers before each, and of all
  int64_t layers, stages;

  struct Place {
    int64_t layer, begin;
  };

  __device__ Place place(int64_t stage, int64_t length) const {
    int64_t low = 0, high = layers;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (first[middle] <= stage ? low : high) = middle;
    }
    return {low, (stage - first[low]) * length};
  }

  __device__ const Array& array(const Place& place, int64_t row) const {
    return vectors[row * layers + place.layer];
  }

  // Where values [begin + offset, + kVector) are if they can be read as they are, else null.
  __device__ const T* vector(const Place& place, int64_t row, int64_t offset) const {
    constexpr DType kType = sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat64;
    const Array& values = array(place, row);
    const T* from = static_cast<const T*>(values.data);
    const int64_t at = place.begin + offset;
    const bool there = from != nullptr && values.dtype == kType && at + kVector <= values.numel;
    return there && aligned<T>(from) ? from + at : nullptr;
  }

  __device__ void load(const Place& place, int64_t row, int64_t offset, T (&to)[kVector]) const {
    sigeo_ext::load(array(place, row), place.begin + offset, to);
  }
};

// Codes, as words of which the last may end in bytes that are not there: those are zero.
struct Codes {
  const uint8_t* codes;
  int64_t bytes, stages;

  using Place = int64_t;  // the first word

  __device__ Place place(int64_t stage, int64_t length) const { return stage * length; }

  __device__ const uint32_t* vector(Place begin, int64_t row, int64_t offset) const {
    const int64_t at = (begin + offset) * 4;
    const auto* from = reinterpret_cast<const uint32_t*>(codes + row * bytes + at);
    return at + 4 * kVector <= bytes && aligned<uint32_t>(from) ? from : nullptr;
  }

  __device__ void load(Place begin, int64_t row, int64_t offset, uint32_t (&to)[kVector]) const {
    const uint8_t* code = codes + row * bytes;
#pragma unroll 1
    for (int k = 0; k < kVector; ++k) {
      const int64_t at = (begin + offset + k) * 4;
      to[k] = 0;
      if (at + 4 <= bytes && reinterpret_cast<uintptr_t>(code + at) % 4 == 0) {
        to[k] = *reinterpret_cast<const uint32_t*>(code + at);
      } else {
        for (int b = 0; b < 4 && at + b < bytes; ++b) to[k] |= uint32_t{code[at + b]} << (8 * b);
      }
    }
  }
};

template <class Term, int kTile>
void launch_lists(std::span<const Array> vectors, int64_t count, double* out, const Queue& queue) {
  using Value = typename Term::Value;
  constexpr int64_t kStage = Share<Value, kTile>::kStage;
  const int64_t layers = static_cast<int64_t>(vectors.size()) / count;
  std::vector<int64_t> first{0};
  for (const Array& layer : vectors.first(layers)) {
    first.push_back(first.back() + (layer.numel + kStage - 1) / kStage);
  }
  Parts<Value> parts{nullptr, nullptr, layers, first.back()};
  if (parts.stages > 0) {
    parts.vectors = on_device(vectors, queue);
    parts.first = on_device(std::span<const int64_t>(first), queue);
  }
  launch_pairs<Term, kTile>("gram lists", parts, count, out, queue);
}

template <class Term>
void launch_lists(std::span<const Array> vectors, int64_t count, double* out, const Queue& queue) {
  if (count <= kNarrow) launch_lists<Term, kNarrow>(vectors, count, out, queue);
  else launch_lists<Term, kWide>(vectors, count, out, queue);
}

template <int kTile>
void launch_codes(const uint8_t* codes, int64_t count, int64_t bytes, int64_t* out,
                  const Queue& queue) {
  constexpr int64_t kBytes = Share<uint32_t, kTile>::kStage * 4;
  const Codes source{codes, bytes, (bytes + kBytes - 1) / kBytes};
  launch_pairs<DifferentBits, kTile>("gram codes", source, count, out, queue);
}

}  // namespace

void of_lists(Pair pair, std::span<const Array> vectors, int64_t count, double* out,
              const Queue& queue) {
  if (count == 0) return;
  with_type({vectors}, [&]<class T>(T) {
    if (pair == Pair::kProduct) launch_lists<Product<T>>(vectors, count, out, queue);
    else launch_lists<SquaredDifference<T>>(vectors, count, out, queue);
  });
}

void hamming(const uint8_t* codes, int64_t count, int64_t bytes, int64_t* out, const Queue& queue) {
  if (count == 0) return;
  if (count <= kNarrow) launch_codes<kNarrow>(codes, count, bytes, out, queue);
  else launch_codes<kWide>(codes, count, bytes, out, queue);
}

}  // namespace sigeo_ext::gram
