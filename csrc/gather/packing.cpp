#include "gather/packing.h"

#include <algorithm>
#include <limits>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define SIGEO_AVX2 __attribute__((target("avx2")))
#endif

namespace sigeo_ext::gather {
namespace {

constexpr int64_t kWord = 4;
constexpr int64_t kWords = 8;  // of a step

bool has_avx2() {
#ifdef SIGEO_AVX2
  static const bool found = __builtin_cpu_supports("avx2");
  return found;
#else
  return false;
#endif
}

bool ascends(const Places& places) {
  return std::is_sorted(places.list, places.list + places.count);
}

#ifdef SIGEO_AVX2
SIGEO_AVX2 inline __m256i eight_of(uint64_t bytes) {
  return _mm256_cvtepi8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(bytes)));
}

SIGEO_AVX2 inline __m256 load(const std::byte* from) {
  return _mm256_loadu_ps(reinterpret_cast<const float*>(from));
}

SIGEO_AVX2 inline void store(std::byte* into, __m256 values) {
  _mm256_storeu_ps(reinterpret_cast<float*>(into), values);
}

// Eight packed words at their places of a row, `rest` at the others.
SIGEO_AVX2 inline __m256 spread(const std::byte* from, uint64_t to_row, __m256 rest) {
  const __m256i places = eight_of(to_row);
  const __m256 spread = _mm256_permutevar8x32_ps(load(from), places);
  return _mm256_blendv_ps(spread, rest, _mm256_castsi256_ps(places));
}
#endif

}  // namespace

Packing::Packing(const Places& columns, int64_t width) : columns_(columns), width_(width) {
  const int64_t words = width / kWord, packed = columns.count * words;
  if (columns.list == nullptr || width % kWord != 0 || !has_avx2() || !ascends(columns)) return;
  const int64_t last = columns.count == 0 ? 0 : columns.list[columns.count - 1];
  if ((last + 1) * words > std::numeric_limits<int32_t>::max()) return;
  usable_ = true;
  while (rest_ < columns.count) {
    const int64_t from = columns.list[rest_] * words / kWords * kWords, into = rest_ * words;
    // Where so many are left in the list, the row goes on for as many.
    if (into + kWords > packed) break;
    Step step{static_cast<int32_t>(from), static_cast<int32_t>(into), 0, 0x8080808080808080u};
    for (int64_t n = 0; rest_ < columns.count && columns.list[rest_] * words < from + kWords;
         ++rest_) {
      for (int64_t word = 0; word < words; ++word, ++n) {
        const auto place = static_cast<uint64_t>(columns.list[rest_] * words + word - from);
        step.to_packed |= place << 8 * n;
        step.to_row ^= (static_cast<uint64_t>(n) | 0x80u) << 8 * place;
      }
    }
    steps_.push_back(step);
  }
}

#ifdef SIGEO_AVX2

namespace {

template <class V>
void pack_rest(const Places& columns, int64_t begin, const std::byte* row, std::byte* into) {
  const V* from = reinterpret_cast<const V*>(row);
  for (int64_t c = begin; c < columns.count; ++c) {
    reinterpret_cast<V*>(into)[c] = from[columns.list[c]];
  }
}

template <class V>
void unpack_rest(const Places& columns, int64_t begin, const std::byte* from, std::byte* row) {
  V* into = reinterpret_cast<V*>(row);
  for (int64_t c = begin; c < columns.count; ++c) {
    into[columns.list[c]] = reinterpret_cast<const V*>(from)[c];
  }
}

}  // namespace

SIGEO_AVX2 void Packing::pack(const std::byte* row, const std::byte* next, std::byte* into) const {
  for (const Step& step : steps_) {
    __builtin_prefetch(next + step.row * kWord);
    const __m256 values = load(row + step.row * kWord);
    store(into + step.packed * kWord, _mm256_permutevar8x32_ps(values, eight_of(step.to_packed)));
  }
  if (width_ == kWord) pack_rest<uint32_t>(columns_, rest_, row, into);
  else pack_rest<uint64_t>(columns_, rest_, row, into);
}

SIGEO_AVX2 void Packing::unpack(const std::byte* from, std::byte* row) const {
  for (const Step& step : steps_) {
    std::byte* into = row + step.row * kWord;
    store(into, spread(from + step.packed * kWord, step.to_row, load(into)));
  }
  if (width_ == kWord) unpack_rest<uint32_t>(columns_, rest_, from, row);
  else unpack_rest<uint64_t>(columns_, rest_, from, row);
}

SIGEO_AVX2 void Packing::unpack_over_zeros(const std::byte* from, std::byte* row) const {
  for (const Step& step : steps_) {
    store(row + step.row * kWord,
          spread(from + step.packed * kWord, step.to_row, _mm256_setzero_ps()));
  }
  if (width_ == kWord) unpack_rest<uint32_t>(columns_, rest_, from, row);
  else unpack_rest<uint64_t>(columns_, rest_, from, row);
}

// To what is not selected it adds -0, which leaves every value as it is.
SIGEO_AVX2 void Packing::add(const float* from, const float* next, float* row) const {
  for (const Step& step : steps_) {
    __builtin_prefetch(next + step.row, 1);
    const auto* packed = reinterpret_cast<const std::byte*>(from + step.packed);
    const __m256 added = spread(packed, step.to_row, _mm256_set1_ps(-0.0f));
    _mm256_storeu_ps(row + step.row, _mm256_add_ps(_mm256_loadu_ps(row + step.row), added));
  }
  for (int64_t c = rest_; c < columns_.count; ++c) row[columns_.list[c]] += from[c];
}

SIGEO_AVX2 void Packing::add(const double* from, const double* next, double* row) const {
  const __m256 nothing = _mm256_castpd_ps(_mm256_set1_pd(-0.0));
  for (const Step& step : steps_) {
    __builtin_prefetch(next + step.row / 2, 1);
    const auto* packed = reinterpret_cast<const std::byte*>(from) + step.packed * kWord;
    const __m256d added = _mm256_castps_pd(spread(packed, step.to_row, nothing));
    auto* into = row + step.row / 2;
    _mm256_storeu_pd(into, _mm256_add_pd(_mm256_loadu_pd(into), added));
  }
  for (int64_t c = rest_; c < columns_.count; ++c) row[columns_.list[c]] += from[c];
}

#else

void Packing::pack(const std::byte*, const std::byte*, std::byte*) const {}
void Packing::unpack(const std::byte*, std::byte*) const {}
void Packing::unpack_over_zeros(const std::byte*, std::byte*) const {}
void Packing::add(const float*, const float*, float*) const {}
void Packing::add(const double*, const double*, double*) const {}

#endif

}  // namespace sigeo_ext::gather
