#include "gather/gather.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "gather/lanes.h"

namespace sigeo_ext::gather {
namespace {

// Steps worked on by one thread; their sums are combined in order, so that a result does not depend
// on the number of threads.
constexpr int64_t kStepsAtOnce = 16;

// Calls body(item, piece, begin, end) for the pieces [begin, end) of `size` values of each item.
template <class Body>
void for_each_piece(int64_t items, int64_t size, int64_t piece, const Parallel& parallel,
                    const Body& body) {
  const int64_t pieces = piece > 0 ? (size + piece - 1) / piece : 0;
  parallel(items * pieces, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i % pieces * piece;
      body(i / pieces, i % pieces, begin, std::min(begin + piece, size));
    }
  });
}

// How the values of a block are cut: into steps, and into pieces of several steps.
struct Cuts {
  Lanes lanes;
  int64_t channels, size;  // of a block
  int64_t step, piece;     // values of one
  int64_t pieces;          // of a block

  explicit Cuts(const Shape& shape)
      : lanes(shape),
        channels(shape.channels),
        size(shape.size()),
        step(lanes.step * channels),
        piece(kStepsAtOnce * step),
        pieces(piece > 0 ? (size + piece - 1) / piece : 0) {}
};

// Mean and sum of squared deviations of each channel over some positions.
struct Moments {
  double count = 0;
  std::vector<double> mean, m2;

  explicit Moments(int64_t channels) : mean(channels), m2(channels) {}

  void add(double more, const double* more_mean, const double* more_m2) {
    const double before = count, all = count + more;
    for (size_t c = 0; c < mean.size(); ++c) {
      const double delta = more_mean[c] - mean[c];
      m2[c] += more_m2[c] + delta * delta * before * more / all;
      mean[c] += delta * more / all;
    }
    count = all;
  }
};

// Two passes over a step in the cache, steps combined in float64.
template <class T>
Moments moments_of(const T* x, int64_t positions, const Lanes& lanes, int64_t channels) {
  Moments found(channels);
  std::vector<T> sum(lanes.width), centre(lanes.width), row(channels);
  std::vector<double> mean(channels), m2(channels);
  for (int64_t begin = 0; begin < positions; begin += lanes.step) {
    const int64_t count = std::min(lanes.step, positions - begin);
    const T* values = x + begin * channels;
    std::fill(sum.begin(), sum.end(), T{0});
    add(values, count * channels, lanes.width, sum.data());
    fold(sum.data(), lanes, channels, mean.data());
    for (int64_t c = 0; c < channels; ++c) row[c] = static_cast<T>(mean[c] /= count);
    spread(row.data(), lanes, channels, centre.data());
    std::fill(sum.begin(), sum.end(), T{0});
    add_squares(values, centre.data(), count * channels, lanes.width, sum.data());
    fold(sum.data(), lanes, channels, m2.data());
    for (int64_t c = 0; c < channels; ++c) {
      const double rounding = mean[c] - row[c];  // the deviations are from the rounded mean
      m2[c] -= count * rounding * rounding;
    }
    found.add(static_cast<double>(count), mean.data(), m2.data());
  }
  return found;
}

