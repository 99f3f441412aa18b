// Linear layers on a part of a super-weight. Windows go as strided views into the
// library's products; lists are read tile by tile into a workspace that fits the cache.
#include <algorithm>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/check.h"
#include "common/tensor.h"
#include "gather/products.h"
#include "gather/slices_selection.h"

namespace sigeo_ext {
namespace {

using gather::as_rows;
using gather::product;
using gather::Rest;
using gather::Selection;
using gather::transposed;
using OptionalTensor = std::optional<Tensor>;

// Of a tile: about a second-level cache. Smaller ones make the library pack the other factor anew
// too often.
constexpr int64_t kTileBytes = 1024 * 1024;

// A layer's weight, or its gradient, with the selected rows and columns.
class Part {
 public:
  Part(const Tensor& weight, const Selection& rows, const Selection& columns)
      : weight_(weight), rows_(rows), columns_(columns) {}

  bool listed() const { return rows_.listed() || columns_.listed(); }

  // Where nothing is listed.
  Tensor view() const { return columns_.window_of(rows_.window_of(weight_, 0), 1); }

  // Calls body(first row, tile [rows, columns.count]) for tiles that cover the selected rows.
  template <class Body>
  void for_tiles(const Body& body) const {
    const int64_t row = columns_.count() * static_cast<int64_t>(weight_.element_size());
    const int64_t most = std::max<int64_t>(16, kTileBytes / std::max<int64_t>(1, row) / 16 * 16);
    const int64_t size = std::min(most, rows_.count());
    if (size == 0) return;
    const Tensor workspace = torch::stable::new_empty(weight_, Sizes{size, columns_.count()});
    for (int64_t begin = 0; begin < rows_.count(); begin += size) {
      const int64_t count = std::min(size, rows_.count() - begin);
      Tensor tile = workspace;
      body(begin, torch::stable::narrow(tile, 0, 0, count));
    }
  }

  void read(int64_t begin, const Tensor& tile) const {
    gather::read_tile(gather::const_matrix_of(weight_), rows_.places().part(begin, tile.size(0)),
                      columns_.places(), gather::matrix_of(tile), torch_parallel);
  }

  void write(int64_t begin, const Tensor& tile, Rest rest) const {
    gather::write_tile(gather::const_matrix_of(tile), rows_.places().part(begin, tile.size(0)),
                       columns_.places(), gather::matrix_of(weight_), rest, torch_parallel);
  }

