#include <bit>
#include <limits>
#include <vector>

#include "common/load.h"
#include "common/sums.h"
#include "saliency/saliency_math.h"

namespace sigeo_ext::saliency {
namespace {

// Columns that cost less than the conversion to float64 before them.
constexpr Columns kPlain = 1u << kProduct | 1u << kAbsProduct | 1u << kWeightSq | 1u << kGradientSq;

// Adds some columns of a block, which stays in the first-level cache from one call to the next:
// memory is read once, whatever is wanted.
template <bool kWide, Column... kSome, class T>
SIGEO_INLINE void add_columns(const T* w, const T* g, int64_t n, Sums<kParts>& sums) {
  const auto term = [&](int64_t i, int64_t lane) SIGEO_LAMBDA_INLINE {
    const auto add = [&](Part part, double value)
                         SIGEO_LAMBDA_INLINE { sums.lane[part][lane] += value; };
    (add_column<kSome, kWide>(w[i], g[i], add), ...);
  };
  for_each_lane(n, term, [&](int64_t i) SIGEO_LAMBDA_INLINE {
    ask_ahead(w + i);
    if (w != g) ask_ahead(g + i);
  });
}

// The products of a block of float64 values are nearly always of middle magnitude, which shows in
// their sum: below its bounds nothing has overflowed, above them nothing lost counts.
SIGEO_INLINE void add_log(const double* w, const double* g, int64_t n, Sums<kParts>& sums) {
  Sums<kParts> block;
  add_columns<false, kLogAbsProduct>(w, g, n, block);
  double lanes[kLanes];
  for (int64_t k = 0; k < kLanes; ++k) lanes[k] = block.lane[kMiddle][k];
  const double sum = block.total(kMiddle);
  if (sum >= 0x1p-800 && sum < 0x1p900) {
    for (int64_t k = 0; k < kLanes; ++k) sums.lane[kMiddle][k] += lanes[k];
  } else {
    add_columns<true, kLogAbsProduct>(w, g, n, sums);
  }
}
SIGEO_INLINE void add_log(const float* w, const float* g, int64_t n, Sums<kParts>& sums) {
  add_columns<false, kLogAbsProduct>(w, g, n, sums);
}

// Nearly all gradients have a plain logarithm, which a look at the block shows.
template <class T>
SIGEO_INLINE void add_log1p(const T* w, const T* g, int64_t n, Sums<kParts>& sums) {
  constexpr T kLimit = sizeof(T) == 4 ? std::numeric_limits<T>::max() : static_cast<T>(0x1p600);
  int outside = 0;
  for (int64_t i = 0; i < n; ++i) outside |= g[i] > -1 && g[i] <= kLimit ? 0 : 1;
  if (outside == 0) add_columns<false, kLog1pProduct>(w, g, n, sums);
  else add_columns<true, kLog1pProduct>(w, g, n, sums);
}

template <class T>
SIGEO_INLINE void columns_body(const T* w, const T* g, int64_t n, Columns want,
                               Sums<kParts>& sums) {
  if (std::popcount(want & kPlain) > 1) {  // all four for the time of two
    add_columns<false, kProduct, kAbsProduct, kWeightSq, kGradientSq>(w, g, n, sums);
  } else {
    if (holds(want, kProduct)) add_columns<false, kProduct>(w, g, n, sums);
    if (holds(want, kAbsProduct)) add_columns<false, kAbsProduct>(w, g, n, sums);
    if (holds(want, kWeightSq)) add_columns<false, kWeightSq>(w, w, n, sums);
    if (holds(want, kGradientSq)) add_columns<false, kGradientSq>(g, g, n, sums);
  }
  if (holds(want, kLogAbsProduct)) add_log(w, g, n, sums);
  if (holds(want, kLog1pProduct)) add_log1p(w, g, n, sums);
}
SIGEO_MULTIVERSION void columns_block(const float* w, const float* g, int64_t n, Columns want,
                                      Sums<kParts>& sums) {
  columns_body(w, g, n, want, sums);
}
SIGEO_MULTIVERSION void columns_block(const double* w, const double* g, int64_t n, Columns want,
                                      Sums<kParts>& sums) {
  columns_body(w, g, n, want, sums);
}

}  // namespace

void sums(Arrays weights, Arrays gradients, Columns want, double* out, const Parallel& parallel) {
  std::vector<double> parts(weights.size() * kParts);
  with_type({weights, gradients}, [&]<class T>(T) {
    const auto block = [&](int64_t layer, int64_t begin, int64_t n, Sums<kParts>& sums) {
      T buffer[2][kBlock];
      const T *w = nullptr, *g = nullptr;
      if (needs_weights(want)) w = load(weights[layer], begin, n, buffer[0]);
      if (needs_gradients(want)) g = load(gradients[layer], begin, n, buffer[1]);
      columns_block(w, g, n, want, sums);
    };
    reduce_layers<kParts>(weights, parts.data(), parallel, block);
  });
  for (size_t layer = 0; layer < weights.size(); ++layer) {
    write_columns(&parts[layer * kParts], want, out + layer * width(want));
  }
}

}  // namespace sigeo_ext::saliency
