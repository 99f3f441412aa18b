// Statistics over the gradients of many subnets of one super-weight, in the weight's places: the
// unit is a subnet. Free of torch.
#pragma once

#include <array>
#include <cstdint>

namespace sigeo_ext::gather {

// In the order of the bits of `want` and of the results, as of sample_moments.
enum Statistic : int { kSum, kAbsSum, kSqSum, kM2, kSignSum, kStatistics };

// Part of the statistics of a weight; those not asked for are null. Rows are `stride` values apart.
template <class T>
struct Moments {
  std::array<T*, kStatistics> statistics;
  int64_t stride;
  // For kM2: the mean over the subnets so far that use a place, and their number.
  T* mean;
  T* count;
  int64_t own_stride;
};

// Adds one subnet's gradient [rows, columns], rows `g_stride` values apart, of the places that
// begin at the given row and column. Returns sum g^2.
template <class T>
double add(const T* g, int64_t g_stride, int64_t rows, int64_t columns, int64_t row, int64_t column,
           const Moments<T>& moments);

// Takes in the subnets that do not use a place, whose gradient there is zero. `subnets` is the
// number of all.
template <class T>
void finish(int64_t rows, int64_t columns, int64_t subnets, const Moments<T>& moments);

}  // namespace sigeo_ext::gather
