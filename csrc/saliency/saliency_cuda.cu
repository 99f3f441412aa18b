// Multi-tensor kernel: one launch for the whole list (of up to kManyLayers layers) and one that
// adds up its block sums in a fixed order. Bound by memory: 8 bytes a float32 coordinate, whatever
// is wanted; the log of 1 + g adds some 30 float64 operations.
#include "common/cuda.cuh"
#include "saliency/saliency_math.h"

namespace sigeo_ext::saliency {
namespace {

// Coordinates of a vector that lie beyond the layer's end are zero in both lists and add nothing.
template <int kCapacity>
__global__ void __launch_bounds__(kThreads, 2)
    sums_kernel(const __grid_constant__ Table<2, kCapacity> table, Columns want, double* partial) {
  const int layer = table.layer_of(blockIdx.x);
  const int64_t begin = (blockIdx.x - table.first_block[layer]) * kSpan;
  double sums[kParts] = {};
  const auto add = [&](Part part, double value) { sums[part] += value; };
  for_each_vector(begin, table.numel[layer], [&](int64_t i) {
    double w[kVector] = {}, g[kVector] = {};
    if (needs_weights(want)) load(table.array(0, layer), i, w);
    if (needs_gradients(want)) load(table.array(1, layer), i, g);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      if (holds(want, kProduct)) add_column<kProduct, true>(w[k], g[k], add);
      if (holds(want, kAbsProduct)) add_column<kAbsProduct, true>(w[k], g[k], add);
      if (holds(want, kLogAbsProduct)) add_column<kLogAbsProduct, true>(w[k], g[k], add);
      if (holds(want, kLog1pProduct)) add_column<kLog1pProduct, true>(w[k], g[k], add);
      if (holds(want, kWeightSq)) add_column<kWeightSq, true>(w[k], g[k], add);
      if (holds(want, kGradientSq)) add_column<kGradientSq, true>(w[k], g[k], add);
    }
  });
  write_partial(sums, partial);
}

struct WriteColumns {
  Columns want;

  __host__ __device__ int width() const { return saliency::width(want); }
  __device__ void operator()(double (&sums)[kParts], double* row) const {
    write_columns(sums, want, row);
  }
};

}  // namespace

void sums(Arrays weights, Arrays gradients, Columns want, double* out, const Queue& queue) {
  if (weights.empty()) return;
  const Arrays lists[] = {weights, gradients};
  const char* name = "saliency sums";
  const auto launch_sums = [&]<int kCapacity>(const Table<2, kCapacity>& table, double* partial) {
    launch(name, sums_kernel<kCapacity>, table.blocks(), queue, table, want, partial);
  };
  reduce_lists<kParts>(lists, WriteColumns{want}, out, queue, name, launch_sums);
}

}  // namespace sigeo_ext::saliency
