// What the slice ops share: the selection along a tensor's dimension, checked, and tensors as the
// matrices of the core.
#pragma once

#include <optional>

#include "common/tensor.h"
#include "gather/slices.h"

namespace sigeo_ext::gather {

// A window, or a list of different places, of `size` places.
class Selection {
 public:
  Selection(const char* op, const char* name, const Sizes& window,
            const std::optional<Tensor>& index, int64_t size);

  int64_t count() const { return places_.count; }
  int64_t size() const { return size_; }
  bool whole() const { return !listed() && places_.count == size_; }
  bool listed() const { return list_.has_value(); }
  const Places& places() const { return places_; }

  // The selected columns of x [rows, size]: a view for a window, a copy for a list.
  Tensor columns_of(const Tensor& x) const;

  // A view for a window.
  Tensor window_of(const Tensor& x, int64_t dim) const;

 private:
  int64_t size_;
  Places places_;
  std::optional<Tensor> list_;  // keeps the places alive
};

Matrix<std::byte> matrix_of(const Tensor& tensor);
Matrix<const std::byte> const_matrix_of(const Tensor& tensor);

// x [..., n] as [rows, n]; a view where that can be.
Tensor as_rows(const Tensor& x);

// The sizes of x, its last one replaced.
Sizes with_last(const Tensor& x, int64_t last);

// One of the four floating types, and the same for both.
void check_dtypes(const char* op, const Tensor& x, const Tensor& weight);

// One value an output, of the weight's dtype.
void check_bias(const char* op, const Tensor& bias, const Tensor& weight);

// The width of a mode: all places of the last dimension, or the selected ones.
void check_width(const char* op, const char* name, const Tensor& x, const Selection& selection,
                 bool masked);

// Zeros in the form of `like` but for the selected part, which is left to be written, listed
// columns with rest_of.
Tensor cleared(const Tensor& like, const Selection& rows, const Selection& columns);
Rest rest_of(const Tensor& cleared);

// Clears a window of rows and columns of a matrix.
void clear(const Tensor& x, const Places& rows, const Places& columns);

// Clears the columns of x [rows, n] beside a window.
void clear_columns(const Tensor& x, const Selection& columns);

}  // namespace sigeo_ext::gather
