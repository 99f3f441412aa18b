#include "gather/pooling.h"

#include <algorithm>
#include <vector>

#include "common/array.h"

namespace sigeo_ext::gather {
namespace {

// A window's pixels are as many as its rows times its columns, so all sums separate: rows first.
template <class T>
SIGEO_INLINE void add_rows_body(const T* const* rows, const T* scales, int64_t count, int64_t size,
                                T* sum) {
  for (int64_t i = 0; i < size; ++i) sum[i] = rows[0][i] * scales[0];
  for (int64_t r = 1; r < count; ++r) {
    const T scale = scales[r];
    for (int64_t i = 0; i < size; ++i) sum[i] += rows[r][i] * scale;
  }
}
// `count` neighbouring pixels that begin at `first`.
template <class T>
SIGEO_INLINE void add_columns_body(const T* first, const T* scales, int64_t count, int64_t size,
                                   T* out) {
  if (count == 3) {
    const T *second = first + size, *third = second + size;
    for (int64_t i = 0; i < size; ++i) {
      out[i] = first[i] * scales[0] + second[i] * scales[1] + third[i] * scales[2];
    }
    return;
  }
  for (int64_t i = 0; i < size; ++i) out[i] = first[i] * scales[0];
  for (int64_t n = 1; n < count; ++n) {
    for (int64_t i = 0; i < size; ++i) out[i] += first[n * size + i] * scales[n];
  }
}

#define SIGEO_LOOPS(T)                                                                   \
  SIGEO_MULTIVERSION void add_rows(const T* const* rows, const T* scales, int64_t count, \
                                   int64_t size, T* sum) {                               \
    add_rows_body(rows, scales, count, size, sum);                                       \
  }                                                                                      \
  SIGEO_MULTIVERSION void add_columns(const T* first, const T* scales, int64_t count,    \
                                      int64_t size, T* out) {                            \
    add_columns_body(first, scales, count, size, out);                                   \
  }
SIGEO_LOOPS(float)
SIGEO_LOOPS(double)
#undef SIGEO_LOOPS

// 1 / (pixels of the window around `place` along one dimension).
template <class T>
T share(int64_t place, int64_t size) {
  const int64_t first = std::max<int64_t>(0, place - 1), last = std::min(size - 1, place + 1);
  return T{1} / static_cast<T>(last - first + 1);
}

// Sums of windows, each pixel times the share of its own place (kOfPixel) or of the window's.
template <bool kOfPixel, class T>
void windows(const T* x, const Images& images, T* out, const Parallel& parallel) {
  const int64_t width = images.width, height = images.height, channels = images.channels;
  const int64_t line = width * channels;
  parallel(images.count * (height > 0), [&](int64_t begin, int64_t end) {
    std::vector<T> sums(line);
    for (int64_t image = begin; image < end; ++image) {
      for (int64_t h = 0; h < height; ++h) {
        const int64_t first = std::max<int64_t>(0, h - 1), last = std::min(height - 1, h + 1);
        const T* rows[3];
        T scales[3];
        for (int64_t r = first; r <= last; ++r) {
          rows[r - first] = x + (image * height + r) * line;
          scales[r - first] = share<T>(kOfPixel ? r : h, height);
        }
        add_rows(rows, scales, last - first + 1, line, sums.data());
        T* row = out + (image * height + h) * line;
        for (int64_t w = 0; w < width; ++w) {
          const int64_t left = std::max<int64_t>(0, w - 1), right = std::min(width - 1, w + 1);
          T columns[3];
          for (int64_t c = left; c <= right; ++c)
            columns[c - left] = share<T>(kOfPixel ? c : w, width);
          add_columns(&sums[left * channels], columns, right - left + 1, channels,
                      row + w * channels);
        }
      }
    }
  });
}

}  // namespace

template <class T>
void average_pool(const T* x, const Images& images, T* out, const Parallel& parallel) {
  windows<false>(x, images, out, parallel);
}

template <class T>
void average_pool_backward(const T* d, const Images& images, T* into, const Parallel& parallel) {
  windows<true>(d, images, into, parallel);
}

template void average_pool(const float*, const Images&, float*, const Parallel&);
template void average_pool(const double*, const Images&, double*, const Parallel&);
template void average_pool_backward(const float*, const Images&, float*, const Parallel&);
template void average_pool_backward(const double*, const Images&, double*, const Parallel&);

}  // namespace sigeo_ext::gather
