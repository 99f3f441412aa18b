#include "sample_moments/arguments.h"

#include <algorithm>
#include <limits>

#include "common/check.h"

namespace sigeo_ext::sample_moments {

using torch::headeronly::ScalarType;

// The kernels' offsets into a sample are of 32 bits, and positions at most 64 values apart.
constexpr int64_t kMostPlaces = std::numeric_limits<int32_t>::max() / 64;

namespace {

void check_floats(const char* op, const char* name, const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  SIGEO_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op, ": ", name,
              " must be float32 or float64, got ", torch::headeronly::toString(dtype));
}

void check_alike(const char* op, const Tensor& x, const Tensor& d) {
  SIGEO_CHECK(x.scalar_type() == d.scalar_type(), op, ": x and d must have one dtype, got ",
              torch::headeronly::toString(x.scalar_type()), " and ",
              torch::headeronly::toString(d.scalar_type()));
  SIGEO_CHECK(x.size(0) == d.size(0), op, ": x and d must have the same number of samples, got ",
              x.size(0), " and ", d.size(0));
}

Steps steps_of(const char* op, const char* name, const Tensor& tensor) {
  if (tensor.is_contiguous()) return {};
  const bool lines = tensor.dim() == 3 && tensor.stride(2) == 1 &&
                     std::min(tensor.stride(0), tensor.stride(1)) >= tensor.size(2);
  SIGEO_CHECK(lines, op, ": ", name, " must be contiguous, or [samples, positions, channels] ",
              "with the channels of a position one after another");
  SIGEO_CHECK(tensor.size(1) * tensor.stride(1) <= std::numeric_limits<int32_t>::max(), op, ": ",
              name, " must be contiguous where its positions lie so far apart");
  return {tensor.stride(1), tensor.stride(0)};
}

}  // namespace

void check_values(const char* op, const char* name, const Tensor& tensor) {
  check_floats(op, name, tensor);
  SIGEO_CHECK(tensor.is_contiguous(), op, ": ", name, " must be contiguous");
}

void check_pair(const char* op, const Tensor& x, const Tensor& d) {
  check_values(op, "x", x);
  check_values(op, "d", d);
  check_alike(op, x, d);
}

void check_images(const char* op, const Tensor& x, const Tensor& d) {
  check_floats(op, "x", x);
  check_floats(op, "d", d);
  check_alike(op, x, d);
}

namespace {

// `values` behind as many ones as three dimensions need.
std::array<int64_t, 3> to_three(const Sizes& values, int64_t fill) {
  std::array<int64_t, 3> all{fill, fill, fill};
  std::copy(values.begin(), values.end(), all.end() - static_cast<ptrdiff_t>(values.size()));
  return all;
}

}  // namespace

Convolution shape_of(const char* op, const Tensor& x, const Tensor& d, const Sizes& kernel,
                     const Sizes& stride, const Sizes& padding, const Sizes& dilation,
                     int64_t groups) {
  const int64_t dims = static_cast<int64_t>(kernel.size());
  SIGEO_CHECK(dims >= 1 && dims <= 3, op, ": kernel must have 1 to 3 dimensions, got ", dims);
  for (const auto& [name, values] : {std::pair("stride", &stride), std::pair("padding", &padding),
                                     std::pair("dilation", &dilation)}) {
    SIGEO_CHECK(static_cast<int64_t>(values->size()) == dims, op, ": ", name, " must have ", dims,
                " entries, got ", values->size());
  }
  for (const auto& [name, tensor] : {std::pair("x", &x), std::pair("d", &d)}) {
    SIGEO_CHECK(tensor->dim() == dims + 2, op, ": ", name, " must be [samples, ", dims,
                " sizes, channels], got ", sizes_text(*tensor));
  }
  Sizes in(dims), out(dims);
  for (int64_t a = 0; a < dims; ++a) {
    in[a] = x.size(a + 1);
    out[a] = d.size(a + 1);
    SIGEO_CHECK(stride[a] > 0 && dilation[a] > 0 && padding[a] >= 0 && kernel[a] > 0, op,
                ": kernel, stride and dilation must be positive, padding at least 0");
    const int64_t room = in[a] + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1;
    SIGEO_CHECK(room >= 0, op, ": kernel must fit into the padded size ", in[a] + 2 * padding[a],
                " of dimension ", a + 1, ", got ", dilation[a] * (kernel[a] - 1) + 1);
    const int64_t expected = room / stride[a] + 1;
    SIGEO_CHECK(out[a] == expected, op, ": d must have size ", expected, " in dimension ", a + 1,
                ", got ", out[a]);
  }
  int64_t places = 1;  // of the larger of the two images, padding counted
  for (int64_t a = 0; a < dims; ++a) {
    places *= std::max(in[a] + 2 * padding[a], out[a]);
    SIGEO_CHECK(places <= kMostPlaces, op, ": a sample must have at most ", kMostPlaces,
                " positions, padding counted, got more");
  }
  const int64_t inputs = x.size(dims + 1), outputs = d.size(dims + 1);
  SIGEO_CHECK(groups > 0 && inputs % groups == 0 && outputs % groups == 0, op,
              ": groups must divide the channels ", inputs, " and ", outputs, ", got ", groups);
  return {x.size(0),
          inputs,
          outputs,
          groups,
          to_three(in, 1),
          to_three(out, 1),
          to_three(kernel, 1),
          to_three(stride, 1),
          to_three(padding, 0),
          to_three(dilation, 1),
          steps_of(op, "x", x),
          steps_of(op, "d", d)};
}

void check_entries(const char* op, const Tensor& rows, const std::optional<Tensor>& units,
                   const Tensor& gradients, int64_t count, int64_t entries) {
  SIGEO_CHECK(gradients.dim() == 2 && rows.dim() == 1 && rows.size(0) == gradients.size(0), op,
              ": rows must be [entries] and gradients [entries, width], got ", sizes_text(rows),
              " and ", sizes_text(gradients));
  check_values(op, "gradients", gradients);
  const auto check_indices = [&](const char* name, const Tensor& indices, int64_t limit) {
    SIGEO_CHECK(indices.scalar_type() == ScalarType::Long && indices.is_contiguous() &&
                    indices.dim() == 1 && indices.size(0) == rows.size(0),
                op, ": ", name, " must be contiguous int64 [entries]");
    const auto* values = static_cast<const int64_t*>(indices.data_ptr());
    for (int64_t n = 0; n < indices.size(0); ++n) {
      SIGEO_CHECK(values[n] >= 0 && values[n] < limit, op, ": ", name, "[", n,
                  "] must be from 0 to ", limit - 1, ", got ", values[n]);
    }
  };
  check_indices("rows", rows, std::numeric_limits<int64_t>::max());
  if (units.has_value()) check_indices("units", *units, count);
  else
    SIGEO_CHECK(entries > 0 && rows.size(0) <= count * entries, op,
                ": entries must be the number of entries of a unit, got ", entries);
}

Entries entries_of(const Tensor& rows, const std::optional<Tensor>& units, int64_t entries,
                   int64_t skipped) {
  return {static_cast<const int64_t*>(rows.data_ptr()),
          units.has_value() ? static_cast<const int64_t*>(units->data_ptr()) : nullptr,
          rows.size(0), entries, skipped};
}

}  // namespace sigeo_ext::sample_moments
