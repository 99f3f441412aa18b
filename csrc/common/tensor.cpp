#include "common/tensor.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <utility>

#include "common/check.h"

namespace sigeo_ext {
namespace {

using torch::headeronly::ScalarType;

bool same_sizes(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != b.size(d)) return false;
  }
  return true;
}

// Equal order in memory; the stride of a dimension of size one does not matter.
bool same_order(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

// Whether the values fill one run of memory, in whatever order of dimensions.
bool is_dense(const Tensor& tensor) {
  if (tensor.numel() < 2) return true;
  std::vector<std::pair<int64_t, int64_t>> dims;  // (stride, size)
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) != 1) dims.emplace_back(tensor.stride(d), tensor.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t run = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != run) return false;
    run *= size;
  }
  return true;
}

}  // namespace

Sizes sizes_of(const Tensor& tensor) { return {tensor.sizes().begin(), tensor.sizes().end()}; }

std::string sizes_text(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    text += (d == 0 ? "" : ", ") + std::to_string(tensor.size(d));
  }
  return text + "]";
}

std::string form_text(const Tensor& tensor) {
  return std::string(torch::headeronly::toString(tensor.scalar_type())) + " " + sizes_text(tensor);
}

Tensor reordered(const Tensor& tensor, const Tensor& like) {
  std::array<StableIValue, 7> stack{
      torch::stable::detail::from(tensor),         torch::stable::detail::from(like.sizes()),
      torch::stable::detail::from(like.strides()), torch::stable::detail::from(std::nullopt),
      torch::stable::detail::from(std::nullopt),   torch::stable::detail::from(std::nullopt),
      torch::stable::detail::from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::new_empty_strided", "", stack.data(), TORCH_ABI_VERSION));
  Tensor copy = torch::stable::detail::to<Tensor>(stack[0]);
  torch::stable::copy_(copy, tensor);
  return copy;
}

std::string Lists::text(const Place& place) const {
  return std::string(op_) + ": " + place.name + "[" + std::to_string(place.index) + "]";
}

void Lists::check_length(const char* name, size_t length) {
  if (!counted_) layers_.resize(length);
  counted_ = true;
  SIGEO_CHECK(length == layers_.size(), op_, ": ", name, " must hold one tensor a layer, ",
              layers_.size(), ", got ", length);
}

void Lists::check_like(const Place& place, const Tensor& tensor, const Tensor& like) const {
  SIGEO_CHECK(same_sizes(tensor, like), text(place), " must have its layer's shape ",
              sizes_text(like), ", got ", sizes_text(tensor));
}

Array Lists::array(const Place& place, const Tensor& tensor, size_t layer) {
  DType dtype;
  switch (tensor.scalar_type()) {
    case ScalarType::Float: dtype = DType::kFloat32; break;
    case ScalarType::Double: dtype = DType::kFloat64; break;
    case ScalarType::BFloat16: dtype = DType::kBFloat16; break;
    case ScalarType::Half: dtype = DType::kFloat16; break;
    default:
      SIGEO_CHECK(false, text(place), " must be float32, float64, bfloat16 or float16, got ",
                  torch::headeronly::toString(tensor.scalar_type()));
  }
  if (!first_.has_value()) first_ = tensor;
  SIGEO_CHECK(tensor.is_cpu() == first_->is_cpu() &&
                  tensor.get_device_index() == first_->get_device_index(),
              text(place), " must be on the device of the other tensors");
  Tensor values = tensor;
  if (layers_[layer].has_value()) {
    check_like(place, tensor, *layers_[layer]);
    if (!same_order(tensor, *layers_[layer])) values = reordered(tensor, *layers_[layer]);
  } else {
    if (!is_dense(tensor)) values = torch::stable::contiguous(tensor);
    layers_[layer] = values;
  }
  if (values.get() != tensor.get()) copies_.push_back(values);
  return {values.data_ptr(), dtype, values.numel()};
}

std::vector<Array> Lists::state(const char* name, const Tensors& tensors) {
  check_length(name, tensors.size());
  std::vector<Array> arrays;
  arrays.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Place place{name, i};
    const Tensor& tensor = tensors[i];
    const ScalarType dtype = tensor.scalar_type();
    SIGEO_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, text(place),
                " must be float32 or float64, got ", torch::headeronly::toString(dtype));
    if (!state_dtype_.has_value()) state_dtype_ = dtype;
    SIGEO_CHECK(dtype == *state_dtype_, text(place), " must be ",
                torch::headeronly::toString(*state_dtype_), " like the rest of the state, got ",
                torch::headeronly::toString(dtype));
    SIGEO_CHECK(is_dense(tensor), text(place),
                " must fill one run of memory; a view into a larger tensor cannot be a state");
    const size_t copies = copies_.size();
    arrays.push_back(array(place, tensor, i));
    SIGEO_CHECK(copies_.size() == copies, text(place),
                " must have the memory order (strides) of the other tensors of its layer");
  }
  return arrays;
}

std::vector<Array> Lists::inputs(const char* name, const Tensors& tensors) {
  return inputs(name, OptionalTensors(tensors.begin(), tensors.end()));
}

std::vector<Array> Lists::inputs(const char* name, const OptionalTensors& tensors) {
  check_length(name, tensors.size());
  return rows(name, tensors);
}

std::vector<Array> Lists::rows(const char* name, const OptionalTensors& tensors) {
  const size_t layers = layers_.size();
  // Shapes first: an absent tensor needs the numel that another row of its layer gives.
  std::vector<Array> arrays(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].has_value()) arrays[i] = array({name, i}, *tensors[i], i % layers);
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].has_value()) continue;
    const auto& layer = layers_[i % layers];
    arrays[i] = {nullptr, DType::kFloat32, layer.has_value() ? layer->numel() : 0};
  }
  return arrays;
}

Tensor Lists::new_float64(std::initializer_list<int64_t> sizes) const {
  const Sizes shape(sizes);
  if (first_.has_value()) return torch::stable::new_empty(*first_, shape, ScalarType::Double);
  return torch::stable::empty(shape, ScalarType::Double);
}

int32_t Lists::device_index() const { return first_.has_value() ? first_->get_device_index() : -1; }

void torch_parallel(int64_t n, const Range& body) {
  torch::stable::parallel_for(0, n, kGrainChunks, body);
}

void torch_parallel_each(int64_t n, const Range& body) {
  torch::stable::parallel_for(0, n, 1, body);
}

void torch_parallel_tasks(int64_t n, const std::function<void(int64_t)>& body) {
  if (n == 0) return;
  std::atomic<int64_t> next{0};
  // At least two, for a parallel region even around one task.
  const int64_t threads =
      std::min<int64_t>(torch::stable::get_num_threads(), std::max<int64_t>(2, n));
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < n; i = next++) body(i);
  });
}

}  // namespace sigeo_ext
