// Linear layers of many subnets on windows of one super-weight, which stays where it is, in one
// call.
#include <optional>
#include <string>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "common/tensor.h"
#include "gather/grouped.h"
#include "gather/products.h"
#include "gather/slices_selection.h"

namespace sigeo_ext {
namespace {

using gather::as_rows;
using gather::Band;
using gather::block;
using gather::Places;
using gather::product;
using gather::Selection;
using gather::Sizes;
using gather::Stack;
using gather::Subnet;

// A subnet's window [begin, count] among those of all, end to end.
Places window_of(const char* op, const char* name, const Sizes& windows, size_t subnet,
                 int64_t size) {
  const Places places{windows[2 * subnet], windows[2 * subnet + 1]};
  const bool fits = places.begin >= 0 && places.count >= 0 && places.begin <= size - places.count;
  STD_TORCH_CHECK(fits, op, ": ", name, "[", subnet, "] must be a window of ", size, " places");
  return places;
}

void check_width(const char* op, const char* name, size_t subnet, const Tensor& x,
                 const Places& places) {
  STD_TORCH_CHECK(x.dim() > 0 && x.size(x.dim() - 1) == places.count, op, ": ", name, "[", subnet,
                  "] must have the selected ", places.count, " values in dimension -1, got ",
                  x.dim() > 0 ? std::to_string(x.size(x.dim() - 1)) : "none");
}

std::vector<Subnet> subnets_of(const char* op, const Tensors& x, const Tensor& weight,
                               const Sizes& outputs, const Sizes& inputs) {
  STD_TORCH_CHECK(weight.dim() == 2, op, ": weight must be [outputs, inputs], got ",
                  gather::sizes_of(weight));
  STD_TORCH_CHECK(outputs.size() == 2 * x.size() && inputs.size() == 2 * x.size(), op,
                  ": outputs and inputs must be a window each for ", x.size(), " subnets, got ",
                  outputs.size(), " and ", inputs.size(), " numbers");
  std::vector<Subnet> subnets(x.size());
  for (size_t s = 0; s < x.size(); ++s) {
    Subnet& subnet = subnets[s];
    subnet.outputs = window_of(op, "outputs", outputs, s, weight.size(0));
    subnet.inputs = window_of(op, "inputs", inputs, s, weight.size(1));
    check_width(op, "x", s, x[s], subnet.inputs);
    gather::check_dtypes(op, x[s], weight);
    subnet.rows = 1;
    for (int64_t d = 0; d < x[s].dim() - 1; ++d) subnet.rows *= x[s].size(d);
  }
  return subnets;
}

void check_gradients(const char* op, const Tensors& d, const Tensors& x,
                     const std::vector<Subnet>& subnets) {
  STD_TORCH_CHECK(d.size() == x.size(), op, ": d must hold one tensor a subnet, ", x.size(),
                  ", got ", d.size());
  for (size_t s = 0; s < d.size(); ++s) {
    check_width(op, "d", s, d[s], subnets[s].outputs);
    gather::check_dtypes(op, d[s], x[s]);
    const int64_t rows =
        subnets[s].outputs.count == 0 ? subnets[s].rows : d[s].numel() / subnets[s].outputs.count;
    STD_TORCH_CHECK(rows == subnets[s].rows, op, ": d[", s, "] must have the ", subnets[s].rows,
                    " rows of x[", s, "], got ", rows);
  }
}

// The rows of a stack's members, one below another: itself where there is one member, else a copy
// [rows, columns], of which a member fills its own width.
Tensor stacked(const Stack& stack, const Tensors& tensors, int64_t columns) {
  if (stack.members.size() == 1) return as_rows(tensors[stack.members[0]]);
  const Tensor stacked = gather::room_for(tensors[stack.members[0]], Sizes{stack.rows, columns});
  auto into = gather::matrix_of(stacked);
  for (const int64_t member : stack.members) {
    const auto from = gather::const_matrix_of(as_rows(tensors[member]));
    gather::read_tile(from, {0, from.rows}, {0, from.columns}, into, torch_parallel);
    into.data += from.rows * into.row_stride * into.width;
  }
  return stacked;
}

// Back from `stacked` to the members.
void distribute(const Stack& stack, const Tensor& stacked, const Tensors& tensors) {
  auto from = gather::const_matrix_of(stacked);
  for (const int64_t member : stack.members) {
    const auto into = gather::matrix_of(as_rows(tensors[member]));
    gather::write_tile(from, {0, into.rows}, {0, into.columns}, into, torch_parallel);
    from.data += into.rows * from.row_stride * from.width;
  }
}

// Where a stack's results go: its only member's tensor, or a workspace to be distributed.
Tensor room(const Stack& stack, const Tensors& tensors, int64_t columns) {
  const Tensor& first = tensors[stack.members[0]];
  if (stack.members.size() == 1) return as_rows(first);
  return gather::room_for(first, Sizes{stack.rows, columns});
}

// The first `count` places.
Places first(int64_t count) { return {0, count}; }

// A band's part of the outputs [rows, outputs of the stack].
Tensor outputs_of(const Stack& stack, const Band& band, const Tensor& y, bool turned = false) {
  const Places columns{band.outputs.begin - stack.outputs.begin, band.outputs.count};
  return block(y, first(band.rows), columns, turned);
}

Tensors linear(Tensors x, Tensor weight, std::optional<Tensor> bias, Sizes outputs, Sizes inputs,
               bool) {
  const char* op = "gather_grouped_linear";
  const auto subnets = subnets_of(op, x, weight, outputs, inputs);
  std::optional<Tensor> shift;
  if (bias.has_value()) {
    gather::check_bias(op, *bias, weight);
    shift = torch::stable::reshape(*bias, Sizes{1, bias->numel()});
  }
  Tensors y;
  y.reserve(x.size());
  for (size_t s = 0; s < x.size(); ++s) {
    y.push_back(gather::room_for(x[s], gather::with_last(x[s], subnets[s].outputs.count)));
  }
  for (const Stack& stack : gather::stacks_of(subnets)) {
    const Tensor from = stacked(stack, x, stack.inputs.count);
    const Tensor into = room(stack, y, stack.outputs.count);
    for (const Band& band : stack.bands) {
      const Tensor rows = block(from, first(band.rows), first(stack.inputs.count));
      const Tensor at = outputs_of(stack, band, into);
      const Tensor factor = block(weight, band.outputs, stack.inputs, true);
      if (shift.has_value()) {
        product(at, block(*shift, first(1), band.outputs), rows, factor);
      } else {
        product(at, rows, factor);
      }
    }
    if (stack.members.size() > 1) distribute(stack, into, y);
  }
  return y;
}

// [rows, inputs of the stack] = d weight.
void input_gradient(const Stack& stack, const Tensor& d, const Tensor& weight, const Tensor& into) {
  for (const Band& band : stack.bands) {
    const Tensor at = block(into, first(band.rows), first(stack.inputs.count));
    const Tensor from = outputs_of(stack, band, d);
    const Tensor factor = block(weight, band.outputs, stack.inputs);
    if (&band == &stack.bands.front()) product(at, from, factor);
    else product(at, at, from, factor);
  }
}

// The gradient of the weight as it adds up, stack by stack.
class WeightGradient {
 public:
  // Everything is added to what is there.
  explicit WeightGradient(Tensor into) : into_(std::move(into)) {}

