// The cells of several subnets in one call: nodes that are sums of convolutions with a norm, of
// poolings and of earlier nodes themselves.
//
// The convolutions are the framework's. Everything between them is one pass a node: the norms and
// the sum forward, the norms' gradients and the sum with the ReLU's cut backward. Subnets go one
// after another, so that a subnet's nodes are in the cache when they are read again.
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "common/check.h"
#include "gather/cell_backward.h"
#include "gather/cell_forward.h"

namespace sigeo_ext {
namespace {

using gather::Edge;
using torch::headeronly::ScalarType;

std::vector<Edge> edges_of(const char* op, const Sizes& flat, int64_t subnets, int64_t nodes,
                           const Tensors& weight) {
  SIGEO_CHECK(flat.size() % gather::kEdgeNumbers == 0, op, ": edges must hold ",
              gather::kEdgeNumbers, " numbers an edge, got ", flat.size());
  SIGEO_CHECK(nodes > 1, op, ": nodes must be at least 2, got ", nodes);
  std::vector<Edge> edges;
  std::set<std::pair<int64_t, int64_t>> rows;  // each is one edge's: its gradient is written once
  for (size_t i = 0; i < flat.size(); i += gather::kEdgeNumbers) {
    const int64_t* n = &flat[i];
    const Edge edge{n[0], n[1], n[2], n[3], n[4], n[5], n[6]};
    const bool inside = edge.subnet >= 0 && edge.subnet < subnets && edge.source >= 0 &&
                        edge.source < edge.target && edge.target < nodes;
    const bool known =
        edge.slot >= gather::kPool && edge.slot < static_cast<int64_t>(weight.size());
    const bool held =
        !edge.convolves() || (known && edge.row >= 0 && edge.row < weight[edge.slot].size(0) &&
                              rows.insert({edge.slot, edge.row}).second);
    const bool ordered = edges.empty() || edge.subnet > edges.back().subnet ||
                         (edge.subnet == edges.back().subnet && edge.target >= edges.back().target);
    SIGEO_CHECK(inside && known && held && ordered, op, ": edges[", edges.size(),
                "] must be (subnet, source, target, slot, row, given, gives), of ", subnets,
                " subnets, ", nodes, " nodes and ", weight.size(),
                " slots, sorted by subnet and target, each slot's row once");
    edges.push_back(edge);
  }
  return edges;
}

void check_arguments(const char* op, const Tensor& x, const Tensors& weight, const Tensors& scale,
                     const Tensors& shift) {
  const bool wide = x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double;
  SIGEO_CHECK(x.dim() == 5 && wide, op,
              ": x must be float32 or float64 [subnets, B, H, W, channels], got ", form_text(x));
  SIGEO_CHECK(scale.size() == weight.size() && shift.size() == weight.size(), op,
              ": scale and shift must hold one tensor a slot, ", weight.size(), ", got ",
              scale.size(), " and ", shift.size());
  const int64_t channels = x.size(4);
  const char* dtype = torch::headeronly::toString(x.scalar_type());
  for (size_t slot = 0; slot < weight.size(); ++slot) {
    const Tensor& w = weight[slot];
    const bool square = w.dim() == 5 && w.size(1) == channels && w.size(2) == channels &&
                        w.size(3) == w.size(4) && w.size(3) % 2 == 1;
    SIGEO_CHECK(square && w.scalar_type() == x.scalar_type(), op, ": weight[", slot, "] must be ",
                dtype, " [rows, ", channels, ", ", channels, ", k, k] like x, k odd, got ",
                form_text(w));
    for (const auto& [name, rows] :
         {std::pair("scale", &scale[slot]), std::pair("shift", &shift[slot])}) {
      const bool fits = rows->dim() == 2 && rows->size(0) == w.size(0) &&
                        rows->size(1) == channels && rows->scalar_type() == x.scalar_type();
      SIGEO_CHECK(fits, op, ": ", name, "[", slot, "] must be ", dtype, " [", w.size(0), ", ",
                  channels, "] like x, got ", form_text(*rows));
    }
  }
}

void check_kept(const char* op, const Tensor& d, const std::vector<Edge>& edges,
                const Tensors& kept) {
  const gather::KeptPlan plan(edges);
  bool whole = static_cast<int64_t>(kept.size()) == plan.images + 2;
  for (size_t i = 0; whole && i < kept.size(); ++i) {
    const bool image = static_cast<int64_t>(i) < plan.images;
    const int64_t block = d.size(0) == 0 ? 0 : d.numel() / d.size(0);
    whole = kept[i].numel() == (image ? block : plan.rows * d.size(4)) && kept[i].is_contiguous() &&
            kept[i].scalar_type() == d.scalar_type();
  }
  SIGEO_CHECK(whole, op, ": kept must be what gather_cell gave for these edges, ", plan.images + 2,
              " tensors");
}

std::tuple<Tensor, Tensors> cell(Tensor x, Tensors weight, Tensors scale, Tensors shift,
                                 Sizes edges, int64_t nodes, double eps) {
  const char* op = "gather_cell";
  check_arguments(op, x, weight, scale, shift);
  const auto list = edges_of(op, edges, x.size(0), nodes, weight);
  const auto run = [&]<class T>(T) -> std::tuple<Tensor, Tensors> {
    gather::CellForward<T> forward(x, weight, scale, shift, list, nodes, eps);
    forward.run();
    return {forward.y, forward.kept};
  };
  return x.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
}

std::tuple<Tensor, Tensors, Tensors, Tensors> cell_backward(Tensor d, Tensors weight, Tensors scale,
                                                            Tensors kept, Sizes edges,
                                                            int64_t nodes) {
  const char* op = "gather_cell_backward";
  check_arguments(op, d, weight, scale, scale);
  const auto list = edges_of(op, edges, d.size(0), nodes, weight);
  check_kept(op, d, list, kept);
  const auto run = [&]<class T>(T) -> std::tuple<Tensor, Tensors, Tensors, Tensors> {
    gather::CellBackward<T> backward(d, weight, scale, kept, list, nodes);
    backward.run();
    return {backward.into_x, backward.into_weight, backward.into_scale, backward.into_shift};
  };
  return d.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
}

}  // namespace
}  // namespace sigeo_ext

STABLE_TORCH_LIBRARY_IMPL(sigeo_ext, CPU, m) {
  m.impl("gather_cell", TORCH_BOX(&sigeo_ext::cell));
  m.impl("gather_cell_backward", TORCH_BOX(&sigeo_ext::cell_backward));
}
