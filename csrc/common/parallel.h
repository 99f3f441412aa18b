// How CPU work is split and compiled. Free of torch: the cores, `_host` and the C++ tests include
// it.
#pragma once

#include <cstdint>
#include <functional>

namespace sigeo_ext {

// Elements of one unit of work. Reductions keep one partial result a chunk and combine them in
// order, so a result depends on this number and not on the thread count.
inline constexpr int64_t kChunk = 16384;

// Elements converted, updated and reduced while they sit in the first-level cache.
inline constexpr int64_t kBlock = 512;

// Fewest chunks worth a thread: 32768 elements, below which waking a thread costs more than it
// saves.
inline constexpr int64_t kGrainChunks = 2;

using Range = std::function<void(int64_t begin, int64_t end)>;

// Calls `body` on ranges that together cover [0, n) once; may use several threads.
using Parallel = std::function<void(int64_t n, const Range& body)>;

inline void serial(int64_t n, const Range& body) {
  if (n > 0) body(0, n);
}

}  // namespace sigeo_ext

// Compiles a function once for each level of x86-64 vector unit and picks one at load time.
// Bodies are plain loops with a fixed number of lanes, so every level gives the same bits.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SIGEO_MULTIVERSION \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SIGEO_MULTIVERSION
#endif
