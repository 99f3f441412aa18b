// The gather core alone: no torch, no Python.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "check.h"
#include "gather/gather.h"
#include "gather/grouped.h"
#include "gather/grouped_moments.h"
#include "gather/packing.h"
#include "gather/pooling.h"
#include "gather/slices.h"

using namespace sigeo_ext;          // NOLINT: a test
using namespace sigeo_ext::gather;  // NOLINT

namespace {

template <class T>
void copies_come_back_as_gradients(const Shape& shape) {
  constexpr int64_t kBlocks = 3;
  const auto x = random_values<T>(kBlocks * shape.size(), 1);
  const std::vector<int64_t> first{2, 0, 2}, second{1};
  std::vector<T> rectified(3 * shape.size()), plain(shape.size());
  const Strided<const T> blocks{x.data(), shape.size()};
  const std::vector<Copies<T>> copies{{first, rectified.data(), true},
                                      {second, plain.data(), false}};
  dispatch<T>(blocks, shape, copies, many_threads);
  const std::vector<Copies<const T>> gradients{{first, rectified.data(), true},
                                               {second, plain.data(), false}};
  std::vector<T> into(x.size()), serially(x.size());
  dispatch_backward<T>(blocks, kBlocks, shape, gradients, into.data(), many_threads);
  dispatch_backward<T>(blocks, kBlocks, shape, gradients, serially.data(), serial);
  CHECK(into == serially);
  for (int64_t i = 0; i < shape.size(); ++i) {
    const T *zero = &x[0], *one = &x[shape.size()], *two = &x[2 * shape.size()];
    CHECK(rectified[i] == (two[i] > 0 ? two[i] : T{0}));
    CHECK(into[i] == (zero[i] > 0 ? zero[i] : T{0}));
    CHECK(into[shape.size() + i] == one[i]);
    CHECK(into[2 * shape.size() + i] == (two[i] > 0 ? 2 * two[i] : T{0}));
  }
}

// One normed term of two blocks and a plain one, against long double.
template <class T>
void sums_are_normalised(const Shape& shape) {
  const double tolerance = sizeof(T) == sizeof(float) ? 2e-5 : 1e-12;
  const auto x = random_values<T>(2 * shape.size(), 2), other = random_values<T>(shape.size(), 3);
  const auto weight = random_values<T>(2 * shape.channels, 4);
  const auto bias = random_values<T>(2 * shape.channels, 5);
  std::vector<T> mean(weight.size()), rstd(weight.size()), y(3 * shape.size());
  const std::vector<int64_t> target{2, 1}, alone{2};
  const Strided<const T> rows{weight.data(), shape.channels}, shifts{bias.data(), shape.channels};
  const std::vector<Term<T>> terms{
      {{x.data(), shape.size()}, target, rows, shifts, mean.data(), rstd.data()},
      {{other.data(), shape.size()}, alone, {}, {}, nullptr, nullptr}};
  combine<T>(terms, 3, shape, 1e-5, y.data(), many_threads);
  std::vector<T> d = random_values<T>(y.size(), 6);
  std::vector<T> into_x(x.size()), into_weight(weight.size()), into_bias(bias.size());
  const std::vector<TermGradients<T>> into{{into_x.data(), into_weight.data(), into_bias.data()}};
  combine_backward<T>(d.data(), std::span(terms).first(1), into, shape, many_threads);
  for (int64_t i = 0; i < shape.size(); ++i) CHECK(y[i] == T{0});
  for (int64_t block = 0; block < 2; ++block) {
    for (int64_t c = 0; c < shape.channels; ++c) {
      long double sum = 0, squares = 0, inner = 0, shift = 0;
      const auto at = [&](int64_t p) { return p * shape.channels + c; };
      const T* values = &x[block * shape.size()];
      const T* gradient = &d[target[block] * shape.size()];
      for (int64_t p = 0; p < shape.positions; ++p) sum += values[at(p)];
      const long double average = sum / shape.positions;
      for (int64_t p = 0; p < shape.positions; ++p) {
        squares += (values[at(p)] - average) * (values[at(p)] - average);
      }
      const long double scale = 1 / std::sqrt(squares / shape.positions + 1e-5L);
      for (int64_t p = 0; p < shape.positions; ++p) {
        shift += gradient[at(p)];
        inner += gradient[at(p)] * (values[at(p)] - average) * scale;
      }
      const int64_t row = block * shape.channels + c;
      CHECK(near(mean[row], static_cast<double>(average), tolerance));
      CHECK(near(rstd[row], static_cast<double>(scale), tolerance));
      CHECK(near(into_bias[row], static_cast<double>(shift), 50 * tolerance));
      CHECK(near(into_weight[row], static_cast<double>(inner), 50 * tolerance));
      for (int64_t p = 0; p < shape.positions; ++p) {
        long double expected = (values[at(p)] - average) * scale * weight[row] + bias[row];
        if (target[block] == 2) expected += other[at(p)];
        CHECK(std::fabs(y[target[block] * shape.size() + at(p)] - static_cast<double>(expected)) <
              50 * tolerance);
        const long double xhat = (values[at(p)] - average) * scale;
        const long double wanted =
            weight[row] * scale *
            (gradient[at(p)] - shift / shape.positions - xhat * inner / shape.positions);
        CHECK(std::fabs(into_x[block * shape.size() + at(p)] - static_cast<double>(wanted)) <
              200 * tolerance);
      }
    }
  }
}

// Selected values of a matrix with gaps between its rows, and between its columns or not, read into
// a tile and back.
template <class T, int64_t kColumnStride>
void tiles_hold_the_selected_values(const Places& rows, const Places& columns) {
  constexpr int64_t kRows = 90, kColumns = 70;
  constexpr int64_t kRowStride = kColumns * kColumnStride + 3;
  const std::vector<T> values = random_values<T>(kRows * kRowStride, 7);
  const auto bytes = [](auto* data) { return reinterpret_cast<std::byte*>(data); };
  std::vector<T> source = values, tile(rows.count * columns.count);
  const Matrix<std::byte> matrix{bytes(source.data()), kRows,         kColumns,
                                 kRowStride,           kColumnStride, sizeof(T)};
  const Matrix<std::byte> part{bytes(tile.data()), rows.count, columns.count,
                               columns.count,      1,          sizeof(T)};
  const auto readable = [](const Matrix<std::byte>& m) {
    return Matrix<const std::byte>{m.data,       m.rows,          m.columns,
                                   m.row_stride, m.column_stride, m.width};
  };
  read_tile(readable(matrix), rows, columns, part, many_threads);
  for (int64_t r = 0; r < rows.count; ++r) {
    for (int64_t c = 0; c < columns.count; ++c) {
      const int64_t at = rows[r] * kRowStride + columns[c] * kColumnStride;
      CHECK(tile[r * columns.count + c] == values[at]);
    }
  }
  std::fill(source.begin(), source.end(), T{9});
  write_tile(readable(part), rows, columns, matrix, Rest::kKept, many_threads);
  std::vector<T> expected(values.size(), T{9});
  for (int64_t r = 0; r < rows.count; ++r) {
    for (int64_t c = 0; c < columns.count; ++c) {
      const int64_t at = rows[r] * kRowStride + columns[c] * kColumnStride;
      expected[at] = values[at];
    }
  }
  CHECK(source == expected);
}

// What clear_rest leaves and what write_tile then writes cover a matrix once.
template <class T>
void the_rest_is_cleared(const Places& rows, const Places& columns) {
  constexpr int64_t kRows = 90, kColumns = 70;
  std::vector<T> whole(kRows * kColumns, T{9}), ones(rows.count * columns.count, T{1});
  const Matrix<std::byte> matrix{
      reinterpret_cast<std::byte*>(whole.data()), kRows, kColumns, kColumns, 1, sizeof(T)};
  const auto* tile_data = reinterpret_cast<const std::byte*>(ones.data());
  const Matrix<const std::byte> tile{tile_data,     rows.count, columns.count,
                                     columns.count, 1,          sizeof(T)};
  clear_rest(matrix, rows, columns, many_threads);
  write_tile(tile, rows, columns, matrix, Rest::kZero, many_threads);
  std::vector<T> expected(whole.size(), T{0});
  for (int64_t r = 0; r < rows.count; ++r) {
    for (int64_t c = 0; c < columns.count; ++c) expected[rows[r] * kColumns + columns[c]] = T{1};
  }
  CHECK(whole == expected);
}

// Any ascending list of a row of any width: nothing but the row and its packed values is touched,
// and what adds nothing leaves -0 as it is.
template <class T>
void packing_keeps_to_its_row(unsigned seed) {
  std::mt19937 generator(seed);
  const auto size = static_cast<int64_t>(1 + generator() % 100);
  const unsigned share = 1 + generator() % 8;
  std::vector<int64_t> list;
  for (int64_t c = 0; c < size; ++c) {
    if (generator() % 8 < share) list.push_back(c);
  }
  const Places columns{0, static_cast<int64_t>(list.size()), list.data()};
  const Packing packing(columns, sizeof(T));
  if (!packing.usable()) return;
  const auto bytes = [](std::vector<T>& values) {
    return reinterpret_cast<std::byte*>(values.data());
  };
  // Of their exact sizes, so that the sanitizers see what reaches too far.
  std::vector<T> row = random_values<T>(size, seed), packed(list.size()), into(size, T(-0.0));
  packing.pack(bytes(row), bytes(row), bytes(packed));
  std::vector<T> kept(size, T{7}), zero(size, T{0}), expected_kept = kept, expected_zero = zero;
  packing.unpack(bytes(packed), bytes(kept));
  packing.unpack_over_zeros(bytes(packed), bytes(zero));
  packing.add(packed.data(), into.data(), into.data());
  for (size_t i = 0; i < list.size(); ++i) {
    CHECK(packed[i] == row[list[i]]);
    expected_kept[list[i]] = expected_zero[list[i]] = row[list[i]];
  }
  CHECK(kept == expected_kept && zero == expected_zero && into == expected_zero);
  for (int64_t c = 0; c < size; ++c) CHECK(expected_zero[c] != T{0} || std::signbit(into[c]));
}

// Rows that several tokens name, over many threads, in the order of one.
template <class T>
void rows_add_up_in_order(const Places& columns) {
  constexpr int64_t kRows = 90, kColumns = 70, kTokens = 5000;
  std::vector<int64_t> tokens(kTokens);
  for (int64_t t = 0; t < kTokens; ++t) tokens[t] = (t * 37 + t / 90) % kRows;
  const std::vector<T> gradients = random_values<T>(kTokens * columns.count, 8);
  std::vector<T> into(kRows * kColumns, T{1}), expected = into;
  const Matrix<std::byte> matrix{
      reinterpret_cast<std::byte*>(into.data()), kRows, kColumns, kColumns, 1, sizeof(T)};
  add_rows(gradients.data(), tokens, columns, 5, matrix, many_threads);
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t c = 0; c < columns.count && tokens[t] != 5; ++c) {
      expected[tokens[t] * kColumns + columns[c]] += gradients[t * columns.count + c];
    }
  }
  CHECK(into == expected);
}

