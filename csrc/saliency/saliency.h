// Saliency: sums over the products of weights and gradients, each tensor of a list its own.
//
// For each layer with weights w and gradient g, any of the columns below, from one read of both.
// Lists hold one Array a layer, of equal numels, any dtype.
#pragma once

#include <cstdint>

#include "common/array.h"
#include "common/parallel.h"
#include "common/queue.h"

namespace sigeo_ext::saliency {

enum Column : int {
  kProduct,        // sum of w * g
  kAbsProduct,     // sum of |w * g|
  kLogAbsProduct,  // log of that, also where it is beyond float64's range; -inf for 0
  kLog1pProduct,   // sum of |w * log(1 + g)|
  kWeightSq,       // sum of w^2
  kGradientSq,     // sum of g^2
  kColumns,
};

// A set of columns: the bits 1 << column.
using Columns = uint32_t;

SIGEO_INLINE bool holds(Columns want, Column column) { return (want >> column & 1) != 0; }
SIGEO_INLINE bool needs_weights(Columns want) { return (want & ~(1u << kGradientSq)) != 0; }
SIGEO_INLINE bool needs_gradients(Columns want) { return (want & ~(1u << kWeightSq)) != 0; }
SIGEO_INLINE int width(Columns want) {
  int columns = 0;
  for (int c = 0; c < kColumns; ++c) columns += holds(want, static_cast<Column>(c)) ? 1 : 0;
  return columns;
}

// out [layers, width(want)] in float64: the wanted columns, in the order of Column. `gradients` may
// be empty where no column needs them.
void sums(Arrays weights, Arrays gradients, Columns want, double* out, const Parallel& parallel);

// The same on a GPU: arrays and `out` in the memory of one device, work put on the queue's stream.
void sums(Arrays weights, Arrays gradients, Columns want, double* out, const Queue& queue);

}  // namespace sigeo_ext::saliency
