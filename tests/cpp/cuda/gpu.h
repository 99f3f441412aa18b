// Calls of the GPU cores on the emulated GPU, and arrays for them.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "check.h"
#include "common/array.h"
#include "common/queue.h"
#include "cuda_runtime.h"

namespace emulation {

// Random values of a dtype: `numel` of them that end where their memory does and begin `offset`
// values into it, so that from 1 on no vector load may take them.
class Values {
 public:
  Values(sigeo_ext::DType dtype, int64_t numel, unsigned seed, int64_t offset = 0)
      : dtype_(dtype), numel_(numel), offset_(offset), memory_((numel + offset) * width()) {
    std::mt19937 generator(seed);
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < numel; ++i) {
      const double value = normal(generator);
      switch (dtype) {
        case sigeo_ext::DType::kFloat32: put(i, static_cast<float>(value)); break;
        case sigeo_ext::DType::kFloat64: put(i, value); break;
        case sigeo_ext::DType::kBFloat16:
          put(i, static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(value)) >> 16));
          break;
        case sigeo_ext::DType::kFloat16:  // of either sign, from 1/4 on, below 2
          put(i, static_cast<uint16_t>((generator() & 0x8bffu) + 0x3400u));
          break;
      }
    }
  }

  double operator[](int64_t i) const {
    switch (dtype_) {
      case sigeo_ext::DType::kFloat32: return get<float>(i);
      case sigeo_ext::DType::kFloat64: return get<double>(i);
      case sigeo_ext::DType::kBFloat16: return sigeo_ext::bfloat16_to_float(get<uint16_t>(i));
      case sigeo_ext::DType::kFloat16: return sigeo_ext::float16_to_float(get<uint16_t>(i));
    }
    return NAN;
  }

  // Squares, every seventh of them zero: what sums of squared deviations may be.
  void make_squares() {
    for (int64_t i = 0; i < numel_; ++i) {
      const double value = i % 7 == 0 ? 0 : (*this)[i];
      if (dtype_ == sigeo_ext::DType::kFloat64) put(i, value * value);
      else put(i, static_cast<float>(value * value));
    }
  }

  int64_t numel() const { return numel_; }
  const std::vector<std::byte>& bytes() const { return memory_; }
  sigeo_ext::Array array() { return {memory_.data() + offset_ * width(), dtype_, numel_}; }

 private:
  int64_t width() const { return sigeo_ext::size_of(dtype_); }
  template <class T>
  void put(int64_t i, T value) {
    std::memcpy(memory_.data() + (offset_ + i) * sizeof(T), &value, sizeof(T));
  }
  template <class T>
  T get(int64_t i) const {
    T value;
    std::memcpy(&value, memory_.data() + (offset_ + i) * sizeof(T), sizeof(T));
    return value;
  }

  sigeo_ext::DType dtype_;
  int64_t numel_, offset_;
  std::vector<std::byte> memory_;
};

inline bool same_bits(double a, double b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }
inline bool same_bits(const Values& a, const Values& b) { return a.bytes() == b.bytes(); }

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const T& x, const T& y) { return same_bits(x, y); });
}

// What call(queue) returns, once all that it launched has run: vectors that it had written.
template <class Call>
auto result_of(const Call& call) {
  std::vector<std::unique_ptr<double[]>> workspaces;
  const sigeo_ext::Queue queue{nullptr, [&](int64_t numel) {
                                 workspaces.push_back(std::make_unique<double[]>(numel));
                                 std::fill_n(workspaces.back().get(), numel, NAN);
                                 return workspaces.back().get();
                               }};
  auto written = call(queue);
  synchronize();
  return written;
}

// The same, the same bits in every order of blocks and threads.
template <class Call>
auto result_in_every_order(const Call& call) {
  order = Order::kForward;
  const auto found = result_of(call);
  for (const Order other : {Order::kReverse, Order::kShuffled}) {
    order = other;
    CHECK(same_bits(found, result_of(call)));
  }
  return found;
}

}  // namespace emulation
