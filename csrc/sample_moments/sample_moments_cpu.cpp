#include "sample_moments/sample_moments.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>
#include <vector>

#include "sample_moments/layout.h"
#include "sample_moments/tiles.h"

namespace sigeo_ext::sample_moments {
namespace {

// Of a block of units: its panel of d, read by every tile, and a panel of x stay in the
// second-level cache, with room for the slabs.
constexpr int64_t kBlockBytes = 192 * 1024;

// Input channels of a packed panel: a cache line of float32, and the rows of the largest tile.
constexpr int64_t kPackedRows = 16;

// Positions that lie further apart than this are packed: their lines would share few places in the
// first-level cache.
constexpr int64_t kFarBytes = 256;

// So many pieces may each pack the same panel of x: more than that, and once for all is cheaper.
constexpr int64_t kFewPanels = 2;

// Packed memory of a thread beyond this is given back after a call.
constexpr size_t kKeptBytes = 64 << 20;

// Below this many positions of a unit the update of the statistics shows, and two units share one.
constexpr int64_t kFewPositions = 128;

// Of a part of every unit's gradient, which is read again for all pairs of units.
constexpr int64_t kEachBytes = 384 * 1024;

// Rows of a slab that are transposed together: whole cache lines on both sides.
constexpr int64_t kSquare = 16;

// One weight's worth of work: its layout, and what every piece of it needs.
//
// Panels of channels that lie far apart are packed. A panel that several pieces use is packed once
// for all of them; one that a single piece uses, or that costs little beside its work, is packed by
// the piece, block by block, and does not leave the cache. A depthwise convolution's rows are its
// taps.
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
        rows_(pairing_ == Pairing::kEach ? product(c_.kernel) : c_.in_channels / groups_),
        columns_(c_.out_channels / groups_),
        width_(tiles_.lanes * kMostVectors),
        units_(c_.samples / job.unit),
        panels_((columns_ + width_ - 1) / width_) {
    const int64_t in_places = product(c_.in_size), out_places = product(c_.out_size);
    const bool alone = pairing_ == Pairing::kEach || product(c_.kernel) == 1;
    const auto far = [](int64_t channels) {
      return channels * static_cast<int64_t>(sizeof(T)) >= kFarBytes;
    };
    d_ = {job.d, c_.out_channels, out_places, out_places * c_.out_channels, columns_};
    if (columns_ % tiles_.lanes != 0 || far(c_.out_channels)) {
      const int64_t width = std::min(width_, round_up(columns_, tiles_.lanes));
      if (alone) d_block_ = width;
      else d_ = pack(job.d, out_places, c_.out_channels, columns_, width, packed_d_, parallel);
    }
    x_ = {job.x, c_.in_channels, in_places, in_places * c_.in_channels, rows_};
    if (pairing_ == Pairing::kEach) {
      x_.group = columns_;
      x_block_ = width_;
      place_taps();
    } else {
      if (far(c_.in_channels)) {
        const auto few = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(rows_)));
        const int64_t width = std::min(kPackedRows, few);
        if (alone && panels_ <= kFewPanels) x_block_ = width;
        else x_ = pack(job.x, in_places, c_.in_channels, rows_, width, packed_x_, parallel);
      }
      taps_ = taps_of(c_, x_block_ > 0 ? x_block_ : x_.width, d_block_ > 0 ? d_block_ : d_.width);
    }
    pieces_ = groups_ * panels_ * static_cast<int64_t>(taps_.size());
  }

  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;

  ~Work() {
    for (auto* memory : {&packed_x_, &packed_d_, &packed_block_x_, &packed_block_d_}) {
      if (memory->size() * sizeof(T) > kKeptBytes) std::vector<T>().swap(*memory);
    }
  }

  void measure(const Parallel& parallel) {
    if (job_.sq_norm != nullptr) norms_.assign(pieces_ * units_, T{0});
    parallel(pieces_, [&](int64_t from, int64_t to) {
      for (int64_t piece = from; piece < to; ++piece) run(piece);
    });
    if (job_.sq_norm != nullptr) add_norms();
  }

  void hand_out(int64_t slots, const TakePart<T>& take, const Parallel& parallel) const {
    parallel(slots, [&](int64_t from, int64_t to) {
      std::vector<T> memory;
      for (int64_t slot = from; slot < to; ++slot) {
        const int64_t last = pieces_ * (slot + 1) / slots;
        for (int64_t piece = pieces_ * slot / slots; piece < last; ++piece) {
          hand_out_piece(piece, memory, [&](const T* g, int64_t size) { take(slot, g, size); });
        }
      }
    });
  }

 private:
  // Channels in panels of `width`, each group's last one filled up with zeros.
  Images<T> pack(const T* values, int64_t places, int64_t channels, int64_t of_group, int64_t width,
                 std::vector<T>& memory, const Parallel& parallel) const {
    const int64_t panels = (of_group + width - 1) / width;
    const int64_t sample = channels / of_group * panels * width * places;
    if (static_cast<int64_t>(memory.size()) < c_.samples * sample) {
      memory.clear();  // nothing to copy
      memory.resize(c_.samples * sample);
    }
    T* const packed = memory.data();
    parallel(c_.samples, [&](int64_t from, int64_t to) {
      for (int64_t index = from; index < to; ++index) {
        T* at = packed + index * sample;
        for (int64_t group = 0; group < channels; group += of_group) {
          for (int64_t begin = 0; begin < of_group; begin += width) {
            const int64_t count = std::min(width, of_group - begin);
            const T* source = values + index * places * channels + group + begin;
            for (int64_t place = 0; place < places; ++place, at += width, source += channels) {
              std::copy_n(source, count, at);
              std::fill(at + count, at + width, T{0});
            }
          }
        }
      }
    });
    return {packed, width, places, sample, panels * width};
  }

  // All taps of a depthwise convolution, as rows at fixed distances, and their common positions.
  void place_taps() {
    halo_.emplace(c_);
    const int64_t step = d_block_ > 0 ? d_block_ : d_.width;
    Tap& tap = taps_.emplace_back();
    for (size_t t = 0; t < halo_->outputs.size(); ++t) {
      tap.x.push_back(static_cast<int32_t>(halo_->outputs[t] * x_block_));
      tap.d.push_back(static_cast<int32_t>(static_cast<int64_t>(t) * step));
    }
    for (const int64_t place : halo_->taps) {
      row_at_.push_back(static_cast<int32_t>(place * x_block_));
    }
  }

  // A piece is one tap, one panel of output channels of one group, all its input channels and all
  // units.
  struct Place {
    int64_t tap, group, begin;
  };

  Place place_of(int64_t piece) const {
    const int64_t taps = static_cast<int64_t>(taps_.size());
    return {piece % taps, piece / taps / panels_, piece / taps % panels_ * width_};
  }

  Tile<T> tile_of(const Place& place) const {
    Tile<T> tile{};
    const Tap& tap = taps_[place.tap];
    const int64_t x_places = halo_.has_value() ? halo_->places : x_.places;
    tile.x_sample = x_block_ > 0 ? x_places * x_block_ : x_.sample;
    tile.d_sample = d_block_ > 0 ? d_.places * d_block_ : d_.sample;
    tile.x_at = tap.x.data();
    tile.d_at = tap.d.data();
    tile.positions = static_cast<int64_t>(tap.x.size());
    tile.unit = job_.unit;
    tile.width = std::min(round_up(columns_ - place.begin, tiles_.lanes), width_);
    return tile;
  }

  // Every unit's gradient of a piece, so many rows at a time that they stay in the cache.
  template <class Take>
  void hand_out_piece(int64_t piece, std::vector<T>& memory, const Take& take) const {
    const Place place = place_of(piece);
    Tile<T> tile = tile_of(place);
    if (tile.positions == 0 || units_ == 0) return;
    const int64_t line = units_ * tile.width * static_cast<int64_t>(sizeof(T));
    const int64_t at_once =
        std::max<int64_t>(kPackedRows, kEachBytes / line / kPackedRows * kPackedRows);
    for (int64_t begin = 0; begin < rows_; begin += at_once) {
      const int64_t end = std::min(rows_, begin + at_once);
      tile.each_unit = (end - begin) * tile.width;
      memory.resize(std::max<size_t>(memory.size(), units_ * tile.each_unit));
      const int64_t block = units_of_block(tile);
      for (int64_t unit = 0; unit < units_; unit += block) {
        const int64_t count = std::min(block, units_ - unit);
        tile.d = gradient_at(place, unit, count);
        for (int64_t row = begin; row < end;) {
          input_at(tile, place, row, begin, unit, count);
          tile.each = memory.data() + unit * tile.each_unit + (row - begin) * tile.width;
          row += run_rows(tile, row, end, nullptr, count);
        }
      }
      take(memory.data(), tile.each_unit);
    }
  }

  void run(int64_t piece) {
    const Place place = place_of(piece);
    Tile<T> tile = tile_of(place);
    Piece part{place, tile.width, {}};
    part.memory.resize(slabs() * rows_ * tile.width);
    const int64_t of_segment = units_ / job_.segments;
    const int64_t block = units_of_block(tile);
    for (int64_t segment = 0; segment < job_.segments; ++segment) {
      if (segment > 0) std::fill(part.memory.begin(), part.memory.end(), T{0});
      const int64_t last = (segment + 1) * of_segment;
      for (int64_t unit = segment * of_segment; unit < last; unit += block) {
        const int64_t count = std::min(block, last - unit);
        tile.d = gradient_at(place, unit, count);
        tile.before = unit - segment * of_segment;
        T* norms = norms_.empty() ? nullptr : norms_.data() + piece * units_ + unit;
        for (int64_t row = 0; row < rows_;) {
          input_at(tile, place, row, 0, unit, count);
          point_at_slabs(tile, part, row);
          row += run_rows(tile, row, rows_, norms, count);
        }
      }
      write(part, segment);
    }
  }

  // What a piece accumulates: a slab [rows, width] for each statistic, and two more with kM2.
  struct Piece {
    Place place;
    int64_t width;
    std::vector<T> memory;
  };

  int64_t slabs() const {
    int64_t count = 0;
    for (const T* statistic : job_.statistics) count += statistic != nullptr;
    return count + (job_.statistics[kM2] == nullptr ? 0 : 2);
  }

  int64_t units_of_block(const Tile<T>& tile) const {
    const int64_t x_values =
        halo_.has_value() ? halo_->places * x_block_ : tile.positions * kPackedRows;
    const int64_t values = x_values + tile.positions * tile.width;
    const int64_t bytes = job_.unit * values * static_cast<int64_t>(sizeof(T));
    const int64_t units = kBlockBytes / std::max<int64_t>(1, bytes);
    return units < kMostUnits ? std::max<int64_t>(1, units) : units / kMostUnits * kMostUnits;
  }

  void point_at_slabs(Tile<T>& tile, Piece& part, int64_t row) const {
    const int64_t size = rows_ * tile.width;
    T* slab = part.memory.data() + row * tile.width;
    for (int s = 0; s < kStatistics; ++s) {
      if (job_.statistics[s] == nullptr) continue;
      tile.slab[s] = slab;
      slab += size;
    }
    tile.origin = slab;
    tile.deviation = slab + size;
  }

  // d of a piece and of some units, after it has been packed if pieces do that.
  const T* gradient_at(const Place& place, int64_t unit, int64_t count) const {
    const T* from = d_.at(place.group, place.begin) + unit * job_.unit * d_.sample;
    if (d_block_ == 0) return from;
    const int64_t lines = count * job_.unit * d_.places;
    T* to = room(packed_block_d_, lines * d_block_);
    pack_panel(from, lines, d_.width, std::min(d_block_, columns_ - place.begin), d_block_, to);
    return to;
  }

  // Points the tile at the first of `count` units' x at a row, of those from `first` on. Where
  // pieces pack, the rows of a panel, or all rows of a depthwise convolution, are packed at the
  // first.
  void input_at(Tile<T>& tile, const Place& place, int64_t row, int64_t first, int64_t unit,
                int64_t count) const {
    const int64_t sample = unit * job_.unit, samples = count * job_.unit;
    if (pairing_ == Pairing::kEach) {
      tile.row_at = row_at_.data() + row;
      if (row > first) return;
      const T* from = x_.at(0, place.begin) + sample * x_.sample;
      const int64_t channels = std::min(x_block_, columns_ - place.begin);
      T* to = room(packed_block_x_, samples * tile.x_sample);
      for (int64_t s = 0; s < samples; ++s) {
        pack_with_halo(from + s * x_.sample, c_, *halo_, x_.width, channels, x_block_,
                       to + s * tile.x_sample);
      }
      tile.x = to;
    } else if (x_block_ == 0) {
      tile.x = x_.at(place.group, row) + sample * x_.sample;
    } else if (row % x_block_ != 0) {
      tile.x = packed_block_x_.data() + row % x_block_;
    } else {
      const T* from = x_.at(place.group, row) + sample * x_.sample;
      const int64_t lines = samples * x_.places;
      T* to = room(packed_block_x_, lines * x_block_);
      pack_panel(from, lines, x_.width, std::min(x_block_, rows_ - row), x_block_, to);
      tile.x = to;
    }
  }

  static T* room(std::vector<T>& memory, int64_t values) {
    if (static_cast<int64_t>(memory.size()) < values) memory.resize(values);
    return memory.data();
  }

  // Runs the tiles that begin at `row`, for `count` units; returns how many rows, up to `last`,
  // they have.
  int64_t run_rows(Tile<T> tile, int64_t row, int64_t last, T* norms, int64_t count) const {
    const int vectors = static_cast<int>(tile.width / tiles_.lanes);
    int rows = std::min<int>(kPackedRows, tiles_.accumulators / vectors);
    if (tile.positions * tile.unit < kFewPositions) rows = std::max(1, rows / 2);
    while (rows > last - row) rows /= 2;
    int units = kMostUnits;
    while (units * rows * vectors > tiles_.accumulators) units /= 2;
    const T* const x = tile.x;
    const T* const d = tile.d;
    T* const gradients = tile.each;
    const int64_t before = tile.before;
    const auto run_units = [&](int64_t from, int64_t to, int at_once) {
      if (from == to) return;
      tile.x = x + from * tile.unit * tile.x_sample;
      tile.d = d + from * tile.unit * tile.d_sample;
      tile.units = to - from;
      tile.sq_norm = norms == nullptr ? nullptr : norms + from;
      tile.each = gradients == nullptr ? nullptr : gradients + from * tile.each_unit;
      tile.before = before + from;
      tiles_.find(pairing_, at_once, rows, vectors)(tile);
    };
    const int64_t even = count / units * units;
    run_units(0, even, units);
    run_units(even, count, 1);
    return rows;
  }

  // Slabs [rows, width] to results [columns, taps, rows].
  void write(const Piece& part, int64_t segment) const {
    const int64_t size = rows_ * part.width, taps = static_cast<int64_t>(taps_.size());
    const auto [tap, group, begin] = part.place;
    const int64_t columns = std::min(part.width, columns_ - begin);
    const int64_t first = segment * c_.out_channels + group * columns_ + begin;
    const T* slab = part.memory.data();
    for (int s = 0; s < kStatistics; ++s) {
      if (job_.statistics[s] == nullptr) continue;
      T* to = job_.statistics[s] + (first * taps + tap) * rows_;
      const T power = power_of(job_.factor, s);
      for (int64_t from = 0; from < rows_; from += kSquare) {
        const int64_t end = std::min(rows_, from + kSquare);
        for (int64_t o = 0; o < columns; ++o) {
          T* line = to + o * taps * rows_;
          for (int64_t i = from; i < end; ++i) line[i] = slab[i * part.width + o] * power;
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

  const Convolution& c_;
  const Job<T>& job_;
  const Tiles<T>& tiles_;
  const Pairing pairing_;
  const int64_t groups_;          // that are worked on one after another
  const int64_t rows_, columns_;  // of one of them: channels in (or taps) and channels out
  const int64_t width_;           // of a panel of output channels
  const int64_t units_;
  const int64_t panels_;
  Images<T> x_, d_;
  int64_t x_block_ = 0, d_block_ = 0;  // width of the panels that pieces pack; 0 if they do not
  std::optional<Halo> halo_;           // of a depthwise convolution's x
  std::vector<int32_t> row_at_;        // of a depthwise convolution: where each tap lies
  int64_t pieces_;
  std::vector<Tap> taps_;
  std::vector<T> norms_;
  // Kept between calls: memory that is mapped anew for each costs more than the packing.
  inline static thread_local std::vector<T> packed_x_, packed_d_, packed_block_x_, packed_block_d_;
};

}  // namespace

template <class T>
void convolution(const Convolution& shape, const Job<T>& job, const Parallel& parallel) {
  Work<T>(shape, job, parallel).measure(parallel);
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
void rows(const RowsJob<T>& job) {
  const int64_t units = job.samples / job.unit, of_segment = units / job.segments;
  std::vector<T> g(job.size), origin(job.size), drift(job.size);
  for (T* statistic : job.statistics) {
    if (statistic != nullptr) std::fill_n(statistic, job.segments * job.size, T{0});
  }
  for (int64_t unit = 0; unit < units; ++unit) {
    const T* from = job.rows + unit * job.unit * job.size;
    const int64_t at = unit / of_segment * job.size;
    std::copy_n(from, job.size, g.data());
    for (int64_t sample = 1; sample < job.unit; ++sample) {
      for (int64_t i = 0; i < job.size; ++i) g[i] += from[sample * job.size + i];
    }
    const auto add = [&](Statistic s, const auto& term) {
      T* to = job.statistics[s];
      if (to == nullptr) return;
      for (int64_t i = 0; i < job.size; ++i) to[at + i] += term(g[i]);
    };
    add(kSum, [](T v) { return v; });
    add(kAbsSum, [](T v) { return std::fabs(v); });
    add(kSqSum, [](T v) { return v * v; });
    add(kSignSum, [](T v) { return static_cast<T>((v > 0) - (v < 0)) + (v - v); });
    if (T* m2 = job.statistics[kM2]) {
      if (unit % of_segment == 0) {
        origin = g;
        std::fill(drift.begin(), drift.end(), T{0});
      }
      const T share = T{1} / static_cast<T>(unit % of_segment + 1);
      for (int64_t i = 0; i < job.size; ++i) {  // Welford's, on deviations from the first unit
        const T deviation = g[i] - origin[i], step = deviation - drift[i];
        drift[i] += step * share;
        m2[at + i] += step * (deviation - drift[i]);
      }
    }
    if (job.sq_norm != nullptr) {
      double sum = 0;
      for (int64_t i = 0; i < job.size; ++i) sum += static_cast<double>(g[i]) * g[i];
      const double factor = static_cast<double>(job.factor);
      job.sq_norm[unit] = sum * factor * factor;
    }
  }
  for (int s = 0; s < kStatistics; ++s) {
    const T power = power_of(job.factor, s);
    if (job.statistics[s] == nullptr || power == 1) continue;
    for (int64_t i = 0; i < job.segments * job.size; ++i) job.statistics[s][i] *= power;
  }
}

template void rows(const RowsJob<float>&);
template void rows(const RowsJob<double>&);

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
