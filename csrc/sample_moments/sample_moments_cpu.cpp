#include "sample_moments/sample_moments.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "sample_moments/tiles.h"

namespace sigeo_ext::sample_moments {
namespace {

// Of a sample block's x and d, so that both stay in the second-level cache over all its tiles.
constexpr int64_t kBlockBytes = 384 * 1024;

// Rows of a slab that are transposed together: whole cache lines on both sides.
constexpr int64_t kSquare = 16;

// The positions that one tap joins, as offsets into a sample of x and of d.
struct Tap {
  std::vector<int32_t> x, d;
};

std::vector<Tap> taps_of(const Convolution& c, int64_t x_step, int64_t d_step) {
  std::vector<Tap> taps;
  for (int64_t kz = 0; kz < c.kernel[0]; ++kz) {
    for (int64_t ky = 0; ky < c.kernel[1]; ++ky) {
      for (int64_t kx = 0; kx < c.kernel[2]; ++kx) {
        const int64_t tap_at[] = {kz, ky, kx};
        int64_t low[3], high[3], shift[3];  // the outputs whose input at this tap is inside
        for (int a = 0; a < 3; ++a) {
          shift[a] = tap_at[a] * c.dilation[a] - c.padding[a];
          low[a] = shift[a] >= 0 ? 0 : (-shift[a] + c.stride[a] - 1) / c.stride[a];
          const int64_t last = c.in_size[a] - 1 - shift[a];
          high[a] = last < 0 ? 0 : std::min(c.out_size[a], last / c.stride[a] + 1);
        }
        Tap& tap = taps.emplace_back();
        for (int64_t z = low[0]; z < high[0]; ++z) {
          for (int64_t y = low[1]; y < high[1]; ++y) {
            for (int64_t x = low[2]; x < high[2]; ++x) {
              const int64_t from =
                  ((z * c.stride[0] + shift[0]) * c.in_size[1] + y * c.stride[1] + shift[1]) *
                      c.in_size[2] +
                  x * c.stride[2] + shift[2];
              const int64_t to = (z * c.out_size[1] + y) * c.out_size[2] + x;
              tap.x.push_back(static_cast<int32_t>(from * x_step));
              tap.d.push_back(static_cast<int32_t>(to * d_step));
            }
          }
        }
      }
    }
  }
  return taps;
}

int64_t product(const std::array<int64_t, 3>& size) { return size[0] * size[1] * size[2]; }

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// One weight's worth of work: its layout, and what every piece of it needs.
template <class T>
class Work {
 public:
  Work(const Convolution& shape, const Job<T>& job, const Parallel& parallel)
      : c_(shape),
        job_(job),
        tiles_(tiles<T>()),
        pairing_(c_.groups > 1 && c_.groups == c_.in_channels && c_.groups == c_.out_channels
                     ? Pairing::kEach
                     : Pairing::kAll),
        groups_(pairing_ == Pairing::kEach ? 1 : c_.groups),
        rows_(pairing_ == Pairing::kEach ? 1 : c_.in_channels / groups_),
        columns_(c_.out_channels / groups_),
        units_(c_.samples / job.unit) {
    const int64_t padded = round_up(columns_, tiles_.lanes);
    x_ = job.x;
    d_ = job.d;
    x_step_ = c_.in_channels;
    d_step_ = c_.out_channels;
    column_step_ = columns_;
    if (padded != columns_) {
      d_ = pad(job.d, c_.samples * product(c_.out_size) * groups_, padded, padded_d_, parallel);
      d_step_ = groups_ * padded;
      column_step_ = padded;
      if (pairing_ == Pairing::kEach) {
        x_ = pad(job.x, c_.samples * product(c_.in_size), padded, padded_x_, parallel);
        x_step_ = padded;
      }
    }
    taps_ = taps_of(c_, x_step_, d_step_);
    panels_ = (padded + tiles_.lanes * kMostVectors - 1) / (tiles_.lanes * kMostVectors);
    pieces_ = groups_ * panels_ * static_cast<int64_t>(taps_.size());
    if (job.sq_norm != nullptr) norms_.assign(pieces_ * units_, T{0});
    parallel(pieces_, [&](int64_t from, int64_t to) {
      for (int64_t piece = from; piece < to; ++piece) run(piece);
    });
    if (job.sq_norm != nullptr) add_norms();
  }

