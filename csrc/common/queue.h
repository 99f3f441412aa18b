// Where GPU work goes. Free of torch and of CUDA headers.
#pragma once

#include <cstdint>
#include <functional>

namespace sigeo_ext {

struct Queue {
  void* stream;                               // a cudaStream_t
  std::function<double*(int64_t)> workspace;  // device memory that lives until the call ends
};

}  // namespace sigeo_ext
