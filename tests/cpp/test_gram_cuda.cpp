// The gram kernels of the GPU as host code: no torch, no Python, no GPU.
#include <bit>
#include <cmath>
#include <random>
#include <span>
#include <vector>

#include "check.h"
#include "gpu.h"
#include "gram/gram_cuda.cu"

using namespace sigeo_ext;        // NOLINT: a test
using namespace sigeo_ext::gram;  // NOLINT
using emulation::Values;

namespace {

std::vector<double> pairs_of(Pair pair, const std::vector<Array>& vectors, int64_t count) {
  return emulation::result_in_every_order([&](const Queue& queue) {
    std::vector<double> out(count * count, NAN);
    of_lists(pair, vectors, count, out.data(), queue);
    return out;
  });
}

// `count` vectors of layers of all sizes; an absent layer, and layers that no vector load may take.
void check_lists(int64_t count, const std::vector<DType>& types, double tolerance) {
  const std::vector<int64_t> sizes{0, 1, 3, 129, 1100, 256};
  const size_t absent = 4;
  std::vector<Values> layers;
  for (int64_t v = 0; v < count; ++v) {
    for (const int64_t numel : sizes) {
      const auto number = static_cast<unsigned>(layers.size());
      layers.emplace_back(types[number % types.size()], numel, number, number % 3 % 2);
    }
  }
  std::vector<Array> vectors;
  for (Values& layer : layers) vectors.push_back(layer.array());
  vectors[absent].data = nullptr;
  const auto value = [&](int64_t v, size_t layer, int64_t i) -> long double {
    const size_t number = v * sizes.size() + layer;
    return number == absent ? 0 : layers[number][i];
  };
  for (const Pair pair : {Pair::kProduct, Pair::kSquaredDifference}) {
    const std::vector<double> found = pairs_of(pair, vectors, count);
    for (int64_t a = 0; a < count; ++a) {
      for (int64_t b = a; b < count; ++b) {
        long double expected = 0, magnitude = 0;
        for (size_t layer = 0; layer < sizes.size(); ++layer) {
          for (int64_t i = 0; i < sizes[layer]; ++i) {
            const long double x = value(a, layer, i), y = value(b, layer, i);
            const long double term = pair == Pair::kProduct ? x * y : (x - y) * (x - y);
            expected += term;
            magnitude += std::fabs(term);
          }
        }
        CHECK(std::fabs(found[a * count + b] - expected) <= tolerance * magnitude);
        CHECK(emulation::same_bits(found[a * count + b], found[b * count + a]));
      }
    }
  }
}

void lists_equal_their_definition() {
  check_lists(3, {DType::kFloat32}, 1e-6);
  check_lists(3, {DType::kFloat32, DType::kFloat64}, 1e-14);
  check_lists(9, {DType::kFloat32, DType::kBFloat16, DType::kFloat16}, 1e-6);
  check_lists(33, {DType::kFloat64}, 1e-14);  // several tiles
}

// More tensors than the arguments of a launch hold, and none.
void lists_may_be_long_or_empty() {
  constexpr int64_t kLayers = 600;
  std::vector<Values> layers;
  std::vector<Array> vectors;
  for (unsigned i = 0; i < 2 * kLayers; ++i) layers.emplace_back(DType::kFloat64, 2, i);
  for (Values& layer : layers) vectors.push_back(layer.array());
  double expected = 0;
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    for (int64_t i = 0; i < 2; ++i) expected += layers[layer][i] * layers[kLayers + layer][i];
  }
  const std::vector<double> found = emulation::result_of([&](const Queue& queue) {
    std::vector<double> out(4, NAN);
    of_lists(Pair::kProduct, vectors, 2, out.data(), queue);
    return out;
  });
  CHECK(near(found[1], expected, 1e-10));
  CHECK(pairs_of(Pair::kProduct, {}, 2) == std::vector<double>(4, 0));
  CHECK(pairs_of(Pair::kProduct, {}, 0).empty());
}

// Products of vectors of one layer, by a single block for all of its stages.
std::vector<double> by_one_block(const std::vector<Array>& vectors) {
  const auto count = static_cast<int64_t>(vectors.size());
  const int64_t first[] = {0, vectors[0].numel / Share<float, kNarrow>::kStage};
  const Parts<float> parts{vectors.data(), first, 1, first[1]};
  return emulation::result_in_every_order([&](const Queue& queue) {
    std::vector<double> out(count * count, NAN);
    launch_pairs<Product<float>, kNarrow>("one block", parts, count, out.data(), queue, 1);
    return out;
  });
}

void a_block_goes_through_many_stages() {
  Values a(DType::kFloat32, 4096, 1), b(DType::kFloat32, 4096, 2);
  double expected = 0;
  for (int64_t i = 0; i < a.numel(); ++i) expected += a[i] * b[i];
  CHECK(near(by_one_block({a.array(), b.array()})[1], expected, 1e-5));
}

// Ones that vanish in a float32 sum beside a large one, but for a lane's few.
void a_lane_stands_for_few_values() {
  constexpr int64_t kValues = 1 << 15;
  std::vector<float> values(kValues, 1);
  values[0] = 1 << 12;
  const double found = by_one_block({{values.data(), DType::kFloat32, kValues}})[0];
  const double missing = (1 << 24) + kValues - 1 - found;
  CHECK(missing >= 0 && missing < kOfLane);
}

void a_nan_reaches_its_row_and_column() {
  std::vector<float> values(3 * 600, 1);
  values[600 + 599] = NAN;
  std::vector<Array> vectors;
  for (int64_t v = 0; v < 3; ++v) {
    vectors.push_back({values.data() + 600 * v, DType::kFloat32, 600});
  }
  const std::vector<double> found = pairs_of(Pair::kSquaredDifference, vectors, 3);
  for (int64_t i = 0; i < 9; ++i) CHECK(std::isnan(found[i]) == (i / 3 == 1 || i % 3 == 1));
}

void codes_differ_by_their_bits() {
  std::mt19937 generator(0);
  for (const int64_t count : {8, 33}) {
    for (const int64_t bytes : {0, 7, 20, 530, 2100}) {
      for (const int64_t offset : {0, 1}) {
        std::vector<uint8_t> codes(offset + count * bytes);
        for (uint8_t& code : codes) code = static_cast<uint8_t>(generator());
        const std::vector<int64_t> found = emulation::result_of([&](const Queue& queue) {
          std::vector<int64_t> out(count * count, -1);
          hamming(codes.data() + offset, count, bytes, out.data(), queue);
          return out;
        });
        bool right = true;
        for (int64_t a = 0; a < count; ++a) {
          for (int64_t b = 0; b < count; ++b) {
            int64_t bits = 0;
            for (int64_t i = 0; i < bytes; ++i) {
              const unsigned x = codes[offset + a * bytes + i], y = codes[offset + b * bytes + i];
              bits += std::popcount(x ^ y);
            }
            right = right && found[a * count + b] == bits;
          }
        }
        CHECK(right);
      }
    }
  }
}

}  // namespace

int main() {
  lists_equal_their_definition();
  lists_may_be_long_or_empty();
  a_block_goes_through_many_stages();
  a_lane_stands_for_few_values();
  a_nan_reaches_its_row_and_column();
  codes_differ_by_their_bits();
  return exit_status();
}
