// The moments cores alone: no torch, no Python.
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "common/array.h"
#include "moments/moments.h"

using namespace sigeo_ext;           // NOLINT: a test
using namespace sigeo_ext::moments;  // NOLINT

namespace {

Array array(std::vector<float>& values) {
  return {values.data(), DType::kFloat32, static_cast<int64_t>(values.size())};
}

void summaries_equal_the_definition(int64_t n) {
  std::vector<std::vector<float>> unit;
  for (unsigned r = 0; r < 4; ++r) unit.push_back(random_values<float>(n, r));
  std::vector<float> weight = random_values<float>(n, 9);
  double expected[kColumns] = {};
  for (int64_t i = 0; i < n; ++i) {
    double mean = 0, m2 = 0, abs_sum = 0;
    for (auto& u : unit) mean += u[i] / 4.0, abs_sum += std::fabs(u[i]);
    for (auto& u : unit) m2 += (u[i] - mean) * (u[i] - mean);
    expected[kRatio] += abs_sum / 4 / std::sqrt(m2 / 3);
    expected[kKept] += 1;
    expected[kInner] += 4 * mean * weight[i];
    expected[kAbsSum] += abs_sum;
    expected[kMeanSq] += mean * mean;
    expected[kM2Sum] += m2;
  }
  std::vector<Array> rows;
  for (auto& u : unit) rows.push_back(array(u));
  const std::vector<Array> weights{array(weight)};
  double serial_row[kColumns], threaded_row[kColumns], streamed_row[kColumns];
  summarize_rows(rows, weights, 4, 1, serial_row, serial);
  summarize_rows(rows, weights, 4, 1, threaded_row, many_threads);
  std::vector<float> a(n), mu(n), q(n);
  const std::vector<Array> abs_sum{array(a)}, mean{array(mu)}, m2{array(q)};
  for (int64_t r = 0; r < 3; ++r) {
    update(abs_sum, mean, m2, std::span(&rows[r], 1), r, many_threads);
  }
  summarize(abs_sum, mean, m2, std::span(&rows[3], 1), weights, 3, 1, streamed_row, serial);
  for (int c = 0; c < kColumns; ++c) {
    CHECK(near(serial_row[c], expected[c], 1e-10));
    CHECK(serial_row[c] == threaded_row[c]);
    CHECK(near(streamed_row[c], expected[c], 1e-3));
  }
}

void folded_rows_are_a_state() {
  std::vector<float> first = random_values<float>(777, 1), second = random_values<float>(777, 2);
  std::vector<float> third = random_values<float>(777, 3);
  const std::vector<Array> rows{array(first), array(second), array(third)};
  double expected[kColumns], actual[kColumns];
  summarize_rows(rows, {}, 3, 0, expected, serial);
  fold_rows(std::span(&rows[0], 1), std::span(&rows[1], 1), std::span(&rows[2], 1), serial);
  summarize(std::span(&rows[0], 1), std::span(&rows[1], 1), std::span(&rows[2], 1), {}, {}, 3, 0,
            actual, serial);
  for (int c = 0; c < kColumns; ++c) CHECK(near(actual[c], expected[c], 1e-5));
}

void half_precision_is_read_exactly() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    double magnitude =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    if (exponent == 31) magnitude = std::numeric_limits<double>::infinity();
    const float value = float16_to_float(half);
    if (exponent == 31 && mantissa != 0) CHECK(std::isnan(value));
    else CHECK(value == (bits & 0x8000 ? -magnitude : magnitude));
    const float wide = bfloat16_to_float(half);
    CHECK(std::isnan(wide) || bit_cast<uint32_t>(wide) == bits << 16);
  }
}

void empty_lists_and_layers_do_nothing() {
  std::vector<float> nothing;
  const std::vector<Array> empty{array(nothing)};
  update({}, {}, {}, {}, 0, serial);
  update(empty, empty, empty, empty, 3, serial);
  double row[kColumns];
  summarize_rows(empty, {}, 1, 0, row, serial);
  for (int c = 0; c < kColumns; ++c) CHECK(row[c] == 0);
  dot(empty, empty, row, serial);
  CHECK(row[0] == 0);
}

}  // namespace

int main() {
  for (const int64_t n : {1, 2, 31, 32, 33, 512, 513, 16384, 16385, 100003}) {
    summaries_equal_the_definition(n);
  }
  folded_rows_are_a_state();
  half_precision_is_read_exactly();
  empty_lists_and_layers_do_nothing();
  return exit_status();
}
