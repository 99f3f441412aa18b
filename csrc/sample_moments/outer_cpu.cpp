#include "sample_moments/outer.h"

#include "common/sums.h"
#include "sample_moments/layout.h"
#include "sample_moments/tiles.h"

namespace sigeo_ext::sample_moments {
namespace {

template <class T>
double squares(const T* row, int64_t length) {
  Sums<1> sums;
  for_each_lane(length, [&](int64_t i, int64_t lane) SIGEO_LAMBDA_INLINE {
    sums.lane[0][lane] += static_cast<double>(row[i]) * row[i];
  });
  return sums.total(0);
}

// Kept between calls, as the panels of convolutions are.
template <class T>
const T* packed(const T* rows, int64_t count, int64_t length, int64_t width, Packed<T>& memory) {
  const auto values = static_cast<size_t>((length + width - 1) / width * width * count);
  if (memory.size() < values) memory.resize(values);
  pack_panels(rows, count, length, length, width, memory.data(), count * width);
  return memory.data();
}

}  // namespace

template <class T>
void outer(const Convolution& shape, const Job<T>& job, const Parallel& parallel) {
  thread_local Packed<T> packed_x, packed_d;
  const int64_t samples = shape.samples, width = kOuterVectors * tiles<T>().lanes;
  const int64_t inputs = shape.in_channels, outputs = shape.out_channels;
  if (job.sq_norm != nullptr) {  // |d x^T|^2 = |d|^2 |x|^2
    const auto factor = static_cast<double>(job.factor);
    for (int64_t s = 0; s < samples; ++s) {
      job.sq_norm[s] = squares(job.d + s * outputs, outputs) * squares(job.x + s * inputs, inputs) *
                       factor * factor;
    }
  }
  if (job.statistics == decltype(job.statistics){}) return;
  OuterJob<T> packed_job{packed(job.x, samples, inputs, width, packed_x),
                         packed(job.d, samples, outputs, kOuterPanel, packed_d),
                         samples / job.segments,
                         job.segments,
                         inputs,
                         outputs,
                         job.statistics,
                         job.factor};
  parallel((inputs + width - 1) / width,
           [&](int64_t from, int64_t to) { tiles<T>().outer(packed_job, from, to); });
  keep_little(packed_x);
  keep_little(packed_d);
}

template void outer(const Convolution&, const Job<float>&, const Parallel&);
template void outer(const Convolution&, const Job<double>&, const Parallel&);

}  // namespace sigeo_ext::sample_moments
