// The saliency core alone: no torch, no Python.
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "saliency/saliency.h"
#include "saliency/saliency_math.h"

using namespace sigeo_ext;            // NOLINT: a test
using namespace sigeo_ext::saliency;  // NOLINT

namespace {

constexpr Columns kEvery = (1u << kColumns) - 1;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <class T>
Array array(std::vector<T>& values) {
  const DType dtype = sizeof(T) == sizeof(float) ? DType::kFloat32 : DType::kFloat64;
  return {values.data(), dtype, static_cast<int64_t>(values.size())};
}

template <class T>
void columns_equal_the_definition(int64_t n) {
  std::mt19937 generator(static_cast<unsigned>(n));
  std::normal_distribution<double> normal;
  std::vector<T> w(n), g(n);
  for (T& value : w) value = static_cast<T>(normal(generator));
  for (T& value : g) value = static_cast<T>(std::fabs(normal(generator)) - 0.5);
  long double expected[kColumns] = {};
  for (int64_t i = 0; i < n; ++i) {
    const long double a = w[i], b = g[i];
    expected[kProduct] += a * b;
    expected[kAbsProduct] += std::fabs(a * b);
    expected[kLog1pProduct] += std::fabs(a * std::log1p(b));
    expected[kWeightSq] += a * a;
    expected[kGradientSq] += b * b;
  }
  expected[kLogAbsProduct] = std::log(expected[kAbsProduct]);
  const std::vector<Array> weights{array(w)}, gradients{array(g)};
  double row[kColumns], threaded[kColumns];
  sums(weights, gradients, kEvery, row, serial);
  sums(weights, gradients, kEvery, threaded, many_threads);
  for (int c = 0; c < kColumns; ++c) {
    CHECK(near(row[c], static_cast<double>(expected[c]), 1e-12));
    CHECK(row[c] == threaded[c]);
    double alone;
    sums(weights, gradients, 1u << c, &alone, serial);
    CHECK(alone == row[c]);
  }
}

void logs_of_any_magnitude_are_right() {
  CHECK(near(log_of(0, 2, 0), std::log(2.0), 1e-15));
  CHECK(log_of(0, 0, 0) == -kInfinity);
  for (int exponent = -1070; exponent <= 1020; exponent += 10) {
    std::vector<double> w{std::ldexp(1.0, exponent), 0}, g{std::ldexp(1.0, exponent), 1e300};
    const std::vector<Array> weights{array(w)}, gradients{array(g)};
    double log;
    sums(weights, gradients, 1u << kLogAbsProduct, &log, serial);
    CHECK(near(log, 2.0 * exponent * std::log(2.0), 1e-14));
  }
}

void log1p_is_within_three_units() {
  std::mt19937_64 generator(0);
  std::uniform_real_distribution<double> exponent(-300, 308), sign(-1, 1);
  for (int i = 0; i < 200000; ++i) {
    double x = std::pow(10.0, i % 2 == 0 ? exponent(generator) : 3 * sign(generator));
    if (i % 3 == 0 && x < 1) x = -x;
    const long double expected = std::log1p(static_cast<long double>(x));
    const double unit = std::nextafter(std::fabs(static_cast<double>(expected)), kInfinity) -
                        std::fabs(static_cast<double>(expected));
    CHECK(std::fabs(log1p_of(x) - expected) <= 3 * unit);
  }
  CHECK(log1p_of(0) == 0 && log1p_of(-1) == -kInfinity && log1p_of(kInfinity) == kInfinity);
  CHECK(std::isnan(log1p_of(-2)) && std::isnan(log1p_of(NAN)) && std::isnan(log1p_of(-kInfinity)));
}

void empty_lists_and_absent_gradients_are_zeros() {
  sums({}, {}, kEvery, nullptr, serial);
  std::vector<float> nothing, one{3};
  const std::vector<Array> weights{array(nothing), array(one)};
  const std::vector<Array> gradients{array(nothing), {nullptr, DType::kFloat32, 1}};
  double rows[2][kColumns];
  sums(weights, gradients, kEvery, &rows[0][0], serial);
  for (int c = 0; c < kColumns; ++c) {
    const double zero = c == kLogAbsProduct ? -kInfinity : 0;
    CHECK(rows[0][c] == zero);
    CHECK(rows[1][c] == (c == kWeightSq ? 9 : zero));
  }
  double squares[2];
  sums(weights, {}, 1u << kWeightSq, squares, serial);
  CHECK(squares[0] == 0 && squares[1] == 9);
}

}  // namespace

int main() {
  for (const int64_t n : {1, 2, 31, 32, 33, 512, 513, 16384, 16385, 100003}) {
    columns_equal_the_definition<float>(n);
    columns_equal_the_definition<double>(n);
  }
  logs_of_any_magnitude_are_right();
  log1p_is_within_three_units();
  empty_lists_and_absent_gradients_are_zeros();
  return exit_status();
}
