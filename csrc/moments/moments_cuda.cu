// Multi-tensor kernels: one launch for the whole list (of up to kManyLayers layers), no device
// memory for pointers, no float atomics. Bound by memory: update moves 28 bytes a float32
// coordinate, a summary 12 (or 4 a row), and the second kernel of a reduction next to nothing.
#include "moments/moments.h"

#include "common/cuda.cuh"
#include "moments/moments_math.h"

namespace sigeo_ext::moments {
namespace {

// Calls body(i) for the first value of each vector of this block's span.
template <class Body>
__device__ __forceinline__ void for_each_vector(int64_t begin, int64_t numel, const Body& body) {
#pragma unroll 1  // a vector of each list is in flight already; unrolling only grows the code
  for (int64_t step = 0; step < kSpan; step += kThreads * kVector) {
    const int64_t i = begin + step + threadIdx.x * kVector;
    if (i < numel) body(i);
  }
}

template <Stage kStage, class T, int kCapacity>
__global__ void __launch_bounds__(kThreads, 2)
    update_kernel(const __grid_constant__ Table<4, kCapacity> table, T units) {
  const int layer = table.layer_of(blockIdx.x);
  const Array abs_sum = table.array(0, layer), mean = table.array(1, layer);
  const Array m2 = table.array(2, layer), grads = table.array(3, layer);
  const int64_t begin = (blockIdx.x - table.first_block[layer]) * kSpan;
  for_each_vector(begin, mean.numel, [&](int64_t i) {
    T a[kVector] = {}, mu[kVector] = {}, q[kVector] = {}, g[kVector];
    if constexpr (kStage != Stage::kFirst) load(mean, i, mu);
    if constexpr (kStage == Stage::kLater) {
      load(abs_sum, i, a);
      load(m2, i, q);
    }
    load(grads, i, g);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      const Moment<T> next = updated<kStage>(Moment<T>{a[k], mu[k], q[k]}, g[k], units);
      a[k] = next.abs_sum;
      mu[k] = next.mean;
      q[k] = next.m2;
    }
    store(abs_sum, i, a);
    store(mean, i, mu);
    store(m2, i, q);
  });
}

template <class T, int kCapacity>
__global__ void __launch_bounds__(kThreads, 2)
    fold_kernel(const __grid_constant__ Table<3, kCapacity> table) {
  const int layer = table.layer_of(blockIdx.x);
  const Array rows[] = {table.array(0, layer), table.array(1, layer), table.array(2, layer)};
  const int64_t begin = (blockIdx.x - table.first_block[layer]) * kSpan;
  for_each_vector(begin, rows[0].numel, [&](int64_t i) {
    T value[3][kVector];
    for (int r = 0; r < 3; ++r) load(rows[r], i, value[r]);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      const double unit[] = {value[0][k], value[1][k], value[2][k]};
      const Moment<double> moment = moment_of(unit);
      value[0][k] = static_cast<T>(moment.abs_sum);
      value[1][k] = static_cast<T>(moment.mean);
      value[2][k] = static_cast<T>(moment.m2);
    }
    for (int r = 0; r < 3; ++r) store(rows[r], i, value[r]);
  });
}

// Writes this block's kCount sums to partial[blockIdx.x].
template <int kCount>
__device__ void write_partial(const double (&sums)[kCount], double* partial) {
  for (int c = 0; c < kCount; ++c) {
    const double sum = block_sum(sums[c]);
    if (threadIdx.x == 0) partial[blockIdx.x * kCount + c] = sum;
  }
}

__device__ __forceinline__ void accumulate(double (&sums)[kColumns], const Moment<double>& moment,
                                           double weight) {
  add_moment(moment, weight, [&](Column c, double value) { sums[c] += value; });
}

