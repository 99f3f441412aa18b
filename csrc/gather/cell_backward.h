// The backward pass of a cell: node by node from the last, so that a node's gradient is complete
// when its turn comes.
#pragma once

#include <map>
#include <vector>

#include "gather/cell.h"

namespace sigeo_ext::gather {

// What comes back to a node: through its ReLU, through its pooling, as it is.
struct Back {
  Tensors rectified, pooled, plain;
};

template <class T>
class CellBackward {
 public:
  CellBackward(const Tensor& d, const Tensors& weight, const Tensors& scale, const Tensors& kept,
               const std::vector<Edge>& edges, int64_t nodes)
      : d_(torch::stable::contiguous(d)),
        weight_(weight),
        scale_(dense_rows(scale)),
        kept_(kept),
        edges_(edges),
        plan_(edges),
        layout_(d),
        last_(nodes - 1),
        mean_(kept[kept.size() - 2]),
        rstd_(kept[kept.size() - 1]) {
    into_x = torch::stable::new_empty(d_, sizes_of(d));
    for (const Tensor& w : weight) {
      const Sizes rows{w.size(0), w.size(1)};
      // A row that no edge names has a gradient of zero.
      into_weight.push_back(torch::stable::new_zeros(d_, sizes_of(w)));
      into_scale.push_back(torch::stable::new_zeros(d_, rows));
      into_shift.push_back(torch::stable::new_zeros(d_, rows));
    }
  }

  void run() {
    size_t begin = 0;
    for (int64_t subnet = 0; subnet < d_.size(0); ++subnet) {
      size_t end = begin;
      while (end < edges_.size() && edges_[end].subnet == subnet) ++end;
      run_subnet(subnet, begin, end);
      begin = end;
    }
  }

  Tensor into_x;
  Tensors into_weight, into_scale, into_shift;

 private:
  void run_subnet(int64_t subnet, size_t begin, size_t end) {
    std::map<int64_t, const T*> rectified;
    for (size_t at = begin; at < end; ++at) {
      const Kept& place = plan_.of_edge[at];
      if (place.reached()) rectified[edges_[at].source] = data_of(kept_[place.rectified]);
    }
    std::map<int64_t, Back> back;
    back[last_].plain.push_back(row_of(d_, subnet));
    for (size_t at = end; at > begin;) {
      const int64_t target = edges_[at - 1].target;
      const Tensor total = gathered(back[target], rectified, target);
      back.erase(target);
      for (; at > begin && edges_[at - 1].target == target; --at) {
        const Edge& edge = edges_[at - 1];
        const Kept& place = plan_.of_edge[at - 1];
        Back& source = back[edge.source];
        if (!edge.convolves()) {
          (edge.slot == kPool ? source.pooled : source.plain).push_back(total);
        } else if (place.reached()) {
          source.rectified.push_back(through_convolution(edge, place, total));
        } else {
          sum_positions(total, into_shift[edge.slot], edge.row);
        }
      }
    }
    T* into = static_cast<T*>(into_x.data_ptr()) + subnet * layout_.size();
    gather_into(back[0], rectified, 0, into);
  }

  static const T* data_of(const Tensor& tensor) { return static_cast<const T*>(tensor.data_ptr()); }

  // The gradient of a shift that is all there is of a term.
  void sum_positions(const Tensor& d, Tensor& rows, int64_t row) const {
    const auto [positions, channels] = layout_.shape();
    const T* values = static_cast<const T*>(d.data_ptr());
    std::vector<double> sums(channels);
    for (int64_t p = 0; p < positions; ++p) {
      for (int64_t c = 0; c < channels; ++c) sums[c] += values[p * channels + c];
    }
    T* out = static_cast<T*>(rows.data_ptr()) + row * channels;
    for (int64_t c = 0; c < channels; ++c) out[c] = static_cast<T>(sums[c]);
  }

  // The gradient of the rectified source of a convolution behind which `d` comes in.
  Tensor through_convolution(const Edge& edge, const Kept& place, const Tensor& d) {
    const int64_t channels = layout_.shape().channels, row = edge.row;
    Term<T> term{};
    term.x = {data_of(kept_[place.output]), 0};
    term.target = kOnly;
    term.weight = term.bias = {row_data<T>(scale_[edge.slot], row), 0};
    term.mean = static_cast<T*>(mean_.data_ptr()) + place.row * channels;
    term.rstd = static_cast<T*>(rstd_.data_ptr()) + place.row * channels;
    const Tensor before = layout_.empty(d_);  // the gradient of the convolution's output
    const TermGradients<T> into{static_cast<T*>(before.data_ptr()),
                                static_cast<T*>(into_scale[edge.slot].data_ptr()) + row * channels,
                                static_cast<T*>(into_shift[edge.slot].data_ptr()) + row * channels};
    combine_backward<T>(static_cast<const T*>(d.data_ptr()), {&term, 1}, {&into, 1},
                        layout_.shape(), torch_parallel_each);
    const Gradients gradients =
        convolve_backward(layout_.image(before), layout_.image(kept_[place.rectified]),
                          row_of(weight_[edge.slot], row));
    Tensor into_row = row_of(into_weight[edge.slot], row);
    torch::stable::copy_(into_row, gradients.weight);
    return layout_.back(gradients.input);
  }

  // The gradient of a node, [B, H, W, C].
  Tensor gathered(Back& back, const std::map<int64_t, const T*>& rectified, int64_t node) {
    if (back.rectified.empty() && back.pooled.empty() && back.plain.size() == 1) {
      return back.plain[0];
    }
    Tensor total = layout_.empty(d_);
    gather_into(back, rectified, node, static_cast<T*>(total.data_ptr()));
    return total;
  }

  void gather_into(Back& back, const std::map<int64_t, const T*>& rectified, int64_t node,
                   T* into) {
    if (!back.pooled.empty()) {
      Tensor sum = back.pooled[0];
      if (back.pooled.size() > 1) {
        sum = layout_.empty(d_);
        add_up({}, back.pooled, nullptr, static_cast<T*>(sum.data_ptr()));
      }
      back.plain.push_back(layout_.empty(d_));
      average_pool_backward(static_cast<const T*>(sum.data_ptr()), layout_.images(),
                            static_cast<T*>(back.plain.back().data_ptr()), torch_parallel_each);
    }
    const auto found = rectified.find(node);
    add_up(back.rectified, back.plain, found == rectified.end() ? nullptr : found->second, into);
  }

  void add_up(const Tensors& rectified, const Tensors& plain, const T* mask, T* into) {
    std::vector<Copies<const T>> copies;
    for (const Tensor& t : rectified) {
      copies.push_back({kOnly, static_cast<const T*>(t.data_ptr()), true});
    }
    for (const Tensor& t : plain) {
      copies.push_back({kOnly, static_cast<const T*>(t.data_ptr()), false});
    }
    dispatch_backward<T>({mask, 0}, 1, layout_.shape(), copies, into, torch_parallel_each);
  }

  Tensor d_;
  const Tensors& weight_;
  Tensors scale_;
  const Tensors& kept_;
  const std::vector<Edge>& edges_;
  KeptPlan plan_;
  Layout layout_;
  int64_t last_;
  Tensor mean_, rstd_;
};

}  // namespace sigeo_ext::gather