template <class T>
void all_selections() {
  std::vector<int64_t> rows, columns;
  for (int64_t r = 0; r < 90; r += 3) rows.push_back((r * 7) % 90);
  for (int64_t c = 69; c >= 0; c -= 2) columns.push_back(c);
  std::vector<int64_t> every, some, few;  // that ascend
  for (int64_t c = 0; c < 70; ++c) {
    every.push_back(c);
    if (c % 3 != 1) some.push_back(c);
    if (c % 23 == 5) few.push_back(c);
  }
  const Places listed_rows{0, static_cast<int64_t>(rows.size()), rows.data()};
  const auto listed = [](const std::vector<int64_t>& list) {
    return Places{0, static_cast<int64_t>(list.size()), list.data()};
  };
  for (const Places& r : {Places{0, 90}, Places{11, 40}, Places{3, 0}, listed_rows}) {
    for (const Places& c : {Places{0, 70}, Places{5, 33}, Places{70, 0}, listed(columns),
                            listed(every), listed(some), listed(few)}) {
      tiles_hold_the_selected_values<T, 1>(r, c);
      tiles_hold_the_selected_values<T, 2>(r, c);
      the_rest_is_cleared<T>(r, c);
    }
  }
  for (const Places& c :
       {Places{0, 70}, Places{5, 33}, listed(columns), listed(every), listed(some), listed(few)}) {
    rows_add_up_in_order<T>(c);
  }
}

