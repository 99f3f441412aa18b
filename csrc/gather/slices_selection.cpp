#include "gather/slices_selection.h"

#include <string>

#include "common/check.h"

namespace sigeo_ext::gather {

using torch::headeronly::ScalarType;

Selection::Selection(const char* op, const char* name, const Sizes& window,
                     const std::optional<Tensor>& index, int64_t size)
    : size_(size) {
  if (!index.has_value()) {
    const bool fits =
        window.size() == 2 && window[0] >= 0 && window[1] >= 0 && window[0] <= size - window[1];
    SIGEO_CHECK(fits, op, ": ", name, " must be a window of ", size, " places");
    places_ = {window[0], window[1]};
    return;
  }
  SIGEO_CHECK(index->dim() == 1 && index->scalar_type() == ScalarType::Long, op, ": ", name,
              " must be int64 [n], got ", torch::headeronly::toString(index->scalar_type()), " ",
              sizes_text(*index));
  if (index->numel() == 0) {  // a window of nothing: an empty tensor has no pointer to a list
    places_ = {0, 0};
    return;
  }
  list_ = torch::stable::contiguous(*index);
  places_ = {0, list_->numel(), static_cast<const int64_t*>(list_->data_ptr())};
  std::vector<char> seen(size, 0);
  int64_t repeats = 0;
  for (int64_t i = 0; i < places_.count; ++i) {
    const int64_t place = places_.list[i];
    SIGEO_CHECK(place >= 0 && place < size, op, ": ", name, " must be from 0 to ", size - 1,
                ", got ", place);
    repeats += seen[place];
    seen[place] = 1;
  }
  SIGEO_CHECK(repeats == 0, op, ": ", name, " must be without repeats, got ", repeats, " repeats");
}

Tensor Selection::window_of(const Tensor& x, int64_t dim) const {
  if (whole()) return x;
  Tensor view = x;
  return torch::stable::narrow(view, dim, places_.begin, places_.count);
}

Tensor Selection::columns_of(const Tensor& x) const {
  if (!listed()) return window_of(x, 1);
  Tensor copy = torch::stable::new_empty(x, Sizes{x.size(0), count()});
  read_tile(const_matrix_of(x), {0, x.size(0)}, places_, matrix_of(copy), torch_parallel);
  return copy;
}

Matrix<std::byte> matrix_of(const Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.data_ptr()),
          tensor.size(0),
          tensor.size(1),
          tensor.stride(0),
          tensor.stride(1),
          static_cast<int64_t>(tensor.element_size())};
}

Matrix<const std::byte> const_matrix_of(const Tensor& tensor) {
  const auto m = matrix_of(tensor);
  return {m.data, m.rows, m.columns, m.row_stride, m.column_stride, m.width};
}

Tensor as_rows(const Tensor& x) {
  if (x.dim() == 2) return x;
  int64_t rows = 1;
  for (int64_t d = 0; d < x.dim() - 1; ++d) rows *= x.size(d);
  return torch::stable::reshape(x, Sizes{rows, x.size(x.dim() - 1)});
}

Sizes with_last(const Tensor& x, int64_t last) {
  Sizes sizes = sizes_of(x);
  sizes.back() = last;
  return sizes;
}

void check_dtypes(const char* op, const Tensor& x, const Tensor& weight) {
  const auto dtype = x.scalar_type();
  const bool known = dtype == ScalarType::Float || dtype == ScalarType::Double ||
                     dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
  SIGEO_CHECK(known, op, ": x must be float32, float64, bfloat16 or float16, got ",
              torch::headeronly::toString(dtype));
  SIGEO_CHECK(dtype == weight.scalar_type(), op, ": x and the weight must be of one dtype, got ",
              torch::headeronly::toString(dtype), " and ",
              torch::headeronly::toString(weight.scalar_type()));
}

void check_bias(const char* op, const Tensor& bias, const Tensor& weight) {
  const bool fits = bias.dim() == 1 && bias.numel() == weight.size(0) &&
                    bias.scalar_type() == weight.scalar_type();
  SIGEO_CHECK(fits, op, ": bias must be [", weight.size(0), "] of the weight's dtype, got ",
              torch::headeronly::toString(bias.scalar_type()), " ", sizes_text(bias));
}

void check_width(const char* op, const char* name, const Tensor& x, const Selection& selection,
                 bool masked) {
  const int64_t width = masked ? selection.size() : selection.count();
  SIGEO_CHECK(x.dim() > 0 && x.size(x.dim() - 1) == width, op, ": ", name, " must have ",
              masked ? "all " : "the selected ", width, " values in dimension -1, got ",
              x.dim() > 0 ? std::to_string(x.size(x.dim() - 1)) : "none");
}

Tensor cleared(const Tensor& like, const Selection& rows, const Selection& columns) {
  Tensor whole = torch::stable::empty_like(like);
  auto matrix = matrix_of(whole);
  if (rest_of(whole) == Rest::kZero) {
    clear_rest(matrix, rows.places(), columns.places(), torch_parallel);
    return whole;
  }
  std::swap(matrix.rows, matrix.columns);
  std::swap(matrix.row_stride, matrix.column_stride);
  const bool listed = rows.listed() || columns.listed();
  const Places nothing{0, 0};
  clear_rest(matrix, listed ? nothing : columns.places(), listed ? nothing : rows.places(),
             torch_parallel);
  return whole;
}

Rest rest_of(const Tensor& whole) {
  return whole.stride(1) == 1 || whole.size(1) <= 1 ? Rest::kZero : Rest::kKept;
}

void clear(const Tensor& x, const Places& rows, const Places& columns) {
  auto matrix = matrix_of(x);
  matrix.data +=
      (rows.begin * matrix.row_stride + columns.begin * matrix.column_stride) * matrix.width;
  matrix.rows = rows.count;
  matrix.columns = columns.count;
  if (matrix.column_stride != 1) {
    std::swap(matrix.rows, matrix.columns);
    std::swap(matrix.row_stride, matrix.column_stride);
  }
  clear_rest(matrix, {0, 0}, {0, 0}, serial);
}

void clear_columns(const Tensor& x, const Selection& columns) {
  if (columns.whole()) return;
  clear_rest(matrix_of(x), {0, x.size(0)}, columns.places(), torch_parallel);
}

}  // namespace sigeo_ext::gather
