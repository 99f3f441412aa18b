// Asking for memory before it is read.
#pragma once

#include <cstdint>

#include "common/array.h"

namespace sigeo_ext {

// Asks for the cache lines of kValues values, which may lie behind the end of what is there.
template <int64_t kValues, class T>
SIGEO_INLINE void ask_for(const T* values) {
  constexpr int64_t kLine = 64 / sizeof(T);
#pragma GCC unroll 64
  for (int64_t i = 0; i < kValues; i += kLine) __builtin_prefetch(values + i);
}

}  // namespace sigeo_ext