// Against the definition, window by window; and <pool(x), d> = <x, pool_backward(d)>.
template <class T>
void pooling_is_the_mean_over_pixels(const Images& images) {
  const double tolerance = sizeof(T) == sizeof(float) ? 1e-5 : 1e-13;
  const int64_t size = images.count * images.height * images.width * images.channels;
  const auto x = random_values<T>(size, 7), d = random_values<T>(size, 8);
  std::vector<T> y(size), into(size);
  average_pool<T>(x.data(), images, y.data(), many_threads);
  average_pool_backward<T>(d.data(), images, into.data(), many_threads);
  const auto at = [&](int64_t image, int64_t h, int64_t w, int64_t c) {
    return ((image * images.height + h) * images.width + w) * images.channels + c;
  };
  double left = 0, right = 0;
  for (int64_t i = 0; i < size; ++i) {
    left += static_cast<double>(y[i]) * d[i];
    right += static_cast<double>(x[i]) * into[i];
  }
  CHECK(near(left, right, 100 * tolerance));
  for (int64_t image = 0; image < images.count; ++image) {
    for (int64_t h = 0; h < images.height; ++h) {
      for (int64_t w = 0; w < images.width; ++w) {
        for (int64_t c = 0; c < images.channels; ++c) {
          double sum = 0;
          int pixels = 0;
          for (int64_t i = h - 1; i <= h + 1; ++i) {
            for (int64_t j = w - 1; j <= w + 1; ++j) {
              if (i < 0 || j < 0 || i >= images.height || j >= images.width) continue;
              sum += x[at(image, i, j, c)];
              ++pixels;
            }
          }
          CHECK(near(y[at(image, h, w, c)], sum / pixels, tolerance));
        }
      }
    }
  }
}

