#include "gather/gather.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/array.h"

namespace sigeo_ext::gather {
namespace {

// Values worked on while they sit in the first-level cache.
constexpr int64_t kStep = 4096;

// Few channels make short loops, so several positions are taken as one of more channels.
constexpr int64_t kLanes = 128;

struct Lanes {
  int64_t rows;   // positions taken as one
  int64_t width;  // rows * channels
  int64_t step;   // positions of a step, a multiple of rows

  explicit Lanes(const Shape& shape)
      : rows(std::max<int64_t>(1, kLanes / std::max<int64_t>(1, shape.channels))),
        width(rows * shape.channels),
        step(rows * std::max<int64_t>(1, kStep / std::max<int64_t>(1, width))) {}
};

// A row [channels], once for each of the positions that are taken as one.
template <class T>
void spread(const T* row, const Lanes& lanes, int64_t channels, T* out) {
  for (int64_t r = 0; r < lanes.rows; ++r) {
    std::memcpy(out + r * channels, row, channels * sizeof(T));
  }
}

template <class T>
void fold(const T* lane, const Lanes& lanes, int64_t channels, double* out) {
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (int64_t r = 0; r < lanes.rows; ++r) sum += static_cast<double>(lane[r * channels + c]);
    out[c] = sum;
  }
}

// Calls body(values, n) on pieces of n <= width values that begin at a position taken first.
#define SIGEO_FOR_EACH_PIECE(size, width)                               \
  for (int64_t at = 0, n = std::min<int64_t>(width, size); at < (size); \
       at += n, n = std::min<int64_t>(width, (size) - at))

template <class T>
SIGEO_INLINE void add_body(const T* x, int64_t size, int64_t width, T* sum) {
  SIGEO_FOR_EACH_PIECE(size, width) {
    for (int64_t i = 0; i < n; ++i) sum[i] += x[at + i];
  }
}
template <class T>
SIGEO_INLINE void add_squares_body(const T* x, const T* mean, int64_t size, int64_t width, T* sum) {
  SIGEO_FOR_EACH_PIECE(size, width) {
    for (int64_t i = 0; i < n; ++i) {
      const T deviation = x[at + i] - mean[i];
      sum[i] += deviation * deviation;
    }
  }
}
template <class T>
SIGEO_INLINE void normalise_body(const T* x, const T* mean, const T* scale, const T* shift,
                                 int64_t size, int64_t width, bool first, T* y) {
  SIGEO_FOR_EACH_PIECE(size, width) {
    if (first) {
      for (int64_t i = 0; i < n; ++i) y[at + i] = (x[at + i] - mean[i]) * scale[i] + shift[i];
    } else {
      for (int64_t i = 0; i < n; ++i) y[at + i] += (x[at + i] - mean[i]) * scale[i] + shift[i];
    }
  }
}
template <class T>
SIGEO_INLINE void plain_body(const T* x, int64_t size, bool first, T* y) {
  if (first) {
    std::memcpy(y, x, size * sizeof(T));
  } else {
    for (int64_t i = 0; i < size; ++i) y[i] += x[i];
  }
}
template <class T>
SIGEO_INLINE void add_products_body(const T* d, const T* x, const T* mean, const T* rstd,
                                    int64_t size, int64_t width, T* sum, T* inner) {
  SIGEO_FOR_EACH_PIECE(size, width) {
    for (int64_t i = 0; i < n; ++i) {
      sum[i] += d[at + i];
      inner[i] += d[at + i] * ((x[at + i] - mean[i]) * rstd[i]);
    }
  }
}
// into = scale * (d - sum - xhat * inner), with sum and inner per value and xhat * inner as
// (x - mean) * slope.
template <class T>
SIGEO_INLINE void input_gradient_body(const T* d, const T* x, const T* mean, const T* slope,
                                      const T* sum, const T* scale, int64_t size, int64_t width,
                                      T* into) {
  SIGEO_FOR_EACH_PIECE(size, width) {
    for (int64_t i = 0; i < n; ++i) {
      into[at + i] = (d[at + i] - sum[i] - (x[at + i] - mean[i]) * slope[i]) * scale[i];
    }
  }
}
template <class T>
SIGEO_INLINE void rectify_body(const T* x, int64_t size, T* out) {
  // A NaN stays one, as in torch's ReLU.
  for (int64_t i = 0; i < size; ++i) out[i] = x[i] <= 0 ? T{0} : x[i];
}
template <class T>
SIGEO_INLINE void mask_body(const T* x, int64_t size, T* into) {
  for (int64_t i = 0; i < size; ++i) into[i] = x[i] > 0 ? into[i] : T{0};
}
#undef SIGEO_FOR_EACH_PIECE

// Every loop for both types, each compiled for every vector unit.
#define SIGEO_LOOPS(T)                                                                          \
  SIGEO_MULTIVERSION void add(const T* x, int64_t size, int64_t width, T* sum) {                \
    add_body(x, size, width, sum);                                                              \
  }                                                                                             \
  SIGEO_MULTIVERSION void add_squares(const T* x, const T* mean, int64_t size, int64_t width,   \
                                      T* sum) {                                                 \
    add_squares_body(x, mean, size, width, sum);                                                \
  }                                                                                             \
  SIGEO_MULTIVERSION void normalise(const T* x, const T* mean, const T* scale, const T* shift,  \
                                    int64_t size, int64_t width, bool first, T* y) {            \
    normalise_body(x, mean, scale, shift, size, width, first, y);                               \
  }                                                                                             \
  SIGEO_MULTIVERSION void plain(const T* x, int64_t size, bool first, T* y) {                   \
    plain_body(x, size, first, y);                                                              \
  }                                                                                             \
  SIGEO_MULTIVERSION void add_products(const T* d, const T* x, const T* mean, const T* rstd,    \
                                       int64_t size, int64_t width, T* sum, T* inner) {         \
    add_products_body(d, x, mean, rstd, size, width, sum, inner);                               \
  }                                                                                             \
  SIGEO_MULTIVERSION void input_gradient(const T* d, const T* x, const T* mean, const T* slope, \
                                         const T* sum, const T* scale, int64_t size,            \
                                         int64_t width, T* into) {                              \
    input_gradient_body(d, x, mean, slope, sum, scale, size, width, into);                      \
  }                                                                                             \
  SIGEO_MULTIVERSION void rectify(const T* x, int64_t size, T* out) {                           \
    rectify_body(x, size, out);                                                                 \
  }                                                                                             \
  SIGEO_MULTIVERSION void mask(const T* x, int64_t size, T* into) { mask_body(x, size, into); }
SIGEO_LOOPS(float)
SIGEO_LOOPS(double)
#undef SIGEO_LOOPS

// Mean and 1/deviation of each channel of a block: two passes over a step in the cache, steps
// combined in float64.
template <class T>
void statistics(const T* x, const Shape& shape, double eps, T* mean, T* rstd) {
  const Lanes lanes(shape);
  const int64_t channels = shape.channels;
  std::vector<T> sum(lanes.width), centre(lanes.width), row(channels);
  std::vector<double> part(channels), average(channels), m2(channels);
  for (int64_t begin = 0; begin < shape.positions; begin += lanes.step) {
    const int64_t count = std::min(lanes.step, shape.positions - begin);
    const T* values = x + begin * channels;
    std::fill(sum.begin(), sum.end(), T{0});
    add(values, count * channels, lanes.width, sum.data());
    fold(sum.data(), lanes, channels, part.data());
    for (int64_t c = 0; c < channels; ++c) row[c] = static_cast<T>(part[c] / count);
    spread(row.data(), lanes, channels, centre.data());
    std::fill(sum.begin(), sum.end(), T{0});
    add_squares(values, centre.data(), count * channels, lanes.width, sum.data());
    std::vector<double>& exact = part;  // the sum of values, of which row is the rounded mean
    std::vector<double> squares(channels);
    fold(sum.data(), lanes, channels, squares.data());
    const double before = static_cast<double>(begin), all = before + count;
    for (int64_t c = 0; c < channels; ++c) {
      const double here = exact[c] / count, rounding = here - row[c];
      const double delta = here - average[c];
      m2[c] += squares[c] - count * rounding * rounding + delta * delta * before * count / all;
      average[c] += delta * count / all;
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    const double variance = shape.positions > 0 ? std::max(0.0, m2[c]) / shape.positions : NAN;
    mean[c] = static_cast<T>(average[c]);
    rstd[c] = static_cast<T>(1 / std::sqrt((std::isnan(m2[c]) ? m2[c] : variance) + eps));
  }
}

// The constants of one block of a normed term, spread over the lanes.
template <class T>
struct Constants {
  std::vector<T> mean, scale, shift;

  Constants(const Term<T>& term, int64_t block, const Lanes& lanes, int64_t channels)
      : mean(lanes.width), scale(lanes.width), shift(lanes.width) {
    std::vector<T> row(channels);
    const T* weight = term.weight.at(block);
    const T* rstd = term.rstd + block * channels;
    for (int64_t c = 0; c < channels; ++c) row[c] = weight[c] * rstd[c];
    spread(row.data(), lanes, channels, scale.data());
    spread(term.mean + block * channels, lanes, channels, mean.data());
    spread(term.bias.at(block), lanes, channels, shift.data());
  }
};

struct Place {
  int64_t list;   // which term or list of copies
  int64_t block;  // which entry of it
};

// For each block of a node, the entries of lists that name it, in order.
template <class Lists, class Blocks>
std::vector<std::vector<Place>> places_of(const Lists& lists, int64_t count, const Blocks& blocks) {
  std::vector<std::vector<Place>> places(count);
  for (int64_t list = 0; list < static_cast<int64_t>(lists.size()); ++list) {
    const std::span<const int64_t> named = blocks(lists[list]);
    for (int64_t entry = 0; entry < static_cast<int64_t>(named.size()); ++entry) {
      places[named[entry]].push_back({list, entry});
    }
  }
  return places;
}

// All entries of lists one after another.
template <class Lists, class Blocks>
std::vector<Place> entries_of(const Lists& lists, const Blocks& blocks) {
  std::vector<Place> entries;
  for (int64_t list = 0; list < static_cast<int64_t>(lists.size()); ++list) {
    const int64_t named = static_cast<int64_t>(blocks(lists[list]).size());
    for (int64_t entry = 0; entry < named; ++entry) entries.push_back({list, entry});
  }
  return entries;
}

}  // namespace

template <class T>
void dispatch(Strided<const T> x, const Shape& shape, std::span<const Copies<T>> copies,
              const Parallel& parallel) {
  const auto entries = entries_of(copies, [](const auto& list) { return list.blocks; });
  const int64_t size = shape.size();
  parallel(static_cast<int64_t>(entries.size()), [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      const Copies<T>& list = copies[entries[e].list];
      const T* source = x.at(list.blocks[entries[e].block]);
      T* out = list.values + entries[e].block * size;
      if (list.rectified) rectify(source, size, out);
      else std::memcpy(out, source, size * sizeof(T));
    }
  });
}