  // A tensor of its own: the widest band is written, and zeros beside it, before anything is added.
  WeightGradient(const Tensor& weight, const std::vector<Stack>& stacks) : into_(weight) {
    const Places none{0, 0};
    const Stack* stack = nullptr;
    if (!stacks.empty()) {
      const auto [s, b] = gather::widest(stacks);
      stack = &stacks[s];
      first_ = &stack->bands[b];
    }
    const auto window = [](const Places& places, int64_t size) {
      return Selection("", "", Sizes{places.begin, places.count}, std::nullopt, size);
    };
    into_ = gather::cleared(weight, window(first_ ? first_->outputs : none, weight.size(0)),
                            window(first_ ? stack->inputs : none, weight.size(1)));
  }

  void add(const Stack& stack, const Tensor& d, const Tensor& x) const {
    for (const Band& band : stack.bands) {
      const Tensor at = block(into_, band.outputs, stack.inputs);
      const Tensor from = outputs_of(stack, band, d, true);
      const Tensor rows = block(x, first(band.rows), first(stack.inputs.count));
      if (&band == first_) product(at, from, rows);
      else product(at, at, from, rows);
    }
  }

  const Tensor& result() const { return into_; }

 private:
  Tensor into_;
  const Band* first_ = nullptr;
};

// The sum of all rows of d, in the places of their outputs.
Tensor bias_gradient(const Tensors& d, const Tensor& weight, const std::vector<Subnet>& subnets) {
  const Sizes over_rows{0};
  const Tensor each =
      torch::stable::new_zeros(weight, Sizes{static_cast<int64_t>(d.size()), weight.size(0)});
  for (size_t s = 0; s < d.size(); ++s) {
    Tensor row = block(each, {static_cast<int64_t>(s), 1}, subnets[s].outputs);
    torch::stable::sum_out(row, as_rows(d[s]), over_rows, true);
  }
  return torch::stable::sum(each, over_rows);
}

std::tuple<Tensors, Tensor, Tensor> linear_backward(Tensors d, Tensors x, Tensor weight,
                                                    Sizes outputs, Sizes inputs,
                                                    std::vector<bool> need) {
  const char* op = "gather_grouped_linear_backward";
  const auto subnets = subnets_of(op, x, weight, outputs, inputs);
  check_gradients(op, d, x, subnets);
  STD_TORCH_CHECK(need.size() == 3, op, ": need must be 3 flags, got ", need.size());
  const auto nothing = [&] { return gather::room_for(weight, Sizes{0}); };
  Tensors into_x;
  for (size_t s = 0; need[0] && s < x.size(); ++s) {
    into_x.push_back(gather::room_for(x[s], Sizes(x[s].sizes().begin(), x[s].sizes().end())));
  }
  std::vector<Stack> stacks = gather::stacks_of(subnets);
  if (need[1] && !stacks.empty()) {
    std::swap(stacks[0], stacks[gather::widest(stacks).stack]);
  }
  std::optional<WeightGradient> gradient;
  if (need[1]) gradient.emplace(weight, stacks);
  for (const Stack& stack : stacks) {
    if (!need[0] && !need[1]) break;
    const Tensor from = stacked(stack, d, stack.outputs.count);
    if (need[0]) {
      const Tensor into = room(stack, into_x, stack.inputs.count);
      input_gradient(stack, from, weight, into);
      if (stack.members.size() > 1) distribute(stack, into, into_x);
    }
    if (need[1]) gradient->add(stack, from, stacked(stack, x, stack.inputs.count));
  }
  return {into_x, need[1] ? gradient->result() : nothing(),
          need[2] ? bias_gradient(d, weight, subnets) : nothing()};
}

void linear_accumulate(Tensors d, Tensors x, Tensor into, Sizes outputs, Sizes inputs) {
  const char* op = "gather_grouped_linear_accumulate";
  const auto subnets = subnets_of(op, x, into, outputs, inputs);
  check_gradients(op, d, x, subnets);
  const WeightGradient gradient(into);
  for (const Stack& stack : gather::stacks_of(subnets)) {
    gradient.add(stack, stacked(stack, d, stack.outputs.count),
                 stacked(stack, x, stack.inputs.count));
  }
}

}  // namespace
}  // namespace sigeo_ext

STABLE_TORCH_LIBRARY_IMPL(sigeo_ext, CPU, m) {
  m.impl("gather_grouped_linear", TORCH_BOX(&sigeo_ext::linear));
  m.impl("gather_grouped_linear_backward", TORCH_BOX(&sigeo_ext::linear_backward));
  m.impl("gather_grouped_linear_accumulate", TORCH_BOX(&sigeo_ext::linear_accumulate));
}