 private:
  // Runs of `columns_` values filled up with zeros to `padded`: whole vectors.
  const T* pad(const T* values, int64_t places, int64_t padded, std::unique_ptr<T[]>& memory,
               const Parallel& parallel) const {
    memory = std::make_unique_for_overwrite<T[]>(places * padded);
    T* const filled = memory.get();
    parallel(places, [&](int64_t from, int64_t to) {
      for (int64_t place = from; place < to; ++place) {
        T* at = filled + place * padded;
        std::copy_n(values + place * columns_, columns_, at);
        std::fill(at + columns_, at + padded, T{0});
      }
    });
    return filled;
  }

  // One tap, one panel of output channels of one group, all its input channels and all units.
  void run(int64_t piece) {
    const int64_t tap = piece % static_cast<int64_t>(taps_.size());
    const int64_t panel = piece / static_cast<int64_t>(taps_.size()) % panels_;
    const int64_t group = piece / static_cast<int64_t>(taps_.size()) / panels_;
    const int64_t begin = panel * tiles_.lanes * kMostVectors;
    const int64_t width =
        std::min<int64_t>(round_up(columns_ - begin, tiles_.lanes), tiles_.lanes * kMostVectors);
    Tile<T> tile{};
    tile.x_sample = product(c_.in_size) * x_step_;
    tile.d_sample = product(c_.out_size) * d_step_;
    tile.x_at = taps_[tap].x.data();
    tile.d_at = taps_[tap].d.data();
    tile.positions = static_cast<int64_t>(taps_[tap].x.size());
    tile.unit = job_.unit;
    tile.width = width;
    const T* x = x_ + (pairing_ == Pairing::kEach ? begin : group * rows_);
    const T* d = d_ + group * column_step_ + begin;

    const int64_t size = rows_ * width;
    const bool centred = job_.statistics[kM2] != nullptr;
    std::vector<T> memory((kStatistics + 2 * centred) * size);
    const int64_t of_segment = units_ / job_.segments;
    for (int64_t segment = 0; segment < job_.segments; ++segment) {
      if (segment > 0) std::fill(memory.begin(), memory.end(), T{0});
      const int64_t last = (segment + 1) * of_segment;
      const int64_t block = units_of_block(tile.positions, width);
      for (int64_t unit = segment * of_segment; unit < last; unit += block) {
        const int64_t count = std::min(block, last - unit);
        tile.first = unit == segment * of_segment;
        for (int64_t row = 0; row < rows_;) {
          row += run_rows(tile, memory.data(), row, x + unit * job_.unit * tile.x_sample,
                          d + unit * job_.unit * tile.d_sample,
                          norms_.empty() ? nullptr : norms_.data() + piece * units_ + unit, count);
        }
      }
      write(memory, segment, group * columns_ + begin, std::min(width, columns_ - begin), tap,
            width, of_segment);
    }
  }

  int64_t units_of_block(int64_t positions, int64_t width) const {
    const int64_t values = pairing_ == Pairing::kEach ? 2 * width : rows_ + width;
    const int64_t bytes = job_.unit * positions * values * static_cast<int64_t>(sizeof(T));
    return std::max<int64_t>(kMostUnits,
                             kBlockBytes / std::max<int64_t>(1, bytes) / kMostUnits * kMostUnits);
  }

