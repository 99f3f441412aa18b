// The sample_moments core without torch: one convolution against its definition.
#include "sample_moments/sample_moments.h"

#include <cmath>
#include <vector>

#include "check.h"

using namespace sigeo_ext;
namespace sm = sigeo_ext::sample_moments;

namespace {

double value(int64_t i) { return std::sin(0.7 * static_cast<double>(i) + 0.3); }

// Two images of 4 x 5 with 3 channels, a 3 x 2 kernel of stride 2 and padding 1 to 18 channels.
const sm::Convolution kShape{2,         3,         18,        1,         {1, 4, 5},
                             {1, 2, 3}, {1, 3, 2}, {1, 2, 2}, {0, 1, 1}, {1, 1, 1}};

double gradient(const std::vector<double>& x, const std::vector<double>& d, int64_t sample,
                int64_t o, int64_t ky, int64_t kx, int64_t i) {
  double sum = 0;
  for (int64_t y = 0; y < 2; ++y) {
    for (int64_t c = 0; c < 3; ++c) {
      const int64_t row = 2 * y - 1 + ky, column = 2 * c - 1 + kx;
      if (row < 0 || row >= 4 || column < 0 || column >= 5) continue;
      sum += d[((sample * 2 + y) * 3 + c) * 18 + o] * x[((sample * 4 + row) * 5 + column) * 3 + i];
    }
  }
  return sum;
}

void test_convolution_equals_its_definition() {
  std::vector<double> x(2 * 4 * 5 * 3), d(2 * 2 * 3 * 18);
  for (size_t i = 0; i < x.size(); ++i) x[i] = value(static_cast<int64_t>(i));
  for (size_t i = 0; i < d.size(); ++i) d[i] = value(static_cast<int64_t>(i) + 1000);
  const size_t size = 18 * 3 * 2 * 3;
  std::vector<std::vector<double>> results(sm::kStatistics, std::vector<double>(size, NAN));
  std::vector<double> norm(2, NAN), expected_norm(2, 0.0);
  sm::Job<double> job{};
  job.x = x.data();
  job.d = d.data();
  for (int s = 0; s < sm::kStatistics; ++s) job.statistics[s] = results[s].data();
  job.sq_norm = norm.data();
  job.unit = job.segments = 1;
  sm::convolution(kShape, job, serial);
  for (int64_t o = 0; o < 18; ++o) {
    for (int64_t ky = 0; ky < 3; ++ky) {
      for (int64_t kx = 0; kx < 2; ++kx) {
        for (int64_t i = 0; i < 3; ++i) {
          const size_t at = static_cast<size_t>(((o * 3 + ky) * 2 + kx) * 3 + i);
          const double a = gradient(x, d, 0, o, ky, kx, i), b = gradient(x, d, 1, o, ky, kx, i);
          CHECK(near(results[sm::kSum][at], a + b, 1e-12));
          CHECK(near(results[sm::kAbsSum][at], std::fabs(a) + std::fabs(b), 1e-12));
          CHECK(near(results[sm::kSqSum][at], a * a + b * b, 1e-12));
          CHECK(near(results[sm::kM2][at], (a - b) * (a - b) / 2, 1e-12));
          expected_norm[0] += a * a;
          expected_norm[1] += b * b;
        }
      }
    }
  }
  CHECK(near(norm[0], expected_norm[0], 1e-10));
  CHECK(near(norm[1], expected_norm[1], 1e-10));
}

}  // namespace

int main() {
  test_convolution_equals_its_definition();
  return failures;
}
