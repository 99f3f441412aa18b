// Listed columns of rows, packed side by side and back, several at a time where the processor can.
// Free of torch; values are moved, whatever their type.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "gather/slices.h"

namespace sigeo_ext::gather {

// For rows of values that lie side by side and a list that ascends, as a list of kept channels
// does: a few instructions move the selected ones among eight words of 32 bits.
class Packing {
 public:
  // `columns` of rows of values of `width` bytes. The list is without repeats and must outlive
  // this.
  Packing(const Places& columns, int64_t width);

  // Whether it can be used: the list ascends, values are whole words, and the processor has AVX2.
  bool usable() const { return usable_; }

  // The selected values of `row`. Here and below `next` is the row that comes next, or any other.
  void pack(const std::byte* row, const std::byte* next, std::byte* into) const;

  // Back into a row of which the rest stays as it is.
  void unpack(const std::byte* from, std::byte* row) const;

  // Back into a row of zeros, of which less is read.
  void unpack_over_zeros(const std::byte* from, std::byte* row) const;

  // Adds to a row of float or of double.
  void add(const float* from, const float* next, float* row) const;
  void add(const double* from, const double* next, double* row) const;

 private:
  // Eight words of a row of which some are selected: which one comes to each place of the packed
  // row, and which packed one belongs to each place of the row, with the top bit set where none
  // does. Eight bytes each.
  struct Step {
    int32_t row;
    int32_t packed;
    uint64_t to_packed;
    uint64_t to_row;
  };

  Places columns_;
  int64_t width_;
  bool usable_ = false;
  std::vector<Step> steps_;
  int64_t rest_ = 0;  // of the list: behind the last step, where eight words would reach too far
};

}  // namespace sigeo_ext::gather
