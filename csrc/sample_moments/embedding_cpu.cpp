#include <algorithm>
#include <cmath>
#include <tuple>

#include "sample_moments/sample_moments.h"

namespace sigeo_ext::sample_moments {

Touched::Touched(const Entries& given) {
  entries_.reserve(given.count);
  for (int64_t n = 0; n < given.count; ++n) {
    const int64_t row = given.rows[n * given.step];
    if (row == given.skipped) continue;
    entries_.push_back({row, given.units ? given.units[n] : n / given.entries, n});
  }
  // Within a row and unit in the order they came, so that sums have the same bits every time.
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.row, a.unit, a.place) < std::tie(b.row, b.unit, b.place);
  });
  for (size_t n = 0; n < entries_.size(); ++n) {
    if (!rows_.empty() && rows_.back() == entries_[n].row) continue;
    rows_.push_back(entries_[n].row);
    first_.push_back(static_cast<int64_t>(n));
  }
  first_.push_back(static_cast<int64_t>(entries_.size()));
}

template <class T>
void Touched::gradients(const EmbeddingJob<T>& job, int64_t row, std::vector<int64_t>& units,
                        std::vector<T>& values) const {
  units.clear();
  values.clear();
  for (int64_t n = first_[row]; n < first_[row + 1]; ++n) {
    const Entry& entry = entries_[n];
    if (units.empty() || units.back() != entry.unit) {
      units.push_back(entry.unit);
      values.resize(values.size() + job.width);
    }
    T* to = values.data() + static_cast<int64_t>(values.size()) - job.width;
    const T* from = job.gradients + entry.place * job.step;
    for (int64_t i = 0; i < job.width; ++i) to[i] += from[i];
  }
}

template <class T>
void Touched::measure(const EmbeddingJob<T>& job, const std::array<T*, kStatistics>& statistics,
                      double* sq_norm) const {
  const int64_t width = job.width;
  const double factor = static_cast<double>(job.factor);
  if (sq_norm != nullptr) std::fill_n(sq_norm, job.units, 0.0);
  std::vector<int64_t> units;
  std::vector<T> values, mean(width);
  for (int64_t row = 0; row < static_cast<int64_t>(rows_.size()); ++row) {
    gradients(job, row, units, values);
    const auto line = [&](Statistic s) {
      return statistics[s] == nullptr ? nullptr : statistics[s] + row * width;
    };
    for (const Statistic s : {kSum, kAbsSum, kSqSum, kM2, kSignSum}) {
      if (T* to = line(s)) std::fill_n(to, width, T{0});
    }
    std::fill(mean.begin(), mean.end(), T{0});
    for (size_t n = 0; n < units.size(); ++n) {
      const T* g = values.data() + static_cast<int64_t>(n) * width;
      double squares = 0;
      for (int64_t i = 0; i < width; ++i) {
        mean[i] += g[i];
        squares += static_cast<double>(g[i]) * g[i];
      }
      if (T* to = line(kSum)) {
        for (int64_t i = 0; i < width; ++i) to[i] += g[i];
      }
      if (T* to = line(kAbsSum)) {
        for (int64_t i = 0; i < width; ++i) to[i] += std::fabs(g[i] * job.factor);
      }
      if (T* to = line(kSqSum)) {
        for (int64_t i = 0; i < width; ++i) to[i] += g[i] * g[i] * (job.factor * job.factor);
      }
      if (T* to = line(kSignSum)) {
        for (int64_t i = 0; i < width; ++i) {
          to[i] += static_cast<T>((g[i] > 0) - (g[i] < 0)) + (g[i] - g[i]);
        }
      }
      if (sq_norm != nullptr) sq_norm[units[n]] += squares * factor * factor;
    }
    if (T* to = line(kM2)) {
      // Units that do not touch the row have a gradient of zero: (0 - mean)^2 each.
      const T absent = static_cast<T>(job.units - static_cast<int64_t>(units.size()));
      for (T& value : mean) value /= static_cast<T>(job.units);
      for (size_t n = 0; n < units.size(); ++n) {
        const T* g = values.data() + static_cast<int64_t>(n) * width;
        for (int64_t i = 0; i < width; ++i) to[i] += (g[i] - mean[i]) * (g[i] - mean[i]);
      }
      for (int64_t i = 0; i < width; ++i) {
        to[i] = (to[i] + absent * mean[i] * mean[i]) * (job.factor * job.factor);
      }
    }
  }
}

template void Touched::gradients(const EmbeddingJob<float>&, int64_t, std::vector<int64_t>&,
                                 std::vector<float>&) const;
template void Touched::gradients(const EmbeddingJob<double>&, int64_t, std::vector<int64_t>&,
                                 std::vector<double>&) const;
template void Touched::measure(const EmbeddingJob<float>&, const std::array<float*, kStatistics>&,
                               double*) const;
template void Touched::measure(const EmbeddingJob<double>&, const std::array<double*, kStatistics>&,
                               double*) const;

}  // namespace sigeo_ext::sample_moments
