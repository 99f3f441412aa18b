// The inner loops of `scale`: one pass over x and d for the sums and the input gradient.
#pragma once

#include <algorithm>
#include <cstdint>

#include "sample_moments/tile.h"

namespace sigeo_ext::sample_moments {

// Positions (or runs of positions) with sums of their own, so that additions need not wait for one
// another.
inline constexpr int kChains = 4;

template <class V, class T>
SIGEO_INLINE T lanes_sum(const V (&chains)[kChains], int lanes) {
  const V all = (chains[0] + chains[1]) + (chains[2] + chains[3]);
  T sum{};
  for (int lane = 0; lane < lanes; ++lane) sum += all[lane];
  return sum;
}

// kVectors vectors of channels from `c` on of one sample, channels last, with kSums sums of every
// channel. `kTail`: one vector, of which not all channels are there.
template <class T, int kLanes, int kVectors, int kSums, bool kTail>
SIGEO_INLINE void scale_channels(const ScaleJob<T>& job, int64_t sample, int64_t c) {
  using V = typename Vector<T, kLanes>::type;
  const int64_t width = job.channels, there = std::min<int64_t>(kLanes, width - c);
  const auto read = [=](const T* from) SIGEO_LAMBDA_INLINE -> V {
    if constexpr (!kTail) return load<T, kLanes>(from);
    V values{};
    for (int64_t k = 0; k < there; ++k) values[k] = from[k];
    return values;
  };
  const auto write = [=](T* to, const V& values) SIGEO_LAMBDA_INLINE {
    if constexpr (!kTail) store<T, kLanes>(to, values);
    else
      for (int64_t k = 0; k < there; ++k) to[k] = values[k];
  };
  const bool of_position = job.statistics == ScaleJob<T>::kOfPosition;
  const int64_t row = job.statistics == ScaleJob<T>::kOfSampleAndChannel ? sample : 0;
  const bool sums = job.scale != nullptr;
  V mean[kVectors] = {}, factor[kVectors] = {};
  V scale[kSums][kVectors] = {}, shift[kSums][kVectors] = {};
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    if (sums && !of_position) mean[v] = read(job.mean + row * width + c + v * kLanes);
    if (job.dx != nullptr) factor[v] = read(job.factor + c + v * kLanes);
  }
  const auto step = [&](int64_t t, int chain) SIGEO_LAMBDA_INLINE {
    const int64_t p = sample * job.positions + t;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = p * width + c + v * kLanes;
      const V d = read(job.d + at);
      shift[chain][v] += d;
      if (sums) {
        const V x = read(job.x + at);
        if (of_position) scale[chain][v] += d * ((x - job.mean[p]) * job.rstd[p]);
        else scale[chain][v] += d * (x - mean[v]);
      }
      if (job.dx != nullptr) write(job.dx + at, d * factor[v]);
    }
  };
  int64_t t = 0;
  for (; t + kSums <= job.positions; t += kSums) {
#pragma GCC unroll 4
    for (int chain = 0; chain < kSums; ++chain) step(t + chain, chain);
  }
  for (; t < job.positions; ++t) step(t, 0);
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
    for (int chain = 1; chain < kSums; ++chain) {
      scale[0][v] += scale[chain][v];
      shift[0][v] += shift[chain][v];
    }
    const int64_t at = c + v * kLanes, out = sample * width + at;
    if (sums) {
      if (!of_position) scale[0][v] *= read(job.rstd + row * width + at);
      write(job.scale + out, scale[0][v]);
    }
    if (job.shift != nullptr) write(job.shift + out, shift[0][v]);
  }
}

// One channel of one sample whose positions stand one after another.
template <class T, int kLanes>
SIGEO_INLINE void scale_positions(const ScaleJob<T>& job, int64_t sample, int64_t c) {
  using V = typename Vector<T, kLanes>::type;
  const int64_t plane = sample * job.channels + c;
  const T* x = job.x + plane * job.positions;
  const T* d = job.d + plane * job.positions;
  T* dx = job.dx == nullptr ? nullptr : job.dx + plane * job.positions;
  const bool sums = job.scale != nullptr;
  const int64_t of = job.statistics == ScaleJob<T>::kOfSampleAndChannel ? plane : c;
  const T mean = sums ? job.mean[of] : T{}, factor = dx == nullptr ? T{} : job.factor[c];
  V scale[kChains] = {}, shift[kChains] = {};
  int64_t t = 0;
  for (; t + kChains * kLanes <= job.positions; t += kChains * kLanes) {
#pragma GCC unroll 4
    for (int chain = 0; chain < kChains; ++chain) {
      const int64_t at = t + chain * kLanes;
      const V dv = load<T, kLanes>(d + at);
      shift[chain] += dv;
      if (sums) scale[chain] += dv * (load<T, kLanes>(x + at) - mean);
      if (dx != nullptr) store<T, kLanes>(dx + at, dv * factor);
    }
  }
  T scale_sum = lanes_sum<V, T>(scale, kLanes), shift_sum = lanes_sum<V, T>(shift, kLanes);
  for (; t < job.positions; ++t) {
    shift_sum += d[t];
    if (sums) scale_sum += d[t] * (x[t] - mean);
    if (dx != nullptr) dx[t] = d[t] * factor;
  }
  if (sums) job.scale[plane] = scale_sum * job.rstd[of];
  if (job.shift != nullptr) job.shift[plane] = shift_sum;
}

template <class T, int kLanes>
SIGEO_INLINE void scale_body(const ScaleJob<T>& job, int64_t from, int64_t to) {
  for (int64_t sample = from; sample < to; ++sample) {
    if (!job.channels_last) {
      for (int64_t c = 0; c < job.channels; ++c) scale_positions<T, kLanes>(job, sample, c);
      continue;
    }
    int64_t c = 0;  // two vectors at a time first: with AVX2 a cache line
    for (; c + 2 * kLanes <= job.channels; c += 2 * kLanes) {
      scale_channels<T, kLanes, 2, 2, false>(job, sample, c);
    }
    for (; c + kLanes <= job.channels; c += kLanes) {
      scale_channels<T, kLanes, 1, kChains, false>(job, sample, c);
    }
    if (c < job.channels) scale_channels<T, kLanes, 1, kChains, true>(job, sample, c);
  }
}

}  // namespace sigeo_ext::sample_moments
