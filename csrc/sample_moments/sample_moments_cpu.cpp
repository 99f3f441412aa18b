#include "sample_moments/sample_moments.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "sample_moments/outer.h"
#include "sample_moments/panels.h"
#include "sample_moments/tiles.h"

namespace sigeo_ext::sample_moments {
namespace {

// Of a part of every unit's gradient, which is read again for all pairs of units.
constexpr int64_t kEachBytes = 384 * 1024;

// Between one unit's part and the next: at a power of two from one to the next they would share few
// places in the first-level cache.
constexpr int64_t kApart = 16;

// Rows of a slab that are transposed together: whole cache lines on both sides.
constexpr int64_t kSquare = 16;

// Whether every input channel meets every output channel at the same positions, as in linear
// layers: x and d can then change places.
inline bool is_symmetric(const Convolution& c) {
  return c.groups == 1 && product(c.kernel) == 1 && c.in_size == c.out_size &&
         product(c.stride) == 1 && c.padding == decltype(c.padding){};
}

// Whether every unit's gradient is an outer product: a linear layer of one position, here dense.
template <class T>
bool is_outer(const Convolution& c, const Job<T>& job) {
  const bool dense = c.x_steps.position == 0 && c.d_steps.position == 0;
  return dense && is_symmetric(c) && product(c.in_size) == 1 && job.unit == 1 && c.samples > 0;
}

// One weight's worth of work, piece by piece. Every piece reads all of x, so the wider of two that
// can change places is d: fewer values are read more than once.
template <class T>
class Work {
 public:
  Work(const Convolution& shape, const Job<T>& job, const Parallel& parallel)
      : swapped_(is_symmetric(shape) && shape.in_channels > shape.out_channels),
        c_(swapped_ ? swapped(shape) : shape),
        job_(job),
        tiles_(tiles<T>()),
        panels_(c_, swapped_ ? job.d : job.x, swapped_ ? job.x : job.d, job.unit, parallel),
        rows_(panels_.rows()),
        units_(c_.samples / job.unit),
        pieces_(panels_.pieces()),
        turn_(panels_.turn_of(slabs(), pieces_)) {}

  void measure(const Parallel& parallel) {
    if (job_.sq_norm != nullptr) norms_.assign(pieces_ * units_, T{0});
    parallel(pieces_, [&](int64_t from, int64_t to) {
      for (int64_t piece = from; piece < to; piece += turn_.pieces) {
        run(piece, std::min(to, piece + turn_.pieces));
      }
    });
    if (job_.sq_norm != nullptr) add_norms();
  }

  void hand_out(int64_t slots, const TakePart<T>& take, const Parallel& parallel) const {
    parallel(slots, [&](int64_t from, int64_t to) {
      std::vector<T> memory;
      for (int64_t slot = from; slot < to; ++slot) {
        const int64_t last = pieces_ * (slot + 1) / slots;
        for (int64_t piece = pieces_ * slot / slots; piece < last; ++piece) {
          hand_out_piece(piece, memory, [&](const T* g, int64_t length, int64_t apart) {
            take(slot, g, length, apart);
          });
        }
      }
    });
  }

 private:
  static Convolution swapped(Convolution c) {
    std::swap(c.in_channels, c.out_channels);
    std::swap(c.x_steps, c.d_steps);
    return c;
  }

  // Every unit's gradient of a piece, so many rows at a time that they stay in the cache.
  template <class Take>
  void hand_out_piece(int64_t piece, std::vector<T>& memory, const Take& take) const {
    const Place place = panels_.place_of(piece);
    Tile<T> tile = panels_.tile_of(place);
    if (tile.positions == 0 || units_ == 0) return;
    const int64_t block = panels_.turn_of(0, 1).units;
    const int64_t line = units_ * tile.width * static_cast<int64_t>(sizeof(T));
    const int64_t at_once =
        std::max<int64_t>(kPackedRows, kEachBytes / line / kPackedRows * kPackedRows);
    for (int64_t begin = 0; begin < rows_; begin += at_once) {
      const int64_t end = std::min(rows_, begin + at_once);
      const int64_t length = (end - begin) * tile.width;
      tile.each_unit = length + kApart;
      memory.resize(std::max<size_t>(memory.size(), units_ * tile.each_unit));
      for (int64_t unit = 0; unit < units_; unit += block) {
        const int64_t count = std::min(block, units_ - unit);
        panels_.take_gradients(piece, 1, unit, count);
        tile.d = panels_.gradient_at(place, 0, unit, count);
        for (int64_t row = begin; row < end;) {
          panels_.input_at(tile, place, row, begin, unit, count);
          tile.each = memory.data() + unit * tile.each_unit + (row - begin) * tile.width;
          row += run_rows(tile, row, end, nullptr, count);
        }
      }
      take(memory.data(), length, tile.each_unit);
    }
  }

