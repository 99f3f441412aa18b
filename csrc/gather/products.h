// The library's matrix products, written into memory that is there; every argument may be a strided
// view.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>

#include "common/tensor.h"

namespace sigeo_ext::gather {

inline Tensor transposed(const Tensor& x) { return torch::stable::transpose(x, 0, 1); }

// `count` rows, or columns, from `begin` on.
inline Tensor part(const Tensor& x, int64_t dim, int64_t begin, int64_t count) {
  if (begin == 0 && count == x.size(dim)) return x;
  Tensor view = x;
  return torch::stable::narrow(view, dim, begin, count);
}

// into = a b
inline void product(const Tensor& into, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(into.get(), a.get(), b.get()));
}

// into = start + a b; `start` may be `into`.
inline void product(const Tensor& into, const Tensor& start, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_addmm_out(into.get(), start.get(), a.get(), b.get(), 1.0, 1.0));
}

}  // namespace sigeo_ext::gather
