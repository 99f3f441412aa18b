// A typed run of memory, and its conversion to the type a kernel computes in. Free of torch.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>

namespace sigeo_ext {

enum class DType : uint8_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

constexpr int64_t size_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// `numel` values of `dtype`, one after another. A null `data` stands for all zeros: the gradient
// of a parameter that the loss did not reach.
struct Array {
  void* data;
  DType dtype;
  int64_t numel;
};

// A list of tensors, one a layer.
using Arrays = std::span<const Array>;

// For the arithmetic that CPU and GPU kernels share. Forced inline, so that it is compiled anew
// inside each clone of a SIGEO_MULTIVERSION function.
#if defined(__CUDACC__)
#define SIGEO_INLINE __host__ __device__ __forceinline__
#else
#define SIGEO_INLINE inline __attribute__((always_inline))
#endif

// The same for a lambda, which does not take over the target of the function that holds it.
#define SIGEO_LAMBDA_INLINE __attribute__((always_inline))

template <class To, class From>
SIGEO_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

SIGEO_INLINE float bfloat16_to_float(uint16_t bits) {
  return bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// Branch-free, so that loops over it vectorise without F16C. Subnormals, whose bits count units of
// 2^-24, come from an exact product of normal numbers: flush-to-zero modes do not touch them.
SIGEO_INLINE float float16_to_float(uint16_t bits) {
  const uint32_t magnitude = bits & 0x7fffu;
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t rebased = (magnitude << 13) + (112u << 23);
  const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
  const uint32_t normal = rebased | special;
  return bit_cast<float>((magnitude < 0x0400u ? bit_cast<uint32_t>(subnormal) : normal) | sign);
}

}  // namespace sigeo_ext
