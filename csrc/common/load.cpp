#include "common/load.h"

#include <type_traits>

namespace sigeo_ext {
namespace {

template <class From, class To>
SIGEO_INLINE void convert(const From* from, To* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(from[i]);
}
SIGEO_MULTIVERSION void convert_block(const float* from, double* to, int64_t n) {
  convert(from, to, n);
}
SIGEO_MULTIVERSION void convert_block(const double* from, float* to, int64_t n) {
  convert(from, to, n);
}
SIGEO_MULTIVERSION void bfloat16_block(const uint16_t* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = bfloat16_to_float(from[i]);
}
SIGEO_MULTIVERSION void float16_block(const uint16_t* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = float16_to_float(from[i]);
}

}  // namespace

template <class T>
const T* load(const Array& array, int64_t begin, int64_t n, T* buffer) {
  constexpr bool kSingle = std::is_same_v<T, float>;
  if (array.data == nullptr) {
    std::fill_n(buffer, n, T{0});
    return buffer;
  }
  if (array.dtype == (kSingle ? DType::kFloat32 : DType::kFloat64)) {
    return static_cast<const T*>(array.data) + begin;
  }
  if (array.dtype == DType::kFloat32 || array.dtype == DType::kFloat64) {
    using Other = std::conditional_t<kSingle, double, float>;
    convert_block(static_cast<const Other*>(array.data) + begin, buffer, n);
    return buffer;
  }
  const auto widen = array.dtype == DType::kBFloat16 ? bfloat16_block : float16_block;
  const uint16_t* bits = static_cast<const uint16_t*>(array.data) + begin;
  if constexpr (kSingle) {
    widen(bits, buffer, n);
  } else {
    float single[kBlock];
    widen(bits, single, n);
    convert_block(single, buffer, n);
  }
  return buffer;
}
template const float* load(const Array&, int64_t, int64_t, float*);
template const double* load(const Array&, int64_t, int64_t, double*);

}  // namespace sigeo_ext
