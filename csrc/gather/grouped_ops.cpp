// Linear layers of many subnets on windows of one super-weight, which stays where it is, in one
// call.
#include <algorithm>
#include <functional>
#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/check.h"
#include "common/tensor.h"
#include "gather/grouped.h"
#include "gather/grouped_arguments.h"
#include "gather/products.h"
#include "gather/slices_selection.h"

namespace sigeo_ext {
namespace {

using gather::as_rows;
using gather::Band;
using gather::block;
using gather::Places;
using gather::product;
using gather::Stack;
using gather::Subnet;

// Inputs of one dtype with the weight, [outputs, inputs].
std::vector<Subnet> subnets_of(const char* op, const Tensors& x, const Tensor& weight,
                               const Sizes& outputs, const Sizes& inputs) {
  SIGEO_CHECK(weight.dim() == 2, op, ": weight must be [outputs, inputs], got ",
              sizes_text(weight));
  const Sizes size{weight.size(0), weight.size(1)};
  auto subnets = gather::subnets_of(op, x, size, outputs, inputs);
  for (const Tensor& rows : x) gather::check_dtypes(op, rows, weight);
  return subnets;
}

// The rows of a stack's members, one below another: itself where there is one member, else a copy
// [rows, columns], of which a member fills its own width.
Tensor stacked(const Stack& stack, const Tensors& tensors, int64_t columns) {
  if (stack.members.size() == 1) return as_rows(tensors[stack.members[0]]);
  const Tensor stacked = gather::room_for(tensors[stack.members[0]], Sizes{stack.rows, columns});
  auto into = gather::matrix_of(stacked);
  for (const int64_t member : stack.members) {
    const Tensor rows = as_rows(tensors[member]);  // may be a copy, to be kept until it is read
    const auto from = gather::const_matrix_of(rows);
    gather::read_tile(from, {0, from.rows}, {0, from.columns}, into, torch_parallel);
    into.data += from.rows * into.row_stride * into.width;
  }
  return stacked;
}

// Back from `stacked` to the members.
void distribute(const Stack& stack, const Tensor& stacked, const Tensors& tensors) {
  if (stack.members.size() == 1) return;
  auto from = gather::const_matrix_of(stacked);
  for (const int64_t member : stack.members) {
    const auto into = gather::matrix_of(as_rows(tensors[member]));
    gather::write_tile(from, {0, into.rows}, {0, into.columns}, into, gather::Rest::kKept,
                       torch_parallel);
    from.data += into.rows * from.row_stride * from.width;
  }
}

// Where a stack's results go: its only member's tensor, or a workspace to be distributed.
Tensor room(const Stack& stack, const Tensors& tensors, int64_t columns) {
  const Tensor& first = tensors[stack.members[0]];
  if (stack.members.size() == 1) return as_rows(first);
  return gather::room_for(first, Sizes{stack.rows, columns});
}

// A stack with its rows of x, of y or its gradient, or of the gradient of x.
struct Work {
  const Stack& stack;
  Tensor x, y, into_x;

  Places all_inputs() const { return {0, stack.inputs.count}; }

