#include "gram/gram.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/check.h"
#include "common/device.h"
#include "common/tensor.h"
#include "sample_moments/arguments.h"

namespace sigeo_ext {
namespace {

using torch::headeronly::ScalarType;

Tensor square(const Tensor& like, int64_t count) {
  return torch::stable::new_empty(like, Sizes{count, count}, ScalarType::Double);
}

double* data(Tensor& tensor) { return static_cast<double*>(tensor.data_ptr()); }

template <class Device>
Tensor gram_lists(OptionalTensors rows, int64_t count, bool difference) {
  const char* op = "gram_lists";
  SIGEO_CHECK(count > 0, op, ": count must be at least 1, got ", count);
  const int64_t tensors = static_cast<int64_t>(rows.size());
  SIGEO_CHECK(tensors % count == 0, op, ": rows must hold the same number of tensors for ",
              "each of ", count, ", got ", tensors, " tensors");
  Lists lists(op, rows.size() / count);
  const auto arrays = lists.rows("rows", rows);
  Tensor out = lists.new_float64({count, count});
  const auto pair = difference ? gram::Pair::kSquaredDifference : gram::Pair::kProduct;
  Device device(lists);
  gram::of_lists(pair, arrays, count, data(out), device.place_each());
  return out;
}

Tensor gram_convolution(Tensor x, Tensor d, Sizes kernel, Sizes stride, Sizes padding,
                        Sizes dilation, int64_t groups, int64_t unit) {
  const char* op = "gram_convolution";
  const auto shape = sample_moments::shape_of(op, x, d, kernel, stride, padding, dilation, groups);
  sample_moments::check_images(op, x, d);
  SIGEO_CHECK(unit > 0 && x.size(0) % unit == 0, op, ": unit must divide the ", x.size(0),
              " samples, got ", unit);
  Tensor out = square(x, x.size(0) / unit);
  const auto run = [&]<class T>(T) {
    gram::of_convolution(shape, static_cast<const T*>(x.data_ptr()),
                         static_cast<const T*>(d.data_ptr()), unit, data(out), torch_parallel_each);
  };
  if (x.scalar_type() == ScalarType::Double) run(double{});
  else run(float{});
  return out;
}

Tensor gram_embedding(Tensor rows, std::optional<Tensor> units, Tensor gradients, int64_t count,
                      int64_t entries, int64_t skipped) {
  sample_moments::check_entries("gram_embedding", rows, units, gradients, count, entries);
  Tensor out = square(gradients, count);
  const auto given = sample_moments::entries_of(rows, units, entries, skipped);
  const auto run = [&]<class T>(T) {
    const int64_t width = gradients.size(1);
    const auto* values = static_cast<const T*>(gradients.data_ptr());
    gram::of_embedding(given, sample_moments::EmbeddingJob<T>{values, width, width, count, T{1}},
                       data(out));
  };
  if (gradients.scalar_type() == ScalarType::Double) run(double{});
  else run(float{});
  return out;
}

template <class Device>
Tensor gram_hamming(Tensor codes) {
  const char* op = "gram_hamming";
  SIGEO_CHECK(codes.dim() == 2 && codes.scalar_type() == ScalarType::Byte, op,
              ": codes must be uint8 [count, bytes], got ", form_text(codes));
  const Tensor dense = torch::stable::contiguous(codes);
  Tensor out =
      torch::stable::new_empty(codes, Sizes{codes.size(0), codes.size(0)}, ScalarType::Long);
  Device device(dense);
  gram::hamming(static_cast<const uint8_t*>(dense.data_ptr()), codes.size(0), codes.size(1),
                static_cast<int64_t*>(out.data_ptr()), device.place_each());
  return out;
}

template <class Device>
void register_ops(torch::stable::detail::StableLibrary& m) {
  m.impl("gram_lists", TORCH_BOX(&gram_lists<Device>));
  m.impl("gram_hamming", TORCH_BOX(&gram_hamming<Device>));
}

}  // namespace
}  // namespace sigeo_ext

STABLE_TORCH_LIBRARY_IMPL(sigeo_ext, CPU, m) {
  sigeo_ext::register_ops<sigeo_ext::Cpu>(m);
  m.impl("gram_convolution", TORCH_BOX(&sigeo_ext::gram_convolution));
  m.impl("gram_embedding", TORCH_BOX(&sigeo_ext::gram_embedding));
}
#if defined(SIGEO_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(sigeo_ext, CUDA, m) { sigeo_ext::register_ops<sigeo_ext::Cuda>(m); }
#endif
