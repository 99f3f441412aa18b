// What ops that work on a layer's input and output gradient require of their arguments.
#pragma once

#include <optional>

#include "common/tensor.h"
#include "sample_moments/sample_moments.h"

namespace sigeo_ext::sample_moments {

// A contiguous tensor, float32 or float64.
void check_values(const char* op, const char* name, const Tensor& tensor);

// Two contiguous tensors of one dtype, float32 or float64, with the same number of samples.
void check_pair(const char* op, const Tensor& x, const Tensor& d);

// The same, in the memory orders that `shape_of` takes.
void check_images(const char* op, const Tensor& x, const Tensor& d);

// The convolution that x [samples, size..., I] and d [samples, size..., O] belong to. They are
// contiguous; with one size also views of such, as long as the channels of a position lie one after
// another.
Convolution shape_of(const char* op, const Tensor& x, const Tensor& d, const Sizes& kernel,
                     const Sizes& stride, const Sizes& padding, const Sizes& dilation,
                     int64_t groups);

// Entries of an embedding table: rows [N] and gradients [N, E] of `count` units, which `units` [N]
// names or which have `entries` each.
void check_entries(const char* op, const Tensor& rows, const std::optional<Tensor>& units,
                   const Tensor& gradients, int64_t count, int64_t entries);

Entries entries_of(const Tensor& rows, const std::optional<Tensor>& units, int64_t entries,
                   int64_t skipped);

}  // namespace sigeo_ext::sample_moments
