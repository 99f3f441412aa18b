// What a core needs to run where an op's tensors are: `Cpu` and `Cuda` fill the template parameter
// `Device` of the op functions.
#pragma once

#include "common/parallel.h"
#include "common/tensor.h"

#if defined(SIGEO_WITH_CUDA)
#include <torch/csrc/stable/accelerator.h>

#include "common/queue.h"
#include "common/stream.h"
#endif

namespace sigeo_ext {

class Cpu {
 public:
  explicit Cpu(const Lists&) {}
  Parallel place() const { return torch_parallel; }
};

#if defined(SIGEO_WITH_CUDA)
class Cuda {
 public:
  explicit Cuda(const Lists& lists) : lists_(lists), guard_(lists.device_index()) {}

  Queue place() {
    const auto workspace = [this](int64_t numel) {
      workspaces_.push_back(lists_.new_float64({numel}));
      return static_cast<double*>(workspaces_.back().data_ptr());
    };
    return {current_stream(lists_.device_index()), workspace};
  }

 private:
  const Lists& lists_;
  torch::stable::accelerator::DeviceGuard guard_;
  Tensors workspaces_;
};
#endif

}  // namespace sigeo_ext
