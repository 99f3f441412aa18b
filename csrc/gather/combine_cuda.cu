// Sums of normed and plain terms and their gradients, without float atomics: sums of pieces of a
// block are combined in a fixed order. Bound by memory, in bytes a float32 value:
// - forward: 4 of a normed term for its statistics, 4 of any term for the sum, 4 of y written once;
// - backward: 8 (d and x) for the sums, 8 read and 4 written for the gradient of x.
// What fits the last-level cache is read from there the second time. Statistics take 5 operations a
// value, and a dozen in float64 for every kGroup values: a GPU with few float64 units just keeps
// pace. Four launches forward and three backward, for up to kBatch terms.
#include "gather/gather.h"

#include <cmath>
#include <vector>

#include "common/cuda.cuh"
#include "gather/places.cuh"
#include "gather/tiling.cuh"

namespace sigeo_ext::gather {
namespace {

// What a place of a block is: a term's block, with rows [channels] of its norm if it has one.
template <class T>
struct Summand {
  const T *x, *weight, *bias, *mean, *rstd;
};

template <class T>
struct TermList {
  using Place = Summand<T>;

  const int64_t* blocks;
  int64_t count;
  Strided<const T> x, weight, bias;
  Strided<T> mean, rstd;

  TermList() = default;
  TermList(const Term<T>& term, const Shape& shape)
      : blocks(term.target.data()),
        count(static_cast<int64_t>(term.target.size())),
        x(term.x),
        weight(term.weight),
        bias(term.bias),
        mean{term.mean, shape.channels},
        rstd{term.rstd, shape.channels} {}

  __device__ Place place(int64_t entry) const {
    if (weight.data == nullptr) return {x.at(entry), nullptr, nullptr, nullptr, nullptr};
    return {x.at(entry), weight.at(entry), bias.at(entry), mean.at(entry), rstd.at(entry)};
  }
};

template <class T>
struct GradientList : TermList<T> {
  Strided<T> into_x, into_weight, into_bias;

  GradientList() = default;
  GradientList(const Term<T>& term, const TermGradients<T>& into, const Shape& shape)
      : TermList<T>(term, shape),
        into_x{into.x, shape.size()},
        into_weight{into.weight, shape.channels},
        into_bias{into.bias, shape.channels} {}
};

// Mean and sum of squared deviations of `count` values. Divides in T, whose precision the sum has.
template <class T>
struct Moments {
  double count, mean, m2;