template <class T>
void dispatch_backward(Strided<const T> x, int64_t count, const Shape& shape,
                       std::span<const Copies<const T>> gradients, T* into,
                       const Parallel& parallel) {
  const auto places = places_of(gradients, count, [](const auto& list) { return list.blocks; });
  const int64_t size = shape.size();
  parallel(count, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const T* values = x.at(block);
      T* out = into + block * size;
      for (int64_t at = 0; at < size; at += kStep) {
        const int64_t n = std::min(kStep, size - at);
        bool first = true;
        // What went through a ReLU first, so that one mask serves it all.
        for (const bool rectified : {true, false}) {
          for (const Place& place : places[block]) {
            const Copies<const T>& list = gradients[place.list];
            if (list.rectified != rectified) continue;
            plain(list.values + place.block * size + at, n, first, out + at);
            first = false;
          }
          if (rectified && !first) mask(values + at, n, out + at);
        }
        if (first) std::memset(out + at, 0, n * sizeof(T));
      }
    }
  });
}

template <class T>
void combine(std::span<const Term<T>> terms, int64_t count, const Shape& shape, double eps, T* y,
             const Parallel& parallel) {
  const auto target = [](const Term<T>& term) { return term.target; };
  const auto entries = entries_of(terms, target);
  parallel(static_cast<int64_t>(entries.size()), [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      const Term<T>& term = terms[entries[e].list];
      const int64_t block = entries[e].block, row = block * shape.channels;
      if (!term.normed()) continue;
      statistics(term.x.at(block), shape, eps, term.mean + row, term.rstd + row);
    }
  });
  const auto places = places_of(terms, count, target);
  const Lanes lanes(shape);
  const int64_t channels = shape.channels, size = shape.size(), step = lanes.step * channels;
  parallel(count, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      T* out = y + block * size;
      std::vector<Constants<T>> constants;
      for (const Place& place : places[block]) {
        const Term<T>& term = terms[place.list];
        if (term.normed()) constants.emplace_back(term, place.block, lanes, channels);
      }
      if (places[block].empty()) std::memset(out, 0, size * sizeof(T));
      for (int64_t at = 0; at < size; at += step) {
        const int64_t n = std::min(step, size - at);
        bool first = true;
        auto next = constants.begin();
        for (const Place& place : places[block]) {
          const Term<T>& term = terms[place.list];
          const T* x = term.x.at(place.block) + at;
          if (term.normed()) {
            normalise(x, next->mean.data(), next->scale.data(), next->shift.data(), n, lanes.width,
                      first, out + at);
            ++next;
          } else {
            plain(x, n, first, out + at);
          }
          first = false;
        }
      }
    }
  });
}

