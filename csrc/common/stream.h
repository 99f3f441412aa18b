// The current CUDA stream, through a function that only a CUDA build of torch has. Declared weak,
// so that one library with CPU and CUDA kernels also loads beside a CPU-only torch.
#pragma once

#include <cstdint>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "common/check.h"

extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);

namespace sigeo_ext {

inline void* current_stream(int32_t device_index) {
  SIGEO_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
              "sigeo_ext: CUDA tensors need a torch built with CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream));
  return stream;
}

}  // namespace sigeo_ext