// Coordinates of a vector that lie beyond the layer's end are zero in every list and thus dropped.
template <bool kPending, int kCapacity>
__global__ void __launch_bounds__(kThreads, 2)
    summary_kernel(const __grid_constant__ Table<5, kCapacity> table, double units,
                   double* partial) {
  const int layer = table.layer_of(blockIdx.x);
  const int64_t begin = (blockIdx.x - table.first_block[layer]) * kSpan;
  double sums[kColumns] = {};
  for_each_vector(begin, table.numel[layer], [&](int64_t i) {
    double a[kVector], mu[kVector], q[kVector], w[kVector], g[kVector];
    load(table.array(0, layer), i, a);
    load(table.array(1, layer), i, mu);
    load(table.array(2, layer), i, q);
    load(table.array(3, layer), i, w);
    if constexpr (kPending) load(table.array(4, layer), i, g);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      Moment<double> moment{a[k], mu[k], q[k]};
      if constexpr (kPending) moment = updated<Stage::kLater>(moment, g[k], units);
      accumulate(sums, moment, w[k]);
    }
  });
  write_partial(sums, partial);
}

template <int N, int kCapacity>
__global__ void __launch_bounds__(kThreads, 2)
    rows_kernel(const __grid_constant__ Table<N + 1, kCapacity> table, double* partial) {
  const int layer = table.layer_of(blockIdx.x);
  const int64_t begin = (blockIdx.x - table.first_block[layer]) * kSpan;
  double sums[kColumns] = {};
  for_each_vector(begin, table.numel[layer], [&](int64_t i) {
    double row[N][kVector], w[kVector];
#pragma unroll
    for (int r = 0; r < N; ++r) load(table.array(r, layer), i, row[r]);
    load(table.array(N, layer), i, w);
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      double unit[N];
      for (int r = 0; r < N; ++r) unit[r] = row[r][k];
      accumulate(sums, moment_of(unit), w[k]);
    }
  });
  write_partial(sums, partial);
}

template <int kCapacity>
__global__ void __launch_bounds__(kThreads, 2)
    dot_kernel(const __grid_constant__ Table<2, kCapacity> table, double* partial) {
  const int layer = table.layer_of(blockIdx.x);
  const int64_t begin = (blockIdx.x - table.first_block[layer]) * kSpan;
  double sums[1] = {};
  for_each_vector(begin, table.numel[layer], [&](int64_t i) {
    double a[kVector], b[kVector];
    load(table.array(0, layer), i, a);
    load(table.array(1, layer), i, b);
#pragma unroll
    for (int k = 0; k < kVector; ++k) sums[0] += a[k] * b[k];
  });
  write_partial(sums, partial);
}

// One block a layer adds up the layer's partial sums.
template <int kCount, int kLists, int kCapacity>
__global__ void __launch_bounds__(kThreads, 2)
    reduce_kernel(const __grid_constant__ Table<kLists, kCapacity> table, const double* partial,
                  double units, double ddof, double* out) {
  const int from = table.first_block[blockIdx.x], to = table.first_block[blockIdx.x + 1];
  double row[kCount];
  for (int c = 0; c < kCount; ++c) {
    double sum = 0;
    for (int block = from + threadIdx.x; block < to; block += kThreads) {
      sum += partial[block * kCount + c];
    }
    row[c] = block_sum(sum);
  }
  if (threadIdx.x != 0) return;
  if constexpr (kCount == kColumns) scale_row(row, units, ddof);
  for (int c = 0; c < kCount; ++c) out[blockIdx.x * kCount + c] = row[c];
}

// Launches `kernel(table, partial)` and the reduction of its partial sums into out [layers,
// kCount].
template <int kCount, int kLists, class Kernel>
void reduce_lists(const Arrays (&lists)[kLists], double units, double ddof, double* out,
                  const Queue& queue, const Kernel& kernel) {
  const auto stream = static_cast<cudaStream_t>(queue.stream);
  for_each_table(lists, [&](const auto& table, int64_t first_layer) {
    const int blocks = table.first_block[table.layers];
    double* partial = queue.workspace(std::max<int64_t>(1, int64_t{blocks} * kCount));
    if (blocks > 0) kernel(table, blocks, partial, stream);
    reduce_kernel<kCount><<<table.layers, kThreads, 0, stream>>>(table, partial, units, ddof,
                                                                 out + first_layer * kCount);
    check_launch("moments reduce");
  });
}

template <Stage kStage, class T>
void launch_update(const Arrays (&lists)[4], int64_t count, const Queue& queue) {
  for_each_table(lists, [&](const auto& table, int64_t) {
    const int blocks = table.first_block[table.layers];
    if (blocks == 0) return;
    update_kernel<kStage, T><<<blocks, kThreads, 0, static_cast<cudaStream_t>(queue.stream)>>>(
        table, static_cast<T>(count + 1));
    check_launch("moments update");
  });
}