template <class T>
void combine_backward(const T* d, std::span<const Term<T>> terms,
                      std::span<const TermGradients<T>> into, const Shape& shape,
                      const Parallel& parallel) {
  const auto entries = entries_of(terms, [](const Term<T>& term) { return term.target; });
  const Lanes lanes(shape);
  const int64_t channels = shape.channels, size = shape.size(), step = lanes.step * channels;
  parallel(static_cast<int64_t>(entries.size()), [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      const Term<T>& term = terms[entries[e].list];
      const TermGradients<T>& out = into[entries[e].list];
      const int64_t block = entries[e].block, row = block * channels;
      const T *gradient = d + term.target[block] * size, *x = term.x.at(block);
      Constants<T> constants(term, block, lanes, channels);
      std::vector<T> rstd(lanes.width), sum(lanes.width), inner(lanes.width);
      spread(term.rstd + row, lanes, channels, rstd.data());
      std::vector<double> part(channels), sums(channels), inners(channels);
      for (int64_t at = 0; at < size; at += step) {
        const int64_t n = std::min(step, size - at);
        std::fill(sum.begin(), sum.end(), T{0});
        std::fill(inner.begin(), inner.end(), T{0});
        add_products(gradient + at, x + at, constants.mean.data(), rstd.data(), n, lanes.width,
                     sum.data(), inner.data());
        fold(sum.data(), lanes, channels, part.data());
        for (int64_t c = 0; c < channels; ++c) sums[c] += part[c];
        fold(inner.data(), lanes, channels, part.data());
        for (int64_t c = 0; c < channels; ++c) inners[c] += part[c];
      }
      std::vector<T> average(channels), slope(channels);
      for (int64_t c = 0; c < channels; ++c) {
        out.weight[row + c] = static_cast<T>(inners[c]);
        out.bias[row + c] = static_cast<T>(sums[c]);
        average[c] = static_cast<T>(sums[c] / shape.positions);
        slope[c] = static_cast<T>(inners[c] / shape.positions * term.rstd[row + c]);
      }
      spread(average.data(), lanes, channels, sum.data());
      spread(slope.data(), lanes, channels, inner.data());
      input_gradient(gradient, x, constants.mean.data(), inner.data(), sum.data(),
                     constants.scale.data(), size, lanes.width, out.x + block * size);
    }
  });
}

#define SIGEO_INSTANTIATE(T)                                                              \
  template void dispatch(Strided<const T>, const Shape&, std::span<const Copies<T>>,      \
                         const Parallel&);                                                \
  template void dispatch_backward(Strided<const T>, int64_t, const Shape&,                \
                                  std::span<const Copies<const T>>, T*, const Parallel&); \
  template void combine(std::span<const Term<T>>, int64_t, const Shape&, double, T*,      \
                        const Parallel&);                                                 \
  template void combine_backward(const T*, std::span<const Term<T>>,                      \
                                 std::span<const TermGradients<T>>, const Shape&,         \
                                 const Parallel&);
SIGEO_INSTANTIATE(float)
SIGEO_INSTANTIATE(double)
#undef SIGEO_INSTANTIATE

}  // namespace sigeo_ext::gather
