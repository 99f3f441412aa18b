// What the C++ tests share: checks that print what failed, values, and threads to run cores on.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "common/parallel.h"

inline int failures = 0;

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) {                                                         \
      std::printf("%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                               \
    }                                                                           \
  } while (false)

// What main returns. Not the number of failures: of an exit status only eight bits arrive.
inline int exit_status() {
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

inline bool near(double actual, double expected, double tolerance) {
  return std::fabs(actual - expected) <= tolerance * std::fmax(1.0, std::fabs(expected));
}

template <class T>
std::vector<T> random_values(int64_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  std::vector<T> values(n);
  for (T& value : values) value = static_cast<T>(normal(generator));
  return values;
}

// Splits work into as many threads as there are pieces of it, in reverse order.
inline void many_threads(int64_t n, const sigeo_ext::Range& body) {
  std::vector<std::thread> threads;
  for (int64_t i = n - 1; i >= 0; --i) threads.emplace_back(body, i, i + 1);
  for (std::thread& thread : threads) thread.join();
}