template <class T>
void finish(const Moments& found, double eps, T* mean, T* rstd) {
  for (size_t c = 0; c < found.mean.size(); ++c) {
    const double m2 = found.m2[c] < 0 ? 0 : found.m2[c];  // a NaN stays
    mean[c] = static_cast<T>(found.count > 0 ? found.mean[c] : NAN);
    rstd[c] = static_cast<T>(1 / std::sqrt(m2 / found.count + eps));
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

// The blocks of all normed terms.
template <class T>
std::vector<Place> normed_entries(std::span<const Term<T>> terms) {
  return entries_of(terms, [](const Term<T>& term) {
    return term.normed() ? term.target : std::span<const int64_t>{};
  });
}

// The mean and the 1/deviation of every block of the normed terms.
template <class T>
void write_statistics(std::span<const Term<T>> terms, const Cuts& cuts, double eps,
                      const Parallel& parallel) {
  const auto entries = normed_entries(terms);
  const int64_t channels = cuts.channels;
  std::vector<Moments> parts(entries.size() * cuts.pieces, Moments(0));
  for_each_piece(entries.size(), cuts.size, cuts.piece, parallel,
                 [&](int64_t entry, int64_t number, int64_t begin, int64_t end) {
                   const auto [term, block] = entries[entry];
                   parts[entry * cuts.pieces + number] =
                       moments_of(terms[term].x.at(block) + begin, (end - begin) / channels,
                                  cuts.lanes, channels);
                 });
  for (size_t entry = 0; entry < entries.size(); ++entry) {
    Moments all(channels);
    for (int64_t number = 0; number < cuts.pieces; ++number) {
      const Moments& part = parts[entry * cuts.pieces + number];
      all.add(part.count, part.mean.data(), part.m2.data());
    }
    const auto [term, block] = entries[entry];
    finish(all, eps, terms[term].mean + block * channels, terms[term].rstd + block * channels);
  }
}

// What the gradient of a normed entry's block subtracts from d in each channel: the average of d,
// and for every (x - mean) this slope. Rows [entries, channels].
template <class T>
struct Corrections {
  std::vector<T> averages, slopes;
};

// From the sums of d and of d * xhat over each normed block, which are the gradients of its bias
// and weight and are written there.
template <class T>
Corrections<T> corrections_of(const T* d, std::span<const Term<T>> terms,
                              std::span<const TermGradients<T>> into, const Shape& shape,
                              const Cuts& cuts, const Parallel& parallel) {
  const auto entries = normed_entries(terms);
  const Lanes& lanes = cuts.lanes;
  const int64_t channels = cuts.channels;
  // Of each piece: the sums of d, then those of d * xhat.
  std::vector<double> parts(entries.size() * cuts.pieces * 2 * channels);
  for_each_piece(
      entries.size(), cuts.size, cuts.piece, parallel,
      [&](int64_t entry, int64_t number, int64_t begin, int64_t end) {
        const auto [place, block] = entries[entry];
        const Term<T>& term = terms[place];
        const T* gradient = d + term.target[block] * cuts.size;
        const T* x = term.x.at(block);
        std::vector<T> mean(lanes.width), rstd(lanes.width), sum(lanes.width), inner(lanes.width);
        spread(term.mean + block * channels, lanes, channels, mean.data());
        spread(term.rstd + block * channels, lanes, channels, rstd.data());
        std::vector<double> part(channels);
        double* sums = &parts[(entry * cuts.pieces + number) * 2 * channels];
        for (int64_t at = begin; at < end; at += cuts.step) {
          std::fill(sum.begin(), sum.end(), T{0});
          std::fill(inner.begin(), inner.end(), T{0});
          add_products(gradient + at, x + at, mean.data(), rstd.data(),
                       std::min(cuts.step, end - at), lanes.width, sum.data(), inner.data());
          fold(sum.data(), lanes, channels, part.data());
          for (int64_t c = 0; c < channels; ++c) sums[c] += part[c];
          fold(inner.data(), lanes, channels, part.data());
          for (int64_t c = 0; c < channels; ++c) sums[channels + c] += part[c];
        }
      });
  const size_t size = entries.size() * channels;
  Corrections<T> found{std::vector<T>(size), std::vector<T>(size)};
  for (size_t entry = 0; entry < entries.size(); ++entry) {
    const auto [place, block] = entries[entry];
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0, inner = 0;
      for (int64_t number = 0; number < cuts.pieces; ++number) {
        const double* sums = &parts[(entry * cuts.pieces + number) * 2 * channels];
        sum += sums[c];
        inner += sums[channels + c];
      }
      const int64_t row = block * channels + c;
      into[place].weight[row] = static_cast<T>(inner);
      into[place].bias[row] = static_cast<T>(sum);
      found.averages[entry * channels + c] = static_cast<T>(sum / shape.positions);
      found.slopes[entry * channels + c] =
          static_cast<T>(inner / shape.positions * terms[place].rstd[row]);
    }
  }
  return found;
}

}  // namespace