template <class T>
void all_shapes() {
  for (const Images& images : {Images{2, 5, 4, 3}, Images{1, 1, 1, 7}, Images{3, 1, 6, 2},
                               Images{1, 7, 1, 5}, Images{2, 2, 2, 17}}) {
    pooling_is_the_mean_over_pixels<T>(images);
  }
  for (const Shape& shape :
       {Shape{2, 1}, Shape{7, 3}, Shape{600, 16}, Shape{331, 7}, Shape{5, 130}, Shape{3, 4099}}) {
    copies_come_back_as_gradients<T>(shape);
    sums_are_normalised<T>(shape);
  }
}

bool within(int64_t place, const Places& places) {
  return place >= places.begin && place < places.begin + places.count;
}

// Every row of every subnet meets exactly its own outputs, once, in one stack of its own inputs.
void stacks_have_each_row_and_output_once(unsigned seed) {
  std::mt19937 generator(seed);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(generator() % n); };
  std::vector<Subnet> subnets(40);
  for (Subnet& subnet : subnets) {
    subnet = {
        below(3) == 0 ? below(300) : below(40), {2 * below(2), 3 * below(5)}, {0, 4 * below(3)}};
  }
  std::vector<int> seen(subnets.size(), 0);
  for (const Stack& stack : stacks_of(subnets)) {
    int64_t row = 0;
    for (const int64_t member : stack.members) {
      const Subnet& subnet = subnets[member];
      ++seen[member];
      CHECK(subnet.inputs.begin == stack.inputs.begin && subnet.inputs.count == stack.inputs.count);
      for (int64_t end = row + subnet.rows; row < end; ++row) {
        for (int64_t output = 0; output < 20; ++output) {
          int bands = 0;
          for (const Band& band : stack.bands)
            bands += row < band.rows && within(output, band.outputs);
          CHECK(bands == within(output, subnet.outputs));
        }
      }
    }
    CHECK(row == stack.rows && (stack.members.size() == 1 || row <= 256));
  }
  for (size_t s = 0; s < subnets.size(); ++s) CHECK(seen[s] == (subnets[s].rows > 0));
}

void pieces_cover_places_once() {
  for (const int64_t count : {0, 1, 15, 16, 17, 511, 512, 513, 1000, 1024, 5000}) {
    int64_t next = 7;
    for (const Places& piece : pieces_of({7, count}, 512)) {
      CHECK(piece.begin == next && piece.count > 0 && piece.count <= 512);
      next += piece.count;
    }
    CHECK(next == 7 + count);
  }
}

// Squared deviations over subnets of which only some use a place.
template <class T>
void deviations_count_subnets_that_do_not_use_a_place() {
  constexpr int64_t kRows = 2, kColumns = 37, kSubnets = 5, kUsing = 3;
  std::vector<T> m2(kRows * kColumns), mean(m2.size()), count(m2.size());
  const Moments<T> moments{{nullptr, nullptr, nullptr, m2.data(), nullptr},
                           kColumns,
                           mean.data(),
                           count.data(),
                           kColumns};
  std::vector<std::vector<T>> gradients;
  for (unsigned s = 0; s < kUsing; ++s) {
    gradients.push_back(random_values<T>(m2.size(), s));
    double squares = 0;
    for (const T g : gradients[s]) squares += static_cast<double>(g) * g;
    const double got =
        add(gradients[s].data(), kColumns, kRows, kColumns, int64_t{0}, int64_t{0}, moments);
    CHECK(near(got, squares, 1e-12));
  }
  finish(kRows, kColumns, kSubnets, moments);
  for (size_t i = 0; i < m2.size(); ++i) {
    double sum = 0, expected = 0;
    for (const auto& g : gradients) sum += g[i];
    for (const auto& g : gradients) expected += std::pow(g[i] - sum / kSubnets, 2);
    expected += (kSubnets - kUsing) * std::pow(sum / kSubnets, 2);
    CHECK(near(m2[i], expected, sizeof(T) == 4 ? 1e-5 : 1e-12));
  }
}

}  // namespace

int main() {
  for (unsigned seed = 0; seed < 200; ++seed) {
    packing_keeps_to_its_row<float>(seed);
    packing_keeps_to_its_row<double>(seed);
  }
  for (unsigned seed = 0; seed < 20; ++seed) stacks_have_each_row_and_output_once(seed);
  pieces_cover_places_once();
  deviations_count_subnets_that_do_not_use_a_place<float>();
  deviations_count_subnets_that_do_not_use_a_place<double>();
  all_shapes<float>();
  all_shapes<double>();
  all_selections<float>();
  all_selections<double>();
  return exit_status();
}
