// The forward pass of a cell, one subnet after another.
#pragma once

#include <algorithm>
#include <map>
#include <vector>

#include "gather/cell.h"

namespace sigeo_ext::gather {

template <class T>
class CellForward {
 public:
  CellForward(const Tensor& x, const Tensors& weight, const Tensors& scale, const Tensors& shift,
              const std::vector<Edge>& edges, int64_t nodes, double eps)
      : x_(dense_blocks(x)),
        weight_(weight),
        scale_(dense_rows(scale)),
        shift_(dense_rows(shift)),
        edges_(edges),
        plan_(edges),
        layout_(x),
        last_(nodes - 1),
        eps_(eps) {
    const Sizes rows{plan_.rows, x.size(4)};
    mean_ = torch::stable::new_empty(x, rows);
    rstd_ = torch::stable::new_empty(x, rows);
    y = torch::stable::new_empty(x, sizes_of(x));
  }

  void run() {
    size_t begin = 0;
    for (int64_t subnet = 0; subnet < x_.size(0); ++subnet) {
      size_t end = begin;
      while (end < edges_.size() && edges_[end].subnet == subnet) ++end;
      run_subnet(subnet, begin, end);
      begin = end;
    }
    kept.push_back(mean_);
    kept.push_back(rstd_);
  }

  Tensor y;
  Tensors kept;

 private:
  void run_subnet(int64_t subnet, size_t begin, size_t end) {
    nodes_.clear();
    pooled_.clear();
    nodes_[0] = static_cast<const T*>(x_.data_ptr()) + subnet * x_.stride(0);
    Tensors alive;
    T* out = static_cast<T*>(y.data_ptr()) + subnet * layout_.size();
    for (size_t at = begin; at < end;) {
      const int64_t target = edges_[at].target;
      T* sum = out;
      if (target != last_) {
        alive.push_back(layout_.empty(x_));
        sum = static_cast<T*>(alive.back().data_ptr());
      }
      std::vector<Term<T>> terms;
      Tensors shifts;
      for (; at < end && edges_[at].target == target; ++at) {
        const Edge& edge = edges_[at];
        if (nodes_.contains(edge.source)) {
          terms.push_back(term(edge, plan_.of_edge[at], alive));
        } else if (edge.convolves()) {
          shifts.push_back(row_of(shift_[edge.slot], edge.row));
        }
      }
      combine<T>(terms, 1, layout_.shape(), eps_, sum, torch_parallel_each);
      for (const Tensor& shift : shifts) add_to_all(row_data<T>(shift), sum);
      nodes_[target] = sum;
    }
    if (!nodes_.contains(last_)) std::fill(out, out + layout_.size(), T{0});
  }

  // What a convolution of zeros gives behind its norm.
  void add_to_all(const T* shift, T* sum) const {
    const auto [positions, channels] = layout_.shape();
    for (int64_t p = 0; p < positions; ++p) {
      for (int64_t c = 0; c < channels; ++c) sum[p * channels + c] += shift[c];
    }
  }

  Term<T> term(const Edge& edge, const Kept& place, Tensors& alive) {
    Term<T> made{};
    made.target = kOnly;
    made.x.stride = layout_.size();
    const T* value = nodes_.at(edge.source);
    if (!edge.convolves()) {
      made.x.data = edge.slot == kPool ? pooled(edge.source, value, alive) : value;
      return made;
    }
    if (place.first_rectified) {
      kept.push_back(layout_.empty(x_));
      T* copy = static_cast<T*>(kept.back().data_ptr());
      const std::vector<Copies<T>> copies{{kOnly, copy, true}};
      dispatch<T>({value, 0}, layout_.shape(), copies, torch_parallel_each);
    }
    if (place.first_output) {
      const Tensor weight = row_of(weight_[edge.slot], edge.row);
      kept.push_back(layout_.back(convolve(layout_.image(kept[place.rectified]), weight)));
    }
    made.x.data = static_cast<const T*>(kept[place.output].data_ptr());
    made.weight = {row_data<T>(scale_[edge.slot], edge.row), 0};
    made.bias = {row_data<T>(shift_[edge.slot], edge.row), 0};
    // Of an output that an earlier edge made these are there, and are written again.
    made.mean = static_cast<T*>(mean_.data_ptr()) + place.row * mean_.size(1);
    made.rstd = static_cast<T*>(rstd_.data_ptr()) + place.row * rstd_.size(1);
    return made;
  }

  const T* pooled(int64_t number, const T* value, Tensors& alive) {
    const auto found = pooled_.find(number);
    if (found != pooled_.end()) return found->second;
    alive.push_back(layout_.empty(x_));
    T* out = static_cast<T*>(alive.back().data_ptr());
    average_pool(value, layout_.images(), out, torch_parallel_each);
    return pooled_[number] = out;
  }

  Tensor x_;
  const Tensors& weight_;
  Tensors scale_, shift_;
  const std::vector<Edge>& edges_;
  KeptPlan plan_;
  Layout layout_;
  int64_t last_;
  double eps_;
  Tensor mean_, rstd_;
  std::map<int64_t, const T*> nodes_, pooled_;
};

}  // namespace sigeo_ext::gather
