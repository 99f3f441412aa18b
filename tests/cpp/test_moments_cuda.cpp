// The moments kernels of the GPU as host code: no torch, no Python, no GPU.
#include <cmath>
#include <cstdint>
#include <vector>

#include "check.h"
#include "gpu.h"
#include "moments/moments_cuda.cu"

using namespace sigeo_ext;           // NOLINT: a test
using namespace sigeo_ext::moments;  // NOLINT
using emulation::Values;

namespace {

constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16};

// Around a vector, a warp, a step of a block, and its span.
const std::vector<int64_t> kSizes{0,    1,    3,    4,    5,    31,   32,  33,
                                  1023, 1024, 1025, 4095, 4096, 4097, 9001};
const std::vector<int64_t> kFewSizes{0, 1, 33, 1025, 4096, 9001};

// A tensor of each size; of `dtype`, or of all of them in turn.
std::vector<Values> layers(const std::vector<int64_t>& sizes, unsigned seed,
                           const DType* dtype = nullptr, unsigned offset = 0) {
  std::vector<Values> made;
  for (const int64_t numel : sizes) {
    const auto layer = static_cast<unsigned>(made.size()) + seed;
    made.emplace_back(dtype == nullptr ? kTypes[layer % 4] : *dtype, numel, 20 * seed + layer,
                      (layer + offset) % 2);
  }
  return made;
}

std::vector<Array> arrays(std::vector<Values>& layers) {
  std::vector<Array> list;
  for (Values& values : layers) list.push_back(values.array());
  return list;
}

using State = std::vector<std::vector<Values>>;

// A state of three lists, each of which begins elsewhere in memory.
State random_state(DType dtype, const std::vector<int64_t>& sizes) {
  State state;
  for (unsigned list = 0; list < 3; ++list) state.push_back(layers(sizes, list, &dtype, list));
  return state;
}

// A coordinate has the same bits as on the CPU, whose kernels have tests of their own.
void updates_equal_those_of_the_cpu(DType dtype, int64_t count) {
  const State state = random_state(dtype, kSizes);
  std::vector<Values> grads = layers(kSizes, 4);
  std::vector<Array> unit = arrays(grads);
  unit[7].data = nullptr;  // zeros
  State on_cpu = state;
  update(arrays(on_cpu[0]), arrays(on_cpu[1]), arrays(on_cpu[2]), unit, count, serial);
  const State on_gpu = emulation::result_in_every_order([&](const Queue& queue) {
    State into = state;
    update(arrays(into[0]), arrays(into[1]), arrays(into[2]), unit, count, queue);
    return into;
  });
  CHECK(emulation::same_bits(on_gpu, on_cpu));
}

void folded_rows_equal_those_of_the_cpu(DType dtype) {
  const State rows = random_state(dtype, kSizes);
  State on_cpu = rows;
  fold_rows(arrays(on_cpu[0]), arrays(on_cpu[1]), arrays(on_cpu[2]), serial);
  const State on_gpu = emulation::result_in_every_order([&](const Queue& queue) {
    State into = rows;
    fold_rows(arrays(into[0]), arrays(into[1]), arrays(into[2]), queue);
    return into;
  });
  CHECK(emulation::same_bits(on_gpu, on_cpu));
}

struct Row {
  long double column[kColumns] = {};

  void add(long double abs_sum, long double mean, long double m2, long double weight, int64_t units,
           int64_t ddof) {
    if (m2 != 0) {
      column[kRatio] += abs_sum / units / std::sqrt(m2 / (units - ddof));
      column[kKept] += 1;
    }
    column[kInner] += units * mean * weight;
    column[kAbsSum] += abs_sum;
    column[kMeanSq] += mean * mean;
    column[kM2Sum] += m2;
  }
};

void check_rows(const std::vector<double>& found, const std::vector<Row>& expected) {
  CHECK(found.size() == expected.size() * kColumns);
  for (size_t i = 0; i < found.size(); ++i) {
    const long double wanted = expected[i / kColumns].column[i % kColumns];
    CHECK(near(found[i], static_cast<double>(wanted), 1e-10));
  }
}

