// The gram core without torch: lists, one convolution and codes against their definitions.
#include "gram/gram.h"

#include <cmath>
#include <vector>

#include "check.h"

using namespace sigeo_ext;

namespace {

double value(int64_t i) { return std::sin(0.7 * static_cast<double>(i) + 0.3); }

std::vector<float> values(int64_t count, int64_t from) {
  std::vector<float> result(count);
  for (int64_t i = 0; i < count; ++i) result[i] = static_cast<float>(value(from + i));
  return result;
}

// `count` vectors of two layers, one longer than a flush; one layer of one vector is absent.
void check_lists(int64_t count) {
  const int64_t sizes[] = {5000, 3};
  std::vector<std::vector<float>> layers;
  std::vector<Array> arrays;
  for (int64_t v = 0; v < count; ++v) {
    for (int64_t layer = 0; layer < 2; ++layer) {
      layers.push_back(values(sizes[layer], 100 * v + layer));
    }
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    arrays.push_back({layers[i].data(), DType::kFloat32, static_cast<int64_t>(layers[i].size())});
  }
  arrays.back().data = nullptr;
  std::fill(layers.back().begin(), layers.back().end(), 0.0f);
  for (const auto pair : {gram::Pair::kProduct, gram::Pair::kSquaredDifference}) {
    std::vector<double> out(count * count, NAN);
    gram::of_lists(pair, arrays, count, out.data(), serial);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < count; ++j) {
        double expected = 0;
        for (int64_t layer = 0; layer < 2; ++layer) {
          for (int64_t k = 0; k < sizes[layer]; ++k) {
            const double a = layers[2 * i + layer][k], b = layers[2 * j + layer][k];
            expected += pair == gram::Pair::kProduct ? a * b : (a - b) * (a - b);
          }
        }
        CHECK(std::fabs(out[i * count + j] - expected) <= 1e-3 + 1e-6 * std::fabs(expected));
      }
    }
  }
}

// Fewer vectors than a block of registers, and on both sides of whole groups.
void test_lists_equal_their_definition() {
  for (const int64_t count : {1, 5, 16, 17, 37}) check_lists(count);
}

// Three samples of one position: g is the outer product of d and x.
void test_convolution_equals_its_definition() {
  const sample_moments::Convolution shape{3,         4,         18,        1,         {1, 1, 1},
                                          {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}};
  std::vector<double> x(3 * 4), d(3 * 18), out(9, NAN);
  for (size_t i = 0; i < x.size(); ++i) x[i] = value(static_cast<int64_t>(i));
  for (size_t i = 0; i < d.size(); ++i) d[i] = value(static_cast<int64_t>(i) + 1000);
  gram::of_convolution(shape, x.data(), d.data(), 1, out.data(), serial);
  for (int64_t u = 0; u < 3; ++u) {
    for (int64_t v = 0; v < 3; ++v) {
      double xx = 0, dd = 0;
      for (int64_t i = 0; i < 4; ++i) xx += x[u * 4 + i] * x[v * 4 + i];
      for (int64_t o = 0; o < 18; ++o) dd += d[u * 18 + o] * d[v * 18 + o];
      CHECK(std::fabs(out[u * 3 + v] - xx * dd) <= 1e-12);
    }
  }
}

void test_hamming_counts_bits() {
  const std::vector<uint8_t> codes{0x00, 0x00, 0xff, 0x01, 0x0f, 0x00};  // three of two bytes
  std::vector<int64_t> out(9, -1);
  gram::hamming(codes.data(), 3, 2, out.data(), serial);
  const std::vector<int64_t> expected{0, 9, 4, 9, 0, 5, 4, 5, 0};
  CHECK(out == expected);
}

}  // namespace

int main() {
  test_lists_equal_their_definition();
  test_convolution_equals_its_definition();
  test_hamming_counts_bits();
  return exit_status();
}
