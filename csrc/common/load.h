// Values of arrays in the type that a CPU kernel computes in. Free of torch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "common/array.h"
#include "common/parallel.h"

namespace sigeo_ext {

// Values [begin, begin + n) of `array`, n <= kBlock: in place where it holds T, which is float or
// double, else converted into `buffer`.
template <class T>
const T* load(const Array& array, int64_t begin, int64_t n, T* buffer);

// For a list that may be empty: then every layer is zeros.
inline Array layer_or_zeros(Arrays list, int64_t layer) {
  return list.empty() ? Array{nullptr, DType::kFloat32, 0} : list[layer];
}

inline bool any_wide(Arrays arrays) {
  return std::any_of(arrays.begin(), arrays.end(),
                     [](const Array& array) { return array.dtype == DType::kFloat64; });
}

// Calls run(T{}) with the type that holds every value of the lists exactly.
template <class Run>
void with_type(std::initializer_list<Arrays> lists, const Run& run) {
  if (std::any_of(lists.begin(), lists.end(), any_wide)) run(double{});
  else run(float{});
}

}  // namespace sigeo_ext
