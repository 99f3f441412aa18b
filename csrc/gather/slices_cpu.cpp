#include "gather/slices.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "gather/packing.h"

namespace sigeo_ext::gather {
namespace {

// Values of one unit of work; a row of a tile that is larger is a unit of its own.
constexpr int64_t kUnit = 16384;

// Bands of rows worth a thread.
template <class Body>
void for_bands(int64_t rows, int64_t values_a_row, const Parallel& parallel, const Body& body) {
  const int64_t band = std::max<int64_t>(1, kUnit / std::max<int64_t>(1, values_a_row));
  parallel((rows + band - 1) / band,
           [&](int64_t from, int64_t to) { body(from * band, std::min(to * band, rows)); });
}

// The unsigned integer of a value's width, by which values are moved.
template <class Run>
void with_width(int64_t width, const Run& run) {
  switch (width) {
    case 2: return run(uint16_t{});
    case 4: return run(uint32_t{});
    default: return run(uint64_t{});
  }
}

// Rows from which looking through the list once more pays.
constexpr int64_t kFewRows = 4;

// For so many rows of a matrix, where it can be used.
template <class Byte>
std::optional<Packing> packing_of(const Matrix<Byte>& matrix, const Places& columns, int64_t rows) {
  if (columns.list == nullptr || matrix.column_stride != 1 || rows < kFewRows) return {};
  Packing packing(columns, matrix.width);
  if (!packing.usable()) return {};
  return packing;
}

template <class V>
const std::byte* bytes_of(const V* values) {
  return reinterpret_cast<const std::byte*>(values);
}
template <class V>
std::byte* bytes_of(V* values) {
  return reinterpret_cast<std::byte*>(values);
}

template <class V>
void read_row(const V* row, int64_t stride, const Places& columns, V* into) {
  const int64_t count = columns.count;
  if (columns.list == nullptr && stride == 1) {
    std::copy_n(row + columns.begin, count, into);
  } else if (columns.list == nullptr) {
    const V* first = row + columns.begin * stride;
    for (int64_t c = 0; c < count; ++c) into[c] = first[c * stride];
  } else {
    const int64_t* list = columns.list;
    for (int64_t c = 0; c < count; ++c) into[c] = row[list[c] * stride];
  }
}

template <class V>
void write_row(const V* from, int64_t stride, const Places& columns, V* row) {
  const int64_t count = columns.count;
  if (columns.list == nullptr && stride == 1) {
    std::copy_n(from, count, row + columns.begin);
  } else if (columns.list == nullptr) {
    V* first = row + columns.begin * stride;
    for (int64_t c = 0; c < count; ++c) first[c * stride] = from[c];
  } else {
    const int64_t* list = columns.list;
    for (int64_t c = 0; c < count; ++c) row[list[c] * stride] = from[c];
  }
}

}  // namespace

void read_tile(const Matrix<const std::byte>& matrix, const Places& rows, const Places& columns,
               const Matrix<std::byte>& tile, const Parallel& parallel) {
  if (const auto packing = packing_of(matrix, columns, rows.count)) {
    const int64_t from = matrix.row_stride * matrix.width, into = tile.row_stride * tile.width;
    for_bands(rows.count, columns.count, parallel, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const int64_t next = std::min(r + 1, end - 1);
        packing->pack(matrix.data + rows[r] * from, matrix.data + rows[next] * from,
                      tile.data + r * into);
      }
    });
    return;
  }
  with_width(matrix.width, [&]<class V>(V) {
    const V* from = reinterpret_cast<const V*>(matrix.data);
    V* into = reinterpret_cast<V*>(tile.data);
    for_bands(rows.count, columns.count, parallel, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        read_row(from + rows[r] * matrix.row_stride, matrix.column_stride, columns,
                 into + r * tile.row_stride);
      }
    });
  });
}

