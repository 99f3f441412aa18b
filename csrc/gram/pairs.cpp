// The innermost loops: a block of pairs in registers.

#include <algorithm>

#include "gram/gram.h"

namespace sigeo_ext::gram {
namespace {

template <class T, int kLanes>
struct Vector {
  typedef T type __attribute__((vector_size(kLanes * sizeof(T))));
  typedef T unaligned
      __attribute__((vector_size(kLanes * sizeof(T)), aligned(alignof(T)), may_alias));
};

template <Pair kPair, class V>
SIGEO_INLINE V term(const V& a, const V& b) {
  if constexpr (kPair == Pair::kProduct) return a * b;
  else return (a - b) * (a - b);
}

// sums[i, j] += over [0, length), at most kOfLane a lane, of a[i] and b[j].
template <Pair kPair, class T, int kLanes, int kRows, int kColumns>
SIGEO_INLINE void block(const T* const (&a)[kRows], const T* const (&b)[kColumns], int64_t length,
                        double (&sums)[kRows][kColumns]) {
  using V = typename Vector<T, kLanes>::type;
  using U = typename Vector<T, kLanes>::unaligned;
  V lanes[kRows][kColumns] = {};
  const int64_t whole = length / kLanes * kLanes;
  for (int64_t at = 0; at < whole; at += kLanes) {
    V right[kColumns];
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) right[j] = *reinterpret_cast<const U*>(b[j] + at);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const V left = *reinterpret_cast<const U*>(a[i] + at);
#pragma GCC unroll 8
      for (int j = 0; j < kColumns; ++j) lanes[i][j] += term<kPair>(left, right[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) {
      double sum = 0;
      for (int lane = 0; lane < kLanes; ++lane) sum += static_cast<double>(lanes[i][j][lane]);
      for (int64_t at = whole; at < length; ++at) {
        sum += static_cast<double>(term<kPair>(a[i][at], b[j][at]));
      }
      sums[i][j] += sum;
    }
  }
}

template <Pair kPair, class T, int kLanes, int kRows, int kColumns>
SIGEO_INLINE void pairs_body(const T* const* rows, int64_t count, int64_t length, double* out) {
  constexpr int64_t kAtOnce = int64_t{kOfLane} * kLanes;
  for (int64_t from = 0; from < length; from += kAtOnce) {
    const int64_t values = std::min(kAtOnce, length - from);
    for (int64_t i0 = 0; i0 < count; i0 += kRows) {
      const T* a[kRows];
      for (int i = 0; i < kRows; ++i) a[i] = rows[std::min(i0 + i, count - 1)] + from;
      for (int64_t j0 = i0 / kColumns * kColumns; j0 < count; j0 += kColumns) {
        const T* b[kColumns];
        for (int j = 0; j < kColumns; ++j) b[j] = rows[std::min(j0 + j, count - 1)] + from;
        double sums[kRows][kColumns] = {};
        block<kPair, T, kLanes>(a, b, values, sums);
        for (int64_t i = i0; i < std::min(i0 + kRows, count); ++i) {
          for (int64_t j = std::max(i, j0); j < std::min(j0 + kColumns, count); ++j) {
            out[i * count + j] += sums[i - i0][j - j0];
          }
        }
      }
    }
  }
}

template <class T>
using Run = void (*)(const T* const* rows, int64_t count, int64_t length, double* out);

#define SIGEO_LEVEL(Name, Target, Bytes, Rows)                                                 \
  struct Name {                                                                                \
    template <Pair kPair, class T>                                                             \
    Target static void run(const T* const* rows, int64_t count, int64_t length, double* out) { \
      pairs_body<kPair, T, Bytes / sizeof(T), Rows, 4>(rows, count, length, out);              \
    }                                                                                          \
  }
#define SIGEO_NO_TARGET
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
SIGEO_LEVEL(V4, __attribute__((target("arch=x86-64-v4"))), 64, 4);
SIGEO_LEVEL(V3, __attribute__((target("arch=x86-64-v3"))), 32, 2);
#endif
SIGEO_LEVEL(Base, SIGEO_NO_TARGET, 16, 2);

template <Pair kPair, class T>
Run<T> find() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  if (__builtin_cpu_supports("x86-64-v4")) return &V4::run<kPair, T>;
  if (__builtin_cpu_supports("x86-64-v3")) return &V3::run<kPair, T>;
#endif
  return &Base::run<kPair, T>;
}

}  // namespace

template <class T>
void add_pairs(Pair pair, const T* const* rows, int64_t count, int64_t length, double* out) {
  static const Run<T> product = find<Pair::kProduct, T>();
  static const Run<T> difference = find<Pair::kSquaredDifference, T>();
  (pair == Pair::kProduct ? product : difference)(rows, count, length, out);
}

template void add_pairs(Pair, const float* const*, int64_t, int64_t, double*);
template void add_pairs(Pair, const double* const*, int64_t, int64_t, double*);

}  // namespace sigeo_ext::gram