// Of `count` units one after another; the second unit's gradient of the fourth layer is absent.
void summaries_of_rows_equal_the_definition(int64_t count, int64_t ddof) {
  std::vector<std::vector<Values>> units;
  std::vector<Array> rows;
  for (int64_t r = 0; r < count; ++r) {
    units.push_back(layers(kFewSizes, static_cast<unsigned>(r)));
    for (const Array& array : arrays(units.back())) rows.push_back(array);
  }
  const size_t absent = kFewSizes.size() + 3;
  if (count > 1) rows[absent].data = nullptr;
  std::vector<Values> weights = layers(kFewSizes, 9);
  std::vector<Row> expected(kFewSizes.size());
  for (size_t layer = 0; layer < expected.size(); ++layer) {
    for (int64_t i = 0; i < kFewSizes[layer]; ++i) {
      long double mean = 0, m2 = 0, abs_sum = 0;
      const auto value = [&](int64_t r) {
        const bool there = count == 1 || r * expected.size() + layer != absent;
        return there ? static_cast<long double>(units[r][layer][i]) : 0;
      };
      for (int64_t r = 0; r < count; ++r) mean += value(r) / count, abs_sum += std::fabs(value(r));
      for (int64_t r = 0; r < count; ++r) m2 += (value(r) - mean) * (value(r) - mean);
      if (count == 1) m2 = 0;
      expected[layer].add(abs_sum, mean, m2, weights[layer][i], count, ddof);
    }
  }
  check_rows(emulation::result_in_every_order([&](const Queue& queue) {
               std::vector<double> out(expected.size() * kColumns, NAN);
               summarize_rows(rows, arrays(weights), count, ddof, out.data(), queue);
               return out;
             }),
             expected);
}

// A state with coordinates that do not vary, alone and with one more unit.
void summaries_of_a_state_equal_the_definition(DType dtype) {
  State state = random_state(dtype, kFewSizes);
  for (Values& values : state[2]) values.make_squares();
  std::vector<Values> weights = layers(kFewSizes, 5), grads = layers(kFewSizes, 6);
  const std::vector<Array> unit = arrays(grads);
  constexpr int64_t kCount = 5;
  std::vector<Row> expected(kFewSizes.size()), pending(kFewSizes.size());
  for (size_t layer = 0; layer < expected.size(); ++layer) {
    for (int64_t i = 0; i < kFewSizes[layer]; ++i) {
      const long double a = state[0][layer][i], mean = state[1][layer][i], m2 = state[2][layer][i];
      const long double g = grads[layer][i], delta = g - mean, next = mean + delta / (kCount + 1);
      expected[layer].add(a, mean, m2, 0, kCount, 1);
      pending[layer].add(a + std::fabs(g), next, m2 + delta * (g - next), weights[layer][i],
                         kCount + 1, 0);
    }
  }
  const auto summary = [&](Arrays with, Arrays weighted, int64_t ddof) {
    return emulation::result_in_every_order([&](const Queue& queue) {
      std::vector<double> out(expected.size() * kColumns, NAN);
      summarize(arrays(state[0]), arrays(state[1]), arrays(state[2]), with, weighted, kCount, ddof,
                out.data(), queue);
      return out;
    });
  };
  check_rows(summary({}, {}, 1), expected);
  check_rows(summary(unit, arrays(weights), 0), pending);
}

// Around the numbers of layers that one launch takes; few of them with values, as each takes time.
void products_of_long_lists_are_right(size_t count) {
  std::vector<Values> a, b;
  for (size_t layer = 0; layer < count; ++layer) {
    const bool filled = layer % 50 == 47 || layer == 512 || layer + 1 == count;
    const auto seed = static_cast<unsigned>(layer);
    a.emplace_back(kTypes[layer % 4], filled ? 4090 + seed % 12 : 0, seed);
    b.emplace_back(kTypes[layer / 2 % 4], a.back().numel(), 1000 + seed, layer % 2);
  }
  const std::vector<double> found = emulation::result_of([&](const Queue& queue) {
    std::vector<double> out(count, NAN);
    dot(arrays(a), arrays(b), out.data(), queue);
    return out;
  });
  for (size_t layer = 0; layer < count; ++layer) {
    long double expected = 0;
    for (int64_t i = 0; i < a[layer].numel(); ++i) {
      expected += static_cast<long double>(a[layer][i]) * b[layer][i];
    }
    CHECK(near(found[layer], static_cast<double>(expected), 1e-12));
  }
}

void empty_lists_do_nothing() {
  const Queue queue{nullptr, [](int64_t) -> double* { return nullptr; }};
  update({}, {}, {}, {}, 0, queue);
  fold_rows({}, {}, {}, queue);
  summarize({}, {}, {}, {}, {}, 2, 0, nullptr, queue);
  summarize_rows({}, {}, 1, 0, nullptr, queue);
  dot({}, {}, nullptr, queue);
  CHECK(emulation::launched.empty());
}

}  // namespace

int main() {
  for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
    for (const int64_t count : {0, 1, 2, 7}) updates_equal_those_of_the_cpu(dtype, count);
    folded_rows_equal_those_of_the_cpu(dtype);
    summaries_of_a_state_equal_the_definition(dtype);
  }
  for (const int64_t count : {1, 2, 3, 4}) summaries_of_rows_equal_the_definition(count, count > 2);
  for (const size_t layers : {48, 49, 513}) products_of_long_lists_are_right(layers);
  empty_lists_do_nothing();
  return exit_status();
}
