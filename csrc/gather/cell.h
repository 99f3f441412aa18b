// What the forward and the backward pass of a cell share: its edges, how images lie in memory, and
// the framework's convolutions.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/tensor.h"
#include "gather/gather.h"
#include "gather/pooling.h"

namespace sigeo_ext::gather {

using torch::stable::detail::from;

inline constexpr int64_t kIdentity = -1, kPool = -2;

// One operation of one subnet: `slot` is a convolution's place in the lists of weights, and `row`
// the subnet's row there; or one of the two above. Sources of equal values carry one number
// `given`, results of equal values one number `gives`, and are computed once; -1 where nothing is
// known.
struct Edge {
  int64_t subnet, source, target, slot, row, given, gives;

  bool convolves() const { return slot >= 0; }
};
inline constexpr int64_t kEdgeNumbers = 7;

// Where the forward pass keeps what an edge's backward pass needs: the source behind its ReLU, the
// convolution's output, its norm's row of statistics. A convolution of a node that no edge leads to
// keeps nothing: zero comes out of it as zero, and out of its norm as the shift.
struct Kept {
  int64_t rectified = -1, output = -1, row = -1;
  bool first_rectified = false, first_output = false;  // computed here, or by an earlier edge

  bool reached() const { return output >= 0; }
};

struct KeptPlan {
  std::vector<Kept> of_edge;
  int64_t images = 0, rows = 0;

  explicit KeptPlan(const std::vector<Edge>& edges) {
    using Key = std::array<int64_t, 3>;
    std::set<std::pair<int64_t, int64_t>> valued;
    std::map<Key, int64_t> rectified;
    std::map<Key, std::pair<int64_t, int64_t>> outputs;
    for (size_t at = 0; at < edges.size(); ++at) {
      const Edge& edge = edges[at];
      Kept& kept = of_edge.emplace_back();
      const bool reached = edge.source == 0 || valued.contains({edge.subnet, edge.source});
      valued.insert({edge.subnet, edge.target});
      if (!edge.convolves() || !reached) continue;
      const Key source =
          edge.given >= 0 ? Key{edge.given, -1, -1} : Key{-1, edge.subnet, edge.source};
      const auto [copy, new_copy] = rectified.try_emplace(source, images);
      if (new_copy) ++images;
      const Key result =
          edge.gives >= 0 ? Key{edge.gives, -1, -1} : Key{-1, static_cast<int64_t>(at), -1};
      const auto [output, new_output] = outputs.try_emplace(result, images, rows);
      if (new_output) {
        ++images;
        ++rows;
      }
      kept = {copy->second, output->second.first, output->second.second, new_copy, new_output};
    }
  }
};

inline Tensor strided(const Tensor& tensor, const Sizes& sizes, const Sizes& strides,
                      int64_t offset) {
  std::array<StableIValue, 4> stack{from(tensor), from(sizes), from(strides),
                                    from(std::optional<int64_t>(offset))};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::as_strided", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// The images of one subnet: [B, H, W, C] in memory, [B, C, H, W] for the framework.
class Layout {
 public:
  explicit Layout(const Tensor& x)
      : batch_(x.size(1)), height_(x.size(2)), width_(x.size(3)), channels_(x.size(4)) {}

  Shape shape() const { return {batch_ * height_ * width_, channels_}; }
  Images images() const { return {batch_, height_, width_, channels_}; }
  Sizes sizes() const { return {batch_, height_, width_, channels_}; }
  int64_t size() const { return shape().size(); }

  // A tensor [B, H, W, C] as the framework takes it.
  Tensor image(const Tensor& one) const {
    const Sizes strides{height_ * width_ * channels_, 1, width_ * channels_, channels_};
    return strided(one, {batch_, channels_, height_, width_}, strides, one.storage_offset());
  }
  // What the framework made, in our memory order; copied only if it chose another.
  Tensor back(const Tensor& image) const {
    const Tensor moved = strided(
        image, sizes(), {image.stride(0), image.stride(2), image.stride(3), image.stride(1)},
        image.storage_offset());
    return torch::stable::contiguous(moved);
  }
  Tensor empty(const Tensor& like) const { return torch::stable::new_empty(like, sizes()); }

 private:
  int64_t batch_, height_, width_, channels_;
};

inline Tensor convolve(const Tensor& image, const Tensor& weight) {
  const Sizes one{1, 1}, none{0, 0}, padding{weight.size(2) / 2, weight.size(3) / 2};
  std::array<StableIValue, 9> stack{from(image), from(weight),  from(std::nullopt),
                                    from(one),   from(padding), from(one),
                                    from(false), from(none),    from(int64_t{1})};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

struct Gradients {
  Tensor input, weight;
};

inline Gradients convolve_backward(const Tensor& d, const Tensor& image, const Tensor& weight) {
  const Sizes one{1, 1}, none{0, 0}, padding{weight.size(2) / 2, weight.size(3) / 2};
  const bool mask[] = {true, true, false};
  std::array<StableIValue, 11> stack{from(d),
                                     from(image),
                                     from(weight),
                                     from(std::nullopt),
                                     from(one),
                                     from(padding),
                                     from(one),
                                     from(false),
                                     from(none),
                                     from(int64_t{1}),
                                     from(torch::headeronly::HeaderOnlyArrayRef<bool>(mask, 3))};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[2]);  // of the bias: nothing, but ours to release
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

inline Tensor row_of(Tensor tensor, int64_t row) { return torch::stable::select(tensor, 0, row); }

template <class T>
const T* row_data(const Tensor& row) {
  return static_cast<const T*>(row.data_ptr());
}
template <class T>
const T* row_data(const Tensor& rows, int64_t row) {
  return static_cast<const T*>(rows.data_ptr()) + row * rows.stride(0);
}

// Rows whose entries lie side by side; a stride between the rows, 0 among others, is kept.
inline Tensors dense_rows(const Tensors& rows) {
  Tensors found;
  for (const Tensor& r : rows) {
    found.push_back(r.size(1) == 1 || r.stride(1) == 1 ? r : torch::stable::contiguous(r));
  }
  return found;
}

// Subnets' blocks, each dense; copied where they are not.
inline Tensor dense_blocks(const Tensor& x) {
  int64_t run = 1;
  for (int64_t d = 4; d > 0; run *= x.size(d), --d) {
    if (x.size(d) != 1 && x.stride(d) != run) return torch::stable::contiguous(x);
  }
  return x;
}

inline constexpr int64_t kOnly[] = {0};  // the one block of a subnet's own sums

}  // namespace sigeo_ext::gather