void write_tile(const Matrix<const std::byte>& tile, const Places& rows, const Places& columns,
                const Matrix<std::byte>& matrix, Rest rest, const Parallel& parallel) {
  const bool clears = rest == Rest::kZero && columns.list != nullptr;
  const auto packing = packing_of(matrix, columns, rows.count);
  with_width(matrix.width, [&]<class V>(V) {
    const V* from = reinterpret_cast<const V*>(tile.data);
    V* into = reinterpret_cast<V*>(matrix.data);
    for_bands(rows.count, columns.count, parallel, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const V* values = from + r * tile.row_stride;
        V* row = into + rows[r] * matrix.row_stride;
        if (clears) std::memset(row, 0, matrix.columns * sizeof(V));
        if (!packing.has_value()) {
          write_row(values, matrix.column_stride, columns, row);
        } else if (clears) {
          packing->unpack_over_zeros(bytes_of(values), bytes_of(row));
        } else {
          packing->unpack(bytes_of(values), bytes_of(row));
        }
      }
    });
  });
}

void clear_rest(const Matrix<std::byte>& matrix, const Places& rows, const Places& columns,
                const Parallel& parallel) {
  std::vector<char> selected(matrix.rows, 0);
  for (int64_t r = 0; r < rows.count; ++r) selected[rows[r]] = 1;
  const int64_t pitch = matrix.row_stride * matrix.width;
  for_bands(matrix.rows, matrix.columns, parallel, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      std::byte* row = matrix.data + r * pitch;
      if (selected[r] && columns.list != nullptr) continue;
      if (!selected[r]) {
        std::memset(row, 0, matrix.columns * matrix.width);
        continue;
      }
      const int64_t after = columns.begin + columns.count;
      std::memset(row, 0, columns.begin * matrix.width);
      std::memset(row + after * matrix.width, 0, (matrix.columns - after) * matrix.width);
    }
  });
}

void read_rows(const Matrix<const std::byte>& table, std::span<const int64_t> tokens,
               const Places& columns, const Matrix<std::byte>& into, const Parallel& parallel) {
  const Places rows{0, static_cast<int64_t>(tokens.size()), tokens.data()};
  read_tile(table, rows, columns, into, parallel);
}

template <class T>
void add_rows(const T* gradients, std::span<const int64_t> tokens, const Places& columns,
              int64_t skipped, const Matrix<std::byte>& into, const Parallel& parallel) {
  // A thread owns a range of rows and reads all tokens, so a row's sum has one order.
  constexpr int64_t kRanges = 16;
  const int64_t count = columns.count, values = static_cast<int64_t>(tokens.size()) * count;
  const int64_t ranges = values < kRanges * kUnit ? 1 : kRanges;
  const int64_t size = (into.rows + ranges - 1) / ranges, column_stride = into.column_stride;
  const auto packing = packing_of(into, columns, static_cast<int64_t>(tokens.size()));
  T* const table = reinterpret_cast<T*>(into.data);
  parallel(ranges, [&](int64_t from, int64_t to) {
    for (size_t t = 0; t < tokens.size(); ++t) {
      const int64_t token = tokens[t];
      if (token == skipped || token < from * size || token >= to * size) continue;
      const T* gradient = gradients + t * count;
      T* row = table + token * into.row_stride;
      if (packing.has_value()) {
        const int64_t next = tokens[std::min(t + 1, tokens.size() - 1)];
        packing->add(gradient, table + next * into.row_stride, row);
      } else if (columns.list == nullptr && column_stride == 1) {
        T* first = row + columns.begin;
        for (int64_t c = 0; c < count; ++c) first[c] += gradient[c];
      } else {
        for (int64_t c = 0; c < count; ++c) row[columns[c] * column_stride] += gradient[c];
      }
    }
  });
}

template void add_rows(const float*, std::span<const int64_t>, const Places&, int64_t,
                       const Matrix<std::byte>&, const Parallel&);
template void add_rows(const double*, std::span<const int64_t>, const Places&, int64_t,
                       const Matrix<std::byte>&, const Parallel&);

}  // namespace sigeo_ext::gather