template <class T>
void launch_update(const Arrays (&lists)[4], int64_t count, const Queue& queue) {
  switch (stage_of(count)) {
    case Stage::kFirst: return launch_update<Stage::kFirst, T>(lists, count, queue);
    case Stage::kSecond: return launch_update<Stage::kSecond, T>(lists, count, queue);
    case Stage::kLater: return launch_update<Stage::kLater, T>(lists, count, queue);
  }
}

template <int N>
void launch_rows(Arrays rows, Arrays weights, int64_t ddof, double* out, const Queue& queue) {
  const size_t layers = rows.size() / N;
  Arrays lists[N + 1];
  for (int r = 0; r < N; ++r) lists[r] = rows.subspan(r * layers, layers);
  lists[N] = weights;
  reduce_lists<kColumns>(lists, N, static_cast<double>(ddof), out, queue,
                         [](const auto& table, int blocks, double* partial, cudaStream_t stream) {
                           rows_kernel<N><<<blocks, kThreads, 0, stream>>>(table, partial);
                           check_launch("moments rows");
                         });
}

}  // namespace

void update(Arrays abs_sum, Arrays mean, Arrays m2, Arrays grads, int64_t count,
            const Queue& queue) {
  if (mean.empty()) return;
  const Arrays lists[] = {abs_sum, mean, m2, grads};
  if (mean[0].dtype == DType::kFloat64) launch_update<double>(lists, count, queue);
  else launch_update<float>(lists, count, queue);
}

void fold_rows(Arrays first, Arrays second, Arrays third, const Queue& queue) {
  if (first.empty()) return;
  const Arrays lists[] = {first, second, third};
  for_each_table(lists, [&](const auto& table, int64_t) {
    const int blocks = table.first_block[table.layers];
    const auto stream = static_cast<cudaStream_t>(queue.stream);
    if (blocks == 0) return;
    if (first[0].dtype == DType::kFloat64) {
      fold_kernel<double><<<blocks, kThreads, 0, stream>>>(table);
    } else {
      fold_kernel<float><<<blocks, kThreads, 0, stream>>>(table);
    }
    check_launch("moments fold");
  });
}

void summarize(Arrays abs_sum, Arrays mean, Arrays m2, Arrays grads, Arrays weights, int64_t count,
               int64_t ddof, double* out, const Queue& queue) {
  if (mean.empty()) return;
  const double units = static_cast<double>(count + (grads.empty() ? 0 : 1));
  const Arrays lists[] = {abs_sum, mean, m2, weights, grads};
  const auto kernel = [&](const auto& table, int blocks, double* partial, cudaStream_t stream) {
    if (grads.empty())
      summary_kernel<false><<<blocks, kThreads, 0, stream>>>(table, units, partial);
    else summary_kernel<true><<<blocks, kThreads, 0, stream>>>(table, units, partial);
    check_launch("moments summary");
  };
  reduce_lists<kColumns>(lists, units, static_cast<double>(ddof), out, queue, kernel);
}

void summarize_rows(Arrays rows, Arrays weights, int64_t count, int64_t ddof, double* out,
                    const Queue& queue) {
  if (rows.empty()) return;
  static_assert(kMaxRows == 4, "one case for each count");
  switch (count) {
    case 1: return launch_rows<1>(rows, weights, ddof, out, queue);
    case 2: return launch_rows<2>(rows, weights, ddof, out, queue);
    case 3: return launch_rows<3>(rows, weights, ddof, out, queue);
    case 4: return launch_rows<4>(rows, weights, ddof, out, queue);
  }
}

void dot(Arrays a, Arrays b, double* out, const Queue& queue) {
  if (a.empty()) return;
  const Arrays lists[] = {a, b};
  const auto kernel = [](const auto& table, int blocks, double* partial, cudaStream_t stream) {
    dot_kernel<<<blocks, kThreads, 0, stream>>>(table, partial);
    check_launch("moments dot");
  };
  reduce_lists<1>(lists, 1, 0, out, queue, kernel);
}

}  // namespace sigeo_ext::moments