  // A piece and what it accumulates: a slab [rows, width] for each statistic, and two more with
  // kM2; for norms, the squares [units, width] of a block of units.
  struct Piece {
    int64_t index;
    Place place;
    Tile<T> tile;
    std::vector<T> slabs, squares;
  };

  Piece new_piece(int64_t index) const {
    const Place place = panels_.place_of(index);
    Piece made{index, place, panels_.tile_of(place), {}, {}};
    made.slabs.resize(slabs() * rows_ * made.tile.width);
    return made;
  }

  // All units of some pieces, which go through a block of units one after another: where they are
  // several, they find it in the cache.
  void run(int64_t from, int64_t to) {
    std::vector<Piece> parts;
    for (int64_t piece = from; piece < to; ++piece) parts.push_back(new_piece(piece));
    const int64_t of_segment = units_ / job_.segments;
    for (int64_t segment = 0; segment < job_.segments; ++segment) {
      const int64_t first = segment * of_segment, last = first + of_segment;
      for (int64_t unit = first; unit < last; unit += turn_.units) {
        const int64_t count = std::min(turn_.units, last - unit);
        panels_.take_gradients(from, to - from, unit, count);
        for (Piece& part : parts) run_block(part, part.index - from, first, unit, count);
      }
      for (Piece& part : parts) {
        write(part, segment);
        if (segment + 1 < job_.segments) std::fill(part.slabs.begin(), part.slabs.end(), T{0});
      }
    }
  }

  // Units [unit, unit + count) of a piece, the `index`th whose d was taken, in the segment that
  // begins at unit `first`.
  void run_block(Piece& part, int64_t index, int64_t first, int64_t unit, int64_t count) {
    const bool norms = job_.sq_norm != nullptr;
    Tile<T> tile = part.tile;
    tile.d = panels_.gradient_at(part.place, index, unit, count);
    tile.before = unit - first;
    if (norms) part.squares.assign(count * tile.width, T{0});
    for (int64_t row = 0; row < rows_;) {
      panels_.input_at(tile, part.place, row, 0, unit, count);
      point_at_slabs(tile, part, row);
      row += run_rows(tile, row, rows_, norms ? part.squares.data() : nullptr, count);
    }
    for (int64_t u = 0; u < count && norms; ++u) {
      const T* squares = part.squares.data() + u * tile.width;
      norms_[part.index * units_ + unit + u] =
          static_cast<T>(std::accumulate(squares, squares + columns_of(part), 0.0));
    }
  }

  // Those that are there: the last panel may be filled up.
  int64_t columns_of(const Piece& part) const {
    return std::min(part.tile.width, panels_.columns() - part.place.begin);
  }

  int64_t slabs() const {
    int64_t count = 0;
    for (const T* statistic : job_.statistics) count += statistic != nullptr;
    return count + (job_.statistics[kM2] == nullptr ? 0 : 2);
  }

  void point_at_slabs(Tile<T>& tile, Piece& part, int64_t row) const {
    const int64_t size = rows_ * tile.width;
    T* slab = part.slabs.data() + row * tile.width;
    for (int s = 0; s < kStatistics; ++s) {
      if (job_.statistics[s] == nullptr) continue;
      tile.slab[s] = slab;
      slab += size;
    }
    tile.origin = slab;
    tile.deviation = slab + size;
  }

