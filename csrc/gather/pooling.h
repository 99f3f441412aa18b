// Average pooling of 3x3 windows of stride 1 over the pixels that are there.
#pragma once

#include <cstdint>

#include "common/parallel.h"

namespace sigeo_ext::gather {

// Images one after another, [height, width, channels] each.
struct Images {
  int64_t count;
  int64_t height;
  int64_t width;
  int64_t channels;
};

// out[p] = the mean of x over the window around p, without what lies outside of the image.
template <class T>
void average_pool(const T* x, const Images& images, T* out, const Parallel& parallel);

// into[p] = the gradients of the means that p is part of.
template <class T>
void average_pool_backward(const T* d, const Images& images, T* into, const Parallel& parallel);

}  // namespace sigeo_ext::gather
