#include "moments/moments.h"

#include "common/chunks.h"
#include "common/load.h"
#include "common/sums.h"
#include "moments/moments_math.h"

namespace sigeo_ext::moments {
namespace {

// Functions on one block: at most kBlock values, which stay in the first-level cache. Bodies are
// templates; the functions around them exist to carry SIGEO_MULTIVERSION.

template <Stage kStage, class T>
SIGEO_INLINE void update_stage(T* __restrict__ abs_sum, T* __restrict__ mean, T* __restrict__ m2,
                               const T* __restrict__ g, int64_t n, T units) {
  for (int64_t i = 0; i < n; ++i) {
    Moment<T> old{};
    if constexpr (kStage != Stage::kFirst) old.mean = mean[i];
    if constexpr (kStage == Stage::kLater) old.abs_sum = abs_sum[i], old.m2 = m2[i];
    const Moment<T> next = updated<kStage>(old, g[i], units);
    abs_sum[i] = next.abs_sum;
    mean[i] = next.mean;
    m2[i] = next.m2;
  }
}
template <class T>
SIGEO_INLINE void update_body(T* abs_sum, T* mean, T* m2, const T* g, int64_t n, int64_t count) {
  const T units = static_cast<T>(count + 1);
  switch (stage_of(count)) {
    case Stage::kFirst: return update_stage<Stage::kFirst>(abs_sum, mean, m2, g, n, units);
    case Stage::kSecond: return update_stage<Stage::kSecond>(abs_sum, mean, m2, g, n, units);
    case Stage::kLater: return update_stage<Stage::kLater>(abs_sum, mean, m2, g, n, units);
  }
}
SIGEO_MULTIVERSION void update_block(float* abs_sum, float* mean, float* m2, const float* g,
                                     int64_t n, int64_t count) {
  update_body(abs_sum, mean, m2, g, n, count);
}
SIGEO_MULTIVERSION void update_block(double* abs_sum, double* mean, double* m2, const double* g,
                                     int64_t n, int64_t count) {
  update_body(abs_sum, mean, m2, g, n, count);
}

template <int N, class T>
SIGEO_INLINE Moment<double> moment_at(const T* const* rows, int64_t i) {
  double unit[N];
  for (int r = 0; r < N; ++r) unit[r] = rows[r][i];
  return moment_of(unit);
}

using Summary = Sums<kColumns>;

SIGEO_INLINE void add(Summary& sums, int64_t lane, const Moment<double>& moment, double weight) {
  add_moment(moment, weight, [&](Column c, double value) { sums.lane[c][lane] += value; });
}

template <int N, class T>
SIGEO_INLINE void rows_body(const T* const* rows, const T* weight, int64_t n, Summary& sums) {
  for_each_lane(
      n, [&](int64_t i, int64_t lane) { add(sums, lane, moment_at<N>(rows, i), weight[i]); });
}
template <class T>
SIGEO_INLINE void rows_of(const T* const* rows, int64_t count, const T* weight, int64_t n,
                          Summary& sums) {
  static_assert(kMaxRows == 4, "one case for each count");
  switch (count) {
    case 1: return rows_body<1>(rows, weight, n, sums);
    case 2: return rows_body<2>(rows, weight, n, sums);
    case 3: return rows_body<3>(rows, weight, n, sums);
    case 4: return rows_body<4>(rows, weight, n, sums);
  }
}
SIGEO_MULTIVERSION void rows_block(const float* const* rows, int64_t count, const float* weight,
                                   int64_t n, Summary& sums) {
  rows_of(rows, count, weight, n, sums);
}
SIGEO_MULTIVERSION void rows_block(const double* const* rows, int64_t count, const double* weight,
                                   int64_t n, Summary& sums) {
  rows_of(rows, count, weight, n, sums);
}

template <class T>
SIGEO_INLINE void state_body(const T* abs_sum, const T* mean, const T* m2, const T* weight,
                             int64_t n, Summary& sums) {
  for_each_lane(n, [&](int64_t i, int64_t lane) {
    add(sums, lane, {abs_sum[i], mean[i], m2[i]}, weight[i]);
  });
}
SIGEO_MULTIVERSION void state_block(const float* abs_sum, const float* mean, const float* m2,
                                    const float* weight, int64_t n, Summary& sums) {
  state_body(abs_sum, mean, m2, weight, n, sums);
}
SIGEO_MULTIVERSION void state_block(const double* abs_sum, const double* mean, const double* m2,
                                    const double* weight, int64_t n, Summary& sums) {
  state_body(abs_sum, mean, m2, weight, n, sums);
}

// A state of count >= 2 with one more unit, which is added in float64.
template <class T>
SIGEO_INLINE void pending_body(const T* abs_sum, const T* mean, const T* m2, const T* g,
                               const T* weight, int64_t n, double units, Summary& sums) {
  for_each_lane(n, [&](int64_t i, int64_t lane) {
    const Moment<double> old{abs_sum[i], mean[i], m2[i]};
    add(sums, lane, updated<Stage::kLater, double>(old, g[i], units), weight[i]);
  });
}
SIGEO_MULTIVERSION void pending_block(const float* abs_sum, const float* mean, const float* m2,
                                      const float* g, const float* weight, int64_t n, double units,
                                      Summary& sums) {
  pending_body(abs_sum, mean, m2, g, weight, n, units, sums);
}
SIGEO_MULTIVERSION void pending_block(const double* abs_sum, const double* mean, const double* m2,
                                      const double* g, const double* weight, int64_t n,
                                      double units, Summary& sums) {
  pending_body(abs_sum, mean, m2, g, weight, n, units, sums);
}

template <class T>
SIGEO_INLINE void fold_body(T* first, T* second, T* third, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const T* rows[] = {first, second, third};
    const Moment<double> moment = moment_at<3>(rows, i);
    first[i] = static_cast<T>(moment.abs_sum);
    second[i] = static_cast<T>(moment.mean);
    third[i] = static_cast<T>(moment.m2);
  }
}
SIGEO_MULTIVERSION void fold_block(float* first, float* second, float* third, int64_t n) {
  fold_body(first, second, third, n);
}
SIGEO_MULTIVERSION void fold_block(double* first, double* second, double* third, int64_t n) {
  fold_body(first, second, third, n);
}

template <class T>
SIGEO_INLINE void dot_body(const T* a, const T* b, int64_t n, Sums<1>& sums) {
  for_each_lane(n, [&](int64_t i, int64_t lane) {
    sums.lane[0][lane] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  });
}
SIGEO_MULTIVERSION void dot_block(const float* a, const float* b, int64_t n, Sums<1>& sums) {
  dot_body(a, b, n, sums);
}
SIGEO_MULTIVERSION void dot_block(const double* a, const double* b, int64_t n, Sums<1>& sums) {
  dot_body(a, b, n, sums);
}

template <class T>
T* at(const Array& array, int64_t begin) {
  return static_cast<T*>(array.data) + begin;
}

void scale(double* out, size_t layers, int64_t count, int64_t ddof, bool weighted) {
  const double units = static_cast<double>(count), less = static_cast<double>(ddof);
  for (size_t layer = 0; layer < layers; ++layer) {
    scale_row(out + layer * kColumns, units, less, weighted);
  }
}

}  // namespace

