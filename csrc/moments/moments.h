// Moments: streamed statistics of gradient vectors, one coordinate at a time.
//
// A *unit* is one gradient vector (of a mini-batch, say), given as a list of tensors, one a layer.
// For each coordinate, over n units g:
//   A1 = sum |g|        mean = sum g / n        M2 = sum (g - mean)^2
// M2 is centred from the start (Welford), never a difference of two large sums.
//
// Lists hold one Array a layer; the lists of one call have equal lengths and, layer by layer,
// equal numels. `dtype` of the state is float32 or float64; gradients and weights may be any.
#pragma once

#include <cstdint>

#include "common/array.h"
#include "common/parallel.h"
#include "common/queue.h"

namespace sigeo_ext::moments {

// What a summary holds for each layer, in float64; sums run over the layer's coordinates.
enum Column : int {
  kRatio,   // sum of (A1/n) / sigma over coordinates with sigma != 0; sigma^2 = M2 / (n - ddof)
  kKept,    // how many coordinates have sigma != 0
  kInner,   // sum of S1 * weight, where S1 = n * mean; 0 without weights
  kAbsSum,  // sum of A1
  kMeanSq,  // sum of mean^2
  kM2Sum,   // sum of M2
  kColumns,
};

// The most units that summarize_rows takes.
inline constexpr int kMaxRows = 4;

// Adds the unit `grads` to a state of `count` units. At count 0 the state is only written, at
// count 1 of it only the mean is read: there A1 = |mean| and M2 = 0.
void update(Arrays abs_sum, Arrays mean, Arrays m2, Arrays grads, int64_t count,
            const Parallel& parallel);

// Turns three units, kept as they came, into a state of count 3 in the same memory:
// first -> A1, second -> mean, third -> M2.
void fold_rows(Arrays first, Arrays second, Arrays third, const Parallel& parallel);

// Summary [layers, kColumns] of a state of `count` units. With `grads` that unit is added on the
// way, in float64, and the state, which must be of two units or more, stays as it was. `grads` and
// `weights` may be empty.
void summarize(Arrays abs_sum, Arrays mean, Arrays m2, Arrays grads, Arrays weights, int64_t count,
               int64_t ddof, double* out, const Parallel& parallel);

// The same summary from the units themselves: `rows` holds count * layers arrays, unit by unit,
// 1 <= count <= kMaxRows. One read of each row, nothing written but the summary.
void summarize_rows(Arrays rows, Arrays weights, int64_t count, int64_t ddof, double* out,
                    const Parallel& parallel);

// out[layer] = sum of a * b, in float64.
void dot(Arrays a, Arrays b, double* out, const Parallel& parallel);

// The same on a GPU: arrays and `out` in the memory of one device, work put on the queue's stream.
void update(Arrays abs_sum, Arrays mean, Arrays m2, Arrays grads, int64_t count,
            const Queue& queue);
void fold_rows(Arrays first, Arrays second, Arrays third, const Queue& queue);
void summarize(Arrays abs_sum, Arrays mean, Arrays m2, Arrays grads, Arrays weights, int64_t count,
               int64_t ddof, double* out, const Queue& queue);
void summarize_rows(Arrays rows, Arrays weights, int64_t count, int64_t ddof, double* out,
                    const Queue& queue);
void dot(Arrays a, Arrays b, double* out, const Queue& queue);

}  // namespace sigeo_ext::moments
