// Many subnets in one pass: blocks sent to the operations that their subnets chose, and added up at
// a node, each normalised by statistics of its own.
//
// A block is [positions, channels], one subnet's values at one place of the network; tensors hold
// blocks one after another, or one block that stands for all (stride 0).
#pragma once

#include <cstdint>
#include <span>

#include "common/array.h"
#include "common/parallel.h"
#include "common/queue.h"

namespace sigeo_ext::gather {

struct Shape {
  int64_t positions;
  int64_t channels;

  SIGEO_INLINE int64_t size() const { return positions * channels; }
};

// Blocks or rows of which number b begins at data + b * stride.
template <class T>
struct Strided {
  T* data;
  int64_t stride;

  SIGEO_INLINE T* at(int64_t index) const { return data + index * stride; }
};

// A list of blocks of a node, and a tensor with one block for each entry: the copies that an
// operation reads, or their gradients.
template <class T>
struct Copies {
  std::span<const int64_t> blocks;
  T* values;
  bool rectified;  // through a ReLU
};

// Copies blocks of x.
template <class T>
void dispatch(Strided<const T> x, const Shape& shape, std::span<const Copies<T>> copies,
              const Parallel& parallel);

// into [count] blocks: the gradients of the copies of each block, added up.
template <class T>
void dispatch_backward(Strided<const T> x, int64_t count, const Shape& shape,
                       std::span<const Copies<const T>> gradients, T* into,
                       const Parallel& parallel);

// What an operation contributes to the blocks `target` of a node.
template <class T>
struct Term {
  Strided<const T> x;
  std::span<const int64_t> target;
  // Of the norm behind it; no data for a plain term. Rows [channels].
  Strided<const T> weight;
  Strided<const T> bias;
  T* mean;
  T* rstd;

  bool normed() const { return weight.data != nullptr; }
};

// y [count] blocks: the sum of each one's terms, zero without any; writes the mean and the
// 1/deviation of every block of a normed term.
template <class T>
void combine(std::span<const Term<T>> terms, int64_t count, const Shape& shape, double eps, T* y,
             const Parallel& parallel);

// Where the gradients of a normed term go.
template <class T>
struct TermGradients {
  T* x;
  T* weight;  // [blocks, channels]
  T* bias;
};

// d [count] blocks: the gradient at the node. `mean` and `rstd` of the terms are read.
template <class T>
void combine_backward(const T* d, std::span<const Term<T>> terms,
                      std::span<const TermGradients<T>> into, const Shape& shape,
                      const Parallel& parallel);

// The same on a GPU: all data in the memory of one device, `blocks` and `target` too, work put on
// the queue's stream. The host never reads the numbers in these lists, so nobody has checked them:
// an entry that names none of `count` blocks (of x, or of d) is left out. Its copy is NaN, a term
// adds nothing there, and the gradients of the term's block are zero.
template <class T>
void dispatch(Strided<const T> x, int64_t count, const Shape& shape,
              std::span<const Copies<T>> copies, const Queue& queue);
template <class T>
void dispatch_backward(Strided<const T> x, int64_t count, const Shape& shape,
                       std::span<const Copies<const T>> gradients, T* into, const Queue& queue);
template <class T>
void combine(std::span<const Term<T>> terms, int64_t count, const Shape& shape, double eps, T* y,
             const Queue& queue);
template <class T>
void combine_backward(const T* d, int64_t count, std::span<const Term<T>> terms,
                      std::span<const TermGradients<T>> into, const Shape& shape,
                      const Queue& queue);

}  // namespace sigeo_ext::gather
