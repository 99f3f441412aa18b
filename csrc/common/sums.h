// Sums over the layers of a list on the CPU, the same bits whatever the threads. Free of torch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/ahead.h"
#include "common/array.h"
#include "common/chunks.h"

namespace sigeo_ext {

// Sums in the making, kLanes independent ones a column: long enough for the compiler to keep the
// inner loop a loop, which it then vectorises. Part of the result's bits.
inline constexpr int64_t kLanes = 32;

template <int kCount>
struct Sums {
  double lane[kCount][kLanes] = {};

  double total(int column) {
    double* sums = lane[column];
    for (int64_t half = kLanes / 2; half > 0; half /= 2) {
      for (int64_t k = 0; k < half; ++k) sums[k] += sums[k + half];
    }
    return sums[0];
  }
};

// Calls term(i, lane) for i in [0, n): whole runs of kLanes, each after ask(i), then the rest.
template <class Term, class Ask>
SIGEO_INLINE void for_each_lane(int64_t n, const Term& term, const Ask& ask) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    ask(i);
#if !defined(__clang__)  // which knows no such word
#pragma GCC ivdep
#endif
    for (int64_t k = 0; k < kLanes; ++k) term(i + k, k);
  }
  for (int64_t k = 0; i + k < n; ++k) term(i + k, k);
}
template <class Term>
SIGEO_INLINE void for_each_lane(int64_t n, const Term& term) {
  for_each_lane(n, term, [](int64_t) {});
}

// Asks for the memory of a run of lanes some runs ahead of `values`, which may lie behind their
// end: where much is done with a value, not every processor looks far enough ahead by itself.
template <class T>
SIGEO_INLINE void ask_ahead(const T* values) {
  ask_for<kLanes>(values + 64 * kLanes);
}

// Adds up kCount sums a layer: block(layer, begin, n, sums) gives one block's share, and the
// shares of a layer's chunks are added in order, into out [layers, kCount].
template <int kCount, class Block>
void reduce_layers(Arrays layout, double* out, const Parallel& parallel, const Block& block) {
  const Chunks chunks(layout);
  std::vector<double> partial(chunks.count() * kCount);
  for_each_chunk(chunks, parallel, [&](int64_t index, const Chunk& chunk) {
    Sums<kCount> sums;
    for_each_block(chunk, [&](int64_t begin, int64_t n) { block(chunk.layer, begin, n, sums); });
    for (int c = 0; c < kCount; ++c) partial[index * kCount + c] = sums.total(c);
  });
  std::fill_n(out, layout.size() * kCount, 0.0);
  for (size_t layer = 0; layer < layout.size(); ++layer) {
    for (int64_t index = chunks.first(layer); index < chunks.first(layer + 1); ++index) {
      for (int c = 0; c < kCount; ++c) out[layer * kCount + c] += partial[index * kCount + c];
    }
  }
}

}  // namespace sigeo_ext