  // Runs the tiles that begin at `row`, for `count` units; returns how many rows they have.
  int64_t run_rows(Tile<T> tile, T* memory, int64_t row, const T* x, const T* d, T* norms,
                   int64_t count) const {
    const int vectors = static_cast<int>(tile.width / tiles_.lanes);
    int rows = tiles_.accumulators / vectors;
    while (rows > rows_ - row) rows /= 2;
    int units = kMostUnits;
    while (units * rows * vectors > tiles_.accumulators) units /= 2;
    const int64_t size = rows_ * tile.width, at = row * tile.width;
    for (int s = 0; s < kStatistics; ++s) {
      tile.slab[s] = job_.statistics[s] == nullptr ? nullptr : memory + s * size + at;
    }
    tile.origin = memory + kStatistics * size + at;
    tile.deviation = tile.origin + size;
    const auto run_units = [&](int64_t from, int64_t to, int at_once) {
      if (from == to) return;
      tile.x = x + row + from * tile.unit * tile.x_sample;
      tile.d = d + from * tile.unit * tile.d_sample;
      tile.units = to - from;
      tile.sq_norm = norms == nullptr ? nullptr : norms + from;
      tile.first = tile.first && from == 0;
      tiles_.find(pairing_, at_once, rows, vectors)(tile);
    };
    const int64_t even = count / units * units;
    run_units(0, even, units);
    run_units(even, count, 1);
    return rows;
  }

  // Slabs [rows, width] to results [columns, taps, rows].
  void write(const std::vector<T>& memory, int64_t segment, int64_t column, int64_t columns,
             int64_t tap, int64_t width, int64_t units) const {
    const int64_t size = rows_ * width, taps = static_cast<int64_t>(taps_.size());
    const T* deviation = memory.data() + (kStatistics + 1) * size;
    for (int s = 0; s < kStatistics; ++s) {
      if (job_.statistics[s] == nullptr) continue;
      const T* slab = memory.data() + s * size;
      T* to = job_.statistics[s] + ((segment * c_.out_channels + column) * taps + tap) * rows_;
      for (int64_t begin = 0; begin < rows_; begin += kSquare) {
        const int64_t end = std::min(rows_, begin + kSquare);
        for (int64_t o = 0; o < columns; ++o) {
          T* line = to + o * taps * rows_;
          if (s == kM2) {
            const T count = static_cast<T>(std::max<int64_t>(1, units));
            for (int64_t i = begin; i < end; ++i) {
              const T sum = deviation[i * width + o];
              const T m2 = slab[i * width + o] - sum * (sum / count);
              line[i] = m2 < 0 ? T{0} : m2;  // a NaN stays one
            }
          } else {
            for (int64_t i = begin; i < end; ++i) line[i] = slab[i * width + o];
          }
        }
      }
    }
  }

  void add_norms() const {
    for (int64_t unit = 0; unit < units_; ++unit) {
      double sum = 0;
      for (int64_t piece = 0; piece < pieces_; ++piece) sum += norms_[piece * units_ + unit];
      job_.sq_norm[unit] = sum;
    }
  }

  const Convolution& c_;
  const Job<T>& job_;
  const Tiles<T>& tiles_;
  const Pairing pairing_;
  const int64_t groups_;          // that are worked on one after another
  const int64_t rows_, columns_;  // of one of them: channels in and out
  const int64_t units_;
  const T* x_;
  const T* d_;
  int64_t x_step_, d_step_;  // from one position to the next
  int64_t column_step_;      // from one group of d to the next
  int64_t panels_, pieces_;
  std::vector<Tap> taps_;
  std::unique_ptr<T[]> padded_x_, padded_d_;
  std::vector<T> norms_;
};

}  // namespace

template <class T>
void convolution(const Convolution& shape, const Job<T>& job, const Parallel& parallel) {
  Work<T>(shape, job, parallel);
}

template <class T>
void scale(const ScaleJob<T>& job, const Parallel& parallel) {
  parallel(job.samples, [&](int64_t from, int64_t to) { tiles<T>().scale(job, from, to); });
}

template void scale(const ScaleJob<float>&, const Parallel&);
template void scale(const ScaleJob<double>&, const Parallel&);
template void convolution(const Convolution&, const Job<float>&, const Parallel&);
template void convolution(const Convolution&, const Job<double>&, const Parallel&);

}  // namespace sigeo_ext::sample_moments
