// The gather kernels of the GPU as host code: no torch, no Python, no GPU.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "check.h"
#include "gather/combine_cuda.cu"
#include "gather/gather_cuda.cu"
#include "gpu.h"

using namespace sigeo_ext;          // NOLINT: a test
using namespace sigeo_ext::gather;  // NOLINT

namespace {

using Lists = std::vector<std::vector<int64_t>>;

// Around warps, groups, tiles, pieces and spans; none, one, and more channels than a block has
// threads.
const std::vector<Shape> kShapes{{0, 3},    {1, 1},    {1, 7},   {31, 1},   {33, 16},
                                 {64, 16},  {331, 7},  {5, 130}, {129, 16}, {513, 16},
                                 {8193, 1}, {129, 86}, {9, 257}, {3, 4099}};

// Lists whose entries name some of `count` blocks, some of them twice, and others that do not
// exist; of so many entries each.
Lists some_lists(const std::vector<int64_t>& sizes, int64_t count) {
  std::mt19937 generator(1);
  Lists lists;
  for (const int64_t size : sizes) {
    auto& list = lists.emplace_back(size);
    for (int64_t& block : list) block = static_cast<int64_t>(generator() % (count + 3)) - 1;
  }
  return lists;
}

template <class T>
std::vector<T> unwritten(int64_t n) {
  return std::vector<T>(n, static_cast<T>(NAN));
}

// Results with a block of threads for each item, and the same bits, in another order, with a few
// blocks that take all items in turn.
template <class Call>
auto on_gpu(const Call& call) {
  emulation::order = emulation::Order::kForward;
  const auto found = emulation::result_of(call);
  emulation::most_blocks = 3;
  for (const auto other : {emulation::Order::kReverse, emulation::Order::kShuffled}) {
    emulation::order = other;
    CHECK(emulation::same_bits(found, emulation::result_of(call)));
  }
  emulation::most_blocks = INT32_MAX;
  return found;
}

// Every second list goes through a ReLU. `shared`: one block of x stands for all.
template <class T>
void copies_and_their_gradients_equal_plain_loops(const Shape& shape, const Lists& lists,
                                                  int64_t count, bool shared) {
  const int64_t size = shape.size();
  const std::vector<T> x = random_values<T>(shared ? size : count * size, 2);
  const Strided<const T> blocks{x.data(), shared ? 0 : size};
  const auto copies = on_gpu([&](const Queue& queue) {
    std::vector<std::vector<T>> written;
    std::vector<Copies<T>> into;
    for (const auto& list : lists) {
      written.push_back(unwritten<T>(static_cast<int64_t>(list.size()) * size));
      into.push_back({list, written.back().data(), into.size() % 2 == 0});
    }
    dispatch<T>(blocks, count, shape, into, queue);
    return written;
  });
  std::vector<std::vector<T>> gradients;
  std::vector<Copies<const T>> named;
  for (const auto& list : lists) {
    gradients.push_back(random_values<T>(list.size() * size, 3 + named.size()));
    named.push_back({list, gradients.back().data(), named.size() % 2 == 0});
  }
  const auto into = on_gpu([&](const Queue& queue) {
    std::vector<T> written = unwritten<T>(count * size);
    dispatch_backward<T>(blocks, count, shape, named, written.data(), queue);
    return written;
  });
  std::vector<T> through(count * size), sum(count * size);
  for (size_t l = 0; l < lists.size(); ++l) {
    for (size_t entry = 0; entry < lists[l].size(); ++entry) {
      const int64_t block = lists[l][entry];
      const bool exists = block >= 0 && block < count, rectified = l % 2 == 0;
      for (int64_t i = 0; i < size; ++i) {
        const T copy = copies[l][entry * size + i];
        if (!exists) {
          CHECK(std::isnan(copy));
          continue;
        }
        const T value = blocks.at(block)[i];
        CHECK(copy == (rectified ? std::max(value, T{0}) : value));
        (rectified ? through : sum)[block * size + i] += gradients[l][entry * size + i];
      }
    }
  }
  for (int64_t i = 0; i < count * size; ++i) {
    const T value = blocks.at(i / size)[i % size];
    CHECK(into[i] == (value > 0 ? through[i] : T{0}) + sum[i]);
  }
}

template <class T>
class Node {
 public:
  // Of `lists`, every third is a plain term.
  Node(const Shape& shape, const Lists& lists, int64_t count)
      : shape_(shape), lists_(lists), count_(count), d_(random_values<T>(count * shape.size(), 1)) {
    for (const auto& list : lists) {
      const auto entries = static_cast<int64_t>(list.size());
      const auto seed = static_cast<unsigned>(10 * x_.size());
      x_.push_back(random_values<T>(entries * shape.size(), seed + 2));
      weight_.push_back(random_values<T>(entries * shape.channels, seed + 3));
      bias_.push_back(random_values<T>(entries * shape.channels, seed + 4));
    }
  }

