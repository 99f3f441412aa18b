// Statistics over the gradients of single samples, from a layer's input and output gradient.
//
// A weight that is shared over positions has, for a unit u of one or more consecutive samples, the
// gradient
//   g_u[o, k, i] = sum over the unit's samples b and the positions t of
//                  d[b, t, o] * x[b, t at tap k, i]
// A tile of g_u is formed in registers, the statistics of the tile are updated, and the next unit
// begins: nothing of size units x weight is ever stored.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "common/parallel.h"

namespace sigeo_ext::sample_moments {

// The statistics over units u, in the order of the bits of `want` and of the results.
enum Statistic : int {
  kSum,      // sum g_u: the ordinary gradient
  kAbsSum,   // sum |g_u|
  kSqSum,    // sum g_u^2
  kM2,       // sum (g_u - mean)^2, from deviations from the first unit
  kSignSum,  // sum of the signs
  kStatistics,
};

// How far apart values lie in memory: from one position to the next, at least the channels, and
// from one sample to the next. 0 of a position where all is dense.
struct Steps {
  int64_t position = 0, sample = 0;
};

// A convolution of up to three dimensions; a linear layer is one with a single tap.
// Images are [samples, size..., channels] with the channels one after another.
struct Convolution {
  int64_t samples, in_channels, out_channels, groups;
  std::array<int64_t, 3> in_size, out_size, kernel, stride, padding, dilation;
  Steps x_steps{}, d_steps{};
};

// x [samples, in_size, in_channels] and d [samples, out_size, out_channels].
// statistics[s], where not null: [segments, out_channels, kernel, in_channels / groups].
// sq_norm, where not null: sum g_u^2 over the weight, [samples / unit], float64.
// A unit is `unit` consecutive samples; a segment is samples / segments consecutive ones, whole
// units, and has statistics of its own. All but kSum are those of g_u * factor.
template <class T>
struct Job {
  const T* x;
  const T* d;
  std::array<T*, kStatistics> statistics;
  double* sq_norm;
  int64_t unit, segments;
  T factor = 1;
};

// What `factor` does to a statistic.
template <class T>
T power_of(T factor, int statistic) {
  if (statistic == kSum || statistic == kSignSum) return T{1};
  return statistic == kAbsSum ? std::fabs(factor) : factor * factor;
}

// What norms need on the way back: for each sample b and channel c, over the positions t,
//   scale[b, c] = sum d * (x - mean) * rstd        shift[b, c] = sum d
// and, where asked for, the input gradient of a norm on given statistics, dx = d * factor[c].
template <class T>
struct ScaleJob {
  const T* x;       // [samples, positions, channels], or [samples, channels, positions]
  const T* d;       // like x
  const T* mean;    // of each channel, of each sample and channel, or of each sample and position
  const T* rstd;    // like mean
  const T* factor;  // [channels], with dx
  T* dx;            // like x, or null
  T* scale;         // [samples, channels], or null
  T* shift;         // [samples, channels], or null
  int64_t samples, positions, channels;
  bool channels_last;
  enum Statistics { kOfChannel, kOfSampleAndChannel, kOfPosition } statistics;
};

template <class T>
void scale(const ScaleJob<T>& job, const Parallel& parallel);

// The same statistics of gradients that are there: rows [samples, size], results [segments, size].
template <class T>
struct RowsJob {
  const T* rows;
  int64_t samples, size;
  std::array<T*, kStatistics> statistics;
  double* sq_norm;
  int64_t unit, segments;
  T factor;
};

template <class T>
void rows(const RowsJob<T>& job);

// Who looked what up in an embedding table: entry n is row rows[n * step] for unit units[n], or,
// where units is null, unit n / entries. Entries of row `skipped` do not count.
struct Entries {
  const int64_t* rows;
  const int64_t* units;  // [count], or null
  int64_t count, entries, skipped;
  int64_t step = 1;
};

// Entry n got the output gradient gradients[n * step], of `width` values; a unit's gradient of a
// row is the sum over its entries.
template <class T>
struct EmbeddingJob {
  const T* gradients;
  int64_t width, step, units;
  T factor;
};

// A unit's gradient of one row of a table: `width` values.
template <class T>
struct UnitGradient {
  int64_t unit;
  const T* values;
};

// First the touched rows, rising; then statistics [touched, width] and sq_norm [units] of them,
// where not null.
class Touched {
 public:
  Touched() = default;
  explicit Touched(const Entries& entries);
  const std::vector<int64_t>& rows() const { return rows_; }

  // The units that touch rows()[row], rising, with their gradients of it, which lie where the
  // entries' do, or in `room` where a unit has several.
  template <class T>
  void gradients(const EmbeddingJob<T>& job, int64_t row, std::vector<UnitGradient<T>>& lines,
                 std::vector<T>& room) const;

  template <class T>
  void measure(const EmbeddingJob<T>& job, const std::array<T*, kStatistics>& statistics,
               double* sq_norm) const;

 private:
  struct Entry {
    int64_t row, unit, place;
  };
  std::vector<Entry> entries_;  // by row, unit and place
  std::vector<int64_t> rows_;
  std::vector<int64_t> first_;  // of each row: where its entries begin; one more for their end
};

template <class T>
void convolution(const Convolution& shape, const Job<T>& job, const Parallel& parallel);

// Takes g [units, length], `apart` values from one unit to the next: a part of every unit's
// gradient, with zeros where a vector of channels is filled up.
template <class T>
using TakePart = std::function<void(int64_t slot, const T* g, int64_t length, int64_t apart)>;

// Hands out every unit's gradient of the weight, part after part, from memory that is used again.
// The parts are dealt to `slots` runs; those of one run come one after another, whatever the number
// of threads.
template <class T>
void unit_gradients(const Convolution& shape, const T* x, const T* d, int64_t unit, int64_t slots,
                    const TakePart<T>& take, const Parallel& parallel);

}  // namespace sigeo_ext::sample_moments