template <class T>
void dispatch(Strided<const T> x, const Shape& shape, std::span<const Copies<T>> copies,
              const Parallel& parallel) {
  const auto entries = entries_of(copies, [](const auto& list) { return list.blocks; });
  const int64_t size = shape.size();
  for_each_piece(entries.size(), size, kStepsAtOnce * kStep, parallel,
                 [&](int64_t entry, int64_t, int64_t begin, int64_t end) {
                   const auto [list, block] = entries[entry];
                   const Copies<T>& copy = copies[list];
                   const T* source = x.at(copy.blocks[block]) + begin;
                   T* out = copy.values + block * size + begin;
                   if (copy.rectified) rectify(source, end - begin, out);
                   else std::memcpy(out, source, (end - begin) * sizeof(T));
                 });
}

template <class T>
void dispatch_backward(Strided<const T> x, int64_t count, const Shape& shape,
                       std::span<const Copies<const T>> gradients, T* into,
                       const Parallel& parallel) {
  const auto places = places_of(gradients, count, [](const auto& list) { return list.blocks; });
  const int64_t size = shape.size();
  const auto add_up = [&](int64_t block, int64_t at, int64_t n) {
    T* out = into + block * size + at;
    bool first = true;
    // What went through a ReLU first, so that one mask serves it all.
    for (const bool rectified : {true, false}) {
      for (const Place& place : places[block]) {
        const Copies<const T>& list = gradients[place.list];
        if (list.rectified != rectified) continue;
        plain(list.values + place.block * size + at, n, first, out);
        first = false;
      }
      if (rectified && !first) mask(x.at(block) + at, n, out);
    }
    if (first) std::memset(out, 0, n * sizeof(T));
  };
  for_each_piece(count, size, kStepsAtOnce * kStep, parallel,
                 [&](int64_t block, int64_t, int64_t begin, int64_t end) {
                   for (int64_t at = begin; at < end; at += kStep) {
                     add_up(block, at, std::min(kStep, end - at));
                   }
                 });
}

template <class T>
void combine(std::span<const Term<T>> terms, int64_t count, const Shape& shape, double eps, T* y,
             const Parallel& parallel) {
  const Cuts cuts(shape);
  const Lanes& lanes = cuts.lanes;
  const int64_t channels = cuts.channels, size = cuts.size, step = cuts.step;
  write_statistics(terms, cuts, eps, parallel);
  const auto places = places_of(terms, count, [](const Term<T>& term) { return term.target; });
  const auto add_up = [&](int64_t block, int64_t begin, int64_t end) {
    T* out = y + block * size;
    std::vector<Constants<T>> constants;
    for (const Place& place : places[block]) {
      const Term<T>& term = terms[place.list];
      if (term.normed()) constants.emplace_back(term, place.block, lanes, channels);
    }
    if (places[block].empty()) std::memset(out + begin, 0, (end - begin) * sizeof(T));
    for (int64_t at = begin; at < end; at += step) {
      const int64_t n = std::min(step, end - at);
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
  };
  for_each_piece(
      count, size, cuts.piece, parallel,
      [&](int64_t block, int64_t, int64_t begin, int64_t end) { add_up(block, begin, end); });
}

template <class T>
void combine_backward(const T* d, std::span<const Term<T>> terms,
                      std::span<const TermGradients<T>> into, const Shape& shape,
                      const Parallel& parallel) {
  const Cuts cuts(shape);
  const Lanes& lanes = cuts.lanes;
  const int64_t channels = cuts.channels, size = cuts.size;
  const Corrections<T> corrections = corrections_of(d, terms, into, shape, cuts, parallel);
  const auto entries = normed_entries(terms);
  for_each_piece(entries.size(), size, cuts.piece, parallel,
                 [&](int64_t entry, int64_t, int64_t begin, int64_t end) {
                   const auto [place, block] = entries[entry];
                   const Term<T>& term = terms[place];
                   const Constants<T> constants(term, block, lanes, channels);
                   std::vector<T> average(lanes.width), slope(lanes.width);
                   spread(&corrections.averages[entry * channels], lanes, channels, average.data());
                   spread(&corrections.slopes[entry * channels], lanes, channels, slope.data());
                   input_gradient(d + term.target[block] * size + begin, term.x.at(block) + begin,
                                  constants.mean.data(), slope.data(), average.data(),
                                  constants.scale.data(), end - begin, lanes.width,
                                  into[place].x + block * size + begin);
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
