#include <algorithm>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/check.h"
#include "common/tensor.h"
#include "sample_moments/arguments.h"

namespace sigeo_ext {
namespace {

using sample_moments::check_entries;
using sample_moments::check_images;
using sample_moments::check_pair;
using sample_moments::check_values;
using torch::headeronly::ScalarType;

constexpr int64_t kSqNorm = 1 << sample_moments::kStatistics;  // the last bit of `want`

void check_units(const char* op, int64_t samples, int64_t unit, int64_t segments, int64_t want) {
  SIGEO_CHECK(unit > 0, op, ": unit must be at least 1, got ", unit);
  SIGEO_CHECK(segments > 0, op, ": segments must be at least 1, got ", segments);
  // Not by the product of the two, which may be beyond 64 bits.
  SIGEO_CHECK(samples % unit == 0 && samples / unit % segments == 0, op, ": ", samples,
              " samples must be whole units of ", unit, " in ", segments, " equal segments");
  SIGEO_CHECK(want > 0 && want < 2 * kSqNorm, op, ": want must be from 1 to ", 2 * kSqNorm - 1,
              ", got ", want);
}

template <class T>
Tensors run(const sample_moments::Convolution& shape, const Sizes& result, const Tensor& x,
            const Tensor& d, int64_t unit, int64_t segments, int64_t want, double factor) {
  Tensors results;
  sample_moments::Job<T> job{};
  job.factor = static_cast<T>(factor);
  job.x = static_cast<const T*>(x.data_ptr());
  job.d = static_cast<const T*>(d.data_ptr());
  job.unit = unit;
  job.segments = segments;
  for (int s = 0; s < sample_moments::kStatistics; ++s) {
    if (!(want >> s & 1)) continue;
    results.push_back(torch::stable::new_empty(x, result));
    job.statistics[s] = static_cast<T*>(results.back().data_ptr());
  }
  if (want & kSqNorm) {
    const Sizes units{shape.samples / unit};
    results.push_back(torch::stable::new_empty(x, units, ScalarType::Double));
    job.sq_norm = static_cast<double*>(results.back().data_ptr());
  }
  sample_moments::convolution(shape, job, torch_parallel_each);
  return results;
}

Tensors convolution(Tensor x, Tensor d, Sizes kernel, Sizes stride, Sizes padding, Sizes dilation,
                    int64_t groups, int64_t unit, int64_t segments, int64_t want, double factor) {
  const char* op = "sample_moments_convolution";
  const auto shape = sample_moments::shape_of(op, x, d, kernel, stride, padding, dilation, groups);
  check_images(op, x, d);
  check_units(op, x.size(0), unit, segments, want);
  Sizes result{segments, shape.out_channels};
  result.insert(result.end(), kernel.begin(), kernel.end());
  result.push_back(shape.in_channels / groups);
  if (x.scalar_type() == ScalarType::Double) {
    return run<double>(shape, result, x, d, unit, segments, want, factor);
  }
  return run<float>(shape, result, x, d, unit, segments, want, factor);
}

template <class T>
Tensors run_rows(const Tensor& rows, int64_t unit, int64_t segments, int64_t want, double factor) {
  Tensors results;
  sample_moments::RowsJob<T> job{};
  job.rows = static_cast<const T*>(rows.data_ptr());
  job.samples = rows.size(0);
  job.size = rows.size(1);
  job.unit = unit;
  job.segments = segments;
  job.factor = static_cast<T>(factor);
  for (int s = 0; s < sample_moments::kStatistics; ++s) {
    if (!(want >> s & 1)) continue;
    results.push_back(torch::stable::new_empty(rows, Sizes{segments, job.size}));
    job.statistics[s] = static_cast<T*>(results.back().data_ptr());
  }
  if (want & kSqNorm) {
    const Sizes units{job.samples / unit};
    results.push_back(torch::stable::new_empty(rows, units, ScalarType::Double));
    job.sq_norm = static_cast<double*>(results.back().data_ptr());
  }
  sample_moments::rows(job);
  return results;
}

Tensors rows(Tensor rows, int64_t unit, int64_t segments, int64_t want, double factor) {
  const char* op = "sample_moments_rows";
  SIGEO_CHECK(rows.dim() == 2, op, ": rows must be [samples, size], got ", sizes_text(rows));
  check_values(op, "rows", rows);
  check_units(op, rows.size(0), unit, segments, want);
  if (rows.scalar_type() == ScalarType::Double) {
    return run_rows<double>(rows, unit, segments, want, factor);
  }
  return run_rows<float>(rows, unit, segments, want, factor);
}

// Room for the statistics of `found` rows of some tables, and where each goes.
template <class T>
struct TouchedResults {
  TouchedResults(const Tensor& gradients, int64_t found, const Sizes& norms, int64_t want)
      : width(gradients.size(gradients.dim() - 1)) {
    for (int s = 0; s < sample_moments::kStatistics; ++s) {
      if (!(want >> s & 1)) continue;
      tensors.push_back(torch::stable::new_empty(gradients, Sizes{found, width}));
      statistics[s] = static_cast<T*>(tensors.back().data_ptr());
    }
    if (want & kSqNorm) {
      tensors.push_back(torch::stable::new_empty(gradients, norms, ScalarType::Double));
      sq_norm = static_cast<double*>(tensors.back().data_ptr());
    }
  }

