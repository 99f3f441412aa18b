#include <algorithm>
#include <cmath>
#include <vector>

#include "sample_moments/sample_moments.h"

namespace sigeo_ext::sample_moments {

template <class T>
void rows(const RowsJob<T>& job) {
  const int64_t units = job.samples / job.unit, of_segment = units / job.segments;
  std::vector<T> g(job.size), origin(job.size), drift(job.size);
  for (T* statistic : job.statistics) {
    if (statistic != nullptr) std::fill_n(statistic, job.segments * job.size, T{0});
  }
  for (int64_t unit = 0; unit < units; ++unit) {
    const T* from = job.rows + unit * job.unit * job.size;
    const int64_t at = unit / of_segment * job.size;
    std::copy_n(from, job.size, g.data());
    for (int64_t sample = 1; sample < job.unit; ++sample) {
      for (int64_t i = 0; i < job.size; ++i) g[i] += from[sample * job.size + i];
    }
    const auto add = [&](Statistic s, const auto& term) {
      T* to = job.statistics[s];
      if (to == nullptr) return;
      for (int64_t i = 0; i < job.size; ++i) to[at + i] += term(g[i]);
    };
    add(kSum, [](T v) { return v; });
    add(kAbsSum, [](T v) { return std::fabs(v); });
    add(kSqSum, [](T v) { return v * v; });
    add(kSignSum, [](T v) { return v == v ? static_cast<T>((v > 0) - (v < 0)) : v; });
    if (T* m2 = job.statistics[kM2]) {
      if (unit % of_segment == 0) {
        origin = g;
        std::fill(drift.begin(), drift.end(), T{0});
      }
      const T share = T{1} / static_cast<T>(unit % of_segment + 1);
      for (int64_t i = 0; i < job.size; ++i) {  // Welford's, on deviations from the first unit
        const T deviation = g[i] - origin[i], step = deviation - drift[i];
        drift[i] += step * share;
        m2[at + i] += step * (deviation - drift[i]);
      }
    }
    if (job.sq_norm != nullptr) {
      double sum = 0;
      for (int64_t i = 0; i < job.size; ++i) sum += static_cast<double>(g[i]) * g[i];
      const double factor = static_cast<double>(job.factor);
      job.sq_norm[unit] = sum * factor * factor;
    }
  }
  for (int s = 0; s < kStatistics; ++s) {
    const T power = power_of(job.factor, s);
    if (job.statistics[s] == nullptr || power == 1) continue;
    for (int64_t i = 0; i < job.segments * job.size; ++i) job.statistics[s][i] *= power;
  }
}

template void rows(const RowsJob<float>&);
template void rows(const RowsJob<double>&);

}  // namespace sigeo_ext::sample_moments
