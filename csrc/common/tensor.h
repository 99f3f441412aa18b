// Checks on lists of tensors, and their way into torch-free arrays, through torch's stable ABI.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "common/array.h"
#include "common/parallel.h"

namespace sigeo_ext {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using OptionalTensors = std::vector<std::optional<Tensor>>;
using Sizes = std::vector<int64_t>;

Sizes sizes_of(const Tensor& tensor);

// The sizes as messages have them: "[2, 3]".
std::string sizes_text(const Tensor& tensor);

// The dtype and the sizes: "Float [2, 3]".
std::string form_text(const Tensor& tensor);

// Gathers the arguments of one call. Each list holds one tensor a layer; the first list added sets
// the layers' shapes, memory order and device, and what differs from it is refused or, where only
// the order differs, copied. Messages name the op, the argument and its place in the list.
class Lists {
 public:
  explicit Lists(const char* op) : op_(op) {}

  // Where the number of layers is known before the first list.
  Lists(const char* op, size_t layers) : op_(op), layers_(layers), counted_(true) {}

  // A list that is written: its memory must be one run a layer, in float32 or float64, and one of
  // the two for all such lists.
  std::vector<Array> state(const char* name, const Tensors& tensors);

  // A list that is read, of any of the four dtypes. An absent tensor stands for zeros.
  std::vector<Array> inputs(const char* name, const Tensors& tensors);
  std::vector<Array> inputs(const char* name, const OptionalTensors& tensors);

  // Several lists end to end; the number of layers must be known.
  std::vector<Array> rows(const char* name, const OptionalTensors& tensors);

  // A float64 tensor on the layers' device, for results and workspace.
  Tensor new_float64(std::initializer_list<int64_t> sizes) const;

  int32_t device_index() const;

 private:
  struct Place {
    const char* name;
    size_t index;
  };
  Array array(const Place& place, const Tensor& tensor, size_t layer);
  void check_length(const char* name, size_t length);
  void check_like(const Place& place, const Tensor& tensor, const Tensor& like) const;
  std::string text(const Place& place) const;

  const char* op_;
  OptionalTensors layers_;       // what each layer looks like; absent until a tensor of it was seen
  bool counted_ = false;         // whether the number of layers is known
  std::optional<Tensor> first_;  // the first tensor seen: all must be on its device
  std::optional<torch::headeronly::ScalarType> state_dtype_;
  Tensors copies_;  // keeps copies alive until the call ends
};

// A copy of `tensor` in the memory order of `like`, which must be dense.
Tensor reordered(const Tensor& tensor, const Tensor& like);

// at::parallel_for over chunks of elements, for the torch-free cores.
void torch_parallel(int64_t n, const Range& body);

// The same over pieces that are each worth a thread.
void torch_parallel_each(int64_t n, const Range& body);

// Calls body(i) for each i of [0, n), in any order, threads taking the next one when they are done
// with theirs. Where there are several threads, the library's products inside run on one: it then
// gives the same bits for any number of them, and there is no other way to have it so. (A single
// thread outside of a parallel region may take another way through products of few rows.)
void torch_parallel_tasks(int64_t n, const std::function<void(int64_t)>& body);

}  // namespace sigeo_ext
