#include <algorithm>
#include <array>
#include <cstring>

#include "common/array.h"
#include "sample_moments/sample_moments.h"
#include "sample_moments/tile.h"

namespace sigeo_ext::sample_moments {
namespace {

constexpr int kDigitBits = 8;

// Sorts by a key from 0, a digit a pass; entries of one key stay in their order. `room` is as
// large as `entries`.
template <class Entry>
void sort_by(int64_t Entry::* key, std::vector<Entry>& entries, std::vector<Entry>& room) {
  int64_t bits = 0;
  for (const Entry& entry : entries) bits |= entry.*key;
  for (int shift = 0; shift < 63 && bits >> shift != 0; shift += kDigitBits) {
    const auto digit = [&](const Entry& entry) {
      return (entry.*key >> shift) & ((1 << kDigitBits) - 1);
    };
    std::array<int64_t, (1 << kDigitBits) + 1> place{};
    for (const Entry& entry : entries) ++place[digit(entry) + 1];
    for (size_t d = 1; d < place.size(); ++d) place[d] += place[d - 1];
    for (const Entry& entry : entries) room[place[digit(entry)]++] = entry;
    entries.swap(room);
  }
}

constexpr int64_t kAhead = 8;  // entries between the one that memory is asked for and the one read

// Columns of a row that are measured together: their sums stay in registers.
constexpr int kColumns = 16;

template <int kLanes>
SIGEO_INLINE double total(const typename Vector<double, kLanes>::type& lanes) {
  if constexpr (kLanes == 1) {
    return lanes[0];
  } else {
    typename Vector<double, kLanes / 2>::type halves[2];
    memcpy(halves, &lanes, sizeof(lanes));
    return total<kLanes / 2>(halves[0] + halves[1]);
  }
}

// The statistics of `n` columns from column `from` of a row, and the units' sums of squares.
template <class T>
SIGEO_INLINE void measure_body(const std::vector<UnitGradient<T>>& lines, int64_t from, int64_t n,
                               const EmbeddingJob<T>& job,
                               const std::array<T*, kStatistics>& statistics, double* squares) {
  using V = typename Vector<T, kColumns>::type;
  const auto read = [&](const UnitGradient<T>& line, V& columns) SIGEO_LAMBDA_INLINE {
    if (n == kColumns) columns = load<T, kColumns>(line.values + from);
    else memcpy(&columns, line.values + from, n * sizeof(T));
  };
  V g{}, sums[kStatistics] = {};
  for (size_t line = 0; line < lines.size(); ++line) {
    read(lines[line], g);
    const V scaled = g * job.factor;
    sums[kSum] += g;
    sums[kAbsSum] += term<kAbsSum>(scaled);
    sums[kSqSum] += term<kSqSum>(scaled);
    if (statistics[kSignSum] != nullptr) sums[kSignSum] += term<kSignSum>(g);
    const auto wide = __builtin_convertvector(g, typename Vector<double, kColumns>::type);
    squares[line] += total<kColumns>(wide * wide);
  }
  if (statistics[kM2] != nullptr) {
    // Units that do not touch the row have a gradient of zero: (0 - mean)^2 each.
    const T absent = static_cast<T>(job.units - static_cast<int64_t>(lines.size()));
    const V mean = sums[kSum] / static_cast<T>(job.units);
    sums[kM2] = absent * mean * mean;
    for (const auto& line : lines) {
      read(line, g);
      const V deviation = g - mean;
      sums[kM2] += deviation * deviation;
    }
    sums[kM2] *= job.factor * job.factor;
  }
  for (int s = 0; s < kStatistics; ++s) {
    if (statistics[s] != nullptr) memcpy(statistics[s] + from, &sums[s], n * sizeof(T));
  }
}

SIGEO_MULTIVERSION void measure_columns(const std::vector<UnitGradient<float>>& lines, int64_t from,
                                        int64_t n, const EmbeddingJob<float>& job,
                                        const std::array<float*, kStatistics>& statistics,
                                        double* squares) {
  measure_body(lines, from, n, job, statistics, squares);
}
SIGEO_MULTIVERSION void measure_columns(const std::vector<UnitGradient<double>>& lines,
                                        int64_t from, int64_t n, const EmbeddingJob<double>& job,
                                        const std::array<double*, kStatistics>& statistics,
                                        double* squares) {
  measure_body(lines, from, n, job, statistics, squares);
}

}  // namespace

Touched::Touched(const Entries& given) {
  entries_.reserve(given.count);
  for (int64_t n = 0; n < given.count; ++n) {
    const int64_t row = given.rows[n * given.step];
    if (row == given.skipped) continue;
    entries_.push_back({row, given.units ? given.units[n] : n / given.entries, n});
  }
  // Within a row and unit in the order they came, so that sums have the same bits every time.
  std::vector<Entry> room(entries_.size());
  if (given.units != nullptr) sort_by(&Entry::unit, entries_, room);
  sort_by(&Entry::row, entries_, room);
  for (size_t n = 0; n < entries_.size(); ++n) {
    if (!rows_.empty() && rows_.back() == entries_[n].row) continue;
    rows_.push_back(entries_[n].row);
    first_.push_back(static_cast<int64_t>(n));
  }
  first_.push_back(static_cast<int64_t>(entries_.size()));
}

template <class T>
void Touched::gradients(const EmbeddingJob<T>& job, int64_t row,
                        std::vector<UnitGradient<T>>& lines, std::vector<T>& room) const {
  const int64_t begin = first_[row], end = first_[row + 1], width = job.width;
  lines.clear();
  room.resize(std::max<size_t>(room.size(), (end - begin) * width));
  for (int64_t n = begin; n < end; ++n) {
    const Entry& entry = entries_[n];
    const T* from = job.gradients + entry.place * job.step;
    if (lines.empty() || lines.back().unit != entry.unit) {
      lines.push_back({entry.unit, from});
      continue;
    }
    T* sum = room.data() + (static_cast<int64_t>(lines.size()) - 1) * width;
    if (lines.back().values != sum) {
      lines.back().values = std::copy_n(lines.back().values, width, sum) - width;
    }
    for (int64_t i = 0; i < width; ++i) sum[i] += from[i];
  }
}

template <class T>
void Touched::measure(const EmbeddingJob<T>& job, const std::array<T*, kStatistics>& statistics,
                      double* sq_norm) const {
  const double factor = static_cast<double>(job.factor);
  if (sq_norm != nullptr) std::fill_n(sq_norm, job.units, 0.0);
  std::vector<UnitGradient<T>> lines;
  std::vector<T> room;
  std::vector<double> squares;
  for (int64_t row = 0; row < static_cast<int64_t>(rows_.size()); ++row) {
    const size_t ahead = std::min(first_[row] + kAhead, first_.back() - 1);
    __builtin_prefetch(job.gradients + entries_[ahead].place * job.step);
    gradients(job, row, lines, room);
    squares.assign(lines.size(), 0.0);
    auto to = statistics;
    for (T*& statistic : to) {
      if (statistic != nullptr) statistic += row * job.width;
    }
    for (int64_t from = 0; from < job.width; from += kColumns) {
      const int64_t n = std::min<int64_t>(kColumns, job.width - from);
      measure_columns(lines, from, n, job, to, squares.data());
    }
    if (sq_norm == nullptr) continue;
    for (size_t n = 0; n < lines.size(); ++n) {
      sq_norm[lines[n].unit] += squares[n] * factor * factor;
    }
  }
}

template void Touched::gradients(const EmbeddingJob<float>&, int64_t,
                                 std::vector<UnitGradient<float>>&, std::vector<float>&) const;
template void Touched::gradients(const EmbeddingJob<double>&, int64_t,
                                 std::vector<UnitGradient<double>>&, std::vector<double>&) const;
template void Touched::measure(const EmbeddingJob<float>&, const std::array<float*, kStatistics>&,
                               double*) const;
template void Touched::measure(const EmbeddingJob<double>&, const std::array<double*, kStatistics>&,
                               double*) const;

}  // namespace sigeo_ext::sample_moments
