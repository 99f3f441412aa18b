// The library's matrix products, written into memory that is there; every argument may be a strided
// view.
#pragma once

#include <algorithm>
#include <utility>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>

#include "common/tensor.h"
#include "gather/slices.h"

namespace sigeo_ext::gather {

inline Tensor transposed(const Tensor& x) { return torch::stable::transpose(x, 0, 1); }

// `count` rows, or columns, from `begin` on.
inline Tensor part(const Tensor& x, int64_t dim, int64_t begin, int64_t count) {
  Tensor view = x;
  return torch::stable::narrow(view, dim, begin, count);
}

// Rows and columns of a matrix, turned or not, without a call through the dispatcher: in ops that
// make several views for each small product it would cost more than the product.
inline Tensor block(const Tensor& x, const Places& rows, const Places& columns,
                    bool turned = false) {
  int64_t sizes[] = {rows.count, columns.count}, strides[] = {x.stride(0), x.stride(1)};
  const int64_t offset = rows.begin * strides[0] + columns.begin * strides[1];
  if (turned) {
    std::swap(sizes[0], sizes[1]);
    std::swap(strides[0], strides[1]);
  }
  AtenTensorHandle view = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(x.get(), 2, sizes, strides, offset, &view));
  return Tensor(view);
}

// Memory for a result of such sizes, of the dtype of `like`, without the dispatcher as well.
inline Tensor room_for(const Tensor& like, const Sizes& sizes) {
  Sizes strides(sizes.size());
  int64_t run = 1;
  for (size_t d = sizes.size(); d-- > 0; run *= std::max<int64_t>(1, sizes[d])) strides[d] = run;
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  AtenTensorHandle room = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                  strides.data(), dtype,
                                                  aoti_torch_device_type_cpu(), 0, &room));
  return Tensor(room);
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