  void check() {
    const auto forward = on_gpu([&](const Queue& queue) {
      std::vector<std::vector<T>> written{unwritten<T>(count_ * shape_.size())};
      for (size_t l = 0; l < lists_.size(); ++l) {
        for (int i = 0; i < 2; ++i) written.push_back(unwritten<T>(weight_[l].size()));
      }
      combine<T>(terms(written), count_, shape_, kEps, written[0].data(), queue);
      return written;
    });
    const auto backward = on_gpu([&](const Queue& queue) {
      std::vector<std::vector<T>> rows = forward, written;
      std::vector<TermGradients<T>> into;
      for (size_t l = 0; l < lists_.size(); ++l) {
        for (const auto* like : {&x_[l], &weight_[l], &bias_[l]}) {
          written.push_back(unwritten<T>(like->size()));
        }
        into.push_back(
            {written[3 * l].data(), written[3 * l + 1].data(), written[3 * l + 2].data()});
      }
      combine_backward<T>(d_.data(), count_, terms(rows), into, shape_, queue);
      emulation::synchronize();  // `rows` are read
      return written;
    });
    std::vector<long double> y(count_ * shape_.size());
    for (size_t l = 0; l < lists_.size(); ++l) {
      for (size_t entry = 0; entry < lists_[l].size(); ++entry) {
        for (int64_t channel = 0; channel < shape_.channels; ++channel) {
          check_channel(l, entry, channel, forward, backward, y);
        }
      }
    }
    for (size_t i = 0; i < y.size(); ++i) {
      CHECK(near(forward[0][i], static_cast<double>(y[i]), 50 * kTolerance));
    }
  }

 private:
  static constexpr double kEps = 1e-5, kTolerance = sizeof(T) == sizeof(float) ? 2e-5 : 1e-12;

  static bool plain(size_t list) { return list % 3 == 2; }

  std::vector<Term<T>> terms(std::vector<std::vector<T>>& rows) const {
    std::vector<Term<T>> made;
    for (size_t l = 0; l < lists_.size(); ++l) {
      const Strided<const T> x{x_[l].data(), shape_.size()};
      if (plain(l)) {
        made.push_back({x, lists_[l], {}, {}, nullptr, nullptr});
      } else {
        made.push_back({x,
                        lists_[l],
                        {weight_[l].data(), shape_.channels},
                        {bias_[l].data(), shape_.channels},
                        rows[1 + 2 * l].data(),
                        rows[2 + 2 * l].data()});
      }
    }
    return made;
  }

