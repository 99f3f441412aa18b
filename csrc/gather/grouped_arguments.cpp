#include "gather/grouped_arguments.h"

#include <string>

#include "common/check.h"

namespace sigeo_ext::gather {
namespace {

// A subnet's window [begin, count] among those of all, end to end.
Places window_of(const char* op, const char* name, const Sizes& windows, size_t subnet,
                 int64_t size) {
  const Places places{windows[2 * subnet], windows[2 * subnet + 1]};
  const bool fits = places.begin >= 0 && places.count >= 0 && places.begin <= size - places.count;
  SIGEO_CHECK(fits, op, ": ", name, "[", subnet, "] must be a window of ", size, " places");
  return places;
}

void check_width(const char* op, const char* name, size_t subnet, const Tensor& x,
                 const Places& places) {
  SIGEO_CHECK(x.dim() > 0 && x.size(x.dim() - 1) == places.count, op, ": ", name, "[", subnet,
              "] must have the selected ", places.count, " values in dimension -1, got ",
              x.dim() > 0 ? std::to_string(x.size(x.dim() - 1)) : "none");
}

}  // namespace

std::vector<Subnet> subnets_of(const char* op, const Tensors& x, const Sizes& size,
                               const Sizes& outputs, const Sizes& inputs) {
  SIGEO_CHECK(outputs.size() == 2 * x.size() && inputs.size() == 2 * x.size(), op,
              ": outputs and inputs must be a window each for ", x.size(), " subnets, got ",
              outputs.size(), " and ", inputs.size(), " numbers");
  std::vector<Subnet> subnets(x.size());
  for (size_t s = 0; s < x.size(); ++s) {
    Subnet& subnet = subnets[s];
    subnet.outputs = window_of(op, "outputs", outputs, s, size[0]);
    subnet.inputs = window_of(op, "inputs", inputs, s, size[1]);
    check_width(op, "x", s, x[s], subnet.inputs);
    subnet.rows = 1;
    for (int64_t d = 0; d < x[s].dim() - 1; ++d) subnet.rows *= x[s].size(d);
  }
  return subnets;
}

void check_gradients(const char* op, const Tensors& d, const Tensors& x,
                     const std::vector<Subnet>& subnets) {
  SIGEO_CHECK(d.size() == x.size(), op, ": d must hold one tensor a subnet, ", x.size(), ", got ",
              d.size());
  for (size_t s = 0; s < d.size(); ++s) {
    check_width(op, "d", s, d[s], subnets[s].outputs);
    SIGEO_CHECK(d[s].scalar_type() == x[s].scalar_type(), op, ": d[", s, "] must be ",
                torch::headeronly::toString(x[s].scalar_type()), " like x[", s, "], got ",
                torch::headeronly::toString(d[s].scalar_type()));
    const int64_t rows =
        subnets[s].outputs.count == 0 ? subnets[s].rows : d[s].numel() / subnets[s].outputs.count;
    SIGEO_CHECK(rows == subnets[s].rows, op, ": d[", s, "] must have the ", subnets[s].rows,
                " rows of x[", s, "], got ", rows);
  }
}

}  // namespace sigeo_ext::gather
