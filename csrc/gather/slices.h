// Rows and columns of a matrix that stays where it is: read into tiles that fit the cache, written
// back from them. Free of torch; values are moved, whatever their type.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/parallel.h"

namespace sigeo_ext::gather {

// A matrix of values of `width` bytes; strides in values.
template <class Byte>
struct Matrix {
  Byte* data;
  int64_t rows;
  int64_t columns;
  int64_t row_stride;
  int64_t column_stride;
  int64_t width;
};

// What is selected along a dimension: `count` places from `begin`, or those of a list.
struct Places {
  int64_t begin;
  int64_t count;
  const int64_t* list = nullptr;

  int64_t operator[](int64_t i) const { return list == nullptr ? begin + i : list[i]; }

  // The selected places number `from` to `from + length`.
  Places part(int64_t from, int64_t length) const {
    return {begin + from, length, list == nullptr ? nullptr : list + from};
  }
};

// tile [rows.count, columns.count], its columns side by side: the selected values.
void read_tile(const Matrix<const std::byte>& matrix, const Places& rows, const Places& columns,
               const Matrix<std::byte>& tile, const Parallel& parallel);

// What becomes of the other columns of rows that listed columns are written to.
enum class Rest { kKept, kZero };

// The selected values, from a tile. With kZero columns must lie side by side.
void write_tile(const Matrix<const std::byte>& tile, const Places& rows, const Places& columns,
                const Matrix<std::byte>& matrix, Rest rest, const Parallel& parallel);

// Zeros in rows that are not selected and beside a window of columns; beside listed ones they are
// left to write_tile. Columns must lie side by side.
void clear_rest(const Matrix<std::byte>& matrix, const Places& rows, const Places& columns,
                const Parallel& parallel);

// The selected columns of the rows that tokens name: into [tokens, columns.count]. Tokens must be
// rows of the table.
void read_rows(const Matrix<const std::byte>& table, std::span<const int64_t> tokens,
               const Places& columns, const Matrix<std::byte>& into, const Parallel& parallel);

// into[token] += gradients [tokens, columns.count] in the selected columns, each row in the order
// of its tokens, whatever the number of threads; nothing for the token `skipped`.
template <class T>
void add_rows(const T* gradients, std::span<const int64_t> tokens, const Places& columns,
              int64_t skipped, const Matrix<std::byte>& into, const Parallel& parallel);

}  // namespace sigeo_ext::gather