  // One channel of one entry; adds what it contributes to y.
  void check_channel(size_t l, size_t entry, int64_t channel,
                     const std::vector<std::vector<T>>& forward,
                     const std::vector<std::vector<T>>& backward,
                     std::vector<long double>& y) const {
    const int64_t target = lists_[l][entry], positions = shape_.positions;
    const bool exists = target >= 0 && target < count_;
    const auto at = [&](int64_t block, int64_t p) {
      return block * shape_.size() + p * shape_.channels + channel;
    };
    const auto value = [&](int64_t p) -> long double { return x_[l][at(entry, p)]; };
    const auto gradient = [&](int64_t p) -> long double { return d_[at(target, p)]; };
    if (plain(l)) {
      for (int64_t p = 0; p < positions && exists; ++p) y[at(target, p)] += value(p);
      return;
    }
    const int64_t row = entry * shape_.channels + channel;
    const long double weight = weight_[l][row], bias = bias_[l][row];
    long double mean = 0, squares = 0, shift = 0, inner = 0;
    for (int64_t p = 0; p < positions; ++p) mean += value(p) / positions;
    for (int64_t p = 0; p < positions; ++p) squares += (value(p) - mean) * (value(p) - mean);
    const long double rstd = 1 / std::sqrt(squares / positions + kEps);
    for (int64_t p = 0; p < positions && exists; ++p) {
      y[at(target, p)] += (value(p) - mean) * rstd * weight + bias;
      shift += gradient(p);
      inner += gradient(p) * (value(p) - mean) * rstd;
    }
    const auto close = [](T found, long double wanted, double tolerance) {
      return near(found, static_cast<double>(wanted), tolerance);
    };
    const T found_mean = forward[1 + 2 * l][row], found_rstd = forward[2 + 2 * l][row];
    if (positions == 0) CHECK(std::isnan(found_mean) && std::isnan(found_rstd));
    else CHECK(close(found_mean, mean, kTolerance) && close(found_rstd, rstd, kTolerance));
    CHECK(close(backward[3 * l + 1][row], inner, 50 * kTolerance));
    CHECK(close(backward[3 * l + 2][row], shift, 50 * kTolerance));
    for (int64_t p = 0; p < positions; ++p) {
      const long double xhat = (value(p) - mean) * rstd;
      const long double wanted =
          exists ? weight * rstd * (gradient(p) - shift / positions - xhat * inner / positions) : 0;
      const T found = backward[3 * l][at(entry, p)];
      CHECK(exists ? close(found, wanted, 200 * kTolerance) : found == 0);
    }
  }

  Shape shape_;
  Lists lists_;
  int64_t count_;
  std::vector<T> d_;
  std::vector<std::vector<T>> x_, weight_, bias_;
};

template <class T>
void all_shapes(std::span<const Shape> shapes) {
  const Lists lists = some_lists({2, 0, 1, 3}, 3);
  for (const Shape& shape : shapes) {
    copies_and_their_gradients_equal_plain_loops<T>(shape, lists, 3, false);
    Node<T>(shape, lists, 3).check();
  }
  copies_and_their_gradients_equal_plain_loops<T>({33, 16}, lists, 3, true);
  copies_and_their_gradients_equal_plain_loops<T>({33, 16}, {{}, {}}, 2, false);
}

// More entries than a block has threads, and more lists than a launch takes.
void long_lists_keep_their_order() {
  const Shape shape{2, 3};
  for (const int64_t entries : {31, 33, 255, 256, 257, 600}) {
    const Lists lists = some_lists({entries, 2}, 4);
    copies_and_their_gradients_equal_plain_loops<float>(shape, lists, 4, false);
  }
  const Lists many = some_lists(std::vector<int64_t>(2 * kBatch + 1, 1), 4);
  copies_and_their_gradients_equal_plain_loops<float>(shape, many, 4, false);
  Node<double>(shape, many, 4).check();
}

// So many positions that pieces grow, instead of becoming more.
void pieces_grow_with_the_positions() {
  const Shape shape{20500, 43};
  const Tiling tiling(shape);
  CHECK(tiling.pieces > 100 && tiling.pieces <= Tiling::kMostPieces && tiling.length > 160);
  Node<float>(shape, {{0}}, 1).check();
}

}  // namespace

int main() {
  all_shapes<float>(kShapes);
  all_shapes<double>(std::span(kShapes).first(8));
  long_lists_keep_their_order();
  pieces_grow_with_the_positions();
  return exit_status();
}
