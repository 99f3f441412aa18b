// Where the values of a convolution's images lie, and how panels of channels are packed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "sample_moments/sample_moments.h"

namespace sigeo_ext::sample_moments {

// The positions that one tap joins, as offsets into a sample of x and of d.
struct Tap {
  std::vector<int32_t> x, d;
};

inline std::vector<Tap> taps_of(const Convolution& c, int64_t x_step, int64_t d_step) {
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

inline int64_t product(const std::array<int64_t, 3>& size) { return size[0] * size[1] * size[2]; }

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Images in memory: panels of consecutive channels, each with all positions of a sample.
// Not packed, there is one panel with all the channels.
template <class T>
struct Images {
  const T* data;
  int64_t width;   // at least the channels of a panel: the step from one position to the next
  int64_t places;  // positions of a sample
  int64_t sample;  // from one sample to the next
  int64_t group;   // channels from one group to the next, each group's last panel filled up

  const T* at(int64_t of_group, int64_t column) const {
    const int64_t channel = of_group * group + column;
    return data + channel / width * (width * places) + channel % width;
  }
};

// The images of a depthwise convolution's input with their padding around them, so that every tap
// of every output lies inside, at the same distance from the first tap.
struct Halo {
  explicit Halo(const Convolution& c) : size(c.in_size), before(c.padding) {
    for (int a = 0; a < 3; ++a) size[a] += 2 * c.padding[a];
    places = product(size);
    const auto place = [&](int64_t z, int64_t y, int64_t x) {
      return (z * size[1] + y) * size[2] + x;
    };
    for (int64_t z = 0; z < c.kernel[0]; ++z) {
      for (int64_t y = 0; y < c.kernel[1]; ++y) {
        for (int64_t x = 0; x < c.kernel[2]; ++x) {
          taps.push_back(place(z * c.dilation[0], y * c.dilation[1], x * c.dilation[2]));
        }
      }
    }
    for (int64_t z = 0; z < c.out_size[0]; ++z) {
      for (int64_t y = 0; y < c.out_size[1]; ++y) {
        for (int64_t x = 0; x < c.out_size[2]; ++x) {
          outputs.push_back(place(z * c.stride[0], y * c.stride[1], x * c.stride[2]));
        }
      }
    }
  }

  std::array<int64_t, 3> size, before;
  int64_t places;
  std::vector<int64_t> taps;     // where the tap lies, from the first one
  std::vector<int64_t> outputs;  // where the first tap of each output lies
};

// For packed panels: none of their vectors crosses a cache line.
template <class T>
struct CacheAligned {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  CacheAligned() = default;
  template <class U>
  explicit CacheAligned(const CacheAligned<U>&) {}

  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* memory, size_t) { ::operator delete(memory, kLine); }
  bool operator==(const CacheAligned&) const { return true; }
};

template <class T>
using Packed = std::vector<T, CacheAligned<T>>;

// Packed memory of a thread beyond this is given back after a call.
inline constexpr size_t kKeptBytes = 64 << 20;

template <class T>
void keep_little(Packed<T>& memory) {
  if (memory.size() * sizeof(T) > kKeptBytes) Packed<T>().swap(memory);
}

// Panels packed together: side by side in memory, they are read as fast as memory goes. More would
// be written to places that share few sets of the first-level cache.
inline constexpr int64_t kPanelsTogether = 4;

// Lines ahead of the one being packed that are asked for: they lie too far apart for the processor
// to see them coming.
inline constexpr int64_t kLinesAhead = 8;

// Of `lines` lines, `step` apart, kPanels times kWidth values, each to a panel, `apart` from the
// next.
template <int64_t kPanels, int64_t kWidth, class T>
void pack_lines(const T* from, int64_t lines, int64_t step, T* to, int64_t apart) {
  for (int64_t line = 0; line < lines; ++line, from += step, to += kWidth) {
    const bool more = line + kLinesAhead < lines;
    for (int64_t panel = 0; panel < kPanels; ++panel) {
      const T* at = from + panel * kWidth;
      if (more) __builtin_prefetch(at + kLinesAhead * step);
      std::memcpy(to + panel * apart, at, kWidth * sizeof(T));
    }
  }
}

// The same with as many panels as are full. Returns how many.
template <int64_t kWidth, class T>
int64_t pack_full_panels(const T* from, int64_t lines, int64_t step, int64_t count, T* to,
                         int64_t apart) {
  const int64_t full = count / kWidth;
  int64_t panel = 0;
  for (; panel + kPanelsTogether <= full; panel += kPanelsTogether) {
    pack_lines<kPanelsTogether, kWidth>(from + panel * kWidth, lines, step, to + panel * apart,
                                        apart);
  }
  for (; panel < full; ++panel) {
    pack_lines<1, kWidth>(from + panel * kWidth, lines, step, to + panel * apart, apart);
  }
  return full;
}

// Of lines `step` apart `count` values, in panels of `width`, `apart` from one another, the last
// one filled up with zeros.
template <class T>
void pack_panels(const T* from, int64_t lines, int64_t step, int64_t count, int64_t width, T* to,
                 int64_t apart) {
  int64_t panel = 0;
  if (width == 8) panel = pack_full_panels<8>(from, lines, step, count, to, apart);
  if (width == 16) panel = pack_full_panels<16>(from, lines, step, count, to, apart);
  if (width == 32) panel = pack_full_panels<32>(from, lines, step, count, to, apart);
  for (; panel * width < count; ++panel) {
    const int64_t some = std::min(width, count - panel * width);
    const T* at = from + panel * width;
    T* line = to + panel * apart;
    for (int64_t l = 0; l < lines; ++l, at += step, line += width) {
      std::copy_n(at, some, line);
      std::fill(line + some, line + width, T{0});
    }
  }
}

// The same of some samples of images, each panel with all of them.
template <class T>
void pack_samples(const Images<T>& images, const T* from, int64_t samples, int64_t count,
                  int64_t width, T* to) {
  const int64_t places = images.places, apart = samples * places * width;
  if (images.sample == places * images.width) {
    pack_panels(from, samples * places, images.width, count, width, to, apart);
    return;
  }
  for (int64_t s = 0; s < samples; ++s) {
    pack_panels(from + s * images.sample, places, images.width, count, width,
                to + s * places * width, apart);
  }
}

// The same of one image, with a halo.
template <class T>
void pack_with_halo(const T* from, const Convolution& c, const Halo& halo, int64_t step,
                    int64_t count, int64_t width, T* to) {
  const auto& [depth, height, breadth] = c.in_size;
  const int64_t plane = halo.size[1] * halo.size[2] * width, row = halo.size[2] * width;
  const auto zeros = [&to](int64_t values) {
    std::fill_n(to, values, T{0});
    to += values;
  };
  zeros(halo.before[0] * plane);
  for (int64_t z = 0; z < depth; ++z) {
    zeros(halo.before[1] * row);
    for (int64_t y = 0; y < height; ++y, from += breadth * step) {
      zeros(halo.before[2] * width);
      pack_panels(from, breadth, step, count, width, to, breadth * width);
      to += breadth * width;
      zeros(halo.before[2] * width);
    }
    zeros(halo.before[1] * row);
  }
  zeros(halo.before[0] * plane);
}

}  // namespace sigeo_ext::sample_moments
