// What a core needs to run where an op's tensors are: `Cpu` and `Cuda` fill the template parameter
// `Device` of the op functions.
#pragma once

#include "common/parallel.h"
#include "common/tensor.h"

#if defined(SIGEO_WITH_CUDA)
#include <functional>
#include <utility>

#include <torch/csrc/stable/accelerator.h>

#include "common/queue.h"
#include "common/stream.h"
#endif

namespace sigeo_ext {

class Cpu {
 public:
  static constexpr bool kHostMemory = true;  // the host reads what tensors hold

  explicit Cpu(const Lists&) {}
  explicit Cpu(const Tensor&) {}
  Parallel place() const { return torch_parallel; }
  // For work in pieces that are each worth a thread.
  Parallel place_each() const { return torch_parallel_each; }
};

#if defined(SIGEO_WITH_CUDA)
class Cuda {
 public:
  static constexpr bool kHostMemory = false;

  explicit Cuda(const Lists& lists)
      : Cuda(lists.device_index(), [&lists](int64_t numel) { return lists.new_float64({numel}); }) {
  }
  explicit Cuda(const Tensor& like)
      : Cuda(like.get_device_index(), [like](int64_t numel) {
          return torch::stable::new_empty(like, std::vector<int64_t>{numel},
                                          torch::headeronly::ScalarType::Double);
        }) {}

  Queue place() {
    const auto workspace = [this](int64_t numel) {
      workspaces_.push_back(new_float64_(numel));
      return static_cast<double*>(workspaces_.back().data_ptr());
    };
    return {current_stream(device_index_), workspace};
  }
  Queue place_each() { return place(); }

 private:
  Cuda(int32_t device_index, std::function<Tensor(int64_t)> new_float64)
      : device_index_(device_index), guard_(device_index), new_float64_(std::move(new_float64)) {}

  int32_t device_index_;
  torch::stable::accelerator::DeviceGuard guard_;
  std::function<Tensor(int64_t)> new_float64_;
  Tensors workspaces_;
};
#endif

}  // namespace sigeo_ext