  std::array<T*, sample_moments::kStatistics> from(int64_t row) const {
    auto moved = statistics;
    for (T*& statistic : moved) {
      if (statistic != nullptr) statistic += row * width;
    }
    return moved;
  }

  int64_t width;
  Tensors tensors;
  std::array<T*, sample_moments::kStatistics> statistics{};
  double* sq_norm = nullptr;
};

template <class T>
Tensors run_embedding(const Tensor& rows, const sample_moments::Entries& given,
                      const Tensor& gradients, int64_t count, int64_t want, double factor) {
  const sample_moments::Touched touched(given);
  const int64_t found = static_cast<int64_t>(touched.rows().size());
  Tensor all = torch::stable::new_empty(rows, Sizes{found});
  std::copy(touched.rows().begin(), touched.rows().end(), static_cast<int64_t*>(all.data_ptr()));
  const TouchedResults<T> results(gradients, found, {count}, want);
  const sample_moments::EmbeddingJob<T> job{static_cast<const T*>(gradients.data_ptr()),
                                            results.width, results.width, count,
                                            static_cast<T>(factor)};
  touched.measure(job, results.statistics, results.sq_norm);
  Tensors all_results{all};
  all_results.insert(all_results.end(), results.tensors.begin(), results.tensors.end());
  return all_results;
}

Tensors embedding(Tensor rows, std::optional<Tensor> units, Tensor gradients, int64_t count,
                  int64_t entries, int64_t skipped, int64_t want, double factor) {
  const char* op = "sample_moments_embedding";
  check_units(op, count, 1, 1, want);
  check_entries(op, rows, units, gradients, count, entries);
  const auto given = sample_moments::entries_of(rows, units, entries, skipped);
  if (gradients.scalar_type() == ScalarType::Double) {
    return run_embedding<double>(rows, given, gradients, count, want, factor);
  }
  return run_embedding<float>(rows, given, gradients, count, want, factor);
}

template <class T>
Tensors run_tables(const Tensor& rows, const Tensor& gradients, int64_t unit, int64_t want,
                   double factor) {
  const int64_t samples = rows.size(0), tables = rows.size(1), units = samples / unit;
  const auto* row = static_cast<const int64_t*>(rows.data_ptr());
  std::vector<sample_moments::Touched> touched(tables);
  torch_parallel_each(tables, [&](int64_t from, int64_t to) {
    for (int64_t t = from; t < to; ++t) {
      touched[t] = sample_moments::Touched({row + t, nullptr, samples, unit, -1, tables});
    }
  });
  Tensor first = torch::stable::new_empty(rows, Sizes{tables + 1});
  auto* begin = static_cast<int64_t*>(first.data_ptr());
  begin[0] = 0;
  for (int64_t t = 0; t < tables; ++t) {
    begin[t + 1] = begin[t] + static_cast<int64_t>(touched[t].rows().size());
  }
  Tensor all = torch::stable::new_empty(rows, Sizes{begin[tables]});
  const TouchedResults<T> results(gradients, begin[tables], {tables, units}, want);
  torch_parallel_each(tables, [&](int64_t from, int64_t to) {
    for (int64_t t = from; t < to; ++t) {
      std::copy(touched[t].rows().begin(), touched[t].rows().end(),
                static_cast<int64_t*>(all.data_ptr()) + begin[t]);
      const sample_moments::EmbeddingJob<T> job{
          static_cast<const T*>(gradients.data_ptr()) + t * results.width, results.width,
          tables * results.width, units, static_cast<T>(factor)};
      double* norms = results.sq_norm == nullptr ? nullptr : results.sq_norm + t * units;
      touched[t].measure(job, results.from(begin[t]), norms);
    }
  });
  Tensors all_results{first, all};
  all_results.insert(all_results.end(), results.tensors.begin(), results.tensors.end());
  return all_results;
}

Tensors tables(Tensor rows, Tensor gradients, int64_t unit, int64_t want, double factor) {
  const char* op = "sample_moments_tables";
  SIGEO_CHECK(rows.dim() == 2 && gradients.dim() == 3 && rows.size(0) == gradients.size(0) &&
                  rows.size(1) == gradients.size(1),
              op, ": rows must be [samples, tables] and gradients [samples, tables, width], got ",
              sizes_text(rows), " and ", sizes_text(gradients));
  SIGEO_CHECK(rows.size(1) > 0, op, ": rows must be of at least one table, got none");
  check_values(op, "gradients", gradients);
  check_units(op, rows.size(0), unit, 1, want);
  SIGEO_CHECK(rows.scalar_type() == ScalarType::Long && rows.is_contiguous(), op,
              ": rows must be contiguous int64");
  const auto* row = static_cast<const int64_t*>(rows.data_ptr());
  const auto* end = row + rows.numel();
  SIGEO_CHECK(std::all_of(row, end, [](int64_t r) { return r >= 0; }), op,
              ": rows must be at least 0, got ", rows.numel() ? *std::min_element(row, end) : 0);
  if (gradients.scalar_type() == ScalarType::Double) {
    return run_tables<double>(rows, gradients, unit, want, factor);
  }
  return run_tables<float>(rows, gradients, unit, want, factor);
}

template <class T>
Tensors run_scale(const Tensor& x, const Tensor& d, const std::optional<Tensor>& mean,
                  const std::optional<Tensor>& rstd, const std::optional<Tensor>& factor,
                  bool channels_last, bool shift) {
  const auto pointer = [](const std::optional<Tensor>& tensor) {
    return tensor.has_value() ? static_cast<const T*>(tensor->data_ptr()) : nullptr;
  };
  sample_moments::ScaleJob<T> job{};
  job.x = static_cast<const T*>(x.data_ptr());
  job.d = static_cast<const T*>(d.data_ptr());
  job.mean = pointer(mean);
  job.rstd = pointer(rstd);
  job.factor = pointer(factor);
  job.channels_last = channels_last;
  job.samples = x.size(0);
  job.positions = x.size(channels_last ? 1 : 2);
  job.channels = x.size(channels_last ? 2 : 1);
  if (mean.has_value()) {
    job.statistics = mean->dim() == 1   ? job.kOfChannel
                     : mean->dim() == 2 ? job.kOfSampleAndChannel
                                        : job.kOfPosition;
  }
  Tensors results;
  const Sizes sums{job.samples, job.channels};
  const auto add = [&](bool wanted, const Sizes& sizes) -> T* {
    if (!wanted) return nullptr;
    results.push_back(torch::stable::new_empty(x, sizes));
    return static_cast<T*>(results.back().data_ptr());
  };
  job.scale = add(mean.has_value(), sums);
  job.shift = add(shift, sums);
  job.dx = add(factor.has_value(), sizes_of(x));
  sample_moments::scale(job, torch_parallel_each);
  return results;
}

Tensors scale(Tensor x, Tensor d, std::optional<Tensor> mean, std::optional<Tensor> rstd,
              std::optional<Tensor> factor, bool channels_last, bool shift) {
  const char* op = "sample_moments_scale";
  SIGEO_CHECK(x.dim() == 3, op, ": x must have 3 dimensions, got ", sizes_text(x));
  SIGEO_CHECK(sizes_of(d) == sizes_of(x), op, ": d must have the shape of x, ", sizes_text(x),
              ", got ", sizes_text(d));
  check_pair(op, x, d);
  SIGEO_CHECK(mean.has_value() == rstd.has_value(), op, ": mean and rstd must be given together");
  SIGEO_CHECK(!mean.has_value() || sizes_of(*mean) == sizes_of(*rstd), op,
              ": mean and rstd must have one shape, got ", sizes_text(*mean), " and ",
              sizes_text(*rstd));
  const int64_t positions = x.size(channels_last ? 1 : 2), channels = x.size(channels_last ? 2 : 1);
  for (const auto& [name, tensor] :
       {std::pair("mean", &mean), std::pair("rstd", &rstd), std::pair("factor", &factor)}) {
    if (!tensor->has_value()) continue;
    const Tensor& values = **tensor;
    SIGEO_CHECK(values.is_contiguous() && values.scalar_type() == x.scalar_type(), op, ": ", name,
                " must be contiguous and of the dtype of x, ",
                torch::headeronly::toString(x.scalar_type()), ", got ", form_text(values));
    const bool of_channel = values.dim() == 1 && values.size(0) == channels;
    const bool of_sample = values.dim() == 2 && values.size(0) == x.size(0) &&
                           values.size(1) == channels && tensor != &factor;
    const bool of_position = values.dim() == 3 && values.size(0) == x.size(0) &&
                             values.size(1) == positions && values.size(2) == 1 && channels_last &&
                             tensor != &factor;
    SIGEO_CHECK(of_channel || of_sample || of_position, op, ": ", name, " must be [channels]",
                tensor == &factor ? ""
                                  : ", [samples, channels] or, channels last, "
                                    "[samples, positions, 1]",
                ", for x ", sizes_text(x), ", got ", sizes_text(values));
  }
  if (x.scalar_type() == ScalarType::Double) {
    return run_scale<double>(x, d, mean, rstd, factor, channels_last, shift);
  }
  return run_scale<float>(x, d, mean, rstd, factor, channels_last, shift);
}

}  // namespace
}  // namespace sigeo_ext

STABLE_TORCH_LIBRARY_IMPL(sigeo_ext, CPU, m) {
  m.impl("sample_moments_embedding", TORCH_BOX(&sigeo_ext::embedding));
  m.impl("sample_moments_tables", TORCH_BOX(&sigeo_ext::tables));
  m.impl("sample_moments_rows", TORCH_BOX(&sigeo_ext::rows));
  m.impl("sample_moments_scale", TORCH_BOX(&sigeo_ext::scale));
  m.impl("sample_moments_convolution", TORCH_BOX(&sigeo_ext::convolution));
}
