// Multi-tensor kernels: one launch for the whole list (of up to kManyLayers layers), no device
// memory for pointers, no float atomics. Bound by memory: update moves 28 bytes a float32
// coordinate, a summary 12 (or 4 a row), and the second kernel of a reduction next to nothing.
#include "moments/moments.h"

#include "common/cuda.cuh"
#include "moments/moments_math.h"

namespace sigeo_ext::moments {
namespace {

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

struct ScaleRow {
  double units, ddof;
  bool weighted;

  static __host__ __device__ int width() { return kColumns; }
  __device__ void operator()(double (&sums)[kColumns], double* row) const {
    scale_row(sums, units, ddof, weighted);
    for (int c = 0; c < kColumns; ++c) row[c] = sums[c];
  }
};

struct Keep {
  static __host__ __device__ int width() { return 1; }
  __device__ void operator()(double (&sums)[1], double* row) const { row[0] = sums[0]; }
};

template <Stage kStage, class T>
void launch_update(const Arrays (&lists)[4], int64_t count, const Queue& queue) {
  for_each_table(lists, [&]<int kCapacity>(const Table<4, kCapacity>& table, int64_t) {
    launch("moments update", update_kernel<kStage, T, kCapacity>, table.blocks(), queue, table,
           static_cast<T>(count + 1));
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
  const char* name = "moments rows";
  const auto launch_sums = [&]<int kCapacity>(const Table<N + 1, kCapacity>& table,
                                              double* partial) {
    launch(name, rows_kernel<N, kCapacity>, table.blocks(), queue, table, partial);
  };
  const ScaleRow finish{N, static_cast<double>(ddof), !weights.empty()};
  reduce_lists<kColumns>(lists, finish, out, queue, name, launch_sums);
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
  const bool wide = first[0].dtype == DType::kFloat64;
  for_each_table(lists, [&]<int kCapacity>(const Table<3, kCapacity>& table, int64_t) {
    const auto kernel = wide ? fold_kernel<double, kCapacity> : fold_kernel<float, kCapacity>;
    launch("moments fold", kernel, table.blocks(), queue, table);
  });
}

void summarize(Arrays abs_sum, Arrays mean, Arrays m2, Arrays grads, Arrays weights, int64_t count,
               int64_t ddof, double* out, const Queue& queue) {
  if (mean.empty()) return;
  const double units = static_cast<double>(count + (grads.empty() ? 0 : 1));
  const Arrays lists[] = {abs_sum, mean, m2, weights, grads};
  const char* name = "moments summary";
  const auto launch_sums = [&]<int kCapacity>(const Table<5, kCapacity>& table, double* partial) {
    const auto kernel =
        grads.empty() ? summary_kernel<false, kCapacity> : summary_kernel<true, kCapacity>;
    launch(name, kernel, table.blocks(), queue, table, units, partial);
  };
  const ScaleRow finish{units, static_cast<double>(ddof), !weights.empty()};
  reduce_lists<kColumns>(lists, finish, out, queue, name, launch_sums);
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
  const char* name = "moments dot";
  const auto launch_sums = [&]<int kCapacity>(const Table<2, kCapacity>& table, double* partial) {
    launch(name, dot_kernel<kCapacity>, table.blocks(), queue, table, partial);
  };
  reduce_lists<1>(lists, Keep{}, out, queue, name, launch_sums);
}

}  // namespace sigeo_ext::moments