 private:
  const Tensor& weight_;
  const Selection& rows_;
  const Selection& columns_;
};

// The selected entries of a vector, or zeros but for them.
Tensor vector_of(const Tensor& vector, const Selection& selection) {
  if (!selection.listed()) return selection.window_of(vector, 0);
  const Tensor row = torch::stable::reshape(vector, Sizes{1, vector.numel()});
  return torch::stable::reshape(selection.columns_of(row), Sizes{selection.count()});
}

// Columns [rows, n] written into x where they are listed, zeros beside them.
void spread(const Tensor& part, const Tensor& x, const Selection& selection) {
  gather::write_tile(gather::const_matrix_of(part), {0, x.size(0)}, selection.places(),
                     gather::matrix_of(x), Rest::kZero, torch_parallel);
}

void check(const char* op, const Tensor& x, const Tensor& weight) {
  SIGEO_CHECK(weight.dim() == 2, op, ": weight must be [outputs, inputs], got ",
              sizes_text(weight));
  gather::check_dtypes(op, x, weight);
}

// y [rows, outputs.count], a view of what is returned or a workspace.
void forward(const Part& part, const Tensor& x, const OptionalTensor& bias, const Tensor& y) {
  const auto run = [&](const Tensor& into, int64_t begin, const Tensor& weight) {
    if (!bias.has_value()) return product(into, x, transposed(weight));
    Tensor shift = *bias;
    shift = torch::stable::narrow(shift, 0, begin, weight.size(0));
    product(into, shift, x, transposed(weight));
  };
  if (!part.listed()) return run(y, 0, part.view());
  part.for_tiles([&](int64_t begin, const Tensor& tile) {
    part.read(begin, tile);
    run(gather::part(y, 1, begin, tile.size(0)), begin, tile);
  });
}

Tensor linear(Tensor x, Tensor weight, OptionalTensor bias, Sizes outputs, Sizes inputs,
              OptionalTensor output_index, OptionalTensor input_index, bool masked, bool) {
  const char* op = "gather_slice_linear";
  check(op, x, weight);
  const Selection rows(op, "outputs", outputs, output_index, weight.size(0));
  const Selection cols(op, "inputs", inputs, input_index, weight.size(1));
  gather::check_width(op, "x", x, cols, masked);
  if (bias.has_value()) {
    gather::check_bias(op, *bias, weight);
    bias = vector_of(*bias, rows);
  }
  Tensor from = as_rows(x);
  if (masked) from = cols.columns_of(from);
  const Part part(weight, rows, cols);
  const Tensor y =
      torch::stable::new_empty(x, gather::with_last(x, masked ? rows.size() : rows.count()));
  const Tensor into = as_rows(y);
  if (!masked || rows.whole()) {
    forward(part, from, bias, into);
  } else if (!rows.listed()) {
    forward(part, from, bias, rows.window_of(into, 1));
    gather::clear_columns(into, rows);
  } else {
    const Tensor selected = torch::stable::new_empty(x, Sizes{from.size(0), rows.count()});
    forward(part, from, bias, selected);
    spread(selected, into, rows);
  }
  return y;
}

// into [rows, inputs.count] = d weight.
void input_gradient(const Part& part, const Tensor& d, const Tensor& into) {
  if (!part.listed() || d.size(1) == 0) {
    return product(
        into, d, part.listed() ? torch::stable::new_empty(d, Sizes{0, into.size(1)}) : part.view());
  }
  part.for_tiles([&](int64_t begin, const Tensor& tile) {
    part.read(begin, tile);
    const Tensor from = gather::part(d, 1, begin, tile.size(0));
    if (begin == 0) {
      product(into, from, tile);
    } else {
      product(into, into, from, tile);
    }
  });
}

// [size]: the sum of the rows of d, zeros where nothing is selected.
Tensor sums_of(const Tensor& d, const Selection& selection) {
  const Sizes first{0};
  if (selection.whole()) return torch::stable::sum(d, first);
  Tensor sums = torch::stable::new_zeros(d, Sizes{selection.size()});
  if (selection.listed()) {
    spread(torch::stable::reshape(torch::stable::sum(d, first), Sizes{1, selection.count()}),
           torch::stable::reshape(sums, Sizes{1, selection.size()}), selection);
  } else {
    Tensor window = selection.window_of(sums, 0);
    torch::stable::sum_out(window, d, first);
  }
  return sums;
}

std::tuple<Tensor, Tensor, Tensor> linear_backward(Tensor d, Tensor x, Tensor weight, Sizes outputs,
                                                   Sizes inputs, OptionalTensor output_index,
                                                   OptionalTensor input_index, bool masked,
                                                   std::vector<bool> need) {
  const char* op = "gather_slice_linear_backward";
  check(op, x, weight);
  const Selection rows(op, "outputs", outputs, output_index, weight.size(0));
  const Selection cols(op, "inputs", inputs, input_index, weight.size(1));
  gather::check_width(op, "x", x, cols, masked);
  gather::check_width(op, "d", d, rows, masked);
  SIGEO_CHECK(need.size() == 3, op, ": need must be 3 flags, got ", need.size());
  Tensor from = as_rows(d);
  if (masked) from = rows.columns_of(from);
  const auto nothing = [&] { return torch::stable::new_empty(x, Sizes{0}); };
  Tensor into_x = need[0] ? x : nothing();
  Tensor into_weight = need[1] ? x : nothing();
  Tensor into_bias = need[2] ? x : nothing();
  if (need[0]) {
    into_x = torch::stable::new_empty(x, sizes_of(x));
    const Tensor into = as_rows(into_x);
    const Part part(weight, rows, cols);
    if (!masked || cols.whole()) {
      input_gradient(part, from, into);
    } else if (!cols.listed()) {
      input_gradient(part, from, cols.window_of(into, 1));
      gather::clear_columns(into, cols);
    } else {
      const Tensor selected = torch::stable::new_empty(x, Sizes{from.size(0), cols.count()});
      input_gradient(part, from, selected);
      spread(selected, into, cols);
    }
  }
  if (need[1]) {
    const Tensor values = masked ? cols.columns_of(as_rows(x)) : as_rows(x);
    into_weight = gather::cleared(weight, rows, cols);
    const Part part(into_weight, rows, cols);
    if (part.listed()) {
      part.for_tiles([&](int64_t begin, const Tensor& tile) {
        product(tile, transposed(gather::part(from, 1, begin, tile.size(0))), values);
        part.write(begin, tile, gather::rest_of(into_weight));
      });
    } else {
      product(part.view(), transposed(from), values);
    }
  }
  if (need[2]) {
    into_bias = sums_of(from, rows);
  }
  return {into_x, into_weight, into_bias};
}

void linear_accumulate(Tensor d, Tensor x, Tensor into, Sizes outputs, Sizes inputs,
                       OptionalTensor output_index, OptionalTensor input_index, bool masked) {
  const char* op = "gather_slice_linear_accumulate";
  check(op, x, into);
  const Selection rows(op, "outputs", outputs, output_index, into.size(0));
  const Selection cols(op, "inputs", inputs, input_index, into.size(1));
  gather::check_width(op, "x", x, cols, masked);
  gather::check_width(op, "d", d, rows, masked);
  const Tensor from = masked ? rows.columns_of(as_rows(d)) : as_rows(d);
  const Tensor values = masked ? cols.columns_of(as_rows(x)) : as_rows(x);
  const Part part(into, rows, cols);
  if (!part.listed()) {
    return product(part.view(), part.view(), transposed(from), values);
  }
  part.for_tiles([&](int64_t begin, const Tensor& tile) {
    part.read(begin, tile);
    product(tile, tile, transposed(gather::part(from, 1, begin, tile.size(0))), values);
    part.write(begin, tile, Rest::kKept);
  });
}

}  // namespace
}  // namespace sigeo_ext

STABLE_TORCH_LIBRARY_IMPL(sigeo_ext, CPU, m) {
  m.impl("gather_slice_linear", TORCH_BOX(&sigeo_ext::linear));
  m.impl("gather_slice_linear_backward", TORCH_BOX(&sigeo_ext::linear_backward));
  m.impl("gather_slice_linear_accumulate", TORCH_BOX(&sigeo_ext::linear_accumulate));
}
