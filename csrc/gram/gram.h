// Gram matrices: something of every pair of a few long vectors, in float64.
//
// The vectors come in parts. A part is read once from memory and then, from the cache, once for
// each few of its partners; every result adds up lanes in the type of the vectors over at most
// kOfLane values a lane, and from there on in float64.
#pragma once

#include <cstdint>
#include <span>

#include "common/array.h"
#include "common/parallel.h"
#include "common/queue.h"
#include "sample_moments/sample_moments.h"

namespace sigeo_ext::gram {

// Values that a lane's sum may stand for before it goes on in float64: bounds rounding errors, and
// alike however many lanes a processor has.
inline constexpr int kOfLane = 256;

// What is added up over the coordinates of a pair (a, b) of vectors.
enum class Pair { kProduct, kSquaredDifference };

// out[i, j] += over `length` values of rows[i] and rows[j], for i <= j; out [count, count].
template <class T>
void add_pairs(Pair pair, const T* const* rows, int64_t count, int64_t length, double* out);

// vectors[v * layers + l] is layer l of vector v; a layer without data is zeros. out [count,
// count].
void of_lists(Pair pair, std::span<const Array> vectors, int64_t count, double* out,
              const Parallel& parallel);

// <g_u, g_v> of a convolution's weight (sample_moments.h); out [samples / unit, samples / unit].
template <class T>
void of_convolution(const sample_moments::Convolution& shape, const T* x, const T* d, int64_t unit,
                    double* out, const Parallel& parallel);

// <g_u, g_v> of an embedding table, over the rows that both units touch; out [units, units].
template <class T>
void of_embedding(const sample_moments::Entries& entries,
                  const sample_moments::EmbeddingJob<T>& job, double* out);

// Bits that differ between codes i and j; codes [count, bytes], out [count, count].
void hamming(const uint8_t* codes, int64_t count, int64_t bytes, int64_t* out,
             const Parallel& parallel);

// The same on a GPU: what arrays, codes and `out` point to is in the memory of one device, work is
// put on the queue's stream.
void of_lists(Pair pair, std::span<const Array> vectors, int64_t count, double* out,
              const Queue& queue);
void hamming(const uint8_t* codes, int64_t count, int64_t bytes, int64_t* out, const Queue& queue);

}  // namespace sigeo_ext::gram