void update(Arrays abs_sum, Arrays mean, Arrays m2, Arrays grads, int64_t count,
            const Parallel& parallel) {
  with_type({mean}, [&]<class T>(T) {
    for_each_chunk(Chunks(mean), parallel, [&](int64_t, const Chunk& chunk) {
      const int64_t layer = chunk.layer;
      for_each_block(chunk, [&](int64_t begin, int64_t n) {
        T buffer[kBlock];
        update_block(at<T>(abs_sum[layer], begin), at<T>(mean[layer], begin),
                     at<T>(m2[layer], begin), load(grads[layer], begin, n, buffer), n, count);
      });
    });
  });
}

void fold_rows(Arrays first, Arrays second, Arrays third, const Parallel& parallel) {
  with_type({first}, [&]<class T>(T) {
    for_each_chunk(Chunks(first), parallel, [&](int64_t, const Chunk& chunk) {
      const int64_t layer = chunk.layer, begin = chunk.begin;
      fold_block(at<T>(first[layer], begin), at<T>(second[layer], begin),
                 at<T>(third[layer], begin), chunk.end - begin);
    });
  });
}

void summarize(Arrays abs_sum, Arrays mean, Arrays m2, Arrays grads, Arrays weights, int64_t count,
               int64_t ddof, double* out, const Parallel& parallel) {
  with_type({abs_sum, mean, m2, grads, weights}, [&]<class T>(T) {
    const auto block = [&](int64_t layer, int64_t begin, int64_t n, Summary& sums) {
      T buffer[5][kBlock];
      const T* a = load(abs_sum[layer], begin, n, buffer[0]);
      const T* mu = load(mean[layer], begin, n, buffer[1]);
      const T* q = load(m2[layer], begin, n, buffer[2]);
      const T* weight = load(layer_or_zeros(weights, layer), begin, n, buffer[3]);
      if (grads.empty()) return state_block(a, mu, q, weight, n, sums);
      const T* g = load(grads[layer], begin, n, buffer[4]);
      pending_block(a, mu, q, g, weight, n, static_cast<double>(count + 1), sums);
    };
    reduce_layers<kColumns>(mean, out, parallel, block);
  });
  scale(out, mean.size(), count + (grads.empty() ? 0 : 1), ddof, !weights.empty());
}

void summarize_rows(Arrays rows, Arrays weights, int64_t count, int64_t ddof, double* out,
                    const Parallel& parallel) {
  const int64_t layers = static_cast<int64_t>(rows.size()) / count;
  with_type({rows, weights}, [&]<class T>(T) {
    const auto block = [&](int64_t layer, int64_t begin, int64_t n, Summary& sums) {
      T buffer[kMaxRows + 1][kBlock];
      const T* row[kMaxRows];
      for (int64_t r = 0; r < count; ++r) {
        row[r] = load(rows[r * layers + layer], begin, n, buffer[r]);
      }
      const T* weight = load(layer_or_zeros(weights, layer), begin, n, buffer[kMaxRows]);
      rows_block(row, count, weight, n, sums);
    };
    reduce_layers<kColumns>(rows.first(layers), out, parallel, block);
  });
  scale(out, layers, count, ddof, !weights.empty());
}

void dot(Arrays a, Arrays b, double* out, const Parallel& parallel) {
  with_type({a, b}, [&]<class T>(T) {
    reduce_layers<1>(a, out, parallel, [&](int64_t layer, int64_t begin, int64_t n, Sums<1>& sums) {
      T buffer[2][kBlock];
      dot_block(load(a[layer], begin, n, buffer[0]), load(b[layer], begin, n, buffer[1]), n, sums);
    });
  });
}

}  // namespace sigeo_ext::moments
