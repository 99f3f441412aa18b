// Loops over the values of blocks with few channels, in the order of memory. Included by the CPU
// core alone: each is compiled for every vector unit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/array.h"
#include "common/parallel.h"
#include "gather/gather.h"

namespace sigeo_ext::gather {
namespace {

// Values worked on while they sit in the first-level cache.
constexpr int64_t kStep = 4096;

// Few channels make short loops, so several positions are taken as one of more channels.
constexpr int64_t kLanes = 128;

struct Lanes {
  int64_t rows;   // positions taken as one
  int64_t width;  // rows * channels
  int64_t step;   // positions of a step, a multiple of rows

  explicit Lanes(const Shape& shape)
      : rows(std::max<int64_t>(1, kLanes / std::max<int64_t>(1, shape.channels))),
        width(rows * shape.channels),
        step(rows * std::max<int64_t>(1, kStep / std::max<int64_t>(1, width))) {}
};

// A row [channels], once for each of the positions that are taken as one.
template <class T>
void spread(const T* row, const Lanes& lanes, int64_t channels, T* out) {
  for (int64_t r = 0; r < lanes.rows; ++r) {
    std::memcpy(out + r * channels, row, channels * sizeof(T));
  }
}

template <class T>
void fold(const T* lane, const Lanes& lanes, int64_t channels, double* out) {
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (int64_t r = 0; r < lanes.rows; ++r) sum += static_cast<double>(lane[r * channels + c]);
    out[c] = sum;
  }
}

// Calls body(values, n) on pieces of n <= width values that begin at a position taken first.
#define SIGEO_FOR_EACH_PIECE(size, width)                               \
  for (int64_t at = 0, n = std::min<int64_t>(width, size); at < (size); \
       at += n, n = std::min<int64_t>(width, (size) - at))

template <class T>
SIGEO_INLINE void add_body(const T* x, int64_t size, int64_t width, T* sum) {
  SIGEO_FOR_EACH_PIECE(size, width) {
    for (int64_t i = 0; i < n; ++i) sum[i] += x[at + i];
  }
}
template <class T>
SIGEO_INLINE void add_squares_body(const T* x, const T* mean, int64_t size, int64_t width, T* sum) {
  SIGEO_FOR_EACH_PIECE(size, width) {
    for (int64_t i = 0; i < n; ++i) {
      const T deviation = x[at + i] - mean[i];
      sum[i] += deviation * deviation;
    }
  }
}
template <class T>
SIGEO_INLINE void normalise_body(const T* x, const T* mean, const T* scale, const T* shift,
                                 int64_t size, int64_t width, bool first, T* y) {
  SIGEO_FOR_EACH_PIECE(size, width) {
    if (first) {
      for (int64_t i = 0; i < n; ++i) y[at + i] = (x[at + i] - mean[i]) * scale[i] + shift[i];
    } else {
      for (int64_t i = 0; i < n; ++i) y[at + i] += (x[at + i] - mean[i]) * scale[i] + shift[i];
    }
  }
}
template <class T>
SIGEO_INLINE void plain_body(const T* x, int64_t size, bool first, T* y) {
  if (first) {
    std::memcpy(y, x, size * sizeof(T));
  } else {
    for (int64_t i = 0; i < size; ++i) y[i] += x[i];
  }
}
template <class T>
SIGEO_INLINE void add_products_body(const T* d, const T* x, const T* mean, const T* rstd,
                                    int64_t size, int64_t width, T* sum, T* inner) {
  SIGEO_FOR_EACH_PIECE(size, width) {
    for (int64_t i = 0; i < n; ++i) {
      sum[i] += d[at + i];
      inner[i] += d[at + i] * ((x[at + i] - mean[i]) * rstd[i]);
    }
  }
}
// into = scale * (d - sum - xhat * inner), with sum and inner per value and xhat * inner as
// (x - mean) * slope.
template <class T>
SIGEO_INLINE void input_gradient_body(const T* d, const T* x, const T* mean, const T* slope,
                                      const T* sum, const T* scale, int64_t size, int64_t width,
                                      T* into) {
  SIGEO_FOR_EACH_PIECE(size, width) {
    for (int64_t i = 0; i < n; ++i) {
      into[at + i] = (d[at + i] - sum[i] - (x[at + i] - mean[i]) * slope[i]) * scale[i];
    }
  }
}
template <class T>
SIGEO_INLINE void rectify_body(const T* x, int64_t size, T* out) {
  // A NaN stays one, as in torch's ReLU.
  for (int64_t i = 0; i < size; ++i) out[i] = x[i] <= 0 ? T{0} : x[i];
}
template <class T>
SIGEO_INLINE void mask_body(const T* x, int64_t size, T* into) {
  // A NaN lets through, as in torch's ReLU.
  for (int64_t i = 0; i < size; ++i) into[i] = x[i] <= 0 ? T{0} : into[i];
}
#undef SIGEO_FOR_EACH_PIECE

// Every loop for both types, each compiled for every vector unit.
#define SIGEO_LOOPS(T)                                                                          \
  SIGEO_MULTIVERSION void add(const T* x, int64_t size, int64_t width, T* sum) {                \
    add_body(x, size, width, sum);                                                              \
  }                                                                                             \
  SIGEO_MULTIVERSION void add_squares(const T* x, const T* mean, int64_t size, int64_t width,   \
                                      T* sum) {                                                 \
    add_squares_body(x, mean, size, width, sum);                                                \
  }                                                                                             \
  SIGEO_MULTIVERSION void normalise(const T* x, const T* mean, const T* scale, const T* shift,  \
                                    int64_t size, int64_t width, bool first, T* y) {            \
    normalise_body(x, mean, scale, shift, size, width, first, y);                               \
  }                                                                                             \
  SIGEO_MULTIVERSION void plain(const T* x, int64_t size, bool first, T* y) {                   \
    plain_body(x, size, first, y);                                                              \
  }                                                                                             \
  SIGEO_MULTIVERSION void add_products(const T* d, const T* x, const T* mean, const T* rstd,    \
                                       int64_t size, int64_t width, T* sum, T* inner) {         \
    add_products_body(d, x, mean, rstd, size, width, sum, inner);                               \
  }                                                                                             \
  SIGEO_MULTIVERSION void input_gradient(const T* d, const T* x, const T* mean, const T* slope, \
                                         const T* sum, const T* scale, int64_t size,            \
                                         int64_t width, T* into) {                              \
    input_gradient_body(d, x, mean, slope, sum, scale, size, width, into);                      \
  }                                                                                             \
  SIGEO_MULTIVERSION void rectify(const T* x, int64_t size, T* out) {                           \
    rectify_body(x, size, out);                                                                 \
  }                                                                                             \
  SIGEO_MULTIVERSION void mask(const T* x, int64_t size, T* into) { mask_body(x, size, into); }
SIGEO_LOOPS(float)
SIGEO_LOOPS(double)
#undef SIGEO_LOOPS

}  // namespace
}  // namespace sigeo_ext::gather
