#include "gram/gram.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/chunks.h"
#include "common/load.h"

namespace sigeo_ext::gram {
namespace {

// Values of each vector that are in the cache together.
constexpr int64_t kPart = 4096;

// Partial results [count, count] of runs of the work, added in order in the end: the same bits for
// any number of threads. There are fewer of them if they are large.
class Slots {
 public:
  explicit Slots(int64_t count)
      : count_(count),
        slots_(std::clamp<int64_t>((1 << 22) / std::max<int64_t>(1, count * count), 4, 32)),
        sums_(slots_ * count * count) {}

  int64_t slots() const { return slots_; }

  double* operator[](int64_t slot) { return sums_.data() + slot * count_ * count_; }

  // The sum over slots, both halves.
  void write(double* out) {
    for (int64_t i = 0; i < count_; ++i) {
      for (int64_t j = i; j < count_; ++j) {
        double sum = 0;
        for (int64_t slot = 0; slot < slots_; ++slot) sum += (*this)[slot][i * count_ + j];
        out[i * count_ + j] = out[j * count_ + i] = sum;
      }
    }
  }

 private:
  int64_t count_, slots_;
  std::vector<double> sums_;
};

// A run of values as T: in place, or converted into `memory`.
template <class T>
const T* values_of(const Array& array, int64_t begin, int64_t length, T* memory) {
  for (int64_t at = 0; at < length; at += kBlock) {
    T* const to = memory + at;
    const T* values = load(array, begin + at, std::min(kBlock, length - at), to);
    if (values != to) return values - at;
  }
  return memory;
}

template <class T>
void of_lists_as(Pair pair, std::span<const Array> vectors, int64_t count, double* out,
                 const Parallel& parallel) {
  const int64_t layers = static_cast<int64_t>(vectors.size()) / count;
  const Chunks chunks(vectors.first(layers));
  Slots slots(count);
  parallel(slots.slots(), [&](int64_t from, int64_t to) {
    std::vector<T> memory(count * kPart);
    std::vector<const T*> rows(count);
    for (int64_t slot = from; slot < to; ++slot) {
      const int64_t last = chunks.count() * (slot + 1) / slots.slots();
      for (int64_t index = chunks.count() * slot / slots.slots(); index < last; ++index) {
        const Chunk chunk = chunks[index];
        for (int64_t begin = chunk.begin; begin < chunk.end; begin += kPart) {
          const int64_t length = std::min(kPart, chunk.end - begin);
          for (int64_t v = 0; v < count; ++v) {
            const Array& layer = vectors[v * layers + chunk.layer];
            rows[v] = values_of(layer, begin, length, memory.data() + v * kPart);
          }
          add_pairs(pair, rows.data(), count, length, slots[slot]);
        }
      }
    }
  });
  slots.write(out);
}

}  // namespace

void of_lists(Pair pair, std::span<const Array> vectors, int64_t count, double* out,
              const Parallel& parallel) {
  if (count == 0) return;
  with_type({vectors}, [&]<class T>(T) { of_lists_as<T>(pair, vectors, count, out, parallel); });
}

template <class T>
void of_convolution(const sample_moments::Convolution& shape, const T* x, const T* d, int64_t unit,
                    double* out, const Parallel& parallel) {
  const int64_t units = shape.samples / unit;
  Slots slots(units);
  sample_moments::unit_gradients<T>(
      shape, x, d, unit, slots.slots(),
      [&](int64_t slot, const T* g, int64_t length, int64_t apart) {
        std::vector<const T*> rows(units);
        for (int64_t u = 0; u < units; ++u) rows[u] = g + u * apart;
        add_pairs(Pair::kProduct, rows.data(), units, length, slots[slot]);
      },
      parallel);
  slots.write(out);
}

template <class T>
void of_embedding(const sample_moments::Entries& entries,
                  const sample_moments::EmbeddingJob<T>& job, double* out) {
  const int64_t count = job.units;
  std::fill_n(out, count * count, 0.0);
  const sample_moments::Touched touched(entries);
  std::vector<sample_moments::UnitGradient<T>> lines;
  std::vector<T> room;
  for (int64_t row = 0; row < static_cast<int64_t>(touched.rows().size()); ++row) {
    touched.gradients(job, row, lines, room);
    for (size_t i = 0; i < lines.size(); ++i) {
      const auto [u, a] = lines[i];
      for (size_t j = i; j < lines.size(); ++j) {
        const auto [v, b] = lines[j];
        double sum = 0;
        for (int64_t k = 0; k < job.width; ++k) sum += static_cast<double>(a[k]) * b[k];
        out[u * count + v] += sum;
        if (i != j) out[v * count + u] += sum;
      }
    }
  }
}

template void of_convolution(const sample_moments::Convolution&, const float*, const float*,
                             int64_t, double*, const Parallel&);
template void of_convolution(const sample_moments::Convolution&, const double*, const double*,
                             int64_t, double*, const Parallel&);
template void of_embedding(const sample_moments::Entries&,
                           const sample_moments::EmbeddingJob<float>&, double*);
template void of_embedding(const sample_moments::Entries&,
                           const sample_moments::EmbeddingJob<double>&, double*);

namespace {

using DifferentBits = int64_t (*)(const uint64_t* a, const uint64_t* b, int64_t words);

SIGEO_INLINE int64_t different_bits_body(const uint64_t* a, const uint64_t* b, int64_t words) {
  int64_t bits = 0;
  for (int64_t w = 0; w < words; ++w) bits += __builtin_popcountll(a[w] ^ b[w]);
  return bits;
}

int64_t different_bits_base(const uint64_t* a, const uint64_t* b, int64_t words) {
  return different_bits_body(a, b, words);
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target("popcnt"))) int64_t different_bits_popcnt(const uint64_t* a,
                                                                const uint64_t* b, int64_t words) {
  return different_bits_body(a, b, words);
}

// Eight words at once.
__attribute__((target("arch=x86-64-v4,avx512vpopcntdq,prefer-vector-width=512"))) int64_t
different_bits_v4(const uint64_t* a, const uint64_t* b, int64_t words) {
  return different_bits_body(a, b, words);
}
#endif

DifferentBits find_different_bits() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  const bool v4 = __builtin_cpu_supports("x86-64-v4");
  if (v4 && __builtin_cpu_supports("avx512vpopcntdq")) return different_bits_v4;
  if (__builtin_cpu_supports("popcnt")) return different_bits_popcnt;
#endif
  return different_bits_base;
}

}  // namespace

void hamming(const uint8_t* codes, int64_t count, int64_t bytes, int64_t* out,
             const Parallel& parallel) {
  const int64_t words = (bytes + 7) / 8;
  std::vector<uint64_t> aligned(count * words);
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(aligned.data() + i * words, codes + i * bytes, bytes);
  }
  static const DifferentBits different_bits = find_different_bits();
  const auto row = [&](int64_t i) {
    out[i * count + i] = 0;
    for (int64_t j = i + 1; j < count; ++j) {
      out[i * count + j] = out[j * count + i] =
          different_bits(aligned.data() + i * words, aligned.data() + j * words, words);
    }
  };
  // A long row and a short one together, so that all pieces are alike.
  parallel((count + 1) / 2, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      row(i);
      if (i != count - 1 - i) row(count - 1 - i);
    }
  });
}

}  // namespace sigeo_ext::gram
