// How the statistics of a convolution are cut into pieces, and what a piece reads of x and d.
#pragma once

#include <algorithm>
#include <bit>
#include <optional>
#include <vector>

#include "sample_moments/layout.h"
#include "sample_moments/tiles.h"

namespace sigeo_ext::sample_moments {

// What pieces read of a block of units, and their slabs: together they stay in a second-level cache
// of 512 KiB.
inline constexpr int64_t kBlockBytes = 320 * 1024;
inline constexpr int64_t kSlabBytes = 128 * 1024;

// Below this many positions of a unit the update of the statistics shows: a block then has room for
// the kTogether units that share it.
inline constexpr int64_t kFewPositions = 256;

// Positions that lie further apart than this are packed: their lines would share few places in the
// first-level cache.
inline constexpr int64_t kFarBytes = 256;

// A sample of at most so many is not: all of it stays in that cache as it lies.
inline constexpr int64_t kNearBytes = 16 * 1024;

// So many pieces may each pack the same panel of x: more than that, and once for all is cheaper.
inline constexpr int64_t kFewPanels = 2;

// A piece is one tap, one panel of output channels of one group, all its input channels and all
// units.
struct Place {
  int64_t tap, group, begin;
};

// So many pieces go through so many units together: one after another, before the next units.
struct Turn {
  int64_t pieces, units;
};

// Panels of channels that lie far apart are packed. A panel that several pieces use is packed once
// for all of them; one that a single piece uses, or that costs little beside its work, is packed by
// the piece, block by block, and does not leave the cache. A depthwise convolution's rows are its
// taps.
template <class T>
class Panels {
 public:
  Panels(const Convolution& shape, const T* x, const T* d, int64_t unit, const Parallel& parallel)
      : c_(shape),
        unit_(unit),
        lanes_(tiles<T>().lanes),
        pairing_(c_.groups > 1 && c_.groups == c_.in_channels && c_.groups == c_.out_channels
                     ? Pairing::kEach
                     : Pairing::kAll),
        groups_(pairing_ == Pairing::kEach ? 1 : c_.groups),
        rows_(pairing_ == Pairing::kEach ? product(c_.kernel) : c_.in_channels / groups_),
        columns_(c_.out_channels / groups_),
        width_(lanes_ * kMostVectors),
        filled_(std::min(round_up(columns_, lanes_), width_)),
        panels_((columns_ + width_ - 1) / width_) {
    const int64_t in_places = product(c_.in_size), out_places = product(c_.out_size);
    const bool alone = pairing_ == Pairing::kEach || product(c_.kernel) == 1;
    const auto far = [](const Images<T>& images) {
      const int64_t apart = images.width * static_cast<int64_t>(sizeof(T));
      return apart >= kFarBytes && apart * images.places > kNearBytes;
    };
    d_ = images(d, c_.d_steps, c_.out_channels, out_places, columns_);
    if (columns_ % lanes_ != 0 || far(d_)) {
      if (alone) d_block_ = filled_;
      else d_ = pack(d_, c_.out_channels, filled_, packed_d_, parallel);
    }
    x_ = images(x, c_.x_steps, c_.in_channels, in_places, rows_);
    if (pairing_ == Pairing::kEach) {
      x_.group = columns_;
      x_block_ = width_;
      place_taps();
    } else {
      if (far(x_)) {
        const auto few = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(rows_)));
        const int64_t width = std::min(kPackedRows, few);
        if (alone && panels_ <= kFewPanels) x_block_ = width;
        else x_ = pack(x_, c_.in_channels, width, packed_x_, parallel);
      }
      taps_ = taps_of(c_, x_block_ > 0 ? x_block_ : x_.width, d_block_ > 0 ? d_block_ : d_.width);
    }
  }

  Panels(const Panels&) = delete;
  Panels& operator=(const Panels&) = delete;

  ~Panels() {
    for (auto* memory : {&packed_x_, &packed_d_, &packed_block_x_, &packed_block_d_}) {
      keep_little(*memory);
    }
  }

  Pairing pairing() const { return pairing_; }
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  int64_t taps() const { return static_cast<int64_t>(taps_.size()); }
  int64_t pieces() const { return groups_ * panels_ * taps(); }

  // How many rows from `row` on a tile may have: those of one panel.
  int64_t rows_together(int64_t row) const {
    if (pairing_ == Pairing::kEach) return rows_ - row;
    const int64_t width = x_block_ > 0 ? x_block_ : x_.width;
    return width - row % width;
  }

  Place place_of(int64_t piece) const {
    const int64_t panel = piece / taps();
    return {piece % taps(), panel / panels_, panel % panels_ * width_};
  }

  // A tile of a piece; `gradient_at` and `input_at` say where it begins.
  Tile<T> tile_of(const Place& place) const {
    Tile<T> tile{};
    const Tap& tap = taps_[place.tap];
    const int64_t x_places = halo_.has_value() ? halo_->places : x_.places;
    tile.x_sample = x_block_ > 0 ? x_places * x_block_ : x_.sample;
    tile.d_sample = d_block_ > 0 ? d_.places * d_block_ : d_.sample;
    tile.x_at = tap.x.data();
    tile.d_at = tap.d.data();
    tile.positions = static_cast<int64_t>(tap.x.size());
    tile.run = run_of(tile.positions);
    tile.unit = unit_;
    tile.width = std::min(round_up(columns_ - place.begin, lanes_), width_);
    return tile;
  }

  // As many pieces, with `slabs` slabs each, as share a block of units in the cache, at most
  // `most`, and as many units as that has.
  Turn turn_of(int64_t slabs, int64_t most) const {
    const int64_t slab = slabs * rows_ * filled_;
    const auto bytes = [](int64_t values) { return values * static_cast<int64_t>(sizeof(T)); };
    const bool few = product(c_.out_size) * unit_ < kFewPositions;
    const int64_t least = few ? kTogether : 1;
    Turn turn{1, 1};
    while (turn.pieces < std::min(most, pieces()) &&
           bytes((turn.pieces + 1) * slab) <= kSlabBytes &&
           bytes(least * values_of_unit(turn.pieces + 1)) <= kBlockBytes) {
      ++turn.pieces;
    }
    const int64_t units = kBlockBytes / std::max<int64_t>(1, bytes(values_of_unit(turn.pieces)));
    turn.units = units < kTogether ? std::max<int64_t>(1, units) : units / kTogether * kTogether;
    return turn;
  }

  // Packs d of `pieces` pieces from `piece` on, and of some units, if pieces do that: together,
  // since their panels lie side by side.
  void take_gradients(int64_t piece, int64_t pieces, int64_t unit, int64_t count) const {
    if (d_block_ == 0) return;
    const int64_t size = count * unit_ * d_.places * d_block_;
    T* to = room(packed_block_d_, pieces * size);
    for (const int64_t last = piece + pieces; piece < last;) {
      const Place place = place_of(piece);
      const int64_t panels = std::min(last - piece, panels_ - place.begin / width_);
      pack_samples(d_, d_.at(place.group, place.begin) + unit * unit_ * d_.sample, count * unit_,
                   std::min(panels * width_, columns_ - place.begin), d_block_, to);
      piece += panels;
      to += panels * size;
    }
  }

  // d of the piece that is the `index`th of those taken.
  const T* gradient_at(const Place& place, int64_t index, int64_t unit, int64_t count) const {
    if (d_block_ == 0) return d_.at(place.group, place.begin) + unit * unit_ * d_.sample;
    return packed_block_d_.data() + index * count * unit_ * d_.places * d_block_;
  }

  // Points the tile at the first of `count` units' x at a row, of those from `first` on. Where
  // pieces pack, the rows of a panel, or all rows of a depthwise convolution, are packed at the
  // first.
  void input_at(Tile<T>& tile, const Place& place, int64_t row, int64_t first, int64_t unit,
                int64_t count) const {
    const int64_t sample = unit * unit_, samples = count * unit_;
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
      T* to = room(packed_block_x_, samples * x_.places * x_block_);
      pack_samples(x_, from, samples, std::min(x_block_, rows_ - row), x_block_, to);
      tile.x = to;
    }
  }

 private:
  // Images as they were given.
  static Images<T> images(const T* values, const Steps& steps, int64_t channels, int64_t places,
                          int64_t of_group) {
    if (steps.position == 0) return {values, channels, places, places * channels, of_group};
    return {values, steps.position, places, steps.sample, of_group};
  }

  // Channels in panels of `width`, each group's last one filled up with zeros.
  Images<T> pack(const Images<T>& from, int64_t channels, int64_t width, Packed<T>& memory,
                 const Parallel& parallel) const {
    const int64_t places = from.places, of_group = from.group;
    const int64_t panels = (of_group + width - 1) / width;
    const int64_t sample = channels / of_group * panels * width * places;
    if (static_cast<int64_t>(memory.size()) < c_.samples * sample) {
      memory.clear();  // nothing to copy
      memory.resize(c_.samples * sample);
    }
    T* const packed = memory.data();
    parallel(c_.samples, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        T* at = packed + index * sample;
        for (int64_t group = 0; group < channels; group += of_group) {
          pack_panels(from.data + index * from.sample + group, places, from.width, of_group, width,
                      at, places * width);
          at += panels * width * places;
        }
      }
    });
    return {packed, width, places, sample, panels * width};
  }

  // What some pieces read of x and d of a unit. One alone needs a panel of x at a time.
  int64_t values_of_unit(int64_t pieces) const {
    const int64_t panels = std::min(panels_, pieces == 1 ? 1 : (pieces - 2) / taps() + 2);
    const int64_t d = panels * filled_ * product(c_.out_size);
    if (pairing_ == Pairing::kEach) return unit_ * (d + panels * halo_->places * x_block_);
    const int64_t channels = pieces == 1 ? std::min(kPackedRows, rows_) : rows_;
    return unit_ * (d + channels * product(c_.in_size));
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

  static T* room(Packed<T>& memory, int64_t values) {
    if (static_cast<int64_t>(memory.size()) < values) memory.resize(values);
    return memory.data();
  }

  const Convolution& c_;
  const int64_t unit_, lanes_;
  const Pairing pairing_;
  const int64_t groups_;          // that are worked on one after another
  const int64_t rows_, columns_;  // of one of them: channels in (or taps) and channels out
  const int64_t width_;           // of a panel of output channels
  const int64_t filled_;          // of the first one: less, if there are not so many
  const int64_t panels_;
  Images<T> x_, d_;
  int64_t x_block_ = 0, d_block_ = 0;  // width of the panels that pieces pack; 0 if they do not
  std::optional<Halo> halo_;           // of a depthwise convolution's x
  std::vector<int32_t> row_at_;        // of a depthwise convolution: where each tap lies
  std::vector<Tap> taps_;
  // Kept between calls: memory that is mapped anew for each costs more than the packing.
  inline static thread_local Packed<T> packed_x_, packed_d_, packed_block_x_, packed_block_d_;
};

}  // namespace sigeo_ext::sample_moments
