// The saliency kernels of the GPU as host code: no torch, no Python, no GPU.
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "gpu.h"
#include "saliency/saliency_cuda.cu"

using namespace sigeo_ext;            // NOLINT: a test
using namespace sigeo_ext::saliency;  // NOLINT
using emulation::Values;

namespace {

constexpr Columns kEvery = (1u << kColumns) - 1;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16};

std::vector<double> on_gpu(const std::vector<Array>& weights, const std::vector<Array>& gradients,
                           Columns want) {
  return emulation::result_in_every_order([&](const Queue& queue) {
    std::vector<double> out(weights.size() * width(want), NAN);
    sums(weights, gradients, want, out.data(), queue);
    return out;
  });
}

void columns_equal_the_definition() {
  std::vector<Values> weights, gradients;
  for (const int64_t numel : {0, 1, 3, 31, 32, 33, 1024, 1025, 4095, 4096, 4097, 9001}) {
    const auto layer = static_cast<unsigned>(weights.size());
    weights.emplace_back(kTypes[layer % 4], numel, layer, layer % 3);
    gradients.emplace_back(kTypes[layer / 2 % 4], numel, 100 + layer, layer % 2);
  }
  std::vector<Array> w, g;
  for (Values& values : weights) w.push_back(values.array());
  for (Values& values : gradients) g.push_back(values.array());
  const size_t absent = 5;
  g[absent].data = nullptr;
  const std::vector<double> rows = on_gpu(w, g, kEvery);
  for (size_t layer = 0; layer < w.size(); ++layer) {
    long double expected[kColumns] = {};
    for (int64_t i = 0; i < weights[layer].numel(); ++i) {
      const long double a = weights[layer][i], b = layer == absent ? 0 : gradients[layer][i];
      expected[kProduct] += a * b;
      expected[kAbsProduct] += std::fabs(a * b);
      expected[kLog1pProduct] += std::fabs(a * std::log1p(b));
      expected[kWeightSq] += a * a;
      expected[kGradientSq] += b * b;
    }
    expected[kLogAbsProduct] = std::log(expected[kAbsProduct]);
    for (int c = 0; c < kColumns; ++c) {
      const double found = rows[layer * kColumns + c], wanted = static_cast<double>(expected[c]);
      CHECK(near(found, wanted, 1e-12) || found == wanted || (found != found && wanted != wanted));
    }
  }
  for (const Columns want : {1u << kLog1pProduct, 1u << kWeightSq | 1u << kGradientSq}) {
    const std::vector<double> some = on_gpu(w, g, want);
    for (size_t layer = 0, next = 0; layer < w.size(); ++layer) {
      for (int c = 0; c < kColumns; ++c) {
        if (!holds(want, static_cast<Column>(c))) continue;
        const double found = some[next++], every = rows[layer * kColumns + c];
        CHECK(found == every || (found != found && every != every));
      }
    }
  }
}

void lists_may_lack_gradients_or_be_empty() {
  CHECK(on_gpu({}, {}, kEvery).empty());
  Values weights(DType::kFloat32, 5000, 1);
  double expected = 0;
  for (int64_t i = 0; i < weights.numel(); ++i) expected += weights[i] * weights[i];
  CHECK(near(on_gpu({weights.array()}, {}, 1u << kWeightSq)[0], expected, 1e-12));
}

void logs_of_any_magnitude_are_right() {
  for (const int exponent : {-1070, -500, 0, 500, 1020}) {
    double w[] = {std::ldexp(1.0, exponent), 0}, g[] = {std::ldexp(1.0, exponent), 1e300};
    const std::vector<Array> weights{{w, DType::kFloat64, 2}}, gradients{{g, DType::kFloat64, 2}};
    const double log = on_gpu(weights, gradients, 1u << kLogAbsProduct)[0];
    CHECK(near(log, 2.0 * exponent * std::log(2.0), 1e-14));
  }
  double zero = 0;
  const std::vector<Array> one{{&zero, DType::kFloat64, 1}};
  CHECK(on_gpu(one, one, 1u << kLogAbsProduct)[0] == -kInfinity);
}

}  // namespace

int main() {
  columns_equal_the_definition();
  lists_may_lack_gradients_or_be_empty();
  logs_of_any_magnitude_are_right();
  return exit_status();
}