  // Outputs of the weight as columns of y.
  Places columns(const Places& outputs) const {
    return {outputs.begin - stack.outputs.begin, outputs.count};
  }
};

// Part of a stack's results.
struct Piece {
  const Work& work;
  Places rows;
  Places columns;
};

// Rows and columns of a piece; smaller ones cost a few percent on one thread.
constexpr int64_t kPiece = 512;

void run(const std::vector<Piece>& pieces, const std::function<void(const Piece&)>& body) {
  torch_parallel_tasks(static_cast<int64_t>(pieces.size()), [&](int64_t i) { body(pieces[i]); });
}

// y = x weight^T + shift [1, outputs].
void outputs_of(const std::vector<Work>& works, const Tensor& weight,
                const std::optional<Tensor>& shift) {
  std::vector<Piece> pieces;
  for (const Work& work : works) {
    for (const Band& band : work.stack.bands) {
      for (const Places& rows : gather::pieces_of({0, band.rows}, kPiece)) {
        for (const Places& outputs : gather::pieces_of(band.outputs, kPiece)) {
          pieces.push_back({work, rows, outputs});
        }
      }
    }
  }
  run(pieces, [&](const Piece& piece) {
    const auto& [work, rows, outputs] = piece;
    const Tensor into = block(work.y, rows, work.columns(outputs));
    const Tensor from = block(work.x, rows, work.all_inputs());
    const Tensor factor = block(weight, outputs, work.stack.inputs, true);
    if (shift.has_value()) product(into, block(*shift, {0, 1}, outputs), from, factor);
    else product(into, from, factor);
  });
}

// into_x = y weight, y being a gradient.
void input_gradients(const std::vector<Work>& works, const Tensor& weight) {
  std::vector<Piece> pieces;
  for (const Work& work : works) {
    for (const Places& rows : gather::pieces_of({0, work.stack.rows}, kPiece)) {
      for (const Places& inputs : gather::pieces_of(work.stack.inputs, kPiece)) {
        pieces.push_back({work, rows, inputs});
      }
    }
  }
  run(pieces, [&](const Piece& piece) {
    const auto& [work, all_rows, inputs] = piece;
    const Places columns{inputs.begin - work.stack.inputs.begin, inputs.count};
    bool first = true;
    for (const Band& band : work.stack.bands) {
      const Places rows = gather::common(all_rows, {0, band.rows});
      if (rows.count == 0) break;  // so will be those of the bands behind it
      const Tensor into = block(work.into_x, rows, columns);
      const Tensor from = block(work.y, rows, work.columns(band.outputs));
      const Tensor factor = block(weight, band.outputs, inputs);
      if (first) product(into, from, factor);
      else product(into, into, from, factor);
      first = false;
    }
  });
}

// Outputs and inputs of a tile of the weight's gradient, which stays in a second-level cache while
// all subnets add to it.
constexpr int64_t kTileOutputs = 256, kTileInputs = 1024;

// into (+)= the sum over stacks of y^T x, in their order, in the places of their windows.
void weight_gradient(const std::vector<Work>& works, const Tensor& into, bool adding) {
  struct Tile {
    Places outputs, inputs;
  };
  std::vector<Tile> tiles;
  for (const Places& outputs : gather::pieces_of({0, into.size(0)}, kTileOutputs)) {
    for (const Places& inputs : gather::pieces_of({0, into.size(1)}, kTileInputs)) {
      tiles.push_back({outputs, inputs});
    }
  }
  struct Term {
    const Work* work;
    int64_t rows;
    Places outputs, inputs;
  };
  torch_parallel_tasks(static_cast<int64_t>(tiles.size()), [&](int64_t t) {
    const Tile& tile = tiles[t];
    std::vector<Term> terms;
    for (const Work& work : works) {
      const Places inputs = gather::common(work.stack.inputs, tile.inputs);
      for (const Band& band : work.stack.bands) {
        const Places outputs = gather::common(band.outputs, tile.outputs);
        if (outputs.count > 0 && inputs.count > 0) {
          terms.push_back({&work, band.rows, outputs, inputs});
        }
      }
    }
    // A product that fills the tile goes first and needs no zeros.
    const auto whole = std::find_if(terms.begin(), terms.end(), [&](const Term& term) {
      return term.outputs.count == tile.outputs.count && term.inputs.count == tile.inputs.count;
    });
    const bool filled = !adding && whole != terms.end();
    if (filled) std::rotate(terms.begin(), whole, whole + 1);
    if (!adding && !filled) gather::clear(into, tile.outputs, tile.inputs);
    for (const Term& term : terms) {
      const Work& work = *term.work;
      const Places rows{0, term.rows};
      const Places inputs{term.inputs.begin - work.stack.inputs.begin, term.inputs.count};
      const Tensor at = block(into, term.outputs, term.inputs);
      const Tensor from = block(work.y, rows, work.columns(term.outputs), true);
      const Tensor values = block(work.x, rows, inputs);
      if (filled && &term == &terms.front()) product(at, from, values);
      else product(at, at, from, values);
    }
  });
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
  const auto stacks = gather::stacks_of(subnets);
  std::vector<Work> works;
  for (const Stack& stack : stacks) {
    works.push_back({stack, stacked(stack, x, stack.inputs.count),
                     room(stack, y, stack.outputs.count), Tensor()});
  }
  outputs_of(works, weight, shift);
  for (const Work& work : works) distribute(work.stack, work.y, y);
  return y;
}

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
  gather::check_gradients(op, d, x, subnets);
  SIGEO_CHECK(need.size() == 3, op, ": need must be 3 flags, got ", need.size());
  const auto nothing = [&] { return gather::room_for(weight, Sizes{0}); };
  Tensors into_x;
  for (size_t s = 0; need[0] && s < x.size(); ++s) {
    into_x.push_back(gather::room_for(x[s], sizes_of(x[s])));
  }
  const auto stacks = gather::stacks_of(subnets);
  std::vector<Work> works;
  for (const Stack& stack : stacks) {
    if (!need[0] && !need[1]) break;
    works.push_back({stack, need[1] ? stacked(stack, x, stack.inputs.count) : Tensor(),
                     stacked(stack, d, stack.outputs.count),
                     need[0] ? room(stack, into_x, stack.inputs.count) : Tensor()});
  }
  if (need[0]) {
    input_gradients(works, weight);
    for (const Work& work : works) distribute(work.stack, work.into_x, into_x);
  }
  const Tensor into_weight = need[1] ? torch::stable::empty_like(weight) : nothing();
  if (need[1]) weight_gradient(works, into_weight, false);
  return {into_x, into_weight, need[2] ? bias_gradient(d, weight, subnets) : nothing()};
}

void linear_accumulate(Tensors d, Tensors x, Tensor into, Sizes outputs, Sizes inputs) {
  const char* op = "gather_grouped_linear_accumulate";
  const auto subnets = subnets_of(op, x, into, outputs, inputs);
  gather::check_gradients(op, d, x, subnets);
  const auto stacks = gather::stacks_of(subnets);
  std::vector<Work> works;
  for (const Stack& stack : stacks) {
    works.push_back({stack, stacked(stack, x, stack.inputs.count),
                     stacked(stack, d, stack.outputs.count), Tensor()});
  }
  weight_gradient(works, into, true);
}

}  // namespace
}  // namespace sigeo_ext

STABLE_TORCH_LIBRARY_IMPL(sigeo_ext, CPU, m) {
  m.impl("gather_grouped_linear", TORCH_BOX(&sigeo_ext::linear));
  m.impl("gather_grouped_linear_backward", TORCH_BOX(&sigeo_ext::linear_backward));
  m.impl("gather_grouped_linear_accumulate", TORCH_BOX(&sigeo_ext::linear_accumulate));
}
