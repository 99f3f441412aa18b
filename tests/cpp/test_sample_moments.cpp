// The sample_moments core without torch: convolutions against their definition, in tiles of every
// level of vector unit that the processor has.
#include "sample_moments/sample_moments.h"

#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "sample_moments/tiles.h"

using namespace sigeo_ext;
namespace sm = sigeo_ext::sample_moments;

namespace {

// Fewer samples a unit, units and positions than tiles and panels have, and more.
struct Case {
  sm::Convolution shape;
  int64_t unit, segments;
};

class Draw {
 public:
  int64_t from(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(generator_);
  }
  double normal() { return std::normal_distribution<>()(generator_); }

  Case next() {
    sm::Convolution c{0, 0, 0, 1, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}};
    const int64_t kind = from(0, 4);
    const int64_t unit = kind != 4 && from(0, 2) == 0 ? from(2, 3) : 1, segments = from(1, 2);
    c.samples = unit * segments * from(1, 7);
    if (kind == 4) {  // outer products
      c.samples *= 40;
      c.in_channels = from(1, 70);
      c.out_channels = from(1, 30);
      return {c, unit, segments};
    }
    if (kind == 0) {  // where x and d may change places
      c.in_channels = from(1, 150);
      c.out_channels = from(1, 150);
    } else if (kind == 1) {  // depthwise
      c.groups = c.in_channels = c.out_channels = from(2, 70);
    } else {
      c.groups = kind == 2 ? 1 : from(2, 3);
      c.in_channels = c.groups * from(1, 40);
      c.out_channels = c.groups * from(1, 40);
    }
    const int64_t longest = from(0, 4) == 0 ? 14 : 8;
    for (int a = 1; a < 3; ++a) {
      if (kind != 0) {
        c.kernel[a] = from(1, 3);
        c.padding[a] = from(0, 2);
        c.dilation[a] = from(1, 2);
      }
      c.stride[a] = from(0, 3) == 0 ? 2 : 1;
      const int64_t reach = c.dilation[a] * (c.kernel[a] - 1) + 1;
      c.in_size[a] = std::max(from(1, longest), reach - 2 * c.padding[a]);
      c.out_size[a] = (c.in_size[a] + 2 * c.padding[a] - reach) / c.stride[a] + 1;
    }
    return {c, unit, segments};
  }

 private:
  std::mt19937 generator_{3};
};

int64_t places(const std::array<int64_t, 3>& size) { return size[0] * size[1] * size[2]; }

// Adds sample b's gradient [out, taps, in / groups].
template <class T>
void add_gradient(const sm::Convolution& c, const std::vector<T>& x, const std::vector<T>& d,
                  int64_t b, std::vector<double>& g) {
  const int64_t in = c.in_channels / c.groups, out = c.out_channels / c.groups;
  size_t at = 0;
  for (int64_t o = 0; o < c.out_channels; ++o) {
    for (int64_t ky = 0; ky < c.kernel[1]; ++ky) {
      for (int64_t kx = 0; kx < c.kernel[2]; ++kx) {
        for (int64_t i = 0; i < in; ++i, ++at) {
          for (int64_t t = 0; t < places(c.out_size); ++t) {
            const int64_t y = t / c.out_size[2] * c.stride[1] - c.padding[1] + ky * c.dilation[1];
            const int64_t z = t % c.out_size[2] * c.stride[2] - c.padding[2] + kx * c.dilation[2];
            if (y < 0 || y >= c.in_size[1] || z < 0 || z >= c.in_size[2]) continue;
            const int64_t from = (b * c.in_size[1] + y) * c.in_size[2] + z;
            g[at] += static_cast<double>(d[(b * places(c.out_size) + t) * c.out_channels + o]) *
                     x[from * c.in_channels + o / out * in + i];
          }
        }
      }
    }
  }
}

template <class T>
void equals_its_definition(const Case& given, Draw& draw, double tolerance) {
  const sm::Convolution& c = given.shape;
  std::vector<T> x(c.samples * places(c.in_size) * c.in_channels);
  std::vector<T> d(c.samples * places(c.out_size) * c.out_channels);
  for (T& value : x) value = static_cast<T>(draw.normal());
  for (T& value : d) value = static_cast<T>(draw.normal());
  const int64_t size = c.out_channels * places(c.kernel) * (c.in_channels / c.groups);
  const int64_t units = c.samples / given.unit, of_segment = units / given.segments;
  std::vector<std::vector<T>> results(sm::kStatistics, std::vector<T>(given.segments * size, NAN));
  std::vector<double> norms(units, NAN);
  sm::Job<T> job{};
  job.x = x.data();
  job.d = d.data();
  for (int s = 0; s < sm::kStatistics; ++s) job.statistics[s] = results[s].data();
  job.sq_norm = norms.data();
  job.unit = given.unit;
  job.segments = given.segments;
  sm::convolution(c, job, serial);
  for (int64_t segment = 0; segment < given.segments; ++segment) {
    std::vector<std::vector<double>> g;
    for (int64_t unit = segment * of_segment; unit < (segment + 1) * of_segment; ++unit) {
      std::vector<double>& of_unit = g.emplace_back(size, 0.0);
      for (int64_t b = 0; b < given.unit; ++b)
        add_gradient(c, x, d, unit * given.unit + b, of_unit);
      double norm = 0;
      for (const double value : of_unit) norm += value * value;
      CHECK(near(norms[unit], norm, tolerance));
    }
    for (int64_t i = 0; i < size; ++i) {
      double sum = 0, abs_sum = 0, sq_sum = 0, m2 = 0, signs = 0, unclear = 0;
      for (const auto& of_unit : g) {
        sum += of_unit[i], abs_sum += std::fabs(of_unit[i]), sq_sum += of_unit[i] * of_unit[i];
        // Within rounding of zero a gradient may have either sign, or none.
        const bool clear = of_unit[i] == 0 || std::fabs(of_unit[i]) > tolerance;
        if (clear) signs += (of_unit[i] > 0) - (of_unit[i] < 0);
        else unclear += 1;
      }
      const double mean = sum / static_cast<double>(of_segment);
      for (const auto& of_unit : g) m2 += (of_unit[i] - mean) * (of_unit[i] - mean);
      const int64_t at = segment * size + i;
      CHECK(std::fabs(results[sm::kSum][at] - sum) <= tolerance * (1 + abs_sum));
      CHECK(near(results[sm::kAbsSum][at], abs_sum, tolerance));
      CHECK(near(results[sm::kSqSum][at], sq_sum, tolerance));
      CHECK(std::fabs(results[sm::kM2][at] - m2) <= tolerance * (1 + sq_sum));
      CHECK(std::fabs(results[sm::kSignSum][at] - signs) <= unclear);
    }
  }
}

void convolutions_equal_their_definition() {
  Draw draw;
  for (int index = 0; index < 60; ++index) {
    const Case next = draw.next();
    equals_its_definition<double>(next, draw, 1e-11);
    equals_its_definition<float>(next, draw, 1e-4);
  }
}

}  // namespace

int main() {
  for (const int bytes : {64, 32, 16}) {
    sm::most_vector_bytes = bytes;
    convolutions_equal_their_definition();
  }
  return exit_status();
}
