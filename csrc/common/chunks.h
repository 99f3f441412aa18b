// A list of tensors cut into equal pieces of work, numbered through. Free of torch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/array.h"
#include "common/parallel.h"

namespace sigeo_ext {

struct Chunk {
  int64_t layer;
  int64_t begin;
  int64_t end;
};

class Chunks {
 public:
  explicit Chunks(Arrays layers) : layers_(layers) {
    first_.reserve(layers.size() + 1);
    first_.push_back(0);
    for (const Array& layer : layers) {
      first_.push_back(first_.back() + (layer.numel + kChunk - 1) / kChunk);
    }
  }

  int64_t count() const { return first_.back(); }

  // The number of the first chunk of `layer`; `layer` may be one past the last.
  int64_t first(int64_t layer) const { return first_[layer]; }

  Chunk operator[](int64_t index) const {
    const int64_t layer =
        std::upper_bound(first_.begin(), first_.end(), index) - first_.begin() - 1;
    const int64_t begin = (index - first_[layer]) * kChunk;
    return {layer, begin, std::min(begin + kChunk, layers_[layer].numel)};
  }

 private:
  Arrays layers_;
  std::vector<int64_t> first_;
};

// Calls body(index, chunk) for every chunk, in parallel.
template <class Body>
void for_each_chunk(const Chunks& chunks, const Parallel& parallel, const Body& body) {
  parallel(chunks.count(), [&](int64_t from, int64_t to) {
    for (int64_t index = from; index < to; ++index) body(index, chunks[index]);
  });
}

// Calls body(begin, length) for every block of `chunk`, in order.
template <class Body>
void for_each_block(const Chunk& chunk, const Body& body) {
  for (int64_t begin = chunk.begin; begin < chunk.end; begin += kBlock) {
    body(begin, std::min(kBlock, chunk.end - begin));
  }
}

}  // namespace sigeo_ext
