// Rows of a super-table, cut to a part of its columns.
#include <array>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/check.h"
#include "common/tensor.h"
#include "gather/slices_selection.h"

namespace sigeo_ext {
namespace {

using gather::Selection;
using torch::headeronly::ScalarType;
using OptionalTensor = std::optional<Tensor>;

// Tokens as a list, all of them rows of the table.
class Tokens {
 public:
  Tokens(const char* op, const Tensor& tokens, const Tensor& table) {
    const auto dtype = tokens.scalar_type();
    SIGEO_CHECK(dtype == ScalarType::Long || dtype == ScalarType::Int, op,
                ": tokens must be int64 or int32, got ", torch::headeronly::toString(dtype));
    SIGEO_CHECK(table.dim() == 2, op, ": weight must be [rows, columns], got ", sizes_text(table));
    gather::check_dtypes(op, table, table);
    kept_ = torch::stable::contiguous(
        dtype == ScalarType::Long ? tokens : torch::stable::to(tokens, ScalarType::Long));
    kept_ = torch::stable::reshape(*kept_, Sizes{kept_->numel()});
    for (const int64_t token : list()) {
      SIGEO_CHECK(token >= 0 && token < table.size(0), op, ": tokens must be from 0 to ",
                  table.size(0) - 1, ", got ", token);
    }
  }

  std::span<const int64_t> list() const {
    return {static_cast<const int64_t*>(kept_->data_ptr()), static_cast<size_t>(kept_->numel())};
  }
  const Tensor& tensor() const { return *kept_; }

 private:
  std::optional<Tensor> kept_;
};

Tensor embedding(Tensor tokens, Tensor weight, Sizes columns, OptionalTensor column_index, int64_t,
                 bool) {
  const char* op = "gather_slice_embedding";
  const Tokens rows(op, tokens, weight);
  const Selection selection(op, "columns", columns, column_index, weight.size(1));
  Sizes sizes = sizes_of(tokens);
  sizes.push_back(selection.count());
  const Tensor y = torch::stable::new_empty(weight, sizes);
  const auto count = static_cast<int64_t>(rows.list().size());
  const Tensor flat = torch::stable::reshape(y, Sizes{count, selection.count()});
  gather::read_rows(gather::const_matrix_of(weight), rows.list(), selection.places(),
                    gather::matrix_of(flat), torch_parallel);
  return y;
}

// The gradient of the selected columns of the table, by the library.
Tensor dense(const Tensor& d, const Tokens& tokens, int64_t rows, int64_t padding) {
  std::array<StableIValue, 5> stack{
      torch::stable::detail::from(d), torch::stable::detail::from(tokens.tensor()),
      torch::stable::detail::from(rows), torch::stable::detail::from(padding),
      torch::stable::detail::from(false)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::embedding_dense_backward", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Adds the gradients of rows to `into`. In half precision the library adds up, in its own order.
void add(const char* op, const Tensor& d, const Tokens& tokens, const Selection& columns,
         int64_t padding, const Tensor& into) {
  gather::check_width(op, "d", d, columns, false);
  gather::check_dtypes(op, d, into);
  const Tensor gradients = torch::stable::contiguous(d);
  const auto count = static_cast<int64_t>(tokens.list().size());
  SIGEO_CHECK(d.numel() == count * columns.count(), op, ": d must be rows of ", count,
              " tokens, got ", sizes_text(d));
  const auto run = [&]<class T>(T) {
    gather::add_rows<T>(static_cast<const T*>(gradients.data_ptr()), tokens.list(),
                        columns.places(), padding, gather::matrix_of(into), torch_parallel_each);
  };
  if (into.scalar_type() == ScalarType::Double) return run(double{});
  if (into.scalar_type() == ScalarType::Float) return run(float{});
  const Tensor part = dense(torch::stable::reshape(gradients, Sizes{count, columns.count()}),
                            tokens, into.size(0), padding);
  // The sum lies as the table does, in whatever order; of a tile the columns lie side by side.
  const Tensor sum =
      torch::stable::contiguous(torch::stable::subtract(columns.columns_of(into), part, -1.0));
  gather::write_tile(gather::const_matrix_of(sum), {0, into.size(0)}, columns.places(),
                     gather::matrix_of(into), gather::Rest::kKept, torch_parallel);
}

Tensor embedding_backward(Tensor d, Tensor tokens, Tensor weight, Sizes columns,
                          OptionalTensor column_index, int64_t padding) {
  const char* op = "gather_slice_embedding_backward";
  const Tokens rows(op, tokens, weight);
  const Selection selection(op, "columns", columns, column_index, weight.size(1));
  const Selection none(op, "columns", Sizes{0, 0}, std::nullopt, 0);
  const Tensor into = gather::cleared(weight, none, none);
  add(op, d, rows, selection, padding, into);
  return into;
}

void embedding_accumulate(Tensor d, Tensor tokens, Tensor into, Sizes columns,
                          OptionalTensor column_index, int64_t padding) {
  const char* op = "gather_slice_embedding_accumulate";
  const Tokens rows(op, tokens, into);
  const Selection selection(op, "columns", columns, column_index, into.size(1));
  add(op, d, rows, selection, padding, into);
}

}  // namespace
}  // namespace sigeo_ext

STABLE_TORCH_LIBRARY_IMPL(sigeo_ext, CPU, m) {
  m.impl("gather_slice_embedding", TORCH_BOX(&sigeo_ext::embedding));
  m.impl("gather_slice_embedding_backward", TORCH_BOX(&sigeo_ext::embedding_backward));
  m.impl("gather_slice_embedding_accumulate", TORCH_BOX(&sigeo_ext::embedding_accumulate));
}
