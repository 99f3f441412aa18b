// The innermost loops: a block of pairs in registers, a group of rows in the first-level cache.

#include <algorithm>
#include <iterator>
#include <vector>

#include "gram/gram.h"

namespace sigeo_ext::gram {
namespace {

template <class T, int kLanes>
struct Vector {
  typedef T type __attribute__((vector_size(kLanes * sizeof(T))));
  typedef T unaligned
      __attribute__((vector_size(kLanes * sizeof(T)), aligned(alignof(T)), may_alias));
};

// Loads once what is used several times: else the compiler makes it the memory operand of each use.
#if defined(__x86_64__) && defined(__GNUC__)
#define SIGEO_IN_REGISTER(vector) asm("" : "+x"(vector))
#else
#define SIGEO_IN_REGISTER(vector)
#endif

template <Pair kPair, class V>
SIGEO_INLINE V term(const V& a, const V& b) {
  if constexpr (kPair == Pair::kProduct) return a * b;
  else return (a - b) * (a - b);
}

// Rows whose pairs are worked on together, and how much of each meanwhile: a group of rows stays in
// a first-level cache of 32 KiB.
constexpr int kGroup = 16;
constexpr int64_t kLineBytes = 1024;

// The lanes' sums of kRows by kColumns pairs.
template <class T, int kLanes, int kRows, int kColumns>
using Sums = typename Vector<T, kLanes>::type[kRows][kColumns];

// sums[i, j] += over [from, to), whole vectors, of a[i] and b[j].
template <Pair kPair, class T, int kLanes, int kRows, int kColumns>
SIGEO_INLINE void block(const T* const* a, const T* const* b, int64_t from, int64_t to,
                        Sums<T, kLanes, kRows, kColumns>& sums) {
  using V = typename Vector<T, kLanes>::type;
  using U = typename Vector<T, kLanes>::unaligned;
  V lanes[kRows][kColumns];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) lanes[i][j] = sums[i][j];
  for (int64_t at = from; at < to; at += kLanes) {
    V right[kColumns];
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) {
      right[j] = *reinterpret_cast<const U*>(b[j] + at);
      SIGEO_IN_REGISTER(right[j]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const V left = *reinterpret_cast<const U*>(a[i] + at);
#pragma GCC unroll 8
      for (int j = 0; j < kColumns; ++j) lanes[i][j] += term<kPair>(left, right[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) sums[i][j] = lanes[i][j];
}

// The lanes of a sum, added up in halves, and the values behind the last whole vector.
template <Pair kPair, class T, int kLanes>
SIGEO_INLINE double total(const typename Vector<T, kLanes>::type& lanes, const T* a, const T* b,
                          int64_t whole, int64_t length) {
  double sums[kLanes];
#pragma GCC unroll 16
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] = static_cast<double>(lanes[lane]);
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  }
  for (int64_t at = whole; at < length; ++at) {
    sums[0] += static_cast<double>(term<kPair>(a[at], b[at]));
  }
  return sums[0];
}

// Adds the pairs of rows from `first` on with rows from `second` on to `out`, of at most kOfLane
// values a lane. Pointers are given for whole groups.
template <Pair kPair, class T, int kLanes, int kRows, int kColumns>
SIGEO_INLINE void group(const T* const* rows, int64_t first, int64_t second, int64_t count,
                        int64_t length, double* out) {
  constexpr int64_t kLine = kLineBytes / static_cast<int64_t>(sizeof(T));
  const int64_t last = std::min(first + kGroup, count), end = std::min(second + kGroup, count);
  const int64_t whole = length / kLanes * kLanes;
  Sums<T, kLanes, kRows, kColumns> sums[kGroup / kRows][kGroup / kColumns] = {};
  for (int64_t from = 0; from < whole; from += kLine) {
    const int64_t to = std::min(whole, from + kLine);
    for (int64_t i = first; i < last; i += kRows) {
      for (int64_t j = std::max(second, i / kColumns * kColumns); j < end; j += kColumns) {
        block<kPair, T, kLanes, kRows, kColumns>(
            rows + i, rows + j, from, to, sums[(i - first) / kRows][(j - second) / kColumns]);
      }
    }
  }
  for (int64_t i = first; i < last; ++i) {
    for (int64_t j = std::max(second, i); j < end; ++j) {
      const auto& lanes = sums[(i - first) / kRows][(j - second) / kColumns];
      out[i * count + j] += total<kPair, T, kLanes>(
          lanes[(i - first) % kRows][(j - second) % kColumns], rows[i], rows[j], whole, length);
    }
  }
}

template <Pair kPair, class T, int kLanes, int kRows, int kColumns>
SIGEO_INLINE void pairs_body(const T* const* rows, int64_t count, int64_t length, double* out) {
  constexpr int64_t kAtOnce = int64_t{kOfLane} * kLanes;
  static_assert(kGroup % kRows == 0 && kGroup % kColumns == 0 && kColumns % kRows == 0);
  std::vector<const T*> at((count + kGroup - 1) / kGroup * kGroup);
  for (int64_t from = 0; from < length; from += kAtOnce) {
    for (int64_t i = 0; i < std::ssize(at); ++i) at[i] = rows[std::min(i, count - 1)] + from;
    const int64_t values = std::min(kAtOnce, length - from);
    for (int64_t first = 0; first < count; first += kGroup) {
      for (int64_t second = first; second < count; second += kGroup) {
        group<kPair, T, kLanes, kRows, kColumns>(at.data(), first, second, count, values, out);
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