  // Runs the tiles that begin at `row`, for `count` units; returns how many rows, up to `last`,
  // they have.
  int64_t run_rows(Tile<T> tile, int64_t row, int64_t last, T* squares, int64_t count) const {
    const int vectors = static_cast<int>(tile.width / tiles_.lanes);
    const int rows = tiles_.rows_within(std::min(last - row, panels_.rows_together(row)));
    const T* const x = tile.x;
    const T* const d = tile.d;
    T* const gradients = tile.each;
    const int64_t before = tile.before;
    const auto run_units = [&](int64_t from, int64_t to, bool together) {
      if (from == to) return;
      tile.x = x + from * tile.unit * tile.x_sample;
      tile.d = d + from * tile.unit * tile.d_sample;
      tile.units = to - from;
      tile.sq_norm = squares == nullptr ? nullptr : squares + from * tile.width;
      tile.each = gradients == nullptr ? nullptr : gradients + from * tile.each_unit;
      tile.before = before + from;
      tiles_.find(panels_.pairing(), together, rows, vectors)(tile);
    };
    const int64_t even = count / kTogether * kTogether;
    run_units(0, even, true);
    run_units(even, count, false);
    return rows;
  }

  // Slabs [rows, width] to results [columns, taps, rows], or, where x and d are swapped,
  // [rows, columns].
  void write(const Piece& part, int64_t segment) const {
    const int64_t width = part.tile.width, size = rows_ * width, taps = panels_.taps();
    const auto [tap, group, begin] = part.place;
    const int64_t columns = columns_of(part);
    const int64_t first = segment * c_.out_channels + group * panels_.columns() + begin;
    const T* slab = part.slabs.data();
    for (int s = 0; s < kStatistics; ++s) {
      if (job_.statistics[s] == nullptr) continue;
      const T power = power_of(job_.factor, s);
      if (swapped_) {
        T* line = job_.statistics[s] + segment * rows_ * c_.out_channels + begin;
        for (int64_t i = 0; i < rows_; ++i, line += c_.out_channels) {
          for (int64_t o = 0; o < columns; ++o) line[o] = slab[i * width + o] * power;
        }
        slab += size;
        continue;
      }
      T* to = job_.statistics[s] + (first * taps + tap) * rows_;
      for (int64_t from = 0; from < rows_; from += kSquare) {
        const int64_t end = std::min(rows_, from + kSquare);
        for (int64_t o = 0; o < columns; ++o) {
          T* line = to + o * taps * rows_;
          for (int64_t i = from; i < end; ++i) line[i] = slab[i * width + o] * power;
        }
      }
      slab += size;
    }
  }

  void add_norms() const {
    for (int64_t unit = 0; unit < units_; ++unit) {
      double sum = 0;
      for (int64_t piece = 0; piece < pieces_; ++piece) sum += norms_[piece * units_ + unit];
      const double factor = static_cast<double>(job_.factor);
      job_.sq_norm[unit] = sum * factor * factor;
    }
  }

  const bool swapped_;  // whether x is d and d is x
  const Convolution c_;
  const Job<T>& job_;
  const Tiles<T>& tiles_;
  const Panels<T> panels_;
  const int64_t rows_, units_, pieces_;
  const Turn turn_;
  std::vector<T> norms_;  // [pieces, units]
};

}  // namespace

template <class T>
void convolution(const Convolution& shape, const Job<T>& job, const Parallel& parallel) {
  if (is_outer(shape, job)) outer(shape, job, parallel);
  else Work<T>(shape, job, parallel).measure(parallel);
}

template <class T>
void unit_gradients(const Convolution& shape, const T* x, const T* d, int64_t unit, int64_t slots,
                    const TakePart<T>& take, const Parallel& parallel) {
  Job<T> job{};
  job.x = x;
  job.d = d;
  job.unit = unit;
  job.segments = 1;
  Work<T>(shape, job, parallel).hand_out(slots, take, parallel);
}

template <class T>
void scale(const ScaleJob<T>& job, const Parallel& parallel) {
  parallel(job.samples, [&](int64_t from, int64_t to) { tiles<T>().scale(job, from, to); });
}

template void scale(const ScaleJob<float>&, const Parallel&);
template void scale(const ScaleJob<double>&, const Parallel&);
template void convolution(const Convolution&, const Job<float>&, const Parallel&);
template void convolution(const Convolution&, const Job<double>&, const Parallel&);
template void unit_gradients(const Convolution&, const float*, const float*, int64_t, int64_t,
                             const TakePart<float>&, const Parallel&);
template void unit_gradients(const Convolution&, const double*, const double*, int64_t, int64_t,
                             const TakePart<double>&, const Parallel&);

}  // namespace sigeo_ext::sample_moments