  __device__ void add(const Moments& more) {
    if (more.count == 0) return;
    const double all = count + more.count, delta = more.mean - mean;
    const double share = static_cast<double>(static_cast<T>(more.count) / static_cast<T>(all));
    mean += delta * share;
    m2 += more.m2 + delta * (count * share) * delta;
    count = all;
  }
};

// Of the first n values: two passes in registers.
template <class T>
__device__ Moments<T> moments_of(const T (&x)[kGroup], int n) {
  T sum{0};
#pragma unroll
  for (int k = 0; k < kGroup; ++k) sum += x[k];  // zeros from n on
  const T inverse = n == kGroup ? T{1} / kGroup : T{1} / n;
  const T centre = sum * inverse;
  T rest{0}, squares{0};
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    const T deviation = k < n ? x[k] - centre : T{0};
    rest += deviation;
    squares += deviation * deviation;
  }
  // The deviations are from a rounded mean, and `rest` is what it lacks n times.
  const double lack = static_cast<double>(rest) * static_cast<double>(inverse);
  return {static_cast<double>(n), static_cast<double>(centre) + lack,
          static_cast<double>(squares) - static_cast<double>(rest) * lack};
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    moments_kernel(const __grid_constant__ Batch<TermList<T>> batch, const Tiling tiling,
                   double* partial) {
  const int64_t items = tiling.items(batch.entries());
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Tiling::Part part = tiling.part(item);
    const auto entry = batch.entry(part.block);
    const T* values = entry.list.x.at(entry.number);
    Moments<T> found{};
    tiling.for_each_group(part, [&](int64_t offset, int n) {
      T x[kGroup];
      load_group(values + offset, tiling.stride(), n, x);
      found.add(moments_of(x, n));
    });
    found = over_rows(found, tiling);
    if (part.holds_sum()) {
      double* out = tiling.partial(partial, part.block, part.piece) + part.channel;
      out[0] = found.mean;
      out[tiling.shape.channels] = found.m2;
    }
  }
}

// One block of threads a tile of an entry.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    moments_finish_kernel(const __grid_constant__ Batch<TermList<T>> batch, const Tiling tiling,
                          double eps, double* partial) {
  const int64_t items = batch.entries() * tiling.tiles;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Tiling::Part part = tiling.part(item * tiling.pieces);
    const auto entry = batch.entry(part.block);
    Moments<T> found{};
    for (int64_t piece = part.row; part.inside && piece < tiling.pieces; piece += tiling.rows) {
      const double* from = tiling.partial(partial, part.block, piece) + part.channel;
      found.add(
          {static_cast<double>(tiling.positions_of(piece)), from[0], from[tiling.shape.channels]});
    }
    found = over_rows(found, tiling);
    if (part.holds_sum()) {
      const double m2 = found.m2 < 0 ? 0 : found.m2;                   // a NaN stays
      const double mean = found.count > 0 ? found.mean : double{NAN};  // of no positions
      entry.list.mean.at(entry.number)[part.channel] = static_cast<T>(mean);
      entry.list.rstd.at(entry.number)[part.channel] =
          static_cast<T>(1 / sqrt(m2 / found.count + eps));
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    sum_kernel(const Places<Summand<T>> places, int64_t count, const Tiling tiling, T* y) {
  const int64_t items = tiling.items(count), stride = tiling.stride();
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Tiling::Part part = tiling.part(item);
    tiling.for_each_group(part, [&](int64_t offset, int n) {
      T sum[kGroup] = {};
      places.for_each(part.block, [&](const Summand<T>& summand) {
        T x[kGroup];
        load_group(summand.x + offset, stride, n, x);
        if (summand.weight == nullptr) {
#pragma unroll
          for (int k = 0; k < kGroup; ++k) sum[k] += x[k];
        } else {
          const T mean = summand.mean[part.channel], shift = summand.bias[part.channel];
          const T scale = summand.weight[part.channel] * summand.rstd[part.channel];
#pragma unroll
          for (int k = 0; k < kGroup; ++k) sum[k] += (x[k] - mean) * scale + shift;
        }
      });
      store_group(y + part.block * tiling.shape.size() + offset, stride, n, sum);
    });
  }
}

// Sums of d and of d * xhat.
struct Sums {
  double d, inner;

  __device__ void add(const Sums& more) {
    d += more.d;
    inner += more.inner;
  }
};

// d [count] blocks.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    products_kernel(const __grid_constant__ Batch<GradientList<T>> batch, const Tiling tiling,
                    const T* d, int64_t count, double* partial) {
  const int64_t items = tiling.items(batch.entries()), stride = tiling.stride();
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Tiling::Part part = tiling.part(item);
    const auto entry = batch.entry(part.block);
    const int64_t target = entry.block();
    Sums sums{};
    if (part.inside && target >= 0 && target < count) {
      const T* values = entry.list.x.at(entry.number);
      const T* gradient = d + target * tiling.shape.size();
      const T mean = entry.list.mean.at(entry.number)[part.channel];
      const T rstd = entry.list.rstd.at(entry.number)[part.channel];
      tiling.for_each_group(part, [&](int64_t offset, int n) {
        T x[kGroup], g[kGroup], sum{0}, inner{0};
        load_group(values + offset, stride, n, x);
        load_group(gradient + offset, stride, n, g);
#pragma unroll
        for (int k = 0; k < kGroup; ++k) {
          sum += g[k];
          if (k < n) inner += g[k] * ((x[k] - mean) * rstd);
        }
        sums.add({static_cast<double>(sum), static_cast<double>(inner)});
      });
    }
    sums = over_rows(sums, tiling);
    if (part.holds_sum()) {
      double* out = tiling.partial(partial, part.block, part.piece) + part.channel;
      out[0] = sums.d;
      out[tiling.shape.channels] = sums.inner;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    products_finish_kernel(const __grid_constant__ Batch<GradientList<T>> batch,
                           const Tiling tiling, double* partial) {
  const int64_t items = batch.entries() * tiling.tiles;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Tiling::Part part = tiling.part(item * tiling.pieces);
    const auto entry = batch.entry(part.block);
    Sums sums{};
    for (int64_t piece = part.row; part.inside && piece < tiling.pieces; piece += tiling.rows) {
      const double* from = tiling.partial(partial, part.block, piece) + part.channel;
      sums.add({from[0], from[tiling.shape.channels]});
    }
    sums = over_rows(sums, tiling);
    if (part.holds_sum()) {
      entry.list.into_bias.at(entry.number)[part.channel] = static_cast<T>(sums.d);
      entry.list.into_weight.at(entry.number)[part.channel] = static_cast<T>(sums.inner);
    }
  }
}

// The gradient of x: scale * (d - average of d - xhat * average of d * xhat), from the sums that
// the gradients of bias and weight are.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    input_gradient_kernel(const __grid_constant__ Batch<GradientList<T>> batch, const Tiling tiling,
                          const T* d, int64_t count) {
  const int64_t items = tiling.items(batch.entries()), stride = tiling.stride();
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Tiling::Part part = tiling.part(item);
    if (!part.inside) continue;
    const auto entry = batch.entry(part.block);
    const GradientList<T>& list = entry.list;
    const int64_t number = entry.number, channel = part.channel, target = entry.block();
    const bool exists = target >= 0 && target < count;
    const T *x = list.x.at(number), *gradient = d + (exists ? target : 0) * tiling.shape.size();
    T* into = list.into_x.at(number);
    const double positions = static_cast<double>(tiling.shape.positions);
    const T mean = list.mean.at(number)[channel], rstd = list.rstd.at(number)[channel];
    const T average = static_cast<T>(list.into_bias.at(number)[channel] / positions);
    const T slope = static_cast<T>(list.into_weight.at(number)[channel] / positions * rstd);
    const T scale = list.weight.at(number)[channel] * rstd;
    tiling.for_each_group(part, [&](int64_t offset, int n) {
      T g[kGroup] = {}, value[kGroup];
      if (exists) {
        load_group(gradient + offset, stride, n, g);
        load_group(x + offset, stride, n, value);
#pragma unroll
        for (int k = 0; k < kGroup; ++k) {
          g[k] = (g[k] - average - (value[k] - mean) * slope) * scale;
        }
      }
      store_group(into + offset, stride, n, g);
    });
  }
}

}  // namespace

