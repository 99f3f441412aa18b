// Convolutions on a part of a super-weight. The library's convolution takes windows as
// strided views and packs weights itself; lists are read into one dense kernel for it.
#include <algorithm>
#include <array>
#include <tuple>
#include <vector>

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/MemoryFormat.h>

#include "common/check.h"
#include "common/tensor.h"
#include "gather/slices_selection.h"

namespace sigeo_ext {
namespace {

using gather::Places;
using gather::Selection;
using torch::headeronly::MemoryFormat;
using OptionalTensor = std::optional<Tensor>;

// Channels innermost in memory, and not by a coincidence of sizes alone.
bool channels_last(const Tensor& x) {
  if (x.dim() < 4 || x.is_contiguous()) return false;
  int64_t run = x.size(1);
  if (x.size(1) != 1 && x.stride(1) != 1) return false;
  for (int64_t d = x.dim() - 1; d > 1; --d) {
    if (x.size(d) != 1 && x.stride(d) != run) return false;
    run *= x.size(d);
  }
  return x.size(0) == 1 || x.stride(0) == run;
}

Tensor with_format(const Tensor& y, bool last) {
  if (!last) return torch::stable::contiguous(y);
  const auto format = y.dim() == 5 ? MemoryFormat::ChannelsLast3d : MemoryFormat::ChannelsLast;
  return torch::stable::contiguous(y, format);
}

Tensor narrowed(const Tensor& x, int64_t dim, int64_t begin, int64_t count) {
  if (begin == 0 && count == x.size(dim)) return x;
  Tensor view = x;
  return torch::stable::narrow(view, dim, begin, count);
}

// Channels that are selected.
Tensor channels_of(const Tensor& x, const Selection& selection, const OptionalTensor& index) {
  if (!selection.listed()) return selection.window_of(x, 1);
  std::array<StableIValue, 3> stack{torch::stable::detail::from(x),
                                    torch::stable::detail::from(int64_t{1}),
                                    torch::stable::detail::from(*index)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::index_select", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// All channels, zeros where none was selected.
Tensor spread(const Tensor& part, const Selection& selection, const OptionalTensor& index) {
  if (selection.whole()) return part;
  if (!selection.listed()) {
    Sizes padding(2 * (part.dim() - 2), 0);
    const Places& places = selection.places();
    padding.push_back(places.begin);
    padding.push_back(selection.size() - places.begin - places.count);
    return torch::stable::pad(part, padding);
  }
  Sizes sizes = sizes_of(part);
  sizes[1] = selection.size();
  std::array<StableIValue, 4> stack{
      torch::stable::detail::from(torch::stable::new_zeros(part, sizes)),
      torch::stable::detail::from(int64_t{1}), torch::stable::detail::from(*index),
      torch::stable::detail::from(part)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::index_copy", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// A super-kernel [outputs, inputs / groups, *kernel], or its gradient, and its selected part.
class Kernel {
 public:
  Kernel(const Tensor& weight, const Selection& rows, const Selection* columns, const Sizes& kernel)
      : weight_(weight), rows_(rows) {
    inputs_ = columns == nullptr ? Places{0, weight.size(1)} : columns->places();
    size_ = kernel;
    last_ = channels_last(weight);
    if (rows.listed() || (columns != nullptr && columns->listed())) offsets_ = offsets();
  }

  bool listed() const { return offsets_.has_value(); }

  Sizes sizes() const {
    Sizes sizes{rows_.count(), inputs_.count};
    sizes.insert(sizes.end(), size_.begin(), size_.end());
    return sizes;
  }

  // Where nothing is listed.
  Tensor view() const {
    Tensor part = narrowed(rows_.window_of(weight_, 0), 1, inputs_.begin, inputs_.count);
    for (size_t d = 0; d < size_.size(); ++d) {
      const int64_t dim = static_cast<int64_t>(d) + 2;
      part = narrowed(part, dim, (weight_.size(dim) - size_[d]) / 2, size_[d]);
    }
    return part;
  }

  // A view, or a dense copy of what is listed.
  Tensor part() const {
    if (!listed()) return view();
    const Tensor copy = torch::stable::new_empty(weight_, sizes());
    gather::read_tile(const_values(), rows_.places(), columns(), tile(copy), torch_parallel);
    return last_ ? as_channels_last(copy) : copy;
  }

  void write(const Tensor& part) const {
    if (!listed()) {
      Tensor target = view();
      torch::stable::copy_(target, part);
      return;
    }
    const Tensor dense = with_format(part, last_);
    const auto from = tile(dense);
    gather::write_tile({from.data, from.rows, from.columns, from.row_stride, 1, from.width},
                       rows_.places(), columns(), values(), gather::Rest::kKept, torch_parallel);
  }

 private:
  // The same memory, its channels innermost.
  static Tensor as_channels_last(const Tensor& dense) {
    const Sizes sizes = sizes_of(dense);
    Sizes strides(sizes.size(), 1);
    int64_t run = sizes[1];
    for (size_t d = sizes.size() - 1; d > 1; run *= sizes[d--]) strides[d] = run;
    strides[0] = run;
    AtenTensorHandle view = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(
        dense.get(), static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0, &view));
    return Tensor(view);
  }

  // Places in a row of the memory of the selected inputs and taps, in the order of a dense kernel
  // in the weight's memory format: where the lists ascend, so do these.
  std::vector<int64_t> offsets() const {
    std::vector<int64_t> taps{0};
    for (size_t d = 0; d < size_.size(); ++d) {
      const int64_t dim = static_cast<int64_t>(d) + 2, first = (weight_.size(dim) - size_[d]) / 2;
      std::vector<int64_t> next;
      for (const int64_t tap : taps) {
        for (int64_t k = 0; k < size_[d]; ++k) {
          next.push_back(tap + (first + k) * weight_.stride(dim));
        }
      }
      taps = std::move(next);
    }
    std::vector<int64_t> all;
    all.reserve(inputs_.count * taps.size());
    const int64_t step = weight_.stride(1);
    if (last_) {
      for (const int64_t tap : taps) {
        for (int64_t i = 0; i < inputs_.count; ++i) all.push_back(inputs_[i] * step + tap);
      }
    } else {
      for (int64_t i = 0; i < inputs_.count; ++i) {
        for (const int64_t tap : taps) all.push_back(inputs_[i] * step + tap);
      }
    }
    return all;
  }

  Places columns() const { return {0, static_cast<int64_t>(offsets_->size()), offsets_->data()}; }

  gather::Matrix<std::byte> values() const {
    const int64_t row = weight_.size(0) == 0 ? 0 : weight_.numel() / weight_.size(0);
    return {static_cast<std::byte*>(weight_.data_ptr()), weight_.size(0), row, weight_.stride(0), 1,
            static_cast<int64_t>(weight_.element_size())};
  }

  gather::Matrix<const std::byte> const_values() const {
    const auto m = values();
    return {m.data, m.rows, m.columns, m.row_stride, m.column_stride, m.width};
  }

  gather::Matrix<std::byte> tile(const Tensor& dense) const {
    const int64_t row = static_cast<int64_t>(offsets_->size());
    return {static_cast<std::byte*>(dense.data_ptr()), rows_.count(), row, row, 1,
            static_cast<int64_t>(dense.element_size())};
  }

  const Tensor& weight_;
  const Selection& rows_;
  Places inputs_;
  Sizes size_;
  bool last_;
  std::optional<std::vector<int64_t>> offsets_;
};

struct Geometry {
  Sizes stride, padding, dilation;
  int64_t groups;
};

// The arguments that all three ops share, checked.
struct Call {
  Call(const char* op, const Tensor& x, const Tensor& weight, const Sizes& outputs,
       const Sizes& inputs, const OptionalTensor& output_index, const OptionalTensor& input_index,
       const Sizes& kernel, int64_t groups, bool masked)
      : rows(op, "outputs", outputs, output_index, size(op, x, weight, 0)),
        columns(op, "inputs", inputs, input_index, weight.size(1) * groups),
        kernel(weight, rows, groups == 1 ? &columns : nullptr, kernel),
        selected(groups == 1 ? 1 : columns.count() / std::max<int64_t>(1, weight.size(1))) {
    gather::check_dtypes(op, x, weight);
    check_channels(op, "x", x, columns, masked);
    bool fits = static_cast<int64_t>(kernel.size()) == weight.dim() - 2;
    for (size_t d = 0; fits && d < kernel.size(); ++d) {
      fits = kernel[d] > 0 && kernel[d] <= weight.size(static_cast<int64_t>(d) + 2);
    }
    SIGEO_CHECK(fits, op, ": kernel must be one size a dimension, at most the super-weight's");
  }

  static int64_t size(const char* op, const Tensor& x, const Tensor& weight, int64_t dim) {
    SIGEO_CHECK(x.dim() == weight.dim() && x.dim() >= 3 && x.dim() <= 5, op,
                ": x must be [B, inputs, *size] and weight [outputs, inputs / groups, "
                "*kernel], got x ",
                sizes_text(x), ", weight ", sizes_text(weight));
    return weight.size(dim);
  }

  static void check_channels(const char* op, const char* name, const Tensor& x,
                             const Selection& selection, bool masked) {
    const int64_t width = masked ? selection.size() : selection.count();
    SIGEO_CHECK(x.dim() > 1 && x.size(1) == width, op, ": ", name, " must have ",
                masked ? "all " : "the selected ", width, " values in dimension 1, got ",
                x.dim() > 1 ? std::to_string(x.size(1)) : "none");
  }

  Selection rows, columns;
  Kernel kernel;
  int64_t selected;  // groups
};

void check_geometry(const char* op, const Tensor& weight, const Sizes& stride, const Sizes& padding,
                    const Sizes& dilation) {
  const size_t dims = weight.dim() > 2 ? static_cast<size_t>(weight.dim() - 2) : 0;
  const auto all = [&](const Sizes& sizes, int64_t least) {
    return sizes.size() == dims &&
           std::all_of(sizes.begin(), sizes.end(), [&](int64_t size) { return size >= least; });
  };
  SIGEO_CHECK(all(stride, 1) && all(padding, 0) && all(dilation, 1), op,
              ": stride and dilation must be ", dims, " numbers of at least 1, padding ", dims,
              " of at least 0");
}

Tensor convolution(Tensor x, Tensor weight, OptionalTensor bias, Sizes outputs, Sizes inputs,
                   OptionalTensor output_index, OptionalTensor input_index, Sizes kernel,
                   Sizes stride, Sizes padding, Sizes dilation, int64_t groups, bool masked, bool) {
  const Call call("gather_slice_convolution", x, weight, outputs, inputs, output_index, input_index,
                  kernel, groups, masked);
  check_geometry("gather_slice_convolution", weight, stride, padding, dilation);
  const bool last = channels_last(x) || channels_last(weight);
  const Tensor from = masked ? channels_of(x, call.columns, input_index) : x;
  OptionalTensor shift;
  if (bias.has_value()) {
    gather::check_bias("gather_slice_convolution", *bias, weight);
    const Tensor row = torch::stable::reshape(*bias, Sizes{1, bias->numel()});
    shift = torch::stable::reshape(call.rows.columns_of(row), Sizes{call.rows.count()});
  }
  const Tensor part = call.kernel.part();
  Tensor y = from;
  if (part.numel() == 0) {  // which the library refuses
    Sizes sizes{x.size(0), call.rows.count()}, ones{1, call.rows.count()};
    for (size_t d = 0; d < kernel.size(); ++d) {
      const int64_t size = x.size(static_cast<int64_t>(d) + 2);
      const int64_t reach = size + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1;
      SIGEO_CHECK(reach >= 0, "gather_slice_convolution: the kernel must fit into x, got ",
                  kernel[d], " for ", size);
      sizes.push_back(reach / stride[d] + 1);
      ones.push_back(1);
    }
    y = torch::stable::new_zeros(x, sizes);
    if (shift.has_value()) torch::stable::copy_(y, torch::stable::reshape(*shift, ones));
  } else {
    const Sizes none(stride.size(), 0);
    AtenTensorHandle shift_handle = shift.has_value() ? shift->get() : nullptr, result;
    const auto dims = static_cast<int64_t>(stride.size());
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_convolution(
        from.get(), part.get(), shift.has_value() ? &shift_handle : nullptr, stride.data(), dims,
        padding.data(), dims, dilation.data(), dims, 0, none.data(), dims, call.selected, &result));
    y = Tensor(result);
  }
  if (masked) y = spread(y, call.rows, output_index);
  return with_format(y, last);
}

// Gradients of the input and of the selected part of the weight, as far as needed.
std::array<Tensor, 2> gradients(const Tensor& d, const Tensor& x, const Tensor& part,
                                const Geometry& geometry, bool into_x, bool into_part) {
  const Sizes none(geometry.stride.size(), 0);
  const auto dims = static_cast<int64_t>(none.size());
  const std::array<int32_t, 3> mask{into_x, into_part, 0};
  AtenTensorHandle first, second, third;
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_convolution_backward(
      d.get(), x.get(), part.get(), nullptr, 0, geometry.stride.data(), dims,
      geometry.padding.data(), dims, geometry.dilation.data(), dims, 0, none.data(), dims,
      geometry.groups, mask.data(), 3, &first, &second, &third));
  (void)Tensor(third);
  return {Tensor(first), Tensor(second)};
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    Tensor d, Tensor x, Tensor weight, Sizes outputs, Sizes inputs, OptionalTensor output_index,
    OptionalTensor input_index, Sizes kernel, Sizes stride, Sizes padding, Sizes dilation,
    int64_t groups, bool masked, std::vector<bool> need) {
  const char* op = "gather_slice_convolution_backward";
  const Call call(op, x, weight, outputs, inputs, output_index, input_index, kernel, groups,
                  masked);
  check_geometry(op, weight, stride, padding, dilation);
  Call::check_channels(op, "d", d, call.rows, masked);
  SIGEO_CHECK(need.size() == 3, op, ": need must be 3 flags, got ", need.size());
  const bool last = channels_last(x) || channels_last(weight);
  const Tensor from = masked ? channels_of(d, call.rows, output_index) : d;
  const Tensor values = masked ? channels_of(x, call.columns, input_index) : x;
  const auto nothing = [&] { return torch::stable::new_empty(x, Sizes{0}); };
  Tensor into_x = need[0] ? x : nothing();
  Tensor into_weight = need[1] ? x : nothing();
  Tensor into_bias = need[2] ? x : nothing();
  if (need[1]) {
    into_weight = torch::stable::empty_like(weight);
    torch::stable::zero_(into_weight);
  }
  const Sizes sizes = call.kernel.sizes();
  if (std::find(sizes.begin(), sizes.end(), 0) != sizes.end()) {
    if (need[0]) into_x = torch::stable::new_zeros(values, sizes_of(values));
  } else if (need[0] || need[1]) {
    // Of the weight only the shape counts where the input's gradient is not needed.
    const Tensor part = need[0] ? call.kernel.part() : torch::stable::new_empty(weight, sizes);
    const Geometry geometry{stride, padding, dilation, call.selected};
    const auto found = gradients(from, values, part, geometry, need[0], need[1]);
    if (need[0]) into_x = found[0];
    if (need[1]) {
      const Kernel target(into_weight, call.rows, groups == 1 ? &call.columns : nullptr, kernel);
      target.write(found[1]);
    }
  }
  if (need[0]) {
    into_x = with_format(masked ? spread(into_x, call.columns, input_index) : into_x, last);
  }
  if (need[2]) {
    Sizes dims{0};
    for (int64_t dim = 2; dim < d.dim(); ++dim) dims.push_back(dim);
    const Tensor sums = torch::stable::sum(from, dims);
    const Tensor row = torch::stable::reshape(sums, Sizes{1, call.rows.count()});
    into_bias =
        torch::stable::reshape(spread(row, call.rows, output_index), Sizes{call.rows.size()});
  }
  return {into_x, into_weight, into_bias};
}

void convolution_accumulate(Tensor d, Tensor x, Tensor into, Sizes outputs, Sizes inputs,
                            OptionalTensor output_index, OptionalTensor input_index, Sizes kernel,
                            Sizes stride, Sizes padding, Sizes dilation, int64_t groups,
                            bool masked) {
  const char* op = "gather_slice_convolution_accumulate";
  const Call call(op, x, into, outputs, inputs, output_index, input_index, kernel, groups, masked);
  check_geometry(op, into, stride, padding, dilation);
  Call::check_channels(op, "d", d, call.rows, masked);
  const Sizes sizes = call.kernel.sizes();
  if (std::find(sizes.begin(), sizes.end(), 0) != sizes.end()) return;
  const Tensor from = masked ? channels_of(d, call.rows, output_index) : d;
  const Tensor values = masked ? channels_of(x, call.columns, input_index) : x;
  const Geometry geometry{stride, padding, dilation, call.selected};
  const Tensor part = torch::stable::new_empty(into, sizes);
  const Tensor found = gradients(from, values, part, geometry, false, true)[1];
  call.kernel.write(torch::stable::subtract(call.kernel.part(), found, -1.0));
}

}  // namespace
}  // namespace sigeo_ext

STABLE_TORCH_LIBRARY_IMPL(sigeo_ext, CPU, m) {
  m.impl("gather_slice_convolution", TORCH_BOX(&sigeo_ext::convolution));
  m.impl("gather_slice_convolution_backward", TORCH_BOX(&sigeo_ext::convolution_backward));
  m.impl("gather_slice_convolution_accumulate", TORCH_BOX(&sigeo_ext::convolution_accumulate));
}