template <class T>
void combine(std::span<const Term<T>> terms, int64_t count, const Shape& shape, double eps, T* y,
             const Queue& queue) {
  std::vector<TermList<T>> lists, normed;
  for (const Term<T>& term : terms) {
    lists.emplace_back(term, shape);
    if (term.normed()) normed.emplace_back(term, shape);
  }
  const Tiling tiling(shape);
  const std::span<const TermList<T>> all(lists), some(normed);
  const auto places = places_of(all, count, queue);
  auto* partial = workspace<double>(tiling.partials(entries_of(some)), queue);
  for_each_batch(some, [&](const Batch<TermList<T>>& batch) {
    launch("gather moments", moments_kernel<T>, tiling.items(batch.entries()), queue, batch, tiling,
           partial);
    launch("gather moments finish", moments_finish_kernel<T>, batch.entries() * tiling.tiles, queue,
           batch, tiling, eps, partial);
  });
  launch("gather sum", sum_kernel<T>, tiling.items(count), queue, places, count, tiling, y);
}

template <class T>
void combine_backward(const T* d, int64_t count, std::span<const Term<T>> terms,
                      std::span<const TermGradients<T>> into, const Shape& shape,
                      const Queue& queue) {
  std::vector<GradientList<T>> lists;
  for (size_t i = 0; i < terms.size(); ++i) {
    if (terms[i].normed()) lists.emplace_back(terms[i], into[i], shape);
  }
  const Tiling tiling(shape);
  const std::span<const GradientList<T>> all(lists);
  auto* partial = workspace<double>(tiling.partials(entries_of(all)), queue);
  for_each_batch(all, [&](const Batch<GradientList<T>>& batch) {
    launch("gather products", products_kernel<T>, tiling.items(batch.entries()), queue, batch,
           tiling, d, count, partial);
    launch("gather products finish", products_finish_kernel<T>, batch.entries() * tiling.tiles,
           queue, batch, tiling, partial);
    launch("gather input gradient", input_gradient_kernel<T>, tiling.items(batch.entries()), queue,
           batch, tiling, d, count);
  });
}

#define SIGEO_INSTANTIATE(T)                                                         \
  template void combine(std::span<const Term<T>>, int64_t, const Shape&, double, T*, \
                        const Queue&);                                               \
  template void combine_backward(const T*, int64_t, std::span<const Term<T>>,        \
                                 std::span<const TermGradients<T>>, const Shape&, const Queue&);
SIGEO_INSTANTIATE(float)
SIGEO_INSTANTIATE(double)
#undef SIGEO_INSTANTIATE

}  // namespace sigeo_ext::gather
